"""Films from one text to another."""

from dataclasses import replace
from pathlib import Path

import torch
from tiny_generators import GENERATORS, TEXT_WIDTH, texts

from triplaneturbo.data import PromptsAndCameras
from triplaneturbo.systems import SceneDistillation
from triplaneturbo.types import Batch, Run


def make_film(**options: object) -> Batch:
    data = {
        "eval_prompt": "a",
        "target_prompt": "b",
        "n_test_views": 3,
        "eval_size": [6, 8],
        "prompts": ["c"],
        **options,
    }
    return replace(PromptsAndCameras(data).film(), conditions={"text": texts(2)})


def make_system(folder: Path) -> SceneDistillation:
    torch.manual_seed(0)
    _, options = GENERATORS["hyper-ingp"]
    volume = {"type": "volume", "num_samples_per_ray": 4, "num_samples_per_ray_importance": 4}
    system = SceneDistillation(
        {"geometry": {"type": "hyper-ingp", **options}, "renderers": {"volume": volume}, "background": "solid-color"}
    )
    system.geometry.field.encoding.params.data.uniform_(-0.5, 0.5)
    system.enter(Run(save=folder))
    return system.eval()


@torch.no_grad()
def test_each_picture_shows_the_scene_of_a_text_in_between(tmp_path: Path) -> None:
    system, film = make_system(tmp_path), make_film()
    assert film.condition.pooled.shape == (2, TEXT_WIDTH)
    scenes = [scene.tensors for scene, cameras, _ in system._shots(film) if len(cameras) == 1]
    both = system.generate(replace(film, film=False)).tensors
    half = system.generate(film.between(0.5)).tensors
    assert len(scenes) == 3
    for name, value in both.items():
        torch.testing.assert_close(scenes[0][name], value[:1])
        torch.testing.assert_close(scenes[1][name], half[name])
        torch.testing.assert_close(scenes[2][name], value[1:])
        assert not torch.equal(value[:1], value[1:])


@torch.no_grad()
def test_a_film_is_pictures_and_a_video(tmp_path: Path) -> None:
    system = make_system(tmp_path)
    system._save_pictures(make_film(test_view=0), "test", clean_up=False)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert [f"it0-test-volume/a_to_b/{i}.png" in names for i in range(3)] == [True] * 3
    assert any(name.startswith("it0-test-volume/a_to_b.") for name in names)
