"""Run ScaleDreamer's eight recipes at full size with random stand-ins for the weights: what they take, how they resume.

    python scripts/test/full_size_scaledreamer.py --out outputs/full_size_scaledreamer [--recipes NAME ...] [-- K=V ...]

Of each recipe --steps optimizer steps; the same, killed (SIGKILL) after the checkpoint of the middle step and resumed;
and both loss logs and the final weights compared, which are equal bit for bit (trainer.deterministic=true). --jobs
trainings load at the same time, but only one of them trains, so that its steps are measured alone on its device.

Everything goes to --out, a folder for each recipe; OUT/report.json and OUT/report.md are made anew after each. What
does not end within --minutes is killed, and reported so far. Recipes that are done are not run again.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from full_size import Session, Unfinished, parse_session, resume, say, train
from measured_launch import TURN

from triplaneturbo.evaluation.common import write_json
from triplaneturbo.evaluation.stand_in_recipe import PROMPTS

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "custom" / "scaledreamer" / "configs"
RECIPES = {path.stem: path for path in sorted(CONFIGS.glob("asd_*.yaml"))}
ASSETS = ("stable-diffusion-2-1-base", "sd-v2.1-base-4view.pt")
# Sizes that fit the stand-ins of `random_weights.py --width tiny`, by what a recipe's name says.
_TINY = (
    "data.ray_width=8",
    "data.ray_height=8",
    "system.renderers.volume.num_samples_per_ray=8",
    "system.background.encoding={n_levels: 2, log2_hashmap_size: 6}",
)
_TINY_GENERATORS = {
    "hyper": (
        "system.geometry.hypernet.text_width=32",
        "system.geometry.field.encoding={n_levels: 2, log2_hashmap_size: 6}",
        "system.background.hypernet.text_width=32",
    ),
    "3dconv": ("system.geometry.space_generator={text_width: 32, style_width: 8, widths: [8, 8]}",),
    "transformer": (
        "system.geometry.space_generator={text_width: 32, width: 16, n_heads: 2, n_layers: 1, token_resolution: 4}",
        "system.background.encoding=null",
    ),
    "nerf": ("system.geometry.field.encoding={n_levels: 2, log2_hashmap_size: 6}",),
}


class Recipe(Session):
    """The trainings of one recipe."""

    def overrides(self) -> list[str]:
        name, flags = self.flags.config.stem, self.flags
        base, mvdream = (flags.pretrained / asset for asset in ASSETS)
        single = "nerf" in name
        teacher = "mvdream" if "_mv_" in name else "stable_diffusion"
        given = [
            *(f"--prompt={prompt}" for prompt in PROMPTS[: 1 if single else None]),
            f"data.conditions.text.pretrained_model_name_or_path={base}",
            f"system.guidance.teachers.{teacher}.path={mvdream if teacher == 'mvdream' else base}",
            "trainer.deterministic=true",
        ]
        if flags.width == "tiny":
            (own,) = (words for kind, words in _TINY_GENERATORS.items() if kind in name)
            given += [*_TINY, *own, f"system.guidance.teachers.{teacher}.image_size=64"]
        return [*given, *flags.overrides]


def run(recipe: Recipe) -> dict[str, Any]:
    """Train, kill and resume; the folder of the recipe remembers what was found."""
    kept = recipe.out / "report.json"
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    recipe.out.mkdir(parents=True, exist_ok=True)
    found = recipe.report
    try:
        found["train"] = train(recipe)
        if "problem" not in found["train"]:
            found["resume"] = resume(recipe)
    except Unfinished as problem:
        found["resume"] = {"problem": str(problem)}
    if good(found):
        write_json(kept, found)
    return found


def good(found: Mapping[str, Any]) -> bool:
    """Whether all steps were made, and the resumed run is the unbroken one."""
    resumed = found.get("resume", {})
    parts = (found["train"], resumed)
    same = (resumed.get(name, {}).get("equal") for name in ("before_the_kill", "after_the_kill", "final_weights"))
    return all("problem" not in part for part in parts) and all(same)


def markdown(report: Mapping[str, Any]) -> str:
    """A row for each recipe, then what went wrong."""
    lines = [
        f"# ScaleDreamer's recipes at full size, {report['device']}, torch {report['torch']}",
        "",
        f"{report['steps']} steps with random stand-ins for the weights, trainer.deterministic=true.",
        "",
        "| recipe | seconds a step | peak memory, GiB | first step after, s | killed after step | resumed run |",
        "|---|---|---|---|---|---|",
    ]
    problems = []
    for name, found in report["recipes"].items():
        trained, resumed = found["train"], found.get("resume", {})
        numbers = (_number(trained.get(key)) for key in ("seconds_a_step", "peak_gib", "first_step_after"))
        same = "equal bit for bit" if good(found) else "see below"
        lines.append(f"| `{name}` | {' | '.join(numbers)} | {resumed.get('killed_after', '')} | {same} |")
        if not good(found):
            problems += ["", f"{name}:", "", *(f"    {line}" for line in json.dumps(found, indent=1).splitlines())]
    return "\n".join([*lines, *problems, ""])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/full_size_scaledreamer"))
    parser.add_argument("--recipes", nargs="+", choices=tuple(RECIPES), default=tuple(RECIPES))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=9.0, help="of everything together")
    parser.add_argument("--jobs", type=int, default=3, help="recipes at a time")
    return parse_session(parser, arguments)


def session(flags: argparse.Namespace, name: str, deadline: float) -> Recipe:
    """The trainings of a recipe, in its folder."""
    own = argparse.Namespace(**{**vars(flags), "out": flags.out / name, "config": RECIPES[name]})
    return Recipe(own, deadline)


def main(arguments: list[str] | None = None) -> int:
    """Run the recipes; 1 if one of them did not end well."""
    flags = parse(arguments)
    flags.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * flags.minutes
    os.environ[TURN] = str(flags.out / "turn")
    if not flags.pretrained.is_dir():
        command = [sys.executable, "scripts/prepare/random_weights.py", "--out", str(flags.pretrained)]
        everything = argparse.Namespace(**{**vars(flags), "config": None})
        Session(everything, deadline).run([*command, "--width", flags.width, "--only", *ASSETS], "weights")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    report: dict[str, Any] = {"device": device, "torch": torch.__version__, "steps": flags.steps, "recipes": {}}
    with ThreadPoolExecutor(flags.jobs) as pool:
        names = {pool.submit(run, session(flags, name, deadline)): name for name in flags.recipes}
        for done in as_completed(names):
            report["recipes"][names[done]] = done.result()
            say(f"{names[done]}: {'done' if good(done.result()) else 'NOT as it should be'}")
            write_json(flags.out / "report.json", report)
            (flags.out / "report.md").write_text(markdown(report))
    print((flags.out / "report.md").read_text())
    return int(not all(map(good, report["recipes"].values())))


if __name__ == "__main__":
    sys.exit(main())
