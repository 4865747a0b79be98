"""Checkpoints of the original: at full width by names and shapes, in miniature by their numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from custom.scaledreamer.checkpoints import is_scaledreamer, to_original, write_original
from triplaneturbo.errors import WeightsError
from triplaneturbo.legacy.state_dicts import translate_state
from triplaneturbo.systems import SceneDistillation
from triplaneturbo.weights.files import load_tensors, mismatch

KEYS = Path(__file__).parents[1] / "golden/data/scaledreamer/keys"
SAME_GRID = {"n_levels": 16, "per_level_scale": 1.0}
COARSE_GRID = {"n_levels": 4, "base_resolution": 4, "per_level_scale": 4.0}
DENSITY = {"type": "free-parameters", "field": {"type": "hash-grid", "kind": "density"}}
# The published configurations' networks, by the list of their names.
FULL = {
    "hyper_ingp": {
        "geometry": "hyper-ingp",
        "background": {"type": "text-environment", "encoding": {**SAME_GRID, "base_resolution": 16}},
    },
    "3dconv_net": {"geometry": "conv3d-net", "background": "environment"},
    "3dconv_net_cm2": {
        "geometry": {"type": "conv3d-net", "space_generator": {"widths": [512, 512, 512, 512, 256, 128]}},
        "background": "environment",
    },
    "triplane_transformer": {"geometry": "triplane-transformer", "background": "environment"},
    "single_nerf": {"geometry": DENSITY, "background": {"type": "environment", "encoding": COARSE_GRID}},
}
TINY_GRID = {"n_levels": 2, "base_resolution": 4, "log2_hashmap_size": 6}
TINY = {
    "hyper_ingp": {
        "geometry": {
            "type": "hyper-ingp",
            "hypernet": {"text_width": 8, "n_neurons": 4},
            "field": {"encoding": TINY_GRID},
        },
        "background": {"type": "text-environment", "encoding": TINY_GRID, "hypernet": {"text_width": 8}},
    },
    "3dconv_net": {
        "geometry": {
            "type": "conv3d-net",
            "space_generator": {"text_width": 8, "noise_width": 4, "style_width": 4, "widths": [4, 4], "channels": 4},
        },
        "background": "environment",
    },
    "triplane_transformer": {
        "geometry": {
            "type": "triplane-transformer",
            "space_generator": {
                "text_width": 8,
                "width": 8,
                "n_heads": 2,
                "n_layers": 1,
                "token_resolution": 2,
                "channels": 4,
            },
        },
        "background": "environment",
    },
    "single_nerf": {
        "geometry": {
            "type": "free-parameters",
            "field": {"type": "hash-grid", "kind": "density", "encoding": TINY_GRID},
        },
        "background": {"type": "environment", "encoding": TINY_GRID},
    },
}


def system(options: dict[str, Any], **more: Any) -> SceneDistillation:
    density = isinstance(options["geometry"], dict) and options["geometry"]["type"] == "free-parameters"
    renderer = {"type": "volume", "estimator": "occupancy" if density else "importance"}
    return SceneDistillation({**options, "renderers": {"volume": renderer}, **more})


def recorded(name: str) -> dict[str, Tensor]:
    """The tensors that a file of the original holds, without numbers."""
    modules = json.loads((KEYS / f"{name}.json").read_text())["modules"]
    shapes = {f"{module}.{key}": shape for module, about in modules.items() for key, shape in about["keys"].items()}
    kinds = {"renderer.estimator.binaries": torch.bool, "renderer.estimator.resolution": torch.int32}
    return {key: torch.empty(shape, device="meta", dtype=kinds.get(key)) for key, shape in shapes.items()}


@pytest.mark.parametrize("name", FULL)
def test_published_files_fit_without_a_missing_or_unexpected_tensor(name: str) -> None:
    with torch.device("meta"):
        ours = system(FULL[name])
    given = recorded(name)
    renamed = translate_state(given, ours.state_dict(), "a recorded file")
    assert mismatch(renamed, ours.state_dict()) == ""


@pytest.mark.parametrize("name", FULL)
def test_networks_have_the_published_numbers_of_parameters(name: str) -> None:
    with torch.device("meta"):
        ours = system(FULL[name])
    modules = json.loads((KEYS / f"{name}.json").read_text())["modules"]
    for part in ("geometry", "background"):
        count = sum(p.numel() for p in getattr(ours, part).parameters())
        assert count == modules[part]["n_parameters"]


@pytest.mark.parametrize("name", FULL)
def test_written_files_have_the_published_names_and_shapes(name: str) -> None:
    with torch.device("meta"):
        written = to_original(system(FULL[name]))
    assert {key: x.shape for key, x in written.items()} == {key: x.shape for key, x in recorded(name).items()}


@pytest.mark.parametrize("name", TINY)
def test_what_is_written_is_read_again(name: str, tmp_path: Path) -> None:
    first, path = system(TINY[name]), tmp_path / "original.pth"
    write_original(first, path, step=7)
    content = torch.load(path, weights_only=True)
    assert {"epoch", "global_step", "state_dict"} <= content.keys()
    assert is_scaledreamer(content["state_dict"])
    second = system(TINY[name], weights=str(path))
    assert second.progress.step == 7
    for key, value in second.state_dict().items():
        assert torch.equal(value, first.state_dict()[key]), key
    assert all(torch.equal(x, content["state_dict"][key]) for key, x in to_original(second).items())


@pytest.mark.parametrize("name", TINY)
def test_a_file_that_lacks_a_tensor_or_has_one_too_many_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "original.pth"
    write_original(system(TINY[name]), path)
    state = load_tensors(path)
    last = max(key for key in state if key.startswith("geometry.") and "bbox" not in key and "w_avg" not in key)
    torch.save({"state_dict": {key: x for key, x in state.items() if key != last}}, path)
    with pytest.raises(WeightsError, match="1 missing"):
        system(TINY[name], weights=str(path))
    torch.save({"state_dict": state | {"geometry.surprise": torch.ones(1)}}, path)
    with pytest.raises(WeightsError, match=r"1 unexpected \(geometry\.surprise\)"):
        system(TINY[name], weights=str(path))


def test_an_occupancy_grid_is_passed_over_where_nothing_uses_one(tmp_path: Path) -> None:
    path = tmp_path / "original.pth"
    write_original(system(TINY["single_nerf"]), path)
    importance = {**TINY["single_nerf"], "renderers": {"volume": {"type": "volume", "estimator": "importance"}}}
    loaded = SceneDistillation({**importance, "weights": str(path)})
    assert "volume" in loaded.renderers


def test_an_occupancy_grid_is_read_cell_by_cell(tmp_path: Path) -> None:
    first, path = system(TINY["single_nerf"]), tmp_path / "original.pth"
    grid = first.renderers["volume"].occupancy
    grid.occupied[5 * 32 * 32 + 3 * 32 + 2] = True
    grid.opacity.uniform_()
    write_original(first, path)
    assert load_tensors(path)["renderer.estimator.binaries"].nonzero().tolist() == [[0, 5, 3, 2]]
    second = system(TINY["single_nerf"], weights=str(path)).renderers["volume"].occupancy
    assert torch.equal(second.occupied, grid.occupied)
    assert torch.equal(second.opacity, grid.opacity)


def test_our_own_files_are_not_taken_for_the_original() -> None:
    for options in TINY.values():
        assert not is_scaledreamer(system(options).state_dict())


def test_a_system_with_two_renderers_is_not_written() -> None:
    renderers = {"volume": {"type": "volume"}, "mesh": {"type": "mesh"}}
    with pytest.raises(WeightsError, match="one renderer, not volume, mesh"):
        to_original(SceneDistillation({**TINY["hyper_ingp"], "renderers": renderers}))
