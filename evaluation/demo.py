"""The demonstration: three prompts with the shipped student, then one prompt from fresh adapters: see scripts/demo.py.

Everything happens in the miniature world, whose exact solids say how good a mesh is: IoU of the occupancy of a 64^3
grid.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

from transformers.utils import logging as transformers_logging

from triplaneturbo import TextToMeshPipeline
from triplaneturbo.cli import launch
from triplaneturbo.errors import WeightsError
from triplaneturbo.exporters.files import read_mesh
from triplaneturbo.naming import slug
from triplaneturbo.places import PROJECT, RECIPES
from triplaneturbo.types import Mesh

from .world import SHAPES, Part, Solid, best_constant, iou, mesh_occupancy, parse_caption, solid_occupancy

STUDENT = PROJECT / "load" / "shapeworld"
TRAINING = RECIPES / "shapeworld" / "prd_one_prompt.yaml"
# A prompt of the student, a colour and shape it never saw together, and two shapes it never saw in this order.
PROMPTS = ("a blue sphere", "a red cube", "a red star on a pink cube")
TRAINED_PROMPT = "a yellow torus"


def exact_iou(mesh: Mesh, prompt: str) -> float:
    """IoU of a mesh with the exact solid of its prompt."""
    return iou(mesh_occupancy(mesh), solid_occupancy([parse_caption(prompt)])[0]).item()


def best_constant_iou(prompt: str) -> float:
    """IoU with `prompt` of the one mesh that fits all shapes best."""
    constant, _ = best_constant(solid_occupancy([Solid((Part(shape, "red"),)) for shape in SHAPES]))
    return iou(constant, solid_occupancy([parse_caption(prompt)])[0]).item()


def generate(student: Path, out: Path) -> None:
    """Write GLB and picture of PROMPTS into a folder each."""
    if not (student / "pipeline.json").is_file():
        raise WeightsError(f"{student} has no pipeline.json: scripts/train/shapeworld.sh trains the networks it needs")
    pipe = TextToMeshPipeline.from_pretrained(student)
    print(f"1. Three prompts, {pipe.config.num_inference_steps} steps each, on {pipe.device}\n")
    print(f"   {'prompt':36}{'seconds':>8}{'faces':>8}{'IoU':>7}   files")
    for prompt in PROMPTS:
        start = time.perf_counter()
        output = pipe(prompt, seed=0)
        seconds = time.perf_counter() - start
        (path,) = output.export_all(out, overwrite=True)
        mesh = Mesh(*(tensor.cpu() for tensor in (output.meshes[0].vertices, output.meshes[0].faces)))
        where = f"{path}, turntable.png"
        print(f"   {prompt:36}{seconds:8.2f}{len(mesh.faces):8}{exact_iou(mesh, prompt):7.3f}   {where}", flush=True)


def train(out: Path, minutes: float, overrides: list[str]) -> None:
    """Train TRAINED_PROMPT from fresh adapters and compare its mesh before and after with the exact solid."""
    print(
        f"\n2. Training {TRAINED_PROMPT!r} from fresh adapters, without 3D data, for {minutes:g} minutes\n", flush=True
    )
    options = [f"exp_root_dir={out}", "name=training", "tag=one_prompt", "use_timestamp=false", *overrides]
    _launch("--export", "--overwrite", "--out", str(out / "before"), *options)
    seconds = round(minutes * 60)
    limit = f"00:{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    start = time.perf_counter()
    _launch("--train", f"trainer.max_time={limit}", "trainer.limit_test_batches=0", *options)
    elapsed = time.perf_counter() - start
    checkpoint = out / "training" / "one_prompt" / "ckpts" / "last.ckpt"
    _launch("--export", "--overwrite", "--out", str(out / "after"), f"resume={checkpoint}", *options)
    print(f"   {TRAINED_PROMPT}{'':20}IoU with the exact solid")
    for when in ("before", "after"):
        path = out / when / slug(TRAINED_PROMPT) / "model.glb"
        print(f"   {when + ' training':34}{exact_iou(read_mesh(path), TRAINED_PROMPT):.3f}   {path}")
    print(f"   {'best mesh that ignores the prompt':34}{best_constant_iou(TRAINED_PROMPT):.3f}")
    print(f"\n   training took {elapsed:.0f} s, start-up included; go on with resume={checkpoint}")


def _launch(*arguments: str) -> None:
    command = ["--config", str(TRAINING), "--prompt", TRAINED_PROMPT, *arguments]
    print("   $ python launch.py", shlex.join(command), flush=True)
    if code := launch(command):
        sys.exit(code)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--student", type=Path, default=STUDENT, help="pipeline folder")
    parser.add_argument("--minutes", type=float, default=3.8, help="of training; 0 leaves it out")
    parser.add_argument("overrides", nargs="*", help="key=value for the training")
    given = parser.parse_args(arguments)
    transformers_logging.disable_progress_bar()
    try:
        generate(given.student, given.out.resolve())
    except WeightsError as error:
        sys.exit(f"demo: {error}")
    if given.minutes:
        train(given.out.resolve(), given.minutes, given.overrides)
