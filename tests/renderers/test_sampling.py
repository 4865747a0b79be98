import math

import torch

from triplaneturbo.renderers.sampling import Jitter, box_range, place_samples


def test_box_range_is_where_the_ray_is_inside():
    generator = torch.Generator().manual_seed(0)
    origins = torch.randn(2, 200, 3, generator=generator) * 2
    targets = torch.randn(2, 200, 3, generator=generator)
    directions = torch.nn.functional.normalize(targets - origins, dim=-1)
    near, far = box_range(origins, directions, 0.8)
    t = torch.linspace(0, 10, 20001)
    inside = (origins[..., None, :] + directions[..., None, :] * t[:, None]).abs().amax(-1) < 0.8
    hit = inside.any(-1)
    assert hit.sum() > 40
    assert (~hit).sum() > 40
    first = torch.where(inside, t, torch.inf).amin(-1)
    last = torch.where(inside, t, -torch.inf).amax(-1)
    torch.testing.assert_close(near[hit], first[hit], atol=6e-4, rtol=0)
    torch.testing.assert_close(far[hit], last[hit], atol=6e-4, rtol=0)
    missed = (far - near)[~inside.any(-1)]
    # A graze shorter than the step of `t` may count as a hit.
    assert (missed <= 1e-3 * 0.8 + 1e-6).all()
    assert (near >= 0).all()


def test_box_range_of_axis_parallel_rays():
    origins = torch.tensor([[[2.0, 0.1, 0.2], [2.0, 0.9, 0.0]]])
    directions = torch.tensor([[[-1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]])
    near, far = box_range(origins, directions, 0.5)
    torch.testing.assert_close(near, torch.tensor([[1.5, 2.0]]))
    torch.testing.assert_close(far, torch.tensor([[2.5, 2.0005]]))


def test_fine_edges_follow_the_exact_distribution():
    near, far, rate = torch.full((1, 3), 0.5), torch.full((1, 3), 4.5), torch.tensor([5.0, 8.0, 12.0]).view(1, 3, 1)
    n_proposal, n_fine = 2000, 10
    jitter = Jitter(torch.full((1, 3), 0.5), torch.tensor([[0.5, 0.25, 0.75]]))
    edges = place_samples(near, far, lambda t: rate.expand_as(t), n_proposal=n_proposal, n_fine=n_fine, jitter=jitter)
    assert edges.shape == (1, 3, n_proposal + n_fine + 2)
    assert (edges.diff(dim=-1) >= 0).all()
    u = (torch.arange(n_fine) + jitter.fine[..., None]) / n_fine
    centres = 0.5 - torch.log1p(-u) / rate
    expected = (centres[..., 1:] + centres[..., :-1]) / 2
    distance = (edges[..., None, :] - expected[..., None]).abs().amin(-1)
    assert distance.max() < 2e-5


def test_without_absorption_fine_samples_lie_in_the_last_interval():
    near, far = torch.zeros(1, 1), torch.ones(1, 1)
    edges = place_samples(near, far, torch.zeros_like, n_proposal=4, n_fine=6, jitter=None)[0, 0]
    torch.testing.assert_close(edges[:4], torch.tensor([0.0, 0.25, 0.5, 0.75]))
    assert (edges[4:] >= 0.75).all()


def test_light_that_is_not_absorbed_ends_in_the_last_interval():
    """Of four intervals the first absorbs half: half of the fine intervals lie in it, the others in the last."""
    near, far = torch.zeros(1, 1), torch.ones(1, 1)
    edges = place_samples(
        near, far, lambda t: torch.where(t < 0.25, 4 * math.log(2), 0.0), n_proposal=4, n_fine=8, jitter=None
    )[0, 0]
    even = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    fine = edges[(edges[:, None] - even).abs().amin(1) > 1e-3]
    assert (fine < 0.25).sum() == 3  # and one on either side of the middle of the ray, where the two groups meet
    assert (fine > 0.75).sum() == 3
