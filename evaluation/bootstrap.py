"""How far a mean over pictures would move with other prompts: bootstrap over prompts.

All pictures of a prompt show one object, or one object for each noise seed, and rise and fall together. What is drawn
again is therefore the prompt, with all of its pictures.
"""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from triplaneturbo.draws import keyed_generator

RESAMPLES, SEED, LEVEL = 10_000, 0, 0.95
_CHUNK = 1000

Interval = tuple[float, float]


def mean_interval(values: Shaped[Tensor, " M"], owner: Int[Tensor, " M"]) -> Interval | None:
    """Percentile interval (LEVEL) of the mean of `values`; None if there are fewer than two prompts.

    owner: number of the prompt of each value. Prompts may have different numbers of values.
    """
    return _percentiles(_resampled_means(values, owner)) if len(owner.unique()) > 1 else None


def difference_interval(
    values: Shaped[Tensor, " M"], owner: Int[Tensor, " M"], other: Shaped[Tensor, " L"], other_owner: Int[Tensor, " L"]
) -> Interval | None:
    """Percentile interval of mean(values) - mean(other), paired: a drawn prompt is drawn for both.

    What makes a prompt hard for both sides cancels, so that the interval is narrower than two separate ones suggest.

    Raises:
        ValueError: the two sides have different prompts.
    """
    if set(owner.tolist()) != set(other_owner.tolist()):
        raise ValueError("a paired comparison needs the same prompts on both sides")
    if len(owner.unique()) < 2:
        return None
    return _percentiles(_resampled_means(values, owner) - _resampled_means(other, other_owner))


def format_interval(interval: Interval | None, scale: float = 1.0, digits: int = 2) -> str:
    """`low .. high`, or a dash if there is none."""
    if interval is None:
        return "-"
    return " .. ".join(f"{scale * bound:.{digits}f}" for bound in interval)


def _resampled_means(values: Tensor, owner: Tensor) -> Float[Tensor, " R"]:
    """The mean in each of RESAMPLES draws of as many prompts, with replacement. The draws depend on their number alone.

    Prompts are taken in the order of their numbers.
    """
    prompts, row = owner.cpu().unique(return_inverse=True)
    n = len(prompts)
    totals = torch.zeros(n, dtype=torch.float64).index_add_(0, row, values.cpu().double())
    counts = torch.bincount(row).double()
    generator = keyed_generator(SEED, "bootstrap")
    means = []
    for _ in range(RESAMPLES // _CHUNK):
        drawn = torch.randint(n, (_CHUNK, n), generator=generator)
        means.append(totals[drawn].sum(dim=1) / counts[drawn].sum(dim=1))
    return torch.cat(means)


def _percentiles(means: Float[Tensor, " R"]) -> Interval:
    tail = (1 - LEVEL) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=means.dtype)).tolist()
    return low, high
