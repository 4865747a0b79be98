"""The picture at the top of README.md, made by the shipped student."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = (
    "a red cube",
    "a blue pyramid",
    "a yellow torus",
    "a purple cone",
    "a white cross",
    "an orange disk",
    "a yellow torus on a green sphere",
    "a red cube on a blue wedge",
    "a green pyramid on a blue torus",
    "a white disk on a red cross",
    "a cyan sphere on a green cone",
    "a red cone on a purple cross",
)


def main() -> None:
    """Six columns, one view a prompt."""
    import torch

    from triplaneturbo import TextToMeshPipeline
    from triplaneturbo.exporters.render import render_turntable, save_picture

    pipe = TextToMeshPipeline.from_pretrained(ROOT / "load" / "shapeworld")
    views = [render_turntable(mesh, n_views=8, size=256)[1].cpu() for mesh in pipe(PROMPTS, seed=0).meshes]
    save_picture(ROOT / "assets" / "shapeworld.png", torch.stack(views), columns=6)
    print("wrote assets/shapeworld.png:", "; ".join(PROMPTS))


if __name__ == "__main__":
    main()
