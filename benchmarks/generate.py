"""Time and memory from text to mesh, stage by stage.

    python -m benchmarks.generate --pretrained pretrained [--json FILE]
    python -m benchmarks.generate --world [--json FILE]

The first takes the published recipe at full size; with random weights (scripts/prepare/random_weights.py --out
pretrained) as well as with the published ones, since no time but that of the surface depends on them. The second takes
the shipped student of the miniature world, on the CPU if there is no GPU. Everything is measured with the weights
loaded, after a first prompt that records and compiles; each prompt is new. A batch is measured for each of --prompts;
`mesh in memory` is the whole of a call, `file` writes its meshes as GLB files. Of several batches and grids a table is
printed at the end; in the JSON file a stage is named BATCH@GRID/NAME.

    --compare 8    first makes the meshes of 8 prompts, and says how far they lie from those of reference in float32
"""

import argparse
import itertools
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measuring import Timing, measure, require_new, write_json
from triplaneturbo.config import read_config
from triplaneturbo.evaluation.stand_in_recipe import PROMPTS, stand_in_overrides, write_prompts
from triplaneturbo.exporters.files import write_mesh
from triplaneturbo.graphs import GraphReplay
from triplaneturbo.performance import Performance, graphs_run_on, use
from triplaneturbo.pipelines.text_to_mesh import TextToMeshPipeline, of_training
from triplaneturbo.types import TextStates

ROOT = Path(__file__).resolve().parents[1]
FULL = ROOT / "configs" / "TriplaneTurbo_v1_acc-2.yaml"
WORLD = ROOT / "load" / "shapeworld"
WORLD_PROMPTS = ("a red cube", "a blue torus", "a green cone", "a yellow sphere on a purple cube")


def build(flags: argparse.Namespace) -> TextToMeshPipeline:
    """The pipeline that is measured, with its weights."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if flags.world:
        return TextToMeshPipeline.from_pretrained(WORLD, device)
    flags.out.mkdir(parents=True, exist_ok=True)
    write_prompts(flags.out)
    overrides = stand_in_overrides(flags.pretrained, flags.out, tiny=flags.tiny)
    config = of_training(read_config([FULL], overrides).tree)
    base = config.geometry["space_generator"]["pretrained_model_name_or_path"]
    return TextToMeshPipeline(config, base, flags.pretrained / "triplane_turbo_sd_v1.pth").to(device)


def vertices_of(flags: argparse.Namespace, performance: Performance) -> list[Tensor]:
    """Of the meshes of the first prompts, made one by one with noise of their own; in voxels."""
    use(performance)
    pipeline = build(flags)
    resolution = flags.resolution[0] if flags.resolution else pipeline.config.resolution
    voxel = 2 * pipeline.geometry.field.radius / (resolution - 1)
    texts = itertools.islice(itertools.cycle(flags.texts), flags.compare)
    return [pipeline(text, seed=n, resolution=resolution).meshes[0].vertices / voxel for n, text in enumerate(texts)]


def distances(a: Tensor, b: Tensor) -> Tensor:
    """From each vertex of either mesh to the nearest of the other, which is at least the distance to its surface."""
    near = [torch.cdist(part, other).amin(1) for one, other in ((a, b), (b, a)) for part in one.split(4096)]
    return torch.cat(near)


def compare_meshes(flags: argparse.Namespace) -> dict[str, list[float]]:
    """Of each prompt: how many voxels apart this level's mesh and that of reference in float32 lie."""
    found, true = (vertices_of(flags, p) for p in (Performance(flags.performance), Performance("reference", 32)))
    apart = [distances(a, b).sort().values for a, b in zip(found, true, strict=True)]
    rows = {
        name: [float(d[int(share * (len(d) - 1))]) for d in apart]
        for name, share in (("median", 0.5), ("99 of 100", 0.99), ("largest", 1.0))
    }
    for name, values in rows.items():
        print(f"voxels apart, {name}: " + " ".join(f"{value:.3f}" for value in values))
    return rows


