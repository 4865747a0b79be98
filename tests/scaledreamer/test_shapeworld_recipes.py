"""The recipes of the miniature world: they build, train all they have, and differ from each other in what they say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from triplaneturbo.base import as_tree
from triplaneturbo.config import load_config
from triplaneturbo.evaluation.world import parse_caption
from triplaneturbo.extensions import import_extensions
from triplaneturbo.prompts.text_encoder import TextEncoder

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "custom/scaledreamer/configs/shapeworld"
# Trained parameters, prompts of a step.
SIZES = {
    "triplane_transformer": (2_335_104, 8),
    "hyper_ingp": (1_430_784, 8),
    "hyper_ingp_sd": (1_430_784, 8),
    "conv3d_net": (1_373_063, 8),
    "conv3d_net_sd": (1_373_063, 8),
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


@pytest.mark.parametrize("name", ["hyper_ingp", "conv3d_net"])
def test_a_generator_reads_the_states_of_all_tokens(name: str) -> None:
    config = experiment(name)
    states = config.data.cfg.conditions["text"].build()(["a red cube on a blue torus", "a red cone"])
    assert states.pooled.shape == (2, states.tokens[0].numel())
    scene = config.system.cfg.geometry.build().generate(states, torch.zeros(2, *config.data.cfg.latent_shape[1:]), 1)
    assert all(len(tensor) == 2 for tensor in scene.tensors.values())


def share_of_first_shapes_read(pooled: Tensor, shapes: Tensor) -> float:
    """By ridge regression on four of five captions, asked of the fifth."""
    x = F.pad((pooled - pooled.mean(0)) / (pooled.std(0) + 1e-6), (0, 1), value=1.0).double()
    asked = torch.arange(len(x)) % 5 == 0
    known, wanted = x[~asked], F.one_hot(shapes[~asked]).double()
    weights = torch.linalg.solve(known.T @ known + 10 * torch.eye(x.shape[1]), known.T @ wanted)
    return ((x[asked] @ weights).argmax(1) == shapes[asked]).double().mean().item()


def test_the_end_of_a_text_does_not_say_what_its_first_part_is() -> None:
    """Why the recipes ask for the states of all tokens (README of custom/scaledreamer)."""
    captions = json.loads((ROOT / "load/shapeworld_prompt_library.json").read_text())["train"][::2]
    names = [parse_caption(caption).parts[0].shape for caption in captions]
    shapes = torch.tensor([sorted(set(names)).index(name) for name in names])
    encoder = TextEncoder(ROOT / "load/shapeworld/stable_diffusion", remembered=len(captions))
    tokens, end = encoder.encode(captions)
    assert share_of_first_shapes_read(end, shapes) == pytest.approx(0.55, abs=0.05)
    assert share_of_first_shapes_read(tokens.flatten(1), shapes) > 0.99


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
