"""Shaping of score gradients: pure functions from picture gradients to picture gradients, before they go back.

They are named in a configuration, for one teacher (`teachers.NAME.shaping`) or for the sum of all
(`guidance.shaping`), and act in the order in which they are written.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.base import Component, option
from triplaneturbo.bounds import Range
from triplaneturbo.registry import register
from triplaneturbo.schedule import Progress, Schedule

Limit = Annotated[Schedule, Range(0, 1e6, above=True)]


class Shaping(Component):
    """A function of the gradient of one kind of picture: colours, normals, or disparity."""

    role = "shaping"

    @abstractmethod
    def __call__(self, gradient: Float[Tensor, "M H W C"], progress: Progress) -> Float[Tensor, "M H W C"]:
        """The shaped gradient; `gradient` is not changed."""


@register("clip")
class Clip(Shaping):
    """Limits the magnitude of every entry."""

    @dataclass(kw_only=True)
    class Config(Shaping.Config):
        limit: Limit = option(1.0)
        """The largest magnitude."""

    def __call__(self, gradient: Float[Tensor, "M H W C"], progress: Progress) -> Float[Tensor, "M H W C"]:
        limit = self.cfg.limit(progress)
        return gradient.clamp(-limit, limit)


@register("clip-pixels")
class ClipPixels(Shaping):
    """Limits the norm over the channels of every pixel, and keeps its direction (PGC, Pan et al. 2023)."""

    @dataclass(kw_only=True)
    class Config(Shaping.Config):
        limit: Limit = option(0.1)
        """The largest norm."""

    def __call__(self, gradient: Float[Tensor, "M H W C"], progress: Progress) -> Float[Tensor, "M H W C"]:
        norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
        limit = self.cfg.limit(progress)
        return gradient * (limit / norm.clamp(min=limit))
