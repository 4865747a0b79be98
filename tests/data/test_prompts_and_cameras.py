"""The data module: options, batches, evaluation, state."""

import itertools
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from triplaneturbo.cameras import orbit_cameras
from triplaneturbo.data import CameraSampler, PromptsAndCameras
from triplaneturbo.errors import ConfigError, UnknownNameError
from triplaneturbo.prompts import ConditionEncoder
from triplaneturbo.registry import register
from triplaneturbo.types import Run, TextStates

PROMPTS = [f"prompt {i}" for i in range(5)]


def module(rank=0, processes=1, fn="fit", **options):
    data = PromptsAndCameras({"prompts": PROMPTS, "batch_size": 8, "camera_sets": 2, **options})
    data.enter(Run(seed=3))
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    state = SimpleNamespace(fn=fn)
    data.trainer = SimpleNamespace(
        global_rank=rank, world_size=processes, training=fn == "fit", state=state, strategy=strategy
    )
    return data


def stream(data, n):
    return list(itertools.islice(iter(data.train_dataloader()), n))


def test_a_step_has_fresh_cameras_for_each_round():
    (batch,) = stream(module(), 1)
    assert len(batch.cameras) == 2
    assert [len(cameras) for cameras in batch.cameras] == [8, 8]
    assert not torch.equal(batch.cameras[0].c2w, batch.cameras[1].c2w)
    assert batch.samples == (0, 1)


def test_prompts_are_drawn_without_replacement():
    batches = stream(module(), 5)
    assert sorted(p for batch in batches for p in batch.prompts) == sorted(PROMPTS * 2)


def test_a_batch_does_not_depend_on_the_number_of_processes():
    whole = stream(module(), 3)
    parts = [stream(module(rank, 2, batch_size=4), 3) for rank in range(2)]
    for step in range(3):
        assert sum((rank[step].prompts for rank in parts), ()) == whole[step].prompts
        for part in range(2):
            joined = torch.cat([rank[step].cameras[part].c2w for rank in parts])
            assert torch.equal(joined, whole[step].cameras[part].c2w)


def test_continues_where_it_was():
    data = module()
    uninterrupted = stream(data, 6)
    for batch in uninterrupted[:4]:
        data.advance(batch)
    assert data.epoch == 1
    resumed = module()
    resumed.load_state_dict(data.state_dict())
    for old, new in zip(uninterrupted[4:], stream(resumed, 2), strict=True):
        assert (old.prompts, old.samples, old.step) == (new.prompts, new.samples, new.step)
        assert torch.equal(old.cameras[1].c2w, new.cameras[1].c2w)


def test_refuses_the_state_of_other_prompts_but_not_in_evaluation():
    state = module(prompts=["another"]).state_dict()
    with pytest.raises(ConfigError, match=r"system\.weights"):
        module().load_state_dict(state)
    module(fn="validate").load_state_dict(state)


def test_evaluation_shows_every_prompt_on_one_process():
    batches = [batch for rank in range(3) for batch in module(rank, 3, n_val_views=4).val_dataloader()]
    assert sorted(batch.prompts[0] for batch in batches) == PROMPTS
    azimuth = batches[0].cameras[0].azimuth_deg
    torch.testing.assert_close(azimuth, torch.tensor([0.0, 90, 180, 270]))
    assert [batch.cameras for batch in module().predict_dataloader()] == [()] * 5


def test_a_turntable_can_repeat_its_first_view():
    (batch, *_) = module(n_test_views=4, quirks=["repeated-first-view"]).test_dataloader()
    torch.testing.assert_close(batch.cameras[0].azimuth_deg, torch.tensor([0.0, 120, 240, 360]))


def test_the_turntable_stands_where_the_options_say():
    """Elevation 30 degrees at distance 2: on the first view's axes x, z at (sqrt 3, 1)."""
    options = {"eval_elevation_deg": 30.0, "eval_camera_distance": 2.0, "eval_fovy_deg": 45.0}
    (batch, *_) = module(n_test_views=4, **options).test_dataloader()
    (cameras,) = batch.cameras
    expected = torch.tensor([[3**0.5, 0, 1], [0, 3**0.5, 1], [-(3**0.5), 0, 1], [0, -(3**0.5), 1]])
    torch.testing.assert_close(cameras.positions, expected)
    torch.testing.assert_close(cameras.fovy, torch.full((4,), torch.pi / 4))


@pytest.mark.parametrize(("relative", "scale"), [(True, 3**0.5), (False, 1.0)])
def test_distances_are_in_world_units_or_relative_to_the_field_of_view(relative, scale):
    """1 / tan(60 / 2 degrees) is sqrt 3."""
    ring = {"fovy": [60, 60], "distance": [1.25, 1.25], "relative_distance": relative}
    (batch,) = stream(module(cameras=ring), 1)
    for cameras in batch.cameras:
        torch.testing.assert_close(cameras.positions.norm(dim=1), torch.full((8,), 1.25 * scale))


