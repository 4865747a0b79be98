"""Cameras of evaluation and of training."""

import math

import pytest
import torch
import torch.nn.functional as F
from golden_case import Case
from recorded_draws import RecordedDraws
from workbench import Workbench, cameras, translated

from triplaneturbo.cameras import orbit_cameras, projection_matrices, ray_directions, turntable, world_to_clip
from triplaneturbo.data import prompts
from triplaneturbo.guidance.camera_conditions import mvdream_camera, richdreamer_camera

# Of MVDream's own example cameras, degrees.
_MVDREAM_ELEVATION = 15.0


def camera(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    case.option("phase", "train", "val", "test")  # they differ in the lights
    case.ignore("light_positions", "light_rand")  # materials are not lit
    size, rays = ((case.meta[f"{p}height"], case.meta[f"{p}width"]) for p in ("", "ray_"))
    angles = case["elevation_deg"], case["azimuth_deg"]
    made = orbit_cameras(
        *angles, case["distance_in"], case["fovy_deg"], n_view=len(angles[0]), relative=case.meta["relative_radius"]
    )
    aspect = size[1] / size[0]
    directions = ray_directions(made, *rays)
    case.close("c2w", made.c2w, 1e-6)
    case.close("camera_positions", made.positions, 1e-6)
    case.close("camera_distances", made.distance, 1e-6)
    case.close("camera_distances_relative", made.distance_relative, 1e-6)
    case.close("fovy", made.fovy, 1e-6)
    case.close("proj_mtx", projection_matrices(made, aspect), 1e-6)
    case.close("mvp_mtx", world_to_clip(made, aspect), 1e-6)
    case.close("rays_o", made.positions[:, None, None].expand_as(directions), 5e-6)
    case.close("rays_d", directions, 5e-6)
    case.close("rays_d_rasterize", ray_directions(made, *size, focal_height=rays[0]), 5e-6)
    case.close("mv_camera_cond", mvdream_camera(made), 1e-6)
    for method in case.with_prefix("rd_camera_cond_"):
        case.close(f"rd_camera_cond_{method}", richdreamer_camera(made, method), 1e-6)

    # In float64: at unit focal length the field of view of many pixels is nearly 180 degrees.
    fovy = torch.tensor([2 * math.atan(rays[0] / 2)], dtype=torch.float64)
    at_origin = cameras(torch.eye(4, dtype=torch.float64)[None], fovy=fovy)
    if "directions_unit_focal" in case:
        unit_focal = F.normalize(case["directions_unit_focal"].double(), dim=-1)
        case.within("directions_unit_focal", _gap(ray_directions(at_origin, *rays)[0], unit_focal), 1e-6)
    for n_ring in map(int, case.with_prefix("mvdream_get_camera")):
        ring = turntable(n_ring, elevation_deg=_MVDREAM_ELEVATION, distance=1.0, fovy_deg=60.0)
        case.close(f"mvdream_get_camera{n_ring}", mvdream_camera(ring), 1e-6)


def training_cameras(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    options = case.options()
    n_prompts, n_steps = options["batch_size"] // options["n_view"], options["n_steps"]
    streams = {f"cameras/{step}": case["camera_rand"][:, step].cpu() for step in range(n_steps)}
    monkeypatch.setattr(prompts, "Draws", lambda *key: RecordedDraws.of(streams, n_prompts))
    block = translated({}, {**options, "prompts": ["a cube"]})["data"]
    del block["type"]
    data = prompts.PromptsAndCameras(block)
    with torch.device("cpu"):  # where the data module draws
        batch = data.training_batch(0, range(n_prompts))
    case.require("one camera set a step", len(batch.cameras) == n_steps)
    case.ignore("light_rand", *(f"step{step}_light_positions" for step in range(n_steps)))  # materials are not lit
    for step, made in enumerate(batch.cameras):
        found = {
            "c2w": made.c2w,
            "camera_distances": made.distance,
            "camera_distances_relative": made.distance_relative,
            "elevation": made.elevation_deg,
            "azimuth": made.azimuth_deg,
            "fovy": made.fovy,
            "mvp_mtx": world_to_clip(made, batch.image_size[1] / batch.image_size[0]),
            "rays_d": ray_directions(made, *batch.ray_size),
        }
        for name, value in found.items():
            case.close(f"step{step}_{name}", value, 2e-6)
    for name in ("noise_draw", "noise"):  # a row a prompt, a row a plane
        if name in case:
            case.require(f"{name}: shape", case[name].numel() == n_prompts * math.prod(batch.latent_shape))
    if "noise_draw" in case:
        case.equal("noise", case["noise_draw"].flatten(0, 1))


def _gap(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())
