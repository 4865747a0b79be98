import pytest
import torch

from triplaneturbo.errors import ConfigError
from triplaneturbo.precision import cast_frozen, resolve_dtype


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda:1", torch.bfloat16),
        ("float32", "cuda", torch.float32),
        ("bfloat16", "cpu", torch.bfloat16),
        ("float16", "cuda", torch.float16),
    ],
)
def test_names_become_types(name, device, expected):
    assert resolve_dtype(name, device) == expected


def test_unknown_name_is_an_error():
    with pytest.raises(ConfigError, match="'bfloat16'"):
        resolve_dtype("half", "cpu")


def test_only_frozen_parameters_are_cast():
    layer = torch.nn.Linear(2, 2)
    layer.weight.requires_grad_(False)
    cast_frozen(layer, torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16
    assert layer.bias.dtype == torch.float32
