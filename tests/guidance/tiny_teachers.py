"""What tiny teachers (tests/miniature.py) look at: cameras, texts, pictures."""

import json
from pathlib import Path

import torch

from custom.shapeworld.models import TEXT_WIDTH
from triplaneturbo.cameras import orbit_cameras
from triplaneturbo.types import Cameras, TextStates, Views
from triplaneturbo.weights.ldm import LDM_SCHEDULE


def write_scheduler(folder: Path, prediction_type: str = "epsilon") -> None:
    (folder / "scheduler").mkdir(parents=True)
    config = LDM_SCHEDULE | {"prediction_type": prediction_type}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))


def make_teachers(folders: dict[str, str], *names: str, **options: dict) -> dict[str, dict]:
    """Options of the teachers `names` (all: rd, mv, sd), with what `options` says about each or about `every` one.

    They are told what `second` says, RichDreamer what `first` does.
    """
    sizes = {
        "rd": ("richdreamer", 8, "first"),
        "mv": ("mvdream", 16, "second"),
        "sd": ("stable-diffusion", 24, "second"),
    }
    usual = {"rule": {"type": "asd", "weighting": "dmd", "eps": 0.1}, **options.get("every", {})}
    teachers = {}
    for name in names or sizes:
        kind, size, condition = sizes[name]
        own = {"type": kind, "path": folders[name], "image_size": size, "condition": condition}
        teachers[name] = own | usual | options.get(name, {})
    return teachers


def make_cameras(n_prompts: int, n_view: int = 4) -> Cameras:
    n = n_prompts * n_view
    azimuth = torch.arange(n) * (360 / n_view) + 11.0 * (torch.arange(n) // n_view)
    return orbit_cameras(
        torch.full((n,), 15.0), azimuth, torch.full((n,), 0.9), torch.full((n,), 60.0), n_view=n_view, relative=True
    )


def make_texts(n_prompts: int, seed: int = 0) -> dict[str, TextStates]:
    """What two encoders say, `first` and `second`."""
    generator = torch.Generator().manual_seed(seed)

    def states() -> TextStates:
        draw = [torch.randn(n, 5, TEXT_WIDTH, generator=generator) for n in (n_prompts, 1, 1)]
        return TextStates(tokens=draw[0], pooled=draw[0][:, -1], negative=draw[1], empty=draw[2])

    return {name: states() for name in ("first", "second")}


def make_views(n: int, size: int = 12, seed: int = 0) -> Views:
    generator = torch.Generator().manual_seed(seed)
    rgb, normal, disparity = (torch.rand(n, size, size, c, generator=generator) for c in (3, 3, 1))
    return Views(rgb=rgb, normal=normal, disparity=disparity, opacity=disparity, depth=disparity)
