"""Parameter groups, learning rates, gradients, averages."""

import pytest
import torch
from torch import nn

from triplaneturbo.base import parse_config
from triplaneturbo.errors import ConfigError, UnknownNameError
from triplaneturbo.interruption import Wishes
from triplaneturbo.schedule import Progress
from triplaneturbo.systems.ema import ParameterAverage
from triplaneturbo.systems.optimizer import OptimizerConfig, ScheduledOptimizer, average_gradients, group_parameters


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.geometry = nn.ModuleDict({"base": nn.Linear(2, 2), "field": nn.Linear(2, 2, bias=False)})
        self.background = nn.Linear(2, 1)
        self.empty = nn.Identity()
        self.geometry["base"].requires_grad_(False)


def test_a_parameter_belongs_to_the_longest_name_and_frozen_ones_to_none():
    parts = Parts()
    parts.geometry["base"].bias.requires_grad_(True)
    groups = group_parameters(parts, ["geometry", "geometry.base", "empty"])
    assert groups == {"geometry": [parts.geometry["field"].weight], "geometry.base": [parts.geometry["base"].bias]}
    assert [len(g) for g in group_parameters(parts, [""]).values()] == [4]


def test_learning_rates_follow_their_schedules():
    params = {"geometry": {"lr": [0, 1.0, 0.5, 10]}, "background": {"lr": 0.1, "eps": 1e-3}}
    config = parse_config(OptimizerConfig, {"name": "Adam", "args": {"eps": 1e-6}, "params": params}, "optimizer")
    scheduled = ScheduledOptimizer(config, Parts())
    assert scheduled.set_learning_rates(Progress(step=5)) == 0.75
    assert [(g["lr"], g["eps"]) for g in scheduled.optimizer.param_groups] == [(0.75, 1e-6), (0.1, 1e-3)]
    assert len(scheduled.parameters) == 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"params": {"geometri": {"lr": 1.0}}}, UnknownNameError, "'geometry'"),
        ({"params": {"empty": {"lr": 1.0}}}, ConfigError, "nothing to train"),
        ({"args": {"momentum": 0.9}}, ConfigError, "momentum"),
        ({"name": "SGD"}, ConfigError, "'AdamW'"),
        ({"scheduler": {}}, UnknownNameError, "'scheduler'; allowed: args, name, params"),
    ],
)
def test_errors_name_what_is_wrong(options, error, message):
    with pytest.raises(error, match=message):
        ScheduledOptimizer(parse_config(OptimizerConfig, options, "optimizer"), Parts())


def test_gradients_that_no_loss_reached_are_zero():
    reached, unreached = nn.Parameter(torch.tensor([3.0, 4.0])), nn.Parameter(torch.ones(2))
    reached.square().sum().backward()
    norm, _ = average_gradients([reached, unreached], Wishes())
    assert norm == 10
    assert torch.equal(unreached.grad, torch.zeros(2))


def test_the_wishes_of_any_process_travel_with_the_gradients(monkeypatch):
    """Of the other process there is only what it adds to the one sum: gradients of 3, and the wish to stop."""
    transfers = []

    def all_reduce(flat):
        transfers.append(flat.clone())
        flat += torch.tensor([3.0, 3.0, 0.0, 1.0])

    for name, value in (("is_initialized", lambda: True), ("get_world_size", lambda: 2), ("all_reduce", all_reduce)):
        monkeypatch.setattr(torch.distributed, name, value)
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 5.0])
    norm, wishes = average_gradients([parameter], Wishes(save=False, stop=False))
    assert (norm, wishes) == (5, Wishes(save=False, stop=True))
    assert torch.equal(parameter.grad, torch.tensor([3.0, 4.0]))
    assert len(transfers) == 1


def test_average_forgets_its_start_and_then_decays():
    parameter = nn.Parameter(torch.tensor([0.0]))
    average = ParameterAverage({"p": parameter}, 0.5)
    parameter.data.fill_(11.0)
    average.update(1)  # decay (1 + 1) / (10 + 1)
    torch.testing.assert_close(average.averages["p"], torch.tensor([9.0]))
    parameter.data.fill_(1.0)
    average.update(1000)
    torch.testing.assert_close(average.averages["p"], torch.tensor([5.0]))


def test_swapping_twice_changes_nothing():
    parameter = nn.Parameter(torch.tensor([1.0]))
    average = ParameterAverage({"p": parameter}, 0.5)
    parameter.data.fill_(2.0)
    average.swap()
    assert (parameter.item(), average.averages["p"].item()) == (1.0, 2.0)
    average.swap()
    assert (parameter.item(), average.averages["p"].item()) == (2.0, 1.0)
