"""Multi-resolution hash encoding of points in the unit cube (Mueller et al. 2022).

`backend` chooses the implementation: "torch" (any device), "triton" (CUDA kernels of `hashgrid_triton.py`, all levels
in one), or "auto", which is triton for CUDA tensors where Triton is installed and `performance` allows it, else torch.
Both agree to rounding. On CUDA, the gradient of the table is the same from run to run under
`torch.use_deterministic_algorithms`, with Triton.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from triplaneturbo.bounds import Range
from triplaneturbo.ops.backends import choose
from triplaneturbo.ops.rows import gather_rows

_PRIMES = (1, 2654435761, 805459861)
_INIT_BOUND = 1e-4


@dataclass(kw_only=True)
class HashGridConfig:
    """Size of a hash grid; the defaults are those of instant-ngp's finest 4096."""

    n_levels: Annotated[int, Range(1, 32)] = 16
    """Grids of growing resolution."""
    n_features_per_level: Annotated[int, Range(1, 64)] = 2
    """Features each of them gives."""
    log2_hashmap_size: Annotated[int, Range(1, 30)] = 19
    """Entries of a grid that is too fine to be stored densely, as a power of two."""
    base_resolution: Annotated[int, Range(1, 4096)] = 16
    """Points along an edge of the coarsest grid."""
    per_level_scale: Annotated[float, Range(1, 16)] = 1.447269237440378
    """Ratio of neighbouring resolutions."""


class HashGrid(nn.Module):
    """Trilinear lookup in `n_levels` grids of growing resolution, concatenated.

    Level l has scale s = base_resolution * per_level_scale**l - 1 and resolution ceil(s) + 1; a point x falls at
    s x + 1/2. A level with at most 2**log2_hashmap_size corners is stored densely (x fastest), a finer one
    through a hash of the corner's integer coordinates. Sizes, order and wrapping of entries are those of
    tiny-cuda-nn, so its parameter vectors can be used as they are: `params` is flat, level by level, the features
    of an entry next to each other. Initialised from U(-1e-4, 1e-4). What does the lookup is no part of it: see
    `backends`.
    """

    def __init__(
        self,
        n_levels: int,
        n_features_per_level: int,
        log2_hashmap_size: int,
        base_resolution: int,
        per_level_scale: float,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.n_features_per_level = n_features_per_level
        self.layout = {
            "n_levels": n_levels,
            "n_features_per_level": n_features_per_level,
            "log2_hashmap_size": log2_hashmap_size,
            "base_resolution": base_resolution,
            "per_level_scale": per_level_scale,
        }
        self.scales = [base_resolution * per_level_scale**level - 1 for level in range(n_levels)]
        self.resolutions = [math.ceil(scale) + 1 for scale in self.scales]
        # Level sizes are multiples of 8 in tiny-cuda-nn.
        self.sizes = [min(-(-(r**3) // 8) * 8, 1 << log2_hashmap_size) for r in self.resolutions]
        initial = torch.empty(sum(self.sizes) * n_features_per_level)
        self.params = nn.Parameter(initial.uniform_(-_INIT_BOUND, _INIT_BOUND, generator=generator))

    @property
    def n_output_dims(self) -> int:
        return len(self.sizes) * self.n_features_per_level

    def forward(self, points: Float[Tensor, "N 3"], *, backend: str = "auto") -> Float[Tensor, "N D"]:
        """Features [N, n_levels * n_features_per_level] of points in [0, 1]^3; differentiable once in both.

        Corner lookups are computed again in the backward pass, 160 bytes per point and level otherwise.

        backend: auto, torch, triton, tinycudann; see `backends.choose`, and for its errors.
        """
        chosen = choose("hashgrid", points.device, self.params.dtype, asked=backend).name
        if chosen == "tinycudann":
            from triplaneturbo.ops.hashgrid_tinycudann import lookup

            return lookup(points, self.params, **self.layout)
        if chosen == "triton":
            from triplaneturbo.ops.hashgrid_triton import EncodePoints, Levels

            grids = Levels(tuple(self.scales), tuple(self.resolutions), tuple(self.sizes))
            return EncodePoints.apply(points, self.params.view(-1, self.n_features_per_level), grids)
        tables = self.params.view(-1, self.n_features_per_level).split(self.sizes)
        levels = zip(tables, self.scales, self.resolutions, strict=True)
        features = [
            checkpoint(_lookup, points, *level, use_reentrant=False, preserve_rng_state=False) for level in levels
        ]
        return torch.cat(features, 1)


def _lookup(points: Tensor, table: Tensor, scale: float, resolution: int) -> Tensor:
    position = points * scale + 0.5
    lowest = position.detach().floor()
    # Per axis the lower and the upper grid line; the eight corners are their combinations, x fastest.
    lines = torch.stack([lowest, lowest + 1], 2).long()
    weights = torch.stack([1 - (position - lowest), position - lowest], 2)
    (x, y, z), (wx, wy, wz) = _combinable(lines), _combinable(weights)
    if resolution**3 <= len(table):
        entries = x + resolution * (y + resolution * z)
    else:
        entries = x * _PRIMES[0] ^ y * _PRIMES[1] ^ z * _PRIMES[2]
    entries = (entries % len(table)).flatten()
    features = gather_rows(table, entries).view(len(points), 8, table.shape[1])
    return ((wx * wy * wz).view(len(points), 8, 1) * features).sum(1)


def _combinable(axes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The x, y and z rows of [N, 3, 2], shaped to broadcast to [N, 2 (z), 2 (y), 2 (x)]."""
    x, y, z = axes.unbind(1)
    return x[:, None, None, :], y[:, None, :, None], z[:, :, None, None]
