"""Networks, pictures and trainings of the miniature world, at tiny sizes."""

import json
from itertools import pairwise

import pytest
import pytorch_lightning as pl
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from custom.shapeworld.data import ELEVATION, ShapeWorldData, draw_solids, render_pool, sample_cameras
from custom.shapeworld.models import (
    LATENT_SCALE,
    build_scorer,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
    parameter_count,
    standardise_latents,
    token_ids,
)
from custom.shapeworld.render import render
from custom.shapeworld.scorer import Scorer
from custom.shapeworld.shapes import SHAPES
from custom.shapeworld.splits import retrieval_bank
from custom.shapeworld.stages import DiffusionStage, ScorerStage, VaeStage
from custom.shapeworld.world import PALETTE, PATTERNS, PROPORTIONS, RELATIONS, parse_caption
from triplaneturbo.errors import ConfigError, WeightsError
from triplaneturbo.weights.checksums import has_digest
from triplaneturbo.weights.files import read_safetensors

TINY_DATA = {"n_objects": 8, "batch_size": 8}


def fit(system, max_steps, **data):
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=max_steps, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(system, datamodule=ShapeWorldData(TINY_DATA | data))


def test_every_word_is_one_token():
    tokenizer = build_tokenizer()
    for word in ("a", "an", "small", *PALETTE, *SHAPES, *PATTERNS, *PROPORTIONS, *RELATIONS):
        assert tokenizer.tokenize(word) == [word + "</w>"]
    assert len(set(map(tuple, token_ids(tokenizer, [*PALETTE, *SHAPES]).tolist()))) == len(PALETTE) + len(SHAPES)
    assert tokenizer.unk_token_id not in tokenizer("zebra").input_ids[1:-1]


