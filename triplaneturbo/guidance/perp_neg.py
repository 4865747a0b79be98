"""Perpendicular negatives: a picture is kept from showing the side that another camera should see.

The text of a view is blended from those of the two sides it lies between, and of the guided estimate that part of other
sides' estimates is taken away which says nothing about the prompt itself (Perp-Neg, Armandpour et al. 2023).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from triplaneturbo.base import option
from triplaneturbo.bounds import Range, Weight
from triplaneturbo.types import SIDES

# The smallest |e|^2 that a projection on e is divided by.
_SMALLEST = 1e-6
_Number = Annotated[float, Range(-1e3, 1e3)]
Decay = tuple[_Number, _Number, _Number]
_FRONT, _SIDE, _OVERHEAD = (SIDES.index(side) for side in ("front", "side", "overhead"))
NO_SIDE = len(SIDES)
"""In `SideTexts.negative`: the text without the prompt."""


@dataclass(frozen=True)
class SideTexts:
    """Which of `SIDES` N views are told about, and which are held against them.

    mix: shares of the texts of the sides in the text of the view. negative: the sides of its two negatives, or
    `NO_SIDE`. weight: of these, 0 or less; the estimates move by them.
    """

    mix: Float[Tensor, "N 4"]
    negative: Int[Tensor, "N 2"]
    weight: Float[Tensor, "N 2"]


@dataclass(kw_only=True)
class PerpNeg:
    """Weights of the negatives fall with r, the share of the nearer side, as f(r) = a exp(-b r) + c."""

    strength: Weight = 0.0
    """Factor of all of them; 0: no negatives, and the text of the nearest side alone."""
    front_in_front: Decay = (4.0, 0.5, -2.426)
    """a, b, c of the front against a view between front and side; r is the share of the front."""
    side_in_front: Decay = (4.0, 0.5, -2.426)
    """Of the side against the same; r is the share of the side."""
    side_behind: Decay = (1.0, 0.5, -0.606)
    """Of the side against a view between side and back; r is the share of the side."""
    front_behind: Decay = (1.0, 0.5, 0.967)
    """Of the front against the same."""
    quirks: list[Literal["other-latents"]] = option([])
    """other-latents: negative k of latent i of N is estimated at latent (K i + k) mod N, and held against i."""

    def texts(self, elevation_deg: Float[Tensor, " N"], azimuth_deg: Float[Tensor, " N"], overhead: float) -> SideTexts:
        """What cameras are told and not to show. overhead: degrees of elevation above which there are no negatives.

        With the azimuth a in [-180, 180) from the front: up to 90 degrees r = 1 - |a| / 90, the text is r front +
        (1 - r) side, against it front and side; behind r = 2 - |a| / 90, r side + (1 - r) back, against it side and
        front.
        """
        away = ((azimuth_deg + 180) % 360 - 180).abs() / 90
        ahead = away < 1
        r = torch.where(ahead, 1 - away, 2 - away)
        zero = torch.zeros_like(r)
        shares = {
            "front": torch.where(ahead, r, zero),
            "side": torch.where(ahead, 1 - r, r),
            "back": torch.where(ahead, zero, 1 - r),
            "overhead": zero,
        }
        negatives = torch.where(ahead, _FRONT, _SIDE), torch.where(ahead, _SIDE, _FRONT)
        weights = (
            torch.where(ahead, _decay(self.front_in_front, r), _decay(self.side_behind, r)),
            torch.where(ahead, _decay(self.side_in_front, 1 - r), _decay(self.front_behind, r)),
        )
        above = (elevation_deg > overhead)[:, None]
        only_overhead = torch.eye(len(SIDES), dtype=r.dtype, device=r.device)[_OVERHEAD]
        return SideTexts(
            mix=torch.where(above, only_overhead, torch.stack([shares[side] for side in SIDES], 1)),
            negative=torch.where(above, NO_SIDE, torch.stack(negatives, 1)),
            weight=torch.where(above, 0.0, -self.strength * torch.stack(weights, 1)),
        )

    def latents_of(self, n_negatives: int, n: int, device: torch.device) -> list[Int[Tensor, " N"]]:
        """For each negative, the latents at which it is estimated for each of n latents: these, unless by mistake."""
        own = torch.arange(n, device=device)
        if "other-latents" in self.quirks:
            return [(n_negatives * own + k) % n for k in range(n_negatives)]
        return [own] * n_negatives


def perpendicular(x: Float[Tensor, "N ..."], y: Float[Tensor, "N ..."]) -> Float[Tensor, "N ..."]:
    """x without its projection on y, for each of N samples: x - (x . y) / max(|y|^2, 1e-6) y."""
    flat_x, flat_y = x.flatten(1), y.flatten(1)
    share = (flat_x * flat_y).sum(1, keepdim=True) / flat_y.square().sum(1, keepdim=True).clamp(min=_SMALLEST)
    return x - (share * flat_y).view_as(y)


def _decay(parameters: Decay, r: Tensor) -> Tensor:
    a, b, c = parameters
    return a * torch.exp(-b * r) + c
