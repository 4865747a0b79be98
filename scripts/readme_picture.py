"""Pictures of the documents: what the shipped student makes, above the truth, and what the miniature world has."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = (
    "a blue sphere",
    "a red torus",
    "a striped white cone",
    "a tall brown sphere",
    "a flat blue cube",
    "a cyan frame on an orange diamond",
    "a striped blue arch under a tall white torus",
    "a flat cyan sphere on a striped green wedge",
    "a tall brown wedge under a flat purple cross",
    "a yellow pyramid on a tall dotted pink wedge",
    "a tall green cylinder under a yellow pyramid beside a flat white cylinder",
    "a dotted purple cross",
)
RELATIONS = (
    "a red cube on a striped blue cylinder",
    "a purple pyramid under a yellow torus",
    "a small dotted red sphere beside a white arch",
    "a white star on a brown dome on a striped red cube",
    "a green diamond under a pink cross beside a dotted orange capsule",
    "a flat cyan wedge beside a small tall white cone",
    "a tall blue frame beside a red eight",
    "a striped orange torus on a green cone",
)


def main() -> None:
    """assets/shapeworld.png: six columns, a view a prompt, the exact solids below. assets/shapeworld_world.png: shapes,
    as they are, striped and tall, dotted and flat, and relations, eight columns."""
    import torch

    from triplaneturbo import TextToMeshPipeline
    from triplaneturbo.cameras import orbit_cameras
    from triplaneturbo.evaluation.world import PALETTE, SHAPES, parse_caption, render
    from triplaneturbo.exporters.render import look_at, save_picture

    view = (torch.tensor([value]) for value in (25.0, 40.0, 1.45, 60.0))
    camera = orbit_cameras(*view, n_view=1, relative=False)

    def exact(caption: str, size: int) -> torch.Tensor:
        return render([parse_caption(caption)], camera, size, supersample=3, background=1.0).rgb[0]

    pipe = TextToMeshPipeline.from_pretrained(ROOT / "load" / "shapeworld")
    made = [look_at(mesh.to("cpu"), camera, 480).pictures(1.0, pool=3)[0] for mesh in pipe(PROMPTS, seed=0).meshes]
    true = [exact(prompt, 160) for prompt in PROMPTS]
    rows = [picture for k in range(0, len(PROMPTS), 6) for picture in (*made[k : k + 6], *true[k : k + 6])]
    save_picture(ROOT / "assets" / "shapeworld.png", torch.stack(rows), columns=6)

    colors = [list(PALETTE)[k % len(PALETTE)] for k in range(len(SHAPES))]
    kinds = ("{} {}", "tall striped {} {}", "flat dotted {} {}")
    named = list(zip(colors, SHAPES, strict=True))
    captions = [f"a {kind.format(*pair)}" for kind in kinds for pair in named]
    captions = [caption.replace("a orange", "an orange") for caption in captions]
    world = [exact(caption, 96) for caption in (*captions, *RELATIONS)]
    save_picture(ROOT / "assets" / "shapeworld_world.png", torch.stack(world), columns=8)
    print("wrote assets/shapeworld.png:", "; ".join(PROMPTS))


if __name__ == "__main__":
    main()
