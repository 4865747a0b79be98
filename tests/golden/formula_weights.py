"""Weights that anybody can compute from their names: the recorded networks were filled with them."""

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from triplaneturbo.legacy.state_dicts import from_original, to_original

_PRIME = 99991
# Learned tensors that networks start from.
_INPUTS = (".const", ".const_bias", "pos_embed")
_TRAINED = (".weight", ".bias", ".noise_strength", *_INPUTS)


def formula(key: str, shape: Sequence[int]) -> Tensor:
    """The tensor called `key`: with c = crc32(key), entry k is sin(((k^2 + c k) mod p) + c mod 1000), computed in
    float64, times 0.1 for biases and strengths of noise, 0.5 for learned inputs, sqrt(2 / fan-in) for matrices; 1 + 0.1
    times it for other vectors."""
    count = math.prod(shape)
    c = zlib.crc32(key.encode())
    k = np.arange(count, dtype=np.int64)
    wave = np.sin(((k * k + (c % _PRIME) * k) % _PRIME + c % 1000).astype(np.float64))
    if key.endswith((".bias", ".noise_strength")):
        values = 0.1 * wave
    elif key.endswith(_INPUTS):
        values = 0.5 * wave
    elif len(shape) <= 1:
        values = 1 + 0.1 * wave
    else:
        values = math.sqrt(2 / math.prod(shape[1:])) * wave
    return torch.from_numpy(values.astype(np.float32)).reshape(tuple(shape)).to(torch.get_default_device())


def filled(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """`state` with its trained tensors by the formula, each called `prefix` + its name; the rest as it is."""
    return {
        name: formula(prefix + name, value.shape) if name.endswith(_TRAINED) else value for name, value in state.items()
    }


def fill(module: nn.Module, prefix: str) -> nn.Module:
    """`module` with formula weights, in evaluation mode."""
    module.load_state_dict(filled(module.state_dict(), prefix))
    return module.to(torch.get_default_device()).eval()


def fill_geometry(geometry: nn.Module) -> None:
    """The geometry's trained tensors, by the names that the original has for them."""
    state = geometry.state_dict()
    geometry.load_state_dict(from_original(filled(to_original(state)), state))
