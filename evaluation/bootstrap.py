"""How far a mean over pictures would move with other prompts, and other trainings: bootstrap over both.

All pictures of a prompt show one object, or one object for each noise seed, and rise and fall together. What is drawn
again is therefore the prompt, with all of its pictures. Where a method was trained several times, trainings are drawn
again as well, each with all of its prompts: the draws cross.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from triplaneturbo.draws import keyed_generator

RESAMPLES, SEED, LEVEL = 10_000, 0, 0.95
_CHUNK = 1000

Interval = tuple[float, float]


def mean_interval(
    values: Shaped[Tensor, " M"], owner: Int[Tensor, " M"], training: Int[Tensor, " M"] | None = None
) -> Interval | None:
    """Percentile interval (LEVEL) of the mean of `values`; None if there are fewer than two prompts.

    owner: number of the prompt of each value. Prompts may have different numbers of values. training: number of the
    training that each value is of; None, or one number alone: only prompts are drawn. With very few trainings the
    interval is too narrow, as any bootstrap of so few is: by a factor of about sqrt((n - 1) / n) in that part.
    """
    return _percentiles(_resampled_means(values, owner, training)) if len(owner.unique()) > 1 else None


def interval_over(values: Sequence[float], prompts: Sequence[str], trainings: Sequence[int]) -> Interval | None:
    """The interval of `mean_interval` for values whose prompts are given as texts; None without values, too."""
    number = {prompt: i for i, prompt in enumerate(sorted(set(prompts)))}
    owners = torch.tensor([number[prompt] for prompt in prompts], dtype=torch.long)
    return mean_interval(torch.tensor(values), owners, torch.tensor(trainings, dtype=torch.long))


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


def _resampled_means(values: Tensor, owner: Tensor, training: Tensor | None = None) -> Float[Tensor, " R"]:
    """The mean in each of RESAMPLES draws of as many prompts, and of as many trainings, with replacement.

    The draws depend on their numbers alone. Prompts and trainings are taken in the order of their numbers. Draws
    without a single value, which occur where values are missing, are left out.
    """
    prompts, row = owner.cpu().unique(return_inverse=True)
    trainings, column = (torch.zeros_like(row) if training is None else training.cpu()).unique(return_inverse=True)
    n, m = len(prompts), len(trainings)
    totals = torch.zeros(n, m, dtype=torch.float64).index_put_((row, column), values.cpu().double(), accumulate=True)
    counts = torch.bincount(row * m + column, minlength=n * m).view(n, m).double()
    generator, of_trainings = keyed_generator(SEED, "bootstrap"), keyed_generator(SEED, "bootstrap/trainings")
    means = []
    for _ in range(RESAMPLES // _CHUNK):
        drawn = torch.randint(n, (_CHUNK, n), generator=generator)
        again = torch.randint(m, (_CHUNK, m), generator=of_trainings)
        means.append(_total(totals, drawn, again) / _total(counts, drawn, again))
    found = torch.cat(means)
    return found[found.isfinite()]


def _total(table: Float[Tensor, "n m"], drawn: Int[Tensor, "C n"], again: Int[Tensor, "C m"]) -> Float[Tensor, " C"]:
    """The sum over the drawn rows and the drawn columns of `table`, for each of C draws."""
    return table[drawn].sum(dim=1).gather(1, again).sum(dim=1)


def _percentiles(means: Float[Tensor, " R"]) -> Interval:
    tail = (1 - LEVEL) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=means.dtype)).tolist()
    return low, high
