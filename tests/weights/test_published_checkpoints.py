"""MVDream's and RichDreamer's file layouts: a diffusers model renamed to theirs and back must be the same model."""

import logging
from pathlib import Path

import pytest
import torch
from published_layout import draw, published_unet, published_vae, tiny_unet, tiny_vae

from triplaneturbo.errors import WeightsError
from triplaneturbo.guidance import MVDreamTeacher, RichDreamerTeacher
from triplaneturbo.types import Condition
from triplaneturbo.weights.ldm import build_unet, build_vae

OTHERS = {"cond_stage_model.model.ln_final.weight": torch.ones(3), "betas": torch.ones(5)}


def test_mvdream_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    unet, vae = tiny_unet(linear=True, widths=(64, 128), heads=(1, 2)), tiny_vae()
    path = tmp_path / "sd-v2.1-base-4view.pt"
    torch.save(published_unet(unet) | published_vae(vae) | OTHERS, path)
    with caplog.at_level(logging.INFO):
        teacher = MVDreamTeacher({"path": str(path), "image_size": 16, "n_view": 1})
    assert "not used: betas, cond_stage_model" in caplog.text
    x, t, text, camera = draw(2, 4, 8, 8), torch.tensor([3, 900]), draw(2, 5, 12), draw(2, 16)
    with torch.no_grad():
        expected = unet(x, t, text, class_labels=camera).sample
        torch.testing.assert_close(teacher.predict(x, t, Condition(text, camera)), expected)
        picture = draw(1, 3, 16, 16).sigmoid()
        latents = teacher.encode(picture, torch.zeros(1, 4, 8, 8))
        torch.testing.assert_close(latents, vae.encode(2 * picture - 1).latent_dist.mean * 0.18215)
    torch.testing.assert_close(teacher.schedule.alphas_cumprod[[0, -1]], torch.tensor([0.99915, 0.0046600]))


def test_richdreamer_file(tmp_path: Path) -> None:
    unet = tiny_unet(linear=False, widths=(32, 64), heads=(8, 8))
    path = tmp_path / "nd_mv_ema.ckpt"
    torch.save({"state_dict": published_unet(unet) | published_vae(tiny_vae()) | OTHERS}, path)
    teacher = RichDreamerTeacher({"path": str(path), "image_size": 8, "n_view": 1})
    x, t, text, camera = draw(2, 4, 8, 8), torch.tensor([3, 900]), draw(2, 5, 12), draw(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            teacher.predict(x, t, Condition(text, camera)), unet(x, t, text, class_labels=camera).sample
        )


def test_running_averages_go_before_the_weights() -> None:
    state = published_unet(tiny_unet(linear=True, widths=(32, 64), heads=(1, 1)))
    averages = {"model_ema." + name[len("model.") :].replace(".", ""): value + 1 for name, value in state.items()}
    plain, averaged = build_unet(state, "x.ckpt", heads=1), build_unet(state | averages, "x.ckpt", heads=1)
    for before, after in zip(plain.state_dict().values(), averaged.state_dict().values(), strict=True):
        assert torch.equal(after, before + 1)


def test_incomplete_files_are_refused() -> None:
    state = published_unet(tiny_unet(linear=True, widths=(32, 64), heads=(1, 1)))
    with pytest.raises(WeightsError, match=r"x\.pt holds no tensors named model\.diffusion_model"):
        build_unet({"encoder.weight": torch.ones(1)}, "x.pt", heads=1)
    with pytest.raises(WeightsError, match=r"x\.pt holds no tensors named first_stage_model"):
        build_vae(state, "x.pt")
    for name in (
        "camera_embed.2.bias",
        "middle_block.1.norm.bias",
        "out.2.weight",
        "output_blocks.1.0.in_layers.2.weight",
    ):
        part = {key: value for key, value in state.items() if not key.endswith(name)}
        with pytest.raises(WeightsError, match=r"x\.pt"):
            build_unet(part, "x.pt", heads=1)
