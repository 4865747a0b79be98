"""Where the samples of a ray lie: the stretch of the ray that is looked at, and intervals by importance or of one
length."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from triplaneturbo.draws import Draws
from triplaneturbo.ops.importance import importance_sample
from triplaneturbo.ops.rows import add_rows

# Length, in units of the half side, of the stretch given to a ray that misses the box.
_MISS_LENGTH = 1e-3
_MIN_COMPONENT = 1e-9
_LEAST_LIGHT = 1e-4


@dataclass(frozen=True)
class Jitter:
    """Position of the samples inside their intervals, in [0, 1): one number a ray for each of the two passes."""

    proposal: Float[Tensor, "B R"]
    fine: Float[Tensor, "B R"]

    @classmethod
    def draw(cls, draws: Draws, n_rays: int) -> "Jitter":
        return cls(draws.uniform("proposal", n_rays), draws.uniform("fine", n_rays))

    def rays(self, part: slice) -> "Jitter":
        return Jitter(self.proposal[:, part], self.fine[:, part])


@dataclass(frozen=True)
class Intervals:
    """S intervals of each ray. wanted: those that light is absorbed in; None: all. kept: the numbers among all R S of
    those that are looked at."""

    middles: Float[Tensor, "B R S"]
    lengths: Float[Tensor, "B R S"]
    wanted: Bool[Tensor, "1 R S"] | None = None
    kept: Int[Tensor, " K"] | None = None

    @classmethod
    def between(cls, edges: Float[Tensor, "B R E"]) -> "Intervals":
        return cls((edges[..., 1:] + edges[..., :-1]) / 2, edges[..., 1:] - edges[..., :-1])

    def only(self, wanted: Bool[Tensor, "1 R S"]) -> "Intervals":
        """Those of one scene that are wanted. If none is, one is looked at: fields are asked about something."""
        kept = wanted.flatten().nonzero().squeeze(1)
        return Intervals(self.middles, self.lengths, wanted, kept if len(kept) else kept.new_zeros(1))

    def pick(self, values: Float[Tensor, "B RS *C"]) -> Float[Tensor, "B N *C"]:
        """What belongs to the intervals that are looked at."""
        return values if self.kept is None else values[:, self.kept]

    def spread(self, values: Float[Tensor, "B N C"]) -> Float[Tensor, "B R S C"]:
        """To each ray its intervals; 0 for those that are not looked at."""
        if self.kept is not None:
            everywhere = values.new_zeros(1, self.middles.numel(), values.shape[-1])
            values = everywhere.index_copy(1, self.kept, values)
        return values.unflatten(1, self.middles.shape[1:])

    def sum(self, weights: Float[Tensor, "B R S"], values: Float[Tensor, "B N C"]) -> Float[Tensor, "B R C"]:
        """Along each ray, the weighted sum of values of the intervals that are looked at."""
        if self.kept is None:
            return (weights.unsqueeze(-1) * values.unflatten(1, weights.shape[1:])).sum(-2)
        rays, steps = weights.shape[1:]
        weighted = weights.flatten()[self.kept].unsqueeze(-1) * values[0]
        return add_rows(values.new_zeros(rays, values.shape[-1]), self.kept // steps, weighted)[None]


def box_range(
    origins: Float[Tensor, "B R 3"], directions: Float[Tensor, "B R 3"], half_side: float
) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R"]]:
    """Ray parameters at which rays enter and leave the cube [-half_side, half_side]^3, not behind the origin.

    A ray that misses the cube gets a stretch of length 1e-3 half_side at its closest approach to the centre.
    """
    away_from_zero = torch.where(directions < 0, -_MIN_COMPONENT, _MIN_COMPONENT)
    directions = torch.where(directions.abs() < _MIN_COMPONENT, away_from_zero, directions)
    first, second = (-half_side - origins) / directions, (half_side - origins) / directions
    near = torch.minimum(first, second).amax(-1).clamp_min(0)
    far = torch.maximum(first, second).amin(-1)
    closest = (-(origins * directions).sum(-1) / directions.square().sum(-1)).clamp_min(0)
    hit = far > near
    return torch.where(hit, near, closest), torch.where(hit, far, closest + _MISS_LENGTH * half_side)


@torch.no_grad()
def place_samples(
    near: Float[Tensor, "B R"],
    far: Float[Tensor, "B R"],
    density: Callable[[Tensor], Tensor],
    *,
    n_proposal: int,
    n_fine: int,
    jitter: Jitter | None,
) -> Float[Tensor, "B R E"]:
    """Ascending interval edges: `n_proposal` even intervals and, among them, `n_fine` where light is absorbed;
    E = n_proposal + n_fine + 2.

    The even intervals give a piecewise constant density sigma and with it the distribution 1 - T of the depth at
    which a ray ends, T = exp(-sum sigma dt), all of what is left ending in the last interval. The fine intervals
    have equal probability under it.

    Args:
        density: opacity per unit length [B, R, S] at ray parameters [B, R, S].
        jitter: None places both kinds in the middle.
    """
    batch, rays = near.shape
    even = importance_sample(
        torch.stack([near, far], -1).flatten(0, 1),
        near.new_tensor([0.0, 1.0]).expand(batch * rays, 2),
        n_proposal,
        None if jitter is None else jitter.proposal.flatten(),
    )
    starts, ends = even[:, :-1], even[:, 1:]
    sigma = density(((starts + ends) / 2).unflatten(0, (batch, rays))).flatten(0, 1)
    absorbed = 1 - torch.exp(-(sigma * (ends - starts)).cumsum(-1))
    cdf = torch.cat([torch.zeros_like(absorbed[:, :1]), absorbed[:, :-1], torch.ones_like(absorbed[:, :1])], -1)
    fine = importance_sample(even, cdf, n_fine, None if jitter is None else jitter.fine.flatten())
    return torch.cat([even, fine], -1).sort(-1).values.unflatten(0, (batch, rays))


@torch.no_grad()
def even_steps(
    near: Float[Tensor, "B R"],
    far: Float[Tensor, "B R"],
    *,
    step: float,
    start: float,
    longest: float,
    jitter: Float[Tensor, "B R"] | None,
) -> tuple[Intervals, Bool[Tensor, "B R S"]]:
    """Intervals of length `step` from ray parameter start + jitter * step on; which have their middle in [near, far].

    Args:
        longest: no stretch from near to far is longer; S = ceil(longest / step) + 1.
        jitter: in [0, 1); None: 0.
    """
    first = torch.full_like(near, start) if jitter is None else start + jitter * step
    skipped = ((near - first) / step - 0.5).ceil().clamp_min(0)
    numbers = skipped.unsqueeze(-1) + torch.arange(math.ceil(longest / step) + 1, dtype=near.dtype, device=near.device)
    middles = first.unsqueeze(-1) + (numbers + 0.5) * step
    inside = (middles >= near.unsqueeze(-1)) & (middles <= far.unsqueeze(-1))
    return Intervals(middles, torch.full_like(middles, step)), inside


@torch.no_grad()
def visible(
    density: Float[Tensor, "B R S"], lengths: Float[Tensor, "B R S"], least_alpha: Float[Tensor, ""]
) -> Bool[Tensor, "B R S"]:
    """Which samples are at least so opaque and are reached by at least 1e-4 of the light."""
    absorbed = density * lengths
    reaching = torch.exp(-(absorbed.cumsum(-1) - absorbed))
    return (reaching >= _LEAST_LIGHT) & (-torch.expm1(-absorbed) >= least_alpha)
