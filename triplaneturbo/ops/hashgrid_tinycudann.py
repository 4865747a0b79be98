"""Lookup in hash grids by tiny-cuda-nn (CUDA; licence BSD-3), in float32.

Its parameter vector is laid out as `hashgrid.HashGrid.params` is: level by level, entries of coarse grids with x
fastest, finer ones by the same hash. So it is lent ours for each call and keeps none: what is saved, trained and loaded
does not depend on it. It rounds the scale of a level to float32: features differ by rounding.
"""

import functools

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from triplaneturbo.errors import ConfigError


def lookup(points: Float[Tensor, "N 3"], params: Float[Tensor, " P"], **layout: int | float) -> Float[Tensor, "N D"]:
    """Features of points in [0, 1]^3; differentiable in both.

    layout: `n_levels`, `n_features_per_level`, `log2_hashmap_size`, `base_resolution`, `per_level_scale`.

    Raises:
        ConfigError: the package makes another number of parameters of it, because a resolution is at a rounding limit.
    """
    if len(points) == 0:
        return points.new_zeros(0, int(layout["n_levels"] * layout["n_features_per_level"]))
    with torch.cuda.device_of(points):  # the package works on the current device
        encoding = _encoding(points.device, len(params), **layout)
        return functional_call(encoding, {"params": params}, (points,))


@functools.cache
def _encoding(device: torch.device, size: int, **layout: int | float) -> torch.nn.Module:
    """One for each device and layout; it has no state of its own."""
    import tinycudann

    encoding = tinycudann.Encoding(3, {"otype": "HashGrid", **layout}, dtype=torch.float32)
    if encoding.params.numel() != size:
        raise ConfigError(
            f"tiny-cuda-nn has {encoding.params.numel()} parameters for a hash grid of {layout}, not {size}: it rounds "
            "a resolution differently. Use backends.hashgrid=torch, or change per_level_scale a little"
        )
    encoding.params = torch.nn.Parameter(encoding.params.new_empty(0), requires_grad=False)  # ours take their place
    return encoding
