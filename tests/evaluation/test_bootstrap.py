import math

import pytest
import torch

from triplaneturbo.evaluation import bootstrap
from triplaneturbo.evaluation.bootstrap import RESAMPLES, difference_interval, format_interval, mean_interval

TAIL = 0.025
# Standard error of the empirical quantile at TAIL of RESAMPLES normal draws, in units of their deviation.
QUANTILE_ERROR = (TAIL * (1 - TAIL) / RESAMPLES) ** 0.5 / (math.exp(-(1.96**2) / 2) / (2 * math.pi) ** 0.5)


def normal(n: int, seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def binomial_quantile(n: int, p: float, level: float) -> int:
    total, k = 0.0, -1
    while total < level:
        k += 1
        total += math.comb(n, k) * p**k * (1 - p) ** (n - k)
    return k


@pytest.mark.parametrize(("n", "right"), [(415, 134), (60, 9)])
def test_of_right_and_wrong_it_is_the_binomial(n, right):
    """The resampled number of right answers is binomial with the observed share; 134 of 415 is the paper's R@1."""
    low, high = mean_interval(torch.arange(n) < right, torch.arange(n))
    assert abs(low * n - binomial_quantile(n, right / n, TAIL)) <= 1
    assert abs(high * n - binomial_quantile(n, right / n, 1 - TAIL)) <= 1


def test_of_normal_numbers_it_is_the_normal_interval():
    values = normal(300, 1)
    mean, error = values.mean().item(), values.std(correction=0).item() / 300**0.5
    low, high = mean_interval(values, torch.arange(300))
    assert low == pytest.approx(mean - 1.96 * error, abs=4 * QUANTILE_ERROR * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=4 * QUANTILE_ERROR * error)


def test_pictures_of_a_prompt_are_not_independent():
    """Four equal pictures say no more than one."""
    values = normal(50, 2)
    once = mean_interval(values, torch.arange(50))
    assert mean_interval(values.repeat_interleave(4), torch.arange(50).repeat_interleave(4)) == pytest.approx(once)
    shuffled = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    mixed = mean_interval(values.repeat(4)[shuffled], torch.arange(50).repeat(4)[shuffled])
    assert mixed == pytest.approx(once)


def test_a_prompt_is_drawn_with_all_of_its_pictures():
    """One picture of the first prompt, three of the second: means 0, 3/4 and 1, as often as heads of two coins."""
    means = bootstrap._resampled_means(torch.tensor([0, 1, 1, 1]), torch.tensor([5, 7, 7, 7]))
    values, counts = means.unique(return_counts=True)
    assert values.tolist() == [0, 0.75, 1]
    deviation = (RESAMPLES / 4) ** 0.5
    assert (counts - RESAMPLES * torch.tensor([0.25, 0.5, 0.25])).abs().max() < 4 * deviation


def test_the_truth_is_inside_as_often_as_promised(monkeypatch):
    """300 experiments of 80 prompts with four views each, which share the luck of their prompt; the true mean is 0."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 1000)
    owner = torch.arange(80).repeat_interleave(4)
    inside = 0
    for values in normal(300, 3, 80, 1) + 0.5 * normal(300, 4, 80, 4):
        low, high = mean_interval(values.flatten(), owner)
        inside += low <= 0 <= high
    deviation = (0.95 * 0.05 / 300) ** 0.5
    assert abs(inside / 300 - 0.95) < 3 * deviation


def test_differences_are_paired():
    """What is common to both sides cancels; the order of the pictures does not matter."""
    common, own = 10 * normal(100, 5), normal(100, 6)
    owner = torch.arange(100)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    low, high = difference_interval(common + own + 0.3, owner, common[order], owner[order])
    mean, error = own.mean().item() + 0.3, own.std(correction=0).item() / 10
    assert low == pytest.approx(mean - 1.96 * error, abs=4 * QUANTILE_ERROR * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=4 * QUANTILE_ERROR * error)
    swapped = difference_interval(common, owner, common + own + 0.3, owner)
    assert swapped == pytest.approx((-high, -low))


def test_different_prompts_cannot_be_paired():
    with pytest.raises(ValueError, match="the same prompts"):
        difference_interval(torch.ones(3), torch.arange(3), torch.ones(3), torch.arange(1, 4))


def test_one_prompt_has_no_interval():
    one = torch.zeros(4, dtype=torch.long)
    assert mean_interval(normal(4, 7), one) is None
    assert difference_interval(normal(4, 7), one, normal(4, 8), one) is None
    assert mean_interval(torch.zeros(0), one[:0]) is None
    assert format_interval(None) == "-"
    assert format_interval((0.25, 0.5), 100.0, 1) == "25.0 .. 50.0"


def test_the_same_every_time_and_no_global_random_numbers_are_used():
    values, owner = normal(30, 9), torch.arange(30)
    state = torch.get_rng_state()
    assert mean_interval(values, owner) == mean_interval(values, owner)
    assert torch.equal(state, torch.get_rng_state())


def test_trainings_are_drawn_with_all_of_their_prompts():
    """Two trainings, one always right and one always wrong: means 0, 1/2 and 1, as often as heads of two coins."""
    owner, training = torch.arange(10).repeat(2), torch.arange(2).repeat_interleave(10)
    means = bootstrap._resampled_means(training.double(), owner, training)
    values, counts = means.unique(return_counts=True)
    assert values.tolist() == [0, 0.5, 1]
    deviation = (RESAMPLES / 4) ** 0.5
    assert (counts - RESAMPLES * torch.tensor([0.25, 0.5, 0.25])).abs().max() < 4 * deviation


def test_variances_of_prompts_and_trainings_add_up():
    """Of v(p, t) = a(p) + b(t) both are drawn apart: the variance of the mean is var(a) / n + var(b) / m."""
    n, m = 80, 12
    prompts, trainings = normal(n, 11), normal(m, 12)
    owner, training = torch.arange(n).repeat(m), torch.arange(m).repeat_interleave(n)
    means = bootstrap._resampled_means(prompts[owner] + trainings[training], owner, training)
    expected = prompts.var(correction=0) / n + trainings.var(correction=0) / m
    assert means.var().item() == pytest.approx(expected.item(), rel=4 * (2 / RESAMPLES) ** 0.5)


def test_one_training_is_drawn_as_no_training_is():
    values, owner = normal(30, 13), torch.arange(30)
    assert mean_interval(values, owner, torch.full((30,), 3)) == mean_interval(values, owner)