def test_token_ids_are_padded_and_survive_saving(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    captions = ["", "an orange torus on a purple capsule"]
    ids = token_ids(tokenizer, captions)
    assert ids.shape == (2, 24)
    assert torch.equal(token_ids(CLIPTokenizer.from_pretrained(tmp_path), captions), ids)


def test_what_is_alike_follows_each_other():
    """The scorer must tell captions apart that are alike: of the same shapes, and of the same colours."""
    captions = [caption for caption in retrieval_bank() if len(parse_caption(caption).parts) == 1]
    drawn = draw_solids(captions, 2 * len(captions), 1.0, seed=1, reword=False)
    first, second = drawn[: len(captions)], drawn[len(captions) :]
    assert list(map(str, first)) == captions
    assert sorted(map(str, second)) == sorted(captions)
    for start in range(0, len(captions), 16):  # a look in all of its shapes
        run = second[start : start + 16]
        assert len({(solid.parts[0].color, solid.parts[0].pattern, solid.parts[0].proportion) for solid in run}) == 1
        assert len({solid.shapes for solid in run}) == 16
    pairs = [caption for caption in retrieval_bank() if len(parse_caption(caption).parts) == 2]
    drawn = draw_solids(pairs, 2 * len(pairs), 0.0, seed=1, reword=False)

    def shared(what):
        rows = [what(solid) for solid in drawn]
        return [
            sum(a == b for a, b in pairwise(half)) / len(pairs) for half in (rows[: len(pairs)], rows[len(pairs) :])
        ]

    in_shapes, in_colors = shared(lambda s: s.shapes), shared(lambda s: [part.color for part in s.parts])
    assert in_shapes[0] > 0.5 > in_shapes[1]
    assert in_colors[1] > 0.9 > in_colors[0]


def test_a_batch_has_runs_of_the_pool():
    data = ShapeWorldData(TINY_DATA | {"batch_size": 12, "neighbours": 4})
    data.pool = range(100)
    rows = data.training_batch(0, range(12)).rows.view(3, 4)
    assert torch.equal(rows % 100, (rows[:, :1] + torch.arange(4)) % 100)
    assert len(rows[:, 0].unique()) == 3
    with pytest.raises(ConfigError, match=r"batch_size=8 is no multiple of data\.neighbours=3"):
        ShapeWorldData(TINY_DATA | {"neighbours": 3})


def test_every_caption_fits_and_has_tokens_of_its_own():
    tokenizer = build_tokenizer()
    ids = token_ids(tokenizer, list(retrieval_bank()))
    assert ids.shape == (10_000, 24)
    assert (ids[:, -1] == tokenizer.eos_token_id).all()
    assert len(ids.unique(dim=0)) == 10_000
    longest = max(retrieval_bank(), key=lambda caption: len(caption.split()))
    assert len(tokenizer(longest).input_ids) == len(longest.split()) + 2 <= 24


def test_all_weights_fit_in_36_mebibytes_as_fp16():
    tokenizer = build_tokenizer()
    models = [build_text_encoder(tokenizer), build_vae(), build_scorer(tokenizer)]
    models += [build_unet(kind) for kind in ("stable_diffusion", "mvdream", "richdreamer")]
    sizes = [2 * parameter_count(model) / 2**20 for model in models]
    assert sum(sizes) < 36
    assert max(sizes) < 16


def test_standardised_latents_have_the_usual_scale_and_decode_as_before():
    torch.manual_seed(0)
    vae, pictures = build_vae().double(), torch.rand(4, 3, 64, 64, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        before = vae.encode(pictures).latent_dist
        decoded = vae.decode(before.mean + 0.1 * before.std).sample
        mean, std = before.mean.mean(dim=(0, 2, 3)), before.mean.std(dim=(0, 2, 3))
        standardise_latents(vae, mean, std)
        after = vae.encode(pictures).latent_dist
        again = vae.decode(after.mean + 0.1 * after.std).sample
    scaled = LATENT_SCALE * after.mean
    torch.testing.assert_close(scaled.mean(dim=(0, 2, 3)), torch.zeros(4, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(scaled.std(dim=(0, 2, 3)), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(again, decoded, atol=1e-9, rtol=0)


def test_captions_are_drawn_evenly():
    singles = ["a red cube", "a blue dome"]
    others = [
        "a red cube beside a blue dome",
        "a red cone on a blue star",
        "a red disk under a blue star beside a red cube",
    ]
    drawn = list(map(str, draw_solids([*others, *singles], 20, 0.4, seed=3, reword=False)))
    assert [drawn.count(name) for name in singles] == [4, 4]
    assert [drawn.count(name) for name in others] == [4, 4, 4]
    assert len(draw_solids(singles, 20, 1.0, seed=3, reword=False)) == 20


def test_stacks_are_worded_anew():
    caption = "a red cone on a blue star beside a red cube"
    drawn = draw_solids([caption], 400, 0.0, seed=3, reword=True)
    assert {solid.form for solid in drawn} == {parse_caption(caption).form}
    words = [solid.relations[0] for solid in drawn]
    assert abs(words.count("on") - 200) < 4 * 10
    assert set(words) == {"on", "under"}


def test_cameras_are_the_recipes():
    cameras = sample_cameras(50, 4, torch.Generator().manual_seed(0))
    assert ((cameras.elevation_deg >= ELEVATION[0]) & (cameras.elevation_deg <= ELEVATION[1])).all()
    assert cameras.elevation_deg.max() - cameras.elevation_deg.min() > 80
    assert ((cameras.distance > 1.38) & (cameras.distance < 1.74)).all()
    azimuth = cameras.azimuth_deg.reshape(50, 4)
    torch.testing.assert_close(azimuth.diff(dim=1), torch.full((50, 3), 90.0), atol=1e-3, rtol=0)
    assert (cameras.elevation_deg.reshape(50, 4).std(dim=1) == 0).all()


def test_the_pool_holds_the_renders_of_its_captions():
    solids = [parse_caption(c) for c in ("a red cube", "a blue torus on a green cone", "a white cube")]
    cameras = sample_cameras(3, 2, torch.Generator().manual_seed(1))
    pool = render_pool(solids, cameras, background=(0.5, 0.5), seed=0)
    for row, solid in enumerate(solids):
        views = render([solid], pool.views_of(torch.tensor([row])), 64, background=0.5)
        torch.testing.assert_close(pool.rgb[row].permute(0, 2, 3, 1).float() / 255, views.rgb, atol=0.003, rtol=0)
        geometry = torch.cat([views.normal, views.disparity], dim=-1)
        torch.testing.assert_close(pool.geometry[row].permute(0, 2, 3, 1).float() / 255, geometry, atol=0.003, rtol=0)


def test_a_stage_saves_fp16_weights_and_a_record(tmp_path):
    fit(VaeStage({"out_dir": str(tmp_path)}), max_steps=2)
    record = json.loads((tmp_path / "training/vae.json").read_text())
    assert (record["stage"], record["steps"], record["objects"], record["device"]) == ("vae", 2, 16, "cpu")
    vae = AutoencoderKL.from_pretrained(tmp_path / "stable_diffusion/vae", torch_dtype=torch.float16)
    assert vae.config.scaling_factor == LATENT_SCALE
    (weights,) = (tmp_path / "stable_diffusion/vae").glob("*.safetensors")
    assert has_digest(read_safetensors(weights)[1])
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_teacher_without_its_predecessor_says_what_to_train(tmp_path):
    with pytest.raises(WeightsError, match="vae is missing; train it first"):
        DiffusionStage({"kind": "stable_diffusion", "out_dir": str(tmp_path)})
    with pytest.raises(WeightsError, match="unet is missing; train it first"):
        DiffusionStage({"kind": "mvdream", "out_dir": str(tmp_path)})


def test_the_scorer_learns_to_tell_solids_apart(tmp_path):
    torch.manual_seed(0)
    optimizer = {"name": "AdamW", "args": {"lr": [0, 2e-4, 1e-3, 5, 1e-5, 100], "betas": [0.9, 0.99]}}
    options = {"out_dir": str(tmp_path), "ema_decay": 0.5, "max_gradient_norm": 1.0, "optimizer": optimizer}
    fit(ScorerStage(options), max_steps=100, captions="scorer", single_share=1.0)
    scorer = Scorer.load(tmp_path / "scorer")
    pool = ShapeWorldData(TINY_DATA | {"captions": "scorer", "single_share": 1.0})
    pool.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    pool.setup("fit")
    pictures, captions = pool.pool.rgb[:, 0].float() / 255, list(pool.pool.captions)
    assert scorer.recall(pictures, captions, captions) > 0.6
    assert scorer.recall(pictures, captions[1:] + captions[:1], captions) < 0.3
    with pytest.raises(ValueError, match="the bank lacks"):
        scorer.recall(pictures[:1], captions[:1], captions[1:])
