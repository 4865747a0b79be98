import torch

from triplaneturbo.ops.activations import colors_of


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
