"""What the teachers and the scorer of the miniature world learn, on stand-ins for their networks."""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from custom.shapeworld.data import render_pool, sample_cameras
from custom.shapeworld.models import (
    N_VIEW,
    TEXT_WIDTH,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
)
from custom.shapeworld.stages import DiffusionStage, ScorerStage
from custom.shapeworld.training import TrainingStage
from custom.shapeworld.world import parse_caption
from triplaneturbo.diffusion import NoiseSchedule
from triplaneturbo.guidance.camera_conditions import mvdream_camera


def stand_in(**values):
    """What a stage's method reads of its stage."""
    values = {"device": torch.device("cpu"), "generator": torch.Generator().manual_seed(0), **values}
    return SimpleNamespace(autocast=nullcontext, **values)


def test_a_teacher_that_knows_the_pictures_has_no_loss():
    """It answers v = alpha eps - sigma x_0 (Salimans and Ho 2022) with the noise that is left without x_0."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    product = torch.cumprod(1 - betas, 0)
    clean, seen = torch.full((3, 4, 4, 2, 2), 0.7), []

    def unet(noisy, t, text, class_labels):
        seen.append(t)
        alpha, sigma = (x[t].sqrt().view(-1, 1, 1, 1) for x in (product, 1 - product))
        noise = (noisy - alpha * 0.7) / sigma
        return SimpleNamespace(sample=alpha * noise - sigma * 0.7)

    stage = stand_in(
        clean=clean,
        cameras=None,
        schedule=NoiseSchedule.from_config(build_scheduler().config),
        unet=unet,
        _condition=lambda rows: torch.zeros(len(rows), 1, 1),
    )
    assert DiffusionStage.loss(stage, torch.tensor([0, 2])) < 1e-6
    assert torch.equal(seen[0].view(2, 4), seen[0].view(2, 4)[:, :1].expand(-1, 4))  # an object's views share their t


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_the_share_of_dropped_captions_is_that_of_the_options(share):
    n = 4000
    cfg = SimpleNamespace(kind="mvdream", empty_share=share)
    stage = stand_in(cfg=cfg, captions=torch.ones(5, 2, 3), empty=torch.zeros(1, 2, 3))
    dropped = DiffusionStage._condition(stage, torch.arange(n) % 5) == 0
    assert torch.equal(dropped, dropped[:, :1, :1].expand(-1, 2, 3))
    assert dropped[:, 0, 0].float().mean().item() == pytest.approx(share, abs=4 * (share * (1 - share) / n) ** 0.5)


def test_a_multi_view_teacher_starts_as_stable_diffusion_blind_to_its_cameras(tmp_path):
    """Before any training four pictures of the same thing get the same answer, wherever they are taken from."""
    base, tokenizer = tmp_path / "stable_diffusion", build_tokenizer()
    for name, part in (
        ("unet", build_unet("stable_diffusion")),
        ("text_encoder", build_text_encoder(tokenizer)),
        ("tokenizer", tokenizer),
    ):
        part.save_pretrained(base / name)
    unet = DiffusionStage({"kind": "mvdream", "out_dir": str(tmp_path)}).unet.eval()
    one, text = torch.randn(1, 4, 16, 16), torch.randn(1, 3, TEXT_WIDTH)
    cameras = mvdream_camera(sample_cameras(1, N_VIEW, torch.Generator().manual_seed(0)))
    with torch.no_grad():
        views = [x.expand(N_VIEW, -1, *[-1] * (x.dim() - 2)) for x in (one, text)]
        found = unet(views[0], torch.tensor([500] * N_VIEW), views[1], class_labels=cameras).sample
    torch.testing.assert_close(found, found[:1].expand_as(found), atol=1e-5, rtol=0)


def test_every_object_has_a_grey_of_its_own_in_all_of_its_views():
    cameras = sample_cameras(4, 2, torch.Generator().manual_seed(0))
    pool = render_pool([parse_caption("a red sphere")] * 4, cameras, background=(0.2, 0.8), seed=0)
    corners = pool.rgb[..., 0, 0].float() / 255
    assert torch.equal(corners, corners[:, :1, :1].expand_as(corners))
    assert len(corners[:, 0, 0].unique()) == 4
    assert 0.19 < corners.min() < corners.max() < 0.81


def test_all_pictures_of_a_caption_are_right_answers():
    """A model that tells two pictures of one caption apart, by logits of 10, is wrong half of the time: loss 10 / 2."""
    logits = 10 * torch.eye(2)
    stage = stand_in(
        pool=SimpleNamespace(tokens=torch.ones(2, 3, dtype=torch.long), rgb=torch.zeros(2, 1, 3, 4, 4)),
        augment=lambda pictures: pictures,
        model=lambda input_ids, pixel_values: SimpleNamespace(logits_per_image=logits),
    )
    expected = math.log(1 + math.exp(-10)) + 5
    assert ScorerStage.loss(stage, torch.tensor([0, 1])).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("step", "share", "factor"), [(49, 0.0, 0.5), (99, 0.0, 1.0), (500, 0.5, 0.505), (900, 1.0, 0.01)]
)
def test_the_learning_rate_warms_up_and_falls_along_half_a_cosine(step, share, factor):
    stage = SimpleNamespace(cfg=SimpleNamespace(warmup_steps=100), elapsed_share=lambda: share)
    assert TrainingStage.learning_rate_factor(stage, step) == pytest.approx(factor)
