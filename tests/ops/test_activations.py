import pytest
import torch

from triplaneturbo.ops.activations import colors_of, densities_of


def test_values_and_gradients():
    x = torch.linspace(-12, 12, 30, dtype=torch.float64).view(10, 3).requires_grad_()
    plain = 1 / (1 + torch.exp(-x))
    for name, scale, shift in (("sigmoid", 1.0, 0.0), ("sigmoid-mipnerf", 1.002, 0.001)):
        found, expected = colors_of(x, name), scale * plain - shift
        torch.testing.assert_close(found, expected)
        (gradient,) = torch.autograd.grad(found.sum(), x)
        torch.testing.assert_close(gradient, (scale * plain * (1 - plain)).detach())


def test_black_and_white_are_within_reach():
    found = colors_of(torch.tensor([[-8.0, 0.0, 8.0]]), "sigmoid-mipnerf")
    assert found[0, 0] < 0
    assert found[0, 1] == 0.5
    assert found[0, 2] > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_truncated_exponential_has_its_value_and_the_derivative_at_15_beyond(dtype):
    """And further derivatives: normals of a density are trained through."""
    x = torch.tensor([-2.0, 0.5, 14.0, 17.0], dtype=dtype, requires_grad=True)
    found = densities_of(x, "trunc_exp")
    torch.testing.assert_close(found, x.exp())
    (first,) = torch.autograd.grad(found.sum(), x, create_graph=True)
    torch.testing.assert_close(first, x.clamp(max=15).exp())
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(second, torch.where(x < 15, x.exp(), 0.0).detach())
    torch.testing.assert_close(densities_of(x, "shifted_trunc_exp"), (x - 1).exp())
