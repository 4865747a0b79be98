import itertools
import math

import pytest
import torch
from triton_process import BACKEND, DEVICE, run_with_triton

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


def small_grid(features=2):
    """Two dense and two hashed levels."""
    grid = HashGrid(4, features, 8, 4, 1.6, torch.Generator().manual_seed(0)).double().to(DEVICE)
    with torch.no_grad():
        grid.params.mul_(1e4)
    return grid


def random(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, dtype=torch.float64, generator=generator).to(DEVICE)


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


@pytest.mark.parametrize("features", [2, 3])
def test_features_equal_the_slow_reference(features):
    grid = small_grid(features)
    points = random(30, 3, seed=1)
    points[:2] = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    points[2:5] = 3 * points[2:5] - 1.5  # outside the cube everything repeats
    expected = torch.tensor([slow_features(grid, p, 8) for p in points.tolist()], dtype=torch.float64)
    torch.testing.assert_close(grid(points, backend=BACKEND).cpu(), expected, rtol=0, atol=1e-12)


def test_gradients_equal_finite_differences():
    grid = small_grid()
    points, weight = random(2, 3, seed=2), random(2, 8, seed=3) - 0.5
    grid.requires_grad_(False)
    assert torch.autograd.gradcheck(lambda p: grid(p, backend=BACKEND), (points.requires_grad_(),))
    grid.requires_grad_(True)

    loss = (grid(points, backend=BACKEND) * weight).sum()
    (grad,) = torch.autograd.grad(loss, grid.params)
    # The features are linear in the parameters.
    torch.testing.assert_close((grad * grid.params).sum(), loss)
    for entry in grad.nonzero().flatten()[::67].tolist():
        bumped = small_grid()
        with torch.no_grad():
            bumped.params[entry] += 1
        difference = (bumped(points, backend=BACKEND) * weight).sum() - loss
        torch.testing.assert_close(grad[entry], difference)


@pytest.mark.parametrize("spread", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_gradients_of_many_points_equal_those_of_single_ones(spread):
    """Of points of one cell, and of points along each axis."""
    grid = small_grid()
    extent = 0.7 * torch.tensor(spread, dtype=torch.float64, device=DEVICE).clamp(min=1e-3)
    points, weight = (0.3 + extent * random(150, 3, seed=4)).requires_grad_(), random(150, 8, seed=5) - 0.5
    together = torch.autograd.grad((grid(points, backend=BACKEND) * weight).sum(), (grid.params, points))
    singles = [
        torch.autograd.grad((grid(points[i : i + 1], backend="torch") * weight[i]).sum(), (grid.params, points))
        for i in range(150)
    ]
    for gradient, parts in zip(together, zip(*singles, strict=True), strict=True):
        torch.testing.assert_close(gradient, sum(parts), rtol=0, atol=1e-11)


def test_only_the_wanted_gradient_is_computed():
    grid, points = small_grid(), random(5, 3, seed=6)
    (gradient,) = torch.autograd.grad(grid(points, backend=BACKEND).sum(), grid.params)
    assert gradient.abs().sum() > 0
    grid.requires_grad_(False)
    (gradient,) = torch.autograd.grad(grid(points.requires_grad_(), backend=BACKEND).sum(), points)
    assert gradient.abs().sum() > 0


def test_no_points_give_no_rows():
    grid, points = small_grid(), random(0, 3, seed=0).requires_grad_()
    features = grid(points, backend=BACKEND)
    assert features.shape == (0, 8)
    features.sum().backward()
    assert not grid.params.grad.any()
    assert points.grad.shape == (0, 3)


if BACKEND == "triton":  # in the process of the next test

    def test_order_of_points_does_not_matter_where_every_run_must_be_the_same():
        grid, points, weight = small_grid(), 0.3 + 0.1 * random(70, 3, seed=7), random(70, 8, seed=8)

        def gradient(seed):
            order = torch.randperm(70, generator=torch.Generator().manual_seed(seed))
            features = grid(points[order], backend=BACKEND)
            return torch.autograd.grad((features * weight[order]).sum(), grid.params)[0]

        plain, *others = (gradient(seed) for seed in range(3))
        assert not all(torch.equal(plain, other) for other in others)
        torch.use_deterministic_algorithms(True)
        try:
            exact, *others = (gradient(seed) for seed in range(3))
        finally:
            torch.use_deterministic_algorithms(False)
        assert all(torch.equal(exact, other) for other in others)
        torch.testing.assert_close(exact, plain, rtol=0, atol=1e-11)


def test_triton_kernels_pass_the_tests_of_this_file():
    assert "12 passed" in run_with_triton(__file__, "not triton")


def test_triton_on_the_cpu_is_refused_with_advice():
    with pytest.raises(ValueError, match="backend='auto'"):
        small_grid().cpu()(torch.rand(1, 3, dtype=torch.float64), backend="triton")