@torch.no_grad()
def stages(flags: argparse.Namespace, pipeline: TextToMeshPipeline, count: int, resolution: int) -> dict[str, Timing]:
    """Each part by itself, and the whole, of `count` prompts at once."""
    texts = (f"{text}, number {n}" for n in itertools.count() for text in flags.texts)

    def take() -> tuple[str, ...]:
        return tuple(itertools.islice(texts, count))

    geometry, generator = pipeline.geometry, pipeline.geometry.space_generator
    tokens, pooled = pipeline.text_encoder.encode(take())
    condition, noise = TextStates(tokens, pooled, tokens[:1], tokens[:1]), pipeline._noise([0] * count)
    scene, latents = geometry.generate(condition, noise), generator.sample(tokens, noise)
    found = {"text": measure(lambda: pipeline.text_encoder.encode(take()), repeats=flags.repeats)}
    parts = {
        "denoise": (lambda text, noise: generator.sample(text, noise), (tokens, noise)),
        "decode": (lambda latents: generator.decode(latents, split=geometry.cfg.split_channels), (latents,)),
    }
    for name, (work, arguments) in parts.items():
        replay = GraphReplay() if graphs_run_on(pipeline.device) else lambda work, arguments, key: work(*arguments)
        found[name] = measure(lambda r=replay, w=work, a=arguments: r(w, a, 0), repeats=flags.repeats)
    found["grid"] = measure(lambda: scene.grid(resolution), repeats=flags.repeats)
    meshes = pipeline.extract(flags.texts[:1] * count, scene, resolution=resolution)
    found["surface and colours"] = measure(
        lambda: pipeline.extract(flags.texts[:1] * count, scene, resolution=resolution), repeats=flags.repeats
    )
    colors = [mesh.surface.colors for mesh in meshes if mesh.surface is not None]
    found["colours"] = measure(
        lambda: [color(mesh.vertices) for color, mesh in zip(colors, meshes, strict=True)], repeats=flags.repeats
    )
    found["mesh in memory"] = measure(lambda: pipeline(take(), resolution=resolution), repeats=flags.repeats)
    with tempfile.TemporaryDirectory() as folder:

        def write() -> None:
            for number, mesh in enumerate(meshes):
                one = type(mesh)(mesh.vertices, mesh.faces, mesh.colors)
                write_mesh(Path(folder) / f"{number}.glb", one)

        found["file"] = measure(write, repeats=flags.repeats)
    faces = sum(len(mesh.faces) for mesh in meshes)
    print(f"\n{count} prompts at {resolution}^3, {faces} faces, performance={flags.performance}")
    for name, stage in found.items():
        print(f"  {name:20} {1000 * stage.median_s:8.1f} ms  ({1000 * stage.min_s:.1f} to {1000 * stage.max_s:.1f})")
    print(f"  meshes a second      {count / found['mesh in memory'].median_s:8.1f}")
    print(f"  peak memory          {found['mesh in memory'].peak_bytes / 2**30:8.2f} GiB")
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", action="store_true", help="the miniature world in place of full size")
    parser.add_argument("--pretrained", type=Path, default=Path("pretrained"), help="folder of the full-size weights")
    parser.add_argument("--tiny", action="store_true", help="the weights are those of random_weights.py --width tiny")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 4], metavar="N", help="batches to measure")
    parser.add_argument(
        "--resolution", type=int, nargs="+", metavar="N", help="grid points along an edge; default: as trained"
    )
    parser.add_argument("--compare", type=int, default=0, metavar="N", help="compare the meshes of N prompts first")
    parser.add_argument("--performance", choices=("reference", "fast", "max"), default="fast")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args(arguments)
    flags.pretrained, flags.out = flags.pretrained.resolve(), flags.out.resolve()
    flags.texts = WORLD_PROMPTS if flags.world else PROMPTS
    return flags


def main(arguments: list[str] | None = None) -> int:
    """Measure each batch on each grid; the last of them is `total` in the file."""
    flags = parse(arguments)
    require_new(flags.json)
    apart = compare_meshes(flags) if flags.compare else {}
    use(Performance(flags.performance))
    pipeline = build(flags)
    resolutions = flags.resolution or [pipeline.config.resolution]
    cases = list(itertools.product(flags.prompts, resolutions))
    found = {case: stages(flags, pipeline, *case) for case in cases}
    if len(cases) > 1:
        print("\n| prompts | grid | median, ms | meshes a second | memory, GiB |\n|--:|--:|--:|--:|--:|")
        for (count, size), of_case in found.items():
            whole = of_case["mesh in memory"]
            memory, seconds = whole.peak_bytes / 2**30, whole.median_s
            print(f"| {count} | {size} | {1000 * seconds:.1f} | {count / seconds:.1f} | {memory:.2f} |")
    if flags.json:
        rows = {f"{n}@{size}/{name}": stage for (n, size), some in found.items() for name, stage in some.items()}
        config = {"performance": flags.performance, "world": flags.world, "resolution": resolutions}
        write_json(flags.json, config, rows, found[cases[-1]]["mesh in memory"], voxels_apart=apart)
    return 0


if __name__ == "__main__":
    sys.exit(main())
