"""Random cameras for training."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.base import Component
from triplaneturbo.bounds import Degrees, Elevation, FieldOfView, Length, Range
from triplaneturbo.cameras import orbit_cameras
from triplaneturbo.draws import Draws
from triplaneturbo.errors import ConfigError
from triplaneturbo.registry import register
from triplaneturbo.schedule import Progress
from triplaneturbo.types import Cameras


class CameraSampler(Component):
    """Places the cameras of a step of training: `data.cameras` in a configuration."""

    role = "cameras"

    @dataclass(kw_only=True)
    class Config(Component.Config):
        n_view: Annotated[int, Range(1, 1024)] = 4
        """Views of a prompt."""

    def at(self, progress: Progress) -> "CameraSampler":
        """The sampler as it is at that point of a training; most never change."""
        return self

    @abstractmethod
    def __call__(self, draws: Draws, stream: str) -> Cameras:
        """`n_view` views of each sample of `draws`, from numbers that are keyed by sample and `stream`."""


@register("ring")
class Ring(CameraSampler):
    """Views evenly around the object, which share elevation, field of view and distance."""

    @dataclass(kw_only=True)
    class Config(CameraSampler.Config):
        elevation: tuple[Elevation, Elevation] = (-10.0, 90.0)
        """Range, degrees."""
        azimuth: tuple[Degrees, Degrees] = (-180.0, 180.0)
        """Range over which the views are spread, degrees."""
        distance: tuple[Length, Length] = (1.0, 1.5)
        """Range, world units, or with relative_distance in units of 1 / tan(fovy / 2)."""
        fovy: tuple[FieldOfView, FieldOfView] = (40.0, 70.0)
        """Range of the vertical field of view, degrees."""
        relative_distance: bool = True
        """Choose the distance so that objects appear equally large at every field of view."""

        def __post_init__(self) -> None:
            for name in ("elevation", "azimuth", "distance", "fovy"):
                low, high = getattr(self, name)
                if low > high:
                    raise ConfigError(f"cameras.{name} must be [low, high], not {[low, high]}")

    def __call__(self, draws: Draws, stream: str) -> Cameras:
        return self.place(draws.uniform(stream, 4))

    def place(self, uniform: Float[Tensor, "B 4"]) -> Cameras:
        """Cameras around B objects as a pure function of numbers in [0, 1): elevation, azimuth, fovy, distance.

        View k looks from azimuth low + (u + k) / n_view * (high - low).
        """
        cfg = self.cfg
        n_view = cfg.n_view
        elevation, turn, fovy, distance = uniform.unbind(1)
        turns = (turn[:, None] + torch.arange(n_view, dtype=uniform.dtype, device=uniform.device)) / n_view

        def shared(values: Tensor, bounds: tuple[float, float]) -> Tensor:
            return _between(values, bounds).repeat_interleave(n_view)

        return orbit_cameras(
            shared(elevation, cfg.elevation),
            _between(turns.flatten(), cfg.azimuth),
            shared(distance, cfg.distance),
            shared(fovy, cfg.fovy),
            n_view=n_view,
            relative=cfg.relative_distance,
        )


def _between(uniform: Tensor, bounds: tuple[float, float]) -> Tensor:
    low, high = bounds
    return uniform * (high - low) + low
