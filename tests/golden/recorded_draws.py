"""Recorded random numbers in the place of drawn ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from triplaneturbo.draws import Draws


@dataclass(frozen=True)
class RecordedDraws(Draws):
    """Gives `streams[scope + stream]`, one row a sample, instead of drawing.

    bounds: filled with the (low, high) that integers were asked for, by the same names.
    """

    streams: Mapping[str, Tensor] = field(default_factory=dict)
    bounds: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, streams: Mapping[str, Tensor], n_samples: int) -> "RecordedDraws":
        return cls(seed=0, samples=range(n_samples), device=torch.get_default_device(), streams=streams)

    def _rows(self, stream: str, draw) -> Tensor:
        name = self.scope + stream
        if name not in self.streams:
            raise KeyError(f"the case has no random numbers for {name!r}; it has {', '.join(sorted(self.streams))}")
        return self.streams[name]

    def integers(self, stream: str, low: int, high: int, *shape: int) -> Tensor:
        """Also checks that the recorded numbers could have been drawn from these bounds."""
        self.bounds[self.scope + stream] = (low, high)
        values = super().integers(stream, low, high, *shape)
        if values.min() < low or values.max() >= high:
            raise ValueError(f"{self.scope + stream}: {values.tolist()} are recorded, but [{low}, {high}) is asked for")
        return values
