import bisect
import itertools

import pytest
import torch

from triplaneturbo.ops.importance import importance_sample


def slow_edges(edges, cdf, n, jitter):
    """Inverse of the piecewise linear CDF, one value at a time; a flat step maps to its middle."""
    centres = []
    for i in range(n):
        u = cdf[0] + (i + jitter) * (cdf[-1] - cdf[0]) / n
        k = min(max(bisect.bisect_right(cdf, u), 1), len(cdf) - 1)
        rise = cdf[k] - cdf[k - 1]
        fraction = 0.5 if rise < 1e-10 else (u - cdf[k - 1]) / rise
        centres.append(edges[k - 1] + fraction * (edges[k] - edges[k - 1]))
    middles = [(a + b) / 2 for a, b in itertools.pairwise(centres)]
    first = max(2 * centres[0] - middles[0], edges[0])
    last = min(2 * centres[-1] - middles[-1], edges[-1])
    return [first, *middles, last]


@pytest.mark.parametrize("jittered", [False, True])
def test_edges_follow_the_inverse_cdf(jittered):
    rng = torch.Generator().manual_seed(0)
    edges = torch.rand(6, 9, dtype=torch.float64, generator=rng).sort(1)[0]
    steps = torch.rand(6, 8, dtype=torch.float64, generator=rng)
    steps[:, 3] = 0
    cdf = torch.cat([torch.zeros(6, 1, dtype=torch.float64), steps.cumsum(1)], 1)
    jitter = torch.rand(6, dtype=torch.float64, generator=rng) if jittered else None
    result = importance_sample(edges, cdf, 5, jitter)
    offsets = jitter.tolist() if jittered else [0.5] * 6
    rows = zip(edges.tolist(), cdf.tolist(), offsets, strict=True)
    expected = torch.tensor([slow_edges(e, c, 5, j) for e, c, j in rows], dtype=torch.float64)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    assert (result.diff(dim=1) >= 0).all()


def test_nothing_is_placed_where_the_cdf_does_not_rise():
    """The first interval has no share, and a sample at probability 0 lies at its end: centres 1 and 1.5."""
    result = importance_sample(torch.tensor([[0.0, 1, 2]]), torch.tensor([[0.0, 0, 1]]), 2, torch.zeros(1))
    torch.testing.assert_close(result, torch.tensor([[0.75, 1.25, 1.75]]))


def test_a_linear_cdf_gives_equal_intervals():
    unit = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    result = importance_sample(unit, unit, 8)
    torch.testing.assert_close(result[0], torch.linspace(0, 1, 9, dtype=torch.float64))


def test_samples_gather_where_the_cdf_rises():
    edges = torch.linspace(0, 4, 41).unsqueeze(0)
    cdf = torch.sigmoid((edges - 2.5) * 20)
    result = importance_sample(edges, cdf, 64)
    assert ((result > 2.2) & (result < 2.8)).float().mean() > 0.9


def test_an_empty_ray_puts_all_its_intervals_in_one_place():
    edges = torch.linspace(0, 1, 11).unsqueeze(0)
    result = importance_sample(edges, torch.zeros_like(edges), 4)
    assert result.isfinite().all()
    assert (result == result[:, :1]).all()


def test_a_single_interval_is_refused():
    unit = torch.tensor([[0.0, 1.0]])
    with pytest.raises(ValueError, match="n >= 2"):
        importance_sample(unit, unit, 1)
