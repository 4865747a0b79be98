"""The recipes of the miniature world: they build, train all they have, and differ from each other in what they say."""

from pathlib import Path
from typing import Any

import pytest

from triplaneturbo.base import as_tree
from triplaneturbo.config import load_config
from triplaneturbo.extensions import import_extensions

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "custom/scaledreamer/configs/shapeworld"
# Trained parameters, prompts of a step.
SIZES = {
    "triplane_transformer": (2_335_104, 8),
    "hyper_ingp": (430_976, 8),
    "hyper_ingp_sd": (430_976, 8),
    "conv3d_net": (1_184_647, 8),
    "conv3d_net_sd": (1_184_647, 8),
    "single_prompt": (350_080, 1),
}


def experiment(name: str) -> Any:
    import_extensions(ROOT / "custom")
    return load_config([FOLDER / f"{name}.yaml"], [])


@pytest.mark.parametrize("name", SIZES)
def test_a_recipe_builds_and_trains_all_of_it(name: str) -> None:
    config = experiment(name)
    system = config.system.build()
    system.configure_optimizers()
    groups = system.scheduled_optimizer.optimizer.param_groups
    trained = {id(p) for group in groups for p in group["params"]}
    assert trained >= {id(p) for p in system.geometry.parameters()}
    data = config.data.cfg
    prompts = data.batch_size // data.cameras.cfg.n_view
    assert (sum(p.numel() for p in system.geometry.parameters()), prompts) == SIZES[name]


@pytest.mark.parametrize("name", SIZES)
def test_everything_ends_with_the_run(name: str) -> None:
    """What changes in the course of a training does so over all of it, however long that is."""
    config = load_config([FOLDER / f"{name}.yaml"], ["trainer.max_steps=40"])
    system = as_tree(config.system)
    (teacher,) = system["guidance"]["teachers"].values()
    rates = [group["lr"] for group in system["optimizer"]["params"].values()]
    for schedule in (teacher["min_timestep"], teacher["max_timestep"], *rates):
        assert schedule[-1] == 40


@pytest.mark.parametrize("name", ["hyper_ingp", "conv3d_net"])
def test_with_stable_diffusion_alone_nothing_else_differs(name: str) -> None:
    (ours, others) = (as_tree(experiment(n).system) for n in (name, f"{name}_sd"))
    (kind, one), (other_kind, other) = ours["guidance"]["teachers"].popitem(), others["guidance"]["teachers"].popitem()
    assert (kind, other_kind) == ("mvdream", "stable_diffusion")
    assert other["all_views"]
    same = ("rule", "guidance_scale", "min_timestep", "max_timestep", "image_size")
    assert {key: one[key] for key in same} == {key: other[key] for key in same}
    assert ours == others
