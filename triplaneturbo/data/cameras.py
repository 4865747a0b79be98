"""Random cameras for training."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.cameras import orbit_cameras
from triplaneturbo.types import Cameras

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class CameraRanges:
    """Ranges from which cameras are drawn; angles in degrees.

    distance: with `relative` in units of 1 / tan(fovy / 2).
    """

    elevation: Range
    azimuth: Range
    fovy: Range
    distance: Range
    relative: bool


def training_cameras(uniform: Float[Tensor, "B 4"], ranges: CameraRanges, n_view: int) -> Cameras:
    """Cameras around B objects as a pure function of numbers in [0, 1): elevation, azimuth, field of view, distance.

    The views of a prompt share elevation, field of view and distance; view k looks from azimuth
    low + (u + k) / n_view * (high - low).
    """
    elevation, turn, fovy, distance = uniform.unbind(1)
    turns = (turn[:, None] + torch.arange(n_view, dtype=uniform.dtype, device=uniform.device)) / n_view

    def shared(values: Tensor, bounds: Range) -> Tensor:
        return _between(values, bounds).repeat_interleave(n_view)

    return orbit_cameras(
        shared(elevation, ranges.elevation),
        _between(turns.flatten(), ranges.azimuth),
        shared(distance, ranges.distance),
        shared(fovy, ranges.fovy),
        n_view=n_view,
        relative=ranges.relative,
    )


def _between(uniform: Tensor, bounds: Range) -> Tensor:
    low, high = bounds
    return uniform * (high - low) + low