def test_sizes_are_height_and_width():
    (batch,) = stream(module(height=16, width=24, ray_height=8, ray_width=12), 1)
    assert (batch.image_size, batch.ray_size) == ((16, 24), (8, 12))


def test_a_prompt_that_is_there_twice_is_looked_at_once(caplog):
    prompts = ["a", "b", "a", "c", "b"]
    for processes in (1, 2):
        batches = [
            b for rank in range(processes) for b in module(rank, processes, prompts=prompts).predict_dataloader()
        ]
        assert sorted((b.prompts[0], b.samples[0]) for b in batches) == [("a", 0), ("b", 1), ("c", 3)]
    assert "2 prompts are there more than once" in caplog.text


def test_an_export_needs_prompts(tmp_path):
    (tmp_path / "some.json").write_text('{"train": ["a cat"]}')
    data = module(prompts=None, prompt_library="some", prompt_library_dir=str(tmp_path))
    assert len(data.test_dataloader()) == 0
    with pytest.raises(ConfigError, match="'test': nothing to export; give --prompt"):
        data.predict_dataloader()


def test_one_prompt_can_be_picked_for_evaluation():
    data = module(eval_prompt="another")
    assert [batch.prompts for batch in data.test_dataloader()] == [("another",)]
    assert data.library.train == tuple(PROMPTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 6}, "multiple of cameras.n_view=4, not 6"),
        ({"batch_size": 8, "cameras": {"n_view": 3}}, "multiple of cameras.n_view=3, not 8"),
        ({"cameras": {"fovy": [60, 40]}}, r"cameras\.fovy must be \[low, high\]"),
        ({"cameras": {"fovy": [0, 60]}}, r"cameras\.fovy\[0\]"),
        ({"cameras": {"fovy": [60, 200]}}, r"cameras\.fovy\[1\]"),
        ({"cameras": {"elevation": [30, -30]}}, r"cameras\.elevation must be \[low, high\]"),
        ({"cameras": "volume"}, r"cameras\.type is 'volume', which is a renderer; wanted is one of cameras: .*ring"),
        ({"n_test_views": -1}, "n_test_views"),
        ({"latent_shape": [5, 4, 8, 8]}, r"latent_shape\[0\] is 5; allowed: 6"),
        ({"conditions": {"sd": {}}, "generator_condition": "ds"}, "'ds'; data.conditions has sd"),
        ({"eval_prompt": " "}, "eval_prompt"),
        ({"prompts": []}, "at least one"),
        ({"prompts": None}, "--prompt"),
    ],
)
def test_errors_name_the_option(options, message):
    with pytest.raises(ConfigError, match=message):
        module(**options)


def test_unknown_options_name_the_nearest():
    with pytest.raises(UnknownNameError, match="'n_view'"):
        module(cameras={"n_views": 4})
    with pytest.raises(UnknownNameError, match="'camera_sets'"):
        module(camera_set=4)


@register("test-numbered-text")
class NumberedText(ConditionEncoder):
    """States that are a number. Counts how many encoders were built."""

    @dataclass(kw_only=True)
    class Config(ConditionEncoder.Config):
        number: float = 0.0

    built: ClassVar[list[float]] = []

    def configure(self):
        self.built.append(self.cfg.number)

    def forward(self, prompts):
        states = torch.full((len(prompts), 1, 1), self.cfg.number)
        return TextStates(states, states[:, 0], states[:1], states[:1])


def encoded(monkeypatch, fn="fit", **options):
    """A micro-batch after its way to the device, and the encoders that were built for it, by number."""
    monkeypatch.setattr(NumberedText, "built", [])
    encoders = {name: {"type": "test-numbered-text", "number": i} for i, name in enumerate(("sd", "rd"), start=1)}
    data = module(fn=fn, conditions=encoders, **options)
    batch = data.training_batch(0, range(2))
    for _ in range(2):
        batch = data.on_after_batch_transfer(batch, 0)
    return batch, NumberedText.built


def test_a_batch_says_what_every_encoder_says_and_the_generators_comes_first(monkeypatch):
    batch, built = encoded(monkeypatch)
    assert [(name, float(s.tokens[0])) for name, s in batch.conditions.items()] == [("sd", 1), ("rd", 2)]
    assert float(batch.condition.tokens[1]) == 1
    assert built == [1, 2]
    batch, _ = encoded(monkeypatch, generator_condition="rd")
    assert list(batch.conditions) == ["rd", "sd"]
    assert float(batch.condition.tokens[0]) == 2


def test_evaluation_loads_the_encoder_of_the_generator_only(monkeypatch):
    for name, number in (("sd", 1), ("rd", 2)):
        batch, built = encoded(monkeypatch, fn="test", generator_condition=name)
        assert list(batch.conditions) == [name]
        assert built == [number]


