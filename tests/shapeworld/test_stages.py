"""What the teachers and the scorer of the miniature world learn, on stand-ins for their networks."""

import json
import math
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from custom.shapeworld.data import PoolBatch, render_pool, sample_cameras
from custom.shapeworld.models import (
    N_VIEW,
    TEXT_WIDTH,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    save_part,
)
from custom.shapeworld.stages import DiffusionStage, ScorerStage
from custom.shapeworld.world import parse_caption
from triplaneturbo.config import load_config
from triplaneturbo.diffusion import NoiseSchedule
from triplaneturbo.errors import WeightsError
from triplaneturbo.extensions import import_extensions
from triplaneturbo.guidance.camera_conditions import mvdream_camera
from triplaneturbo.schedule import Progress
from triplaneturbo.weights.folders import load_unet

ROOT = Path(__file__).parents[2]
STAGES = ("vae", "stable_diffusion", "mvdream", "mvdream_longer", "richdreamer", "richdreamer_longer", "scorer")


def stand_in(**values):
    """What a stage's method reads of its stage."""
    return SimpleNamespace(autocast=nullcontext, device=torch.device("cpu"), generator=generator, **values)


def generator(batch=None):
    return torch.Generator().manual_seed(0)


def batch(*rows):
    return PoolBatch(0, 0, torch.tensor(rows))


def total(kind, stage, batch):
    """The loss that a stage of class `kind` has on the stand-in `stage`."""
    return sum(kind.terms(stage, *kind.inputs(stage, batch)).values()).item()


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
        _chosen_captions=lambda rows, generator: torch.zeros(len(rows), 1, 1),
    )
    assert total(DiffusionStage, stage, batch(0, 2)) < 1e-6
    assert torch.equal(seen[0].view(2, 4), seen[0].view(2, 4)[:, :1].expand(-1, 4))  # an object's views share their t


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_the_share_of_dropped_captions_is_that_of_the_options(share):
    n = 4000
    cfg = SimpleNamespace(kind="mvdream", empty_share=share)
    stage = stand_in(cfg=cfg, captions=torch.ones(5, 2, 3), empty=torch.zeros(1, 2, 3))
    dropped = DiffusionStage._chosen_captions(stage, torch.arange(n) % 5, generator()) == 0
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


def test_a_teacher_that_is_trained_on_starts_from_its_own_weights_and_takes_their_place(tmp_path):
    shutil.copytree(ROOT / "load/shapeworld/stable_diffusion", tmp_path / "stable_diffusion")
    options = {"kind": "mvdream", "longer": True, "out_dir": str(tmp_path)}
    with pytest.raises(WeightsError, match=r"mvdream/unet is missing; train it first"):
        DiffusionStage(options)
    before = build_unet("mvdream")
    save_part(before, tmp_path / "mvdream/unet")
    stage = DiffusionStage(options)
    assert stage.stage == "mvdream_longer"
    for name, value in before.state_dict().items():
        assert torch.equal(stage.unet.state_dict()[name], value), name
    with torch.no_grad():
        stage.unet.conv_out.bias.fill_(0.5)
    stage.save(tmp_path)
    written = load_unet(tmp_path / "mvdream").state_dict()
    assert torch.equal(written["conv_out.bias"], torch.full_like(written["conv_out.bias"], 0.5))
    assert not (tmp_path / "mvdream/text_encoder").exists()


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
        augment=lambda pictures, generator: pictures,
        model=lambda input_ids, pixel_values: SimpleNamespace(logits_per_image=logits),
    )
    expected = math.log(1 + math.exp(-10)) + 5
    assert total(ScorerStage, stage, batch(0, 1)) == pytest.approx(expected)


def test_an_update_leaves_the_temperature_of_the_scorer_at_its_limit():
    stage = ScorerStage({"optimizer": {"name": "AdamW"}})
    optimizer = stage.configure_optimizers()
    stage.model.logit_scale.data.fill_(9.0)
    optimizer.step()
    assert stage.model.logit_scale.item() == pytest.approx(4.6)


@pytest.mark.parametrize("stage", STAGES)
def test_a_recipe_trains_as_long_as_the_shipped_weights_and_its_rate_follows_half_a_cosine(stage):
    """After a linear warm-up down to 1 %; four straight lines leave the curve by at most 4 % of the highest rate."""
    import_extensions(ROOT / "custom")
    experiment = load_config([ROOT / f"configs/shapeworld/{stage}.yaml"])
    steps, rate = experiment.trainer["max_steps"], experiment.system.cfg.optimizer.args.lr
    assert steps == json.loads((ROOT / f"load/shapeworld/training/{stage}.json").read_text())["steps"]
    tops = {"vae": 8e-4, "scorer": 1e-3, "mvdream_longer": 4e-4, "richdreamer_longer": 4e-4}
    top, warmup = tops.get(stage, 6e-4), 300 if stage == "scorer" else 100
    for step in [*range(steps), steps]:
        fall = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps))
        factor = min(1.0, (step + 1) / warmup) * fall
        assert rate(Progress(step)) / top == pytest.approx(factor, abs=0.04), step
    assert rate(Progress(steps)) == pytest.approx(0.01 * top)
