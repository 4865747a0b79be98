import itertools
import math

import pytest
import torch

from triplaneturbo.ops.hashgrid import HashGrid

RELEASED = (8, 2, 19, 4, 1.8114473285278132)


def slow_features(grid, point, log2_size):
    """One point at a time, corner by corner, 32-bit hash arithmetic."""
    result = []
    first = 0
    table = grid.params.detach().view(-1, grid.n_features_per_level).tolist()
    for scale in grid.scales:
        resolution = math.ceil(scale) + 1
        size = min(math.ceil(resolution**3 / 8) * 8, 2**log2_size)
        position = [p * scale + 0.5 for p in point]
        total = [0.0] * grid.n_features_per_level
        for offset in itertools.product((0, 1), repeat=3):
            corner = [math.floor(p) + o for p, o in zip(position, offset, strict=True)]
            weight = math.prod(1 - abs(p - c) for p, c in zip(position, corner, strict=True))
            if resolution**3 <= size:
                entry = corner[0] + corner[1] * resolution + corner[2] * resolution**2
            else:
                entry = corner[0] ^ (corner[1] * 2654435761 % 2**32) ^ (corner[2] * 805459861 % 2**32)
            row = table[first + entry % size]
            total = [t + weight * value for t, value in zip(total, row, strict=True)]
        result += total
        first += size
    return result


def small_grid():
    """Two dense and two hashed levels."""
    grid = HashGrid(4, 2, 8, 4, 1.6, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        grid.params.mul_(1e4)
    return grid


def test_the_released_background_has_its_parameter_count():
    grid = HashGrid(*RELEASED, torch.Generator().manual_seed(0))
    assert grid.params.shape == (3_287_888,)
    assert list(grid.state_dict()) == ["params"]
    assert grid.n_output_dims == 16
    assert grid(torch.rand(5, 3)).shape == (5, 16)


def test_initial_values_are_small_and_come_from_the_generator():
    first, second = (HashGrid(3, 2, 10, 4, 1.5, torch.Generator().manual_seed(7)).params for _ in range(2))
    assert torch.equal(first, second)
    assert first.abs().max().item() == pytest.approx(1e-4, rel=0.01)
    assert abs(first.mean().item()) < 1e-5


def test_features_equal_the_slow_reference():
    grid = small_grid()
    points = torch.rand(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    points[:2] = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    expected = torch.tensor([slow_features(grid, p, 8) for p in points.tolist()], dtype=torch.float64)
    torch.testing.assert_close(grid(points), expected, rtol=0, atol=1e-12)


def test_gradients_equal_finite_differences():
    grid = small_grid()
    points = torch.rand(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    weight = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert torch.autograd.gradcheck(grid, (points.requires_grad_(),))

    loss = (grid(points) * weight).sum()
    (grad,) = torch.autograd.grad(loss, grid.params)
    # The features are linear in the parameters.
    torch.testing.assert_close((grad * grid.params).sum(), loss)
    for entry in grad.nonzero().flatten()[::17].tolist():
        bumped = small_grid()
        with torch.no_grad():
            bumped.params[entry] += 1
        difference = (bumped(points) * weight).sum() - loss
        torch.testing.assert_close(grad[entry], difference)


def test_no_points_give_no_rows():
    assert small_grid()(torch.zeros(0, 3, dtype=torch.float64)).shape == (0, 8)
