"""Diffusers folders that are complete, incomplete, or wrong."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load, load_file, save_file

from triplaneturbo.errors import WeightsError
from triplaneturbo.weights.files import add_digests
from triplaneturbo.weights.folders import load_schedule, load_vae

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8).save_pretrained(tmp_path / "vae")
    (tmp_path / "scheduler").mkdir()
    config = {"beta_start": 0.1, "beta_end": 0.2, "beta_schedule": "linear", "num_train_timesteps": 3}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_complete_folder_is_loaded(folder: Path) -> None:
    vae = load_vae(folder)
    assert not vae.training
    stored = load_file(folder / "vae" / WEIGHTS)
    assert all(torch.equal(stored[name], value) for name, value in vae.state_dict().items())
    schedule = load_schedule(folder)
    torch.testing.assert_close(schedule.alphas_cumprod, torch.tensor([0.9, 0.9 * 0.85, 0.9 * 0.85 * 0.8]))
    assert schedule.prediction_type == "epsilon"


def test_what_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"nowhere does not exist.*hf download"):
        load_vae(folder / "nowhere")
    (folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(WeightsError, match=r"no scheduler/scheduler_config\.json; it holds: scheduler, vae"):
        load_schedule(folder)
    (folder / "vae" / WEIGHTS).unlink()
    with pytest.raises(WeightsError, match=r"vae cannot be loaded as AutoencoderKL"):
        load_vae(folder)


def test_a_missing_tensor_is_never_made_up(folder: Path) -> None:
    tensors = load_file(folder / "vae" / WEIGHTS)
    del tensors["encoder.conv_in.bias"]
    save_file(tensors, folder / "vae" / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"1 missing \(encoder\.conv_in\.bias\)"):
        load_vae(folder)


def test_a_tensor_of_another_shape_is_refused(folder: Path) -> None:
    tensors = load_file(folder / "vae" / WEIGHTS)
    tensors["encoder.conv_in.bias"] = torch.zeros(9)
    save_file(tensors, folder / "vae" / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"encoder\.conv_in\.bias"):
        load_vae(folder)


def test_a_damaged_weights_file_is_named(folder: Path) -> None:
    path = folder / "vae" / WEIGHTS
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(WeightsError, match="vae cannot be loaded"):
        load_vae(folder)


def test_a_changed_number_in_a_file_with_a_digest_is_refused(folder: Path) -> None:
    path = folder / "vae" / WEIGHTS
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    load_vae(folder)  # diffusers has written no digest
    path.write_bytes(content)
    add_digests(folder / "vae")
    assert all(torch.equal(tensor, load_file(path)[name]) for name, tensor in load(content).items())
    load_vae(folder)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    add_digests(folder / "vae")  # leaves a file alone that has one
    with pytest.raises(WeightsError, match=rf"vae cannot be loaded.*{WEIGHTS} is damaged"):
        load_vae(folder)


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"beta_start": 0.1, "beta_end": 0.2, "beta_schedule": "x", "num_train_timesteps": 3}']
)
def test_an_unusable_schedule_is_named(folder: Path, text: str) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text(text)
    with pytest.raises(WeightsError, match="not a usable noise schedule"):
        load_schedule(folder)


def test_weights_stored_in_half_precision_arrive_in_single(folder: Path) -> None:
    vae = load_vae(folder)
    stored = {name: value.clone() for name, value in vae.half().state_dict().items()}
    vae.save_pretrained(folder / "vae")
    loaded = load_vae(folder).state_dict()
    assert all(loaded[name].dtype == torch.float32 for name in stored)
    assert all(torch.equal(loaded[name], value.float()) for name, value in stored.items())