def test_an_encoder_must_be_named():
    data = module()
    with pytest.raises(ConfigError, match=r"data\.conditions is empty: name an encoder"):
        data.on_after_batch_transfer(data.training_batch(0, range(2)), 0)


def test_pictures_have_other_sizes_from_milestones_on():
    sizes = {"milestones": [2, 5], "later_ray_sizes": [[16, 24], [32, 32]], "ray_height": 8, "ray_width": 8}
    batches = stream(module(**sizes, height=40, width=48), 7)
    assert [batch.ray_size for batch in batches] == [(8, 8)] * 2 + [(16, 24)] * 3 + [(32, 32)] * 2
    assert {batch.image_size for batch in batches} == {(40, 48)}
    with pytest.raises(ConfigError, match=r"later_sizes \(\[\(4, 4\)\]\) must have an entry for each of the"):
        module(milestones=[2, 5], later_sizes=[[4, 4]])


def test_milestones_count_optimizer_steps():
    data = module(milestones=[2], later_sizes=[[16, 16]], height=8, width=8)
    data.step_of = lambda batch: batch // 3
    assert [batch.image_size for batch in stream(data, 8)] == [(8, 8)] * 6 + [(16, 16)] * 2


def test_evaluation_may_have_a_size_of_its_own():
    plain, large = (module(height=8, width=12, ray_height=4, **size) for size in ({}, {"eval_size": [64, 48]}))
    batch = plain.evaluation_batch(("a",), 0, 2)
    assert (batch.image_size, batch.ray_size) == ((8, 12), (4, 64))
    batch = large.evaluation_batch(("a",), 0, 2)
    assert batch.image_size == batch.ray_size == (64, 48)
    assert stream(large, 1)[0].image_size == (8, 12)


class Growing(CameraSampler):
    """As many views as the step says."""

    def at(self, progress):
        return Growing({"n_view": 1 + progress.step})

    def __call__(self, draws, stream):
        return orbit_cameras(
            *torch.ones(4, len(draws.samples) * self.cfg.n_view), n_view=self.cfg.n_view, relative=False
        )


def test_cameras_may_change_with_the_step():
    data = module(batch_size=1, camera_sets=1, cameras={"type": "ring", "n_view": 1})
    data.camera_sampler = Growing({"n_view": 1})
    assert [batch.cameras[0].n_view for batch in stream(data, 3)] == [1, 2, 3]


def test_a_film_has_two_prompts_and_a_view_for_each_picture():
    data = module(eval_prompt="a", target_prompt="b", n_test_views=3)
    (film,) = data.test_dataloader()
    assert film.film
    assert film.prompts == ("a", "b")
    assert film.cameras[0].azimuth_deg.tolist() == [0.0, 120.0, 240.0]
    assert list(module(rank=1, processes=2, eval_prompt="a", target_prompt="b").test_dataloader()) == []
    with pytest.raises(ConfigError, match=r"target_prompt is where a film ends: give data\.eval_prompt"):
        module(target_prompt="b")


def test_between_two_prompts_are_blends_of_what_encoders_say():
    generator = torch.Generator().manual_seed(0)
    tokens, by_view = torch.randn(2, 3, 4, generator=generator), torch.randn(4, 2, 3, 4, generator=generator)
    states = TextStates(tokens, tokens[:, 0], tokens[:1], tokens[:1], by_view)
    film = replace(module(eval_prompt="a", target_prompt="b").film(), conditions={"text": states})
    for share in (0.0, 0.25, 1.0):
        part = film.between(share)
        assert part.prompts == ("a to b",)
        assert not part.film
        torch.testing.assert_close(part.condition.tokens, (1 - share) * tokens[:1] + share * tokens[1:])
        torch.testing.assert_close(part.condition.pooled, (1 - share) * tokens[:1, 0] + share * tokens[1:, 0])
        torch.testing.assert_close(part.condition.by_view, (1 - share) * by_view[:, :1] + share * by_view[:, 1:])


def test_the_camera_of_tests_can_be_held_still():
    for view, azimuth in ((0, 0.0), (2, 240.0)):
        data = module(prompts=["a", "b"], n_test_views=3, n_val_views=2, test_view=view)
        film = module(eval_prompt="a", target_prompt="b", n_test_views=3, test_view=view).film()
        for batch in (*data.test_dataloader(), film):
            assert batch.cameras[0].azimuth_deg.tolist() == [azimuth] * 3
            assert batch.cameras[0].n_view == 3
        assert data.evaluation_batch(("a",), 0, 2).cameras[0].azimuth_deg.tolist() == [0.0, 180.0]
    with pytest.raises(ConfigError, match=r"data\.test_view is 3.*the turntable has the views 0 to 2"):
        module(n_test_views=3, test_view=3)
