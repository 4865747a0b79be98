"""Random cameras of the four data modules, and those of evaluation."""

from typing import Any

import pytest
import torch
from golden_case import Case
from recorded_draws import RecordedDraws
from torch import Tensor
from workbench import Workbench

from custom.scaledreamer.data import translate_data
from triplaneturbo.cameras import projection_matrices, ray_directions, turntable, world_to_clip
from triplaneturbo.data import prompts
from triplaneturbo.types import Cameras

# Near and far of the recorded projections: of single views and evaluation, of rings in training.
_PLANES, _PLANES_OF_RINGS = (0.01, 100.0), (0.1, 1000.0)
# Of the recorded draws, the names of ours.
_DRAWS = {
    "elevation_rand": "elevation",
    "azimuth_rand": "azimuth",
    "distance_rand": "distance",
    "fovy_rand": "fovy",
    "zoom_rand": "zoom",
    "camera_perturb_rand": "camera",
    "center_perturb_randn": "center",
    "up_perturb_randn": "up",
}


def camera_sampling(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The views of a batch of single ones are those of one prompt here, whatever prompts they show."""
    case.ignore(*(name for name in case.arrays if "light_" in name))  # materials are not lit
    options = {name: value for name, value in case.meta["data"].items() if name != "prompt_library"}
    block = translate_data(case.meta["module"], {**options, "prompts": ["a cube"]}, "data")
    cameras, ring = block["cameras"], block["cameras"]["ring"]
    cameras["quirks"] = ["first-step-at-rest", *(["sphere-by-percent"] if ring else [])]
    if not ring:
        cameras["n_view"] = block["batch_size"]
    del block["type"]
    data = prompts.PromptsAndCameras(block)
    samples = range(data.samples_per_batch)
    for number, (step, size) in enumerate(zip(case.meta["global_steps"], case.meta["sizes"], strict=True)):
        draws = _draws(case, f"step{number}_", len(samples))
        monkeypatch.setattr(prompts, "Draws", lambda *key, draws=draws: draws)
        with torch.device("cpu"):  # where the data module draws
            batch = data.training_batch(step, samples)
        case.require("sizes", [*batch.ray_size] == size)
        _compare(case, f"step{number}_", batch.cameras[0], size, _PLANES_OF_RINGS if ring else _PLANES, degrees=ring)
        _compare_prompts(case, f"step{number}_", len(samples) if ring else len(batch.cameras[0]))
    height, width = data.cfg.eval_size
    for stage, n_views in (("val", data.cfg.n_val_views), ("test", data.cfg.n_test_views)):
        (made,) = data.evaluation_batch(("a cube",), 0, n_views).cameras
        if stage == "test":  # the original's ends where it began
            made = turntable(
                n_views,
                elevation_deg=data.cfg.eval_elevation_deg,
                distance=data.cfg.eval_camera_distance,
                fovy_deg=data.cfg.eval_fovy_deg,
                repeat_first=True,
            )
        _compare(case, f"{stage}_", made, [height, width], _PLANES, degrees=False)


def _draws(case: Case, prefix: str, n_samples: int) -> RecordedDraws:
    streams: dict[str, Tensor] = {}
    for recorded, name in _DRAWS.items():
        if f"{prefix}{recorded}" in case:
            streams[f"cameras/0/{name}"] = case[f"{prefix}{recorded}"].unflatten(0, (n_samples, -1)).cpu()
    streams.setdefault("cameras/0/zoom", torch.zeros(n_samples, 1, device="cpu"))
    # Recorded is when the elevation is even in degrees: below 0.5.
    streams["cameras/0/sphere"] = (1 - case[f"{prefix}elevation_branch"]).expand(n_samples, 1).cpu()
    return RecordedDraws.of(streams, n_samples)


def _compare(
    case: Case, prefix: str, made: Cameras, size: list[int], planes: tuple[float, float], *, degrees: bool
) -> None:
    made = made.to(torch.get_default_device())
    aspect = size[1] / size[0]
    directions = ray_directions(made, *size)
    found: dict[str, Any] = {
        "c2w": made.c2w,
        "camera_positions": made.positions,
        "camera_distances": made.distance,
        "elevation": made.elevation_deg,
        "azimuth": made.azimuth_deg,
        "fovy": made.fovy.rad2deg() if degrees else made.fovy,
        "proj_mtx": projection_matrices(made, aspect, planes),
        "mvp_mtx": world_to_clip(made, aspect, planes),
    }
    for name, value in found.items():
        case.close(f"{prefix}{name}", value, 2e-6)
    for name, value in (("rays_o", made.positions), ("rays_d", directions)):
        kept = len(case.arrays.get(f"{prefix}{name}", value))  # of an evaluation the first ones
        case.close(f"{prefix}{name}", value[:kept], 5e-6)


def _compare_prompts(case: Case, prefix: str, n_prompts: int) -> None:
    """Prompts and noise are drawn otherwise here: what is recorded is what it should be."""
    noise, index = f"{prefix}noise", f"{prefix}prompt_index"
    if noise in case:
        case.require(noise, case[noise].shape == (n_prompts, case.meta["data"]["dim_gaussian"]))
    if index in case:
        chosen = case[index].tolist()
        case.require(index, len(set(chosen)) == n_prompts and max(chosen) < len(case.meta["prompts"]))
