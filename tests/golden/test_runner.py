"""The runner notices what is wrong with a case, and does not care what it is called."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families.surface import compare_visibility
from golden_case import Case
from test_golden import run_case
from workbench import Workbench

from triplaneturbo.errors import ConfigError, UnknownNameError
from triplaneturbo.ops.rasterize import Raster, rasterize
from triplaneturbo.types import Mesh
from triplaneturbo.weights.ldm import LDM_SCHEDULE

DATA = Path(__file__).parent / "data"
# A case of every family of which a run takes a moment.
QUICK = [
    "a1_camera_relative",
    "a3_training_cameras",
    "d4_training_random_parts",
    "d5_regularization_losses",
    "e1_importance_sampler",
    "e4_render_volsdf",
    "e6_patch_renderer",
    "f7_tables_C_tplus",
    "g1_mesh_rasterizer",
    "h1_marching_cubes_axes",
    "h2_mesh_export_colors",
    "i1_background_hypernet",
    "i2_adan",
    "scaledreamer/s12_volsdf_two_prompts_jitter",
    "scaledreamer/s14_nerf_occgrid_jitter",
    "scaledreamer/s15_nerf_importance",
    "scaledreamer/s16_losses_multi",
    "scaledreamer/s18_random_camera",
    "scaledreamer/s21_multiprompt_multiview",
    "scaledreamer/s22_prompt_views",
    "scaledreamer/s1_hyper_ingp",
    "scaledreamer/s4_conv3d_net_two_prompts",
    "scaledreamer/s7_triplane_transformer_pooled",
    "scaledreamer/s8_implicit_volume",
    "scaledreamer/s9_multiprompt_background",
    "scaledreamer/s10_environment_map",
    "scaledreamer/s29_step_hyper_ingp",
]
# What a family reads and compares with something of ours, too.
ALSO_INPUTS = {
    "mesh_rasterizer": {"mvp_mtx"},  # the only source of the field of view
    "volsdf_cached": {"rays_d"},
    "nerf_render": {"rays_d"},
    "amortised_training_step": {"rays_d"},
    "scaledreamer_asd_sd": {"t"},
    "scaledreamer_asd_mv": {"t"},
}


def changed(
    folder: Path,
    name: str = "i2_adan",
    arrays: dict[str, Any] | None = None,
    without: Collection[str] = (),
    **meta: Any,
) -> Path:
    """A copy of a case under another name, with other arrays and hyper-parameters."""
    with np.load(DATA / f"{name}.npz") as stored:
        content = {key: stored[key] for key in stored.files if key not in without}
    values = json.loads(bytes(content["meta_json"]).decode()) | meta
    content["meta_json"] = np.frombuffer(json.dumps(values).encode(), dtype=np.uint8)
    np.savez(folder / "another.npz", **(content | (arrays or {})))
    return folder / "another.npz"


def test_names_do_not_matter(tmp_path: Path, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    run_case(changed(tmp_path, case="another"), workbench, monkeypatch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "telepathy"}, "no procedure for family 'telepathy'; known: adan, "),
        ({"arrays": {"surprise": np.zeros(2)}}, "not compared: surprise"),
        ({"arrays": {"traj0": np.zeros((6, 5, 7))}}, "traj0: error .*, tolerance 1e-06"),
        ({"lr": 4e-4}, "traj1: error"),
        ({"warmth": 3}, "warmth"),
        ({"name": "e1_importance_sampler", "warmth": 3}, "hyper-parameters without effect here: warmth"),
        ({"name": "e1_importance_sampler", "n": 13}, "t_starts: shape"),
        ({"name": "d5_regularization_losses", "lambdas": {"lambda_warmth": 3}}, "warmth"),
        ({"name": "scaledreamer/s1_hyper_ingp", "geometry": {"warmth": 3}}, "warmth"),
        ({"name": "scaledreamer/s9_multiprompt_background", "background": {"random_aug": 3}}, "random_aug"),
        ({"name": "b3_stable_diffusion_blocks", "sd": {"unet": {"warmth": 3}, "vae": {}}}, "sd.unet has warmth"),
        (
            {"name": "d1_inference_ddim4", "scheduler": {**LDM_SCHEDULE, "clip_sample": True}},
            "scheduler has clip_sample",
        ),
    ],
)
def test_what_does_not_fit_fails(
    changes: dict[str, Any], message: str, tmp_path: Path, workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = (AssertionError, TypeError, RuntimeError, ConfigError, UnknownNameError, pytest.fail.Exception)
    with pytest.raises(kinds, match=message):
        run_case(changed(tmp_path, **changes), workbench, monkeypatch)


@pytest.mark.parametrize("name", QUICK)
def test_outputs_that_a_case_does_not_carry_are_not_asked_for(
    name: str, tmp_path: Path, workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = judged(run_case(DATA / f"{name}.npz", workbench, monkeypatch))
    for output in outputs:
        rest = run_case(changed(tmp_path, name, without=[output]), workbench, monkeypatch)
        assert judged(rest) == outputs - {output}


@pytest.mark.parametrize(
    "name",
    [
        *("c3_query", "d1_inference_ddim4", "e5_render_triplane_grad", "f2_rd_asd", "f3_sd_asd"),
        *("scaledreamer/s26_asd_sd_single_prompt", "scaledreamer/s27_asd_mv"),
    ],
)
def test_all_outputs_but_one_may_be_missing(
    name: str, tmp_path: Path, workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = judged(run_case(DATA / f"{name}.npz", workbench, monkeypatch))
    kept = max(outputs)
    rest = run_case(changed(tmp_path, name, without=outputs - {kept}), workbench, monkeypatch)
    assert judged(rest) == {kept}


def judged(case: Case) -> set[str]:
    """The arrays that were compared, but for inputs."""
    return (case.judged & case.arrays.keys()) - ALSO_INPUTS.get(case.family, set())


def test_a_case_without_outputs_fails(tmp_path: Path, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="nothing that can be compared"):
        run_case(changed(tmp_path, without=["traj0", "traj1"]), workbench, monkeypatch)


def test_a_missing_input_is_named(tmp_path: Path, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError, match="family adan needs 'grads1', which the case does not carry"):
        run_case(changed(tmp_path, without=["grads1"]), workbench, monkeypatch)


@pytest.mark.parametrize(("offset", "agrees"), [(0.0, True), (1e-5, True), (0.1, False)])
def test_either_side_of_an_edge_is_seen(offset: float, agrees: bool) -> None:
    """A column of pixels is recorded as the right one of two triangles, whose edge is `offset` pixels further right."""
    size, column = 16, 7
    edge = (2 * column + 1) / size - 1 + 2 * offset / size
    corners = torch.tensor([[edge, -4, 0], [edge, 4, 0], [-9, 0, 0], [9, 0, 0]]).float()
    mesh = Mesh(corners, torch.tensor([[0, 1, 2], [0, 3, 1]]))
    own = rasterize(F.pad(corners, (0, 1), value=1.0)[None], mesh.faces, size, size)
    recorded = Raster(own.face_index.clone(), own.barycentric, own.depth)
    recorded.face_index[:, :, column] = 1
    case = Case(DATA / "i2_adan.npz")
    case.arrays["mvp_mtx"] = torch.eye(4)[None]
    compare_visibility(case, 0, mesh, recorded)
    assert ("rast0: triangles" not in " ".join(case.failures)) == agrees
