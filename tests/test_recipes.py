"""The shipped recipes as whole systems, on the meta device: full size, no memory, no weights."""

from pathlib import Path

import pytest
import torch

from triplaneturbo.base import as_tree
from triplaneturbo.config import load_config
from triplaneturbo.extensions import import_extensions

ROOT = Path(__file__).parents[1]
FULL_SIZE = sorted((ROOT / "configs").glob("*.yaml"))
STUDENTS = [
    path for path in sorted(ROOT.glob("configs/**/*.yaml")) if path.stem.startswith(("Triplane", "prd", "tiny"))
]


def experiment(path):
    import_extensions(ROOT / "custom")
    return load_config([path], ["data.prompt_library=some_library"] if path in STUDENTS else [])


def system(path):
    with torch.device("meta"):
        return experiment(path).system.build()


def trained(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize("path", STUDENTS, ids=lambda p: p.stem)
def test_every_recipe_builds_and_every_group_of_its_optimizer_has_parameters(path):
    built = system(path)
    built.configure_optimizers()
    groups = built.scheduled_optimizer.optimizer.param_groups
    assert len(groups) == len(built.cfg.optimizer.params)
    assert sum(p.numel() for group in groups for p in group["params"]) > 1e6


@pytest.mark.parametrize("path", FULL_SIZE, ids=lambda p: p.stem)
def test_full_size_recipes_train_as_many_parameters_as_the_published_model(path):
    built = system(path)
    assert trained(built.geometry.space_generator) == 22_661_184
    assert trained(built.geometry) == 22_684_160
    assert trained(built.renderers) == trained(built.material) == 0


def test_what_differs_between_the_published_recipes():
    """The table of the shipped configurations: prompts in a step, and where schedules end."""
    rows = {}
    for path in FULL_SIZE:
        config = experiment(path)
        data, given = as_tree(config.data), as_tree(config.system)
        mesh, volume = given["renderers"]["mesh"], given["renderers"]["volume"]["base_renderer"]
        teachers = given["guidance"]["teachers"]
        rows[path.stem.removeprefix("TriplaneTurbo_")] = (
            data["batch_size"] // data["cameras"]["n_view"] * given["gradient_accumulation_steps"],
            data["ray_height"],
            config.trainer["max_steps"],
            volume["rgb_grad_shrink"][-1],
            teachers["stable_diffusion"]["min_timestep"][-1],
            given["losses"]["volume"]["eikonal"]["weight"][-1],
            teachers["mvdream"]["guidance_scale"],
            teachers["richdreamer"]["rule"].get("ratio", 0.0),
            (mesh["sdf_grad_shrink"], mesh["def_grad_shrink"]),
        )
    falling = [0, 20.0, 10.0, 20000]
    assert rows == {
        "v1": (2, 128, 15000, 20000, 20000, 20000, falling, 0.1, (0.001, 0.001)),
        "v1_acc-2": (2, 128, 30000, 40000, 40000, 40000, falling, 0.0, (0.001, 0.001)),
        "24g": (16, 128, 30000, 40000, 40000, 40000, falling, 0.0, (0.001, 0.001)),
        "12g": (16, 128, 30000, 40000, 40000, 40000, falling, 0.0, (0.001, 0.001)),
        "v0_acc-2": (1, 64, 15000, 40000, 20000, 20000, falling, 0.0, (0, 1)),
        "release": (2, 128, 20000, 20000, 20000, 20000, 20.0, 0.1, (0, 1)),
    }


WHOLE = [path for path in sorted(ROOT.glob("configs/**/*.yaml")) if path.stem != "stage"]  # that is a base of others


@pytest.mark.parametrize("path", WHOLE, ids=lambda p: p.stem)
def test_every_option_of_every_recipe_exists(path):
    assert experiment(path).system.cfg


def test_one_full_size_recipe_says_everything_and_the_others_what_differs():
    lengths = {path.stem: len(path.read_text().splitlines()) for path in FULL_SIZE}
    assert lengths.pop("TriplaneTurbo_v1") <= 120
    assert max(lengths.values()) <= 20
