"""The switches for speed and precision, and networks that wait in the host's memory."""

import pytest
import torch
from miniature import unet
from torch import nn

from triplaneturbo.config import load_config
from triplaneturbo.errors import ConfigError
from triplaneturbo.nn.fused import streamline
from triplaneturbo.offload import HostCopy
from triplaneturbo.performance import WAYS, Performance, current, graphs_run_on, kernels_run_on, using
from triplaneturbo.places import RECIPES
from triplaneturbo.precision import resolve_dtype


def test_levels_add_to_each_other():
    on = {level: {name for name, value in vars(ways).items() if value} for level, ways in WAYS.items()}
    assert on["reference"] == set()
    assert on["reference"] < on["fast"] < on["max"] == set(vars(WAYS["max"]))


def test_fast_is_the_default_and_a_launch_says_otherwise():
    assert current() == Performance("fast", "auto")
    given = ["performance=reference", "precision=32"]
    experiment = load_config([RECIPES / "shapeworld" / "prd.yaml"], given)
    assert (experiment.performance, experiment.precision) == ("reference", 32)
    with pytest.raises(ConfigError, match="performance is 'quick'; allowed: 'reference', 'fast', 'max'"):
        load_config([RECIPES / "shapeworld" / "prd.yaml"], ["performance=quick"])


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [(32, torch.float32), ("bf16", torch.bfloat16), (16, torch.float16), ("auto", torch.float32)],
)
def test_precision_is_what_auto_means(precision, dtype):
    with using(Performance(precision=precision)):
        assert resolve_dtype("auto", "cpu") == dtype
        assert resolve_dtype("float16", "cpu") == torch.float16


def test_what_runs_where():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert not kernels_run_on(cpu)
    assert not graphs_run_on(cpu)
    assert graphs_run_on(cuda)
    with using(Performance("reference")):
        assert not kernels_run_on(cuda)
        assert not graphs_run_on(cuda)
    torch.use_deterministic_algorithms(True)
    try:
        assert not graphs_run_on(cuda)
    finally:
        torch.use_deterministic_algorithms(False)


def test_only_the_highest_level_shortens_factors_of_float32():
    with using(Performance("max")):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == "highest"


def test_streamlined_networks_compute_the_same_under_the_same_names():
    torch.manual_seed(0)
    network = unet(False)
    names = list(network.state_dict())
    rows, text = torch.randn(2, 4, 8, 8, requires_grad=True), torch.randn(2, 5, network.config["cross_attention_dim"])
    expected = network(rows, 10, text).sample
    (gradient,) = torch.autograd.grad(expected.square().sum(), rows)
    streamline(network)
    found = network(rows, 10, text).sample
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), rows)[0], gradient)
    assert list(network.state_dict()) == names


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_network_is_on_the_device_while_it_is_used(device):
    layer = nn.Linear(3, 2).requires_grad_(False)
    x = torch.ones(1, 3, device=device, requires_grad=True)
    expected = x.cpu() @ layer.weight.T + layer.bias
    host = HostCopy(layer)
    with host.on(torch.device(device)):
        assert layer.weight.device.type == device
        found = layer(x)
        found.sum().backward()
    assert layer.weight.device.type == "cpu"
    torch.testing.assert_close(found.cpu(), expected)
    torch.testing.assert_close(x.grad.cpu(), layer.weight.sum(0, keepdim=True))
