"""Random cameras: rings of views, or views on their own, whose ranges may grow and which may be shaken."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.base import option
from triplaneturbo.bounds import Count, Degrees, Elevation, FieldOfView, Length, Range, Share
from triplaneturbo.cameras import look_at, orbit_cameras
from triplaneturbo.data import CameraSampler
from triplaneturbo.draws import Draws
from triplaneturbo.errors import ConfigError
from triplaneturbo.registry import register
from triplaneturbo.schedule import Progress
from triplaneturbo.types import Cameras

Bounds = tuple[float, float]
Jitter = Annotated[float, Range(0, 100)]
_UNIFORM = ("elevation", "azimuth", "distance", "fovy", "zoom")


@register("random-views")
class RandomViews(CameraSampler):
    """Views of a prompt in a ring, which share all but the azimuth, or each on its own."""

    @dataclass(kw_only=True)
    class Config(CameraSampler.Config):
        ring: bool = True
        """Whether the views of a prompt share what is drawn, and stand evenly around the object."""
        spread_azimuth: bool = True
        """Whether views on their own stand each in its part of the range of the azimuth, or anywhere in it."""
        elevation: tuple[Elevation, Elevation] = (-10.0, 90.0)
        """Range, degrees."""
        azimuth: tuple[Degrees, Degrees] = (-180.0, 180.0)
        """Range, degrees."""
        distance: tuple[Length, Length] = (1.0, 1.5)
        """Range, world units, or with relative_distance in units of 1 / tan(fovy / 2)."""
        fovy: tuple[FieldOfView, FieldOfView] = (40.0, 70.0)
        """Range of the vertical field of view, degrees."""
        zoom: tuple[Length, Length] = (1.0, 1.0)
        """Range of a factor of the field of view, once the distance has been chosen."""
        relative_distance: bool = False
        """Choose the distance so that objects appear equally large at every field of view, but for the zoom."""
        sphere_share: Share = 0.5
        """Share of the samples whose elevation is even on the sphere; that of the others is even in degrees."""
        camera_jitter: Jitter = 0.0
        """The camera is moved by up to this much along each axis, world units."""
        center_jitter: Jitter = 0.0
        """Standard deviation along each axis of the point that is looked at from the origin, world units."""
        up_jitter: Jitter = 0.0
        """Standard deviation along each axis of the unit vector that is up."""
        progressive_until: Annotated[int, Range(0)] = 0
        """Step up to which the ranges of elevation and azimuth grow; 0: they are whole from the start."""
        first_elevation: Elevation = 15.0
        """What the range of the elevation grows from, degrees; that of the azimuth grows from 0."""
        milestones: list[Count] = option([])
        """Steps from which on there are other numbers of views."""
        later_views: list[Count] = option([])
        """These numbers, in the place of n_view."""
        quirks: list[Literal["first-step-at-rest", "sphere-by-percent"]] = option([])
        """first-step-at-rest: without progressive_until, too, the ranges are not whole at the first step, but where
        they grow from. sphere-by-percent: the sine of the elevation is even between low / 90 and high / 90."""

        def __post_init__(self) -> None:
            for name in _UNIFORM:
                low, high = getattr(self, name)
                if low > high:
                    raise ConfigError(f"cameras.{name} must be [low, high], not {[low, high]}")
            if len(self.later_views) != len(self.milestones) or self.milestones != sorted(set(self.milestones)):
                raise ConfigError(
                    f"cameras.later_views ({self.later_views}) must have an entry for each of the increasing "
                    f"milestones ({self.milestones})"
                )

    def at(self, progress: Progress) -> "RandomViews":
        """See `CameraSampler.at`: with the ranges and the number of views that hold then."""
        cfg, grown = self.cfg, 1.0
        if cfg.progressive_until or "first-step-at-rest" in cfg.quirks:
            grown = min(1.0, progress.step / (cfg.progressive_until + 1))
        low, high = (cfg.first_elevation + grown * (end - cfg.first_elevation) for end in cfg.elevation)
        now = replace(
            cfg,
            elevation=(low, high),
            azimuth=(grown * cfg.azimuth[0], grown * cfg.azimuth[1]),
            n_view=[cfg.n_view, *cfg.later_views][sum(progress.step >= step for step in cfg.milestones)],
            progressive_until=0,
            milestones=[],
            later_views=[],
            quirks=[quirk for quirk in cfg.quirks if quirk != "first-step-at-rest"],
        )
        return RandomViews(now)

    def __call__(self, draws: Draws, stream: str) -> Cameras:
        groups = 1 if self.cfg.ring else self.cfg.n_view
        numbers = {name: draws.uniform(f"{stream}/{name}", groups) for name in _UNIFORM}
        numbers["sphere"] = draws.uniform(f"{stream}/sphere", 1)
        numbers["camera"] = draws.uniform(f"{stream}/camera", groups, 3)
        numbers |= {name: draws.normal(f"{stream}/{name}", groups, 3) for name in ("center", "up")}
        return self.place(numbers)

    def place(self, numbers: Mapping[str, Float[Tensor, "B ..."]]) -> Cameras:
        """Cameras around B objects as a pure function of random numbers.

        numbers: uniform in [0, 1) elevation, azimuth, distance, fovy, zoom [B, G] and camera [B, G, 3], normal center
        and up [B, G, 3], with a number for each view or G = 1 for all; uniform sphere [B, 1], which decides how the
        elevation is meant. Sampled elevation, azimuth and distance are those before the camera is shaken.
        """
        cfg = self.cfg
        shape = len(numbers["azimuth"]), cfg.n_view
        turn = numbers["azimuth"].expand(shape)
        if cfg.ring or cfg.spread_azimuth:
            turn = (turn + torch.arange(cfg.n_view, dtype=turn.dtype, device=turn.device)) / cfg.n_view

        def each(values: Tensor) -> Tensor:
            return values.expand(*shape, *values.shape[2:]).flatten(0, 1)

        made = orbit_cameras(
            each(self._elevation(numbers["elevation"], numbers["sphere"] < cfg.sphere_share)),
            _between(turn, cfg.azimuth).flatten(),
            each(_between(numbers["distance"], cfg.distance)),
            each(_between(numbers["fovy"], cfg.fovy)),
            n_view=cfg.n_view,
            relative=cfg.relative_distance,
        )
        c2w = look_at(
            made.positions + each((2 * numbers["camera"] - 1) * cfg.camera_jitter),
            each(numbers["center"] * cfg.center_jitter),
            each(numbers["up"] * cfg.up_jitter) + made.c2w.new_tensor([0.0, 0.0, 1.0]),
        )
        return replace(made, c2w=c2w, fovy=made.fovy * each(_between(numbers["zoom"], cfg.zoom)))

    def _elevation(self, uniform: Float[Tensor, "B G"], on_sphere: Tensor) -> Float[Tensor, "B G"]:
        """Degrees, even on the sphere where `on_sphere`."""
        low, high = self.cfg.elevation
        if "sphere-by-percent" in self.cfg.quirks:
            heights = (low / 90, high / 90)
        else:
            heights = (math.sin(math.radians(low)), math.sin(math.radians(high)))
        return torch.where(on_sphere, _between(uniform, heights).asin().rad2deg(), _between(uniform, (low, high)))


def _between(uniform: Tensor, bounds: Bounds) -> Tensor:
    low, high = bounds
    return uniform * (high - low) + low
