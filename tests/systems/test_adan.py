"""The optimiser against the formulas, written out for one number at a time in float64."""

import math

import pytest
import torch

from triplaneturbo.errors import ConfigError
from triplaneturbo.systems.adan import Adan

BETAS = (0.9, 0.8, 0.95)


def reference(start, gradients, lr, eps, decay=0.0, no_prox=False):
    """The trajectory of one number."""
    b1, b2, b3 = BETAS
    p, m, v, n, previous = start, 0.0, 0.0, 0.0, gradients[0]
    path = []
    for step, g in enumerate(gradients, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * (g - previous)
        n = b3 * n + (1 - b3) * (g + b2 * (g - previous)) ** 2
        size = math.sqrt(n / (1 - b3**step)) + eps
        if no_prox:
            p *= 1 - lr * decay
        p -= lr * (m / (1 - b1**step) + b2 * v / (1 - b2**step)) / size
        if not no_prox:
            p /= 1 + lr * decay
        previous = g
        path.append(p)
    return path


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.3}, {"weight_decay": 0.3, "no_prox": True}])
def test_follows_the_formula(options):
    gradients = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = Adan([parameter], lr=0.01, betas=BETAS, eps=1e-3, **options)
    path = []
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        path.append(parameter.detach().clone())
    arguments = 0.01, 1e-3, options.get("weight_decay", 0.0), options.get("no_prox", False)
    expected = [reference(float(p), gradients[:, i, j].tolist(), *arguments) for (i, j), p in _entries(start)]
    torch.testing.assert_close(torch.stack(path).flatten(1).T, torch.tensor(expected, dtype=torch.float64))


def _entries(matrix):
    return [((i, j), matrix[i, j]) for i in range(matrix.shape[0]) for j in range(matrix.shape[1])]


def test_clips_by_the_norm_of_all_groups():
    def run(scale, **options):
        parameters = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))]
        optimizer = Adan([{"params": [p]} for p in parameters], lr=0.1, eps=1e-8, **options)
        for gradient in (3.0, 1.0):
            for p in parameters:
                p.grad = torch.full_like(p, gradient * scale(gradient * math.sqrt(5)))
            optimizer.step()
        return torch.cat([p.detach() for p in parameters])

    clipped = run(lambda norm: 1.0, max_grad_norm=2.0)
    torch.testing.assert_close(clipped, run(lambda norm: min(1.0, 2.0 / (norm + 1e-8))))


def test_continues_from_its_state_dict():
    def step(optimizer, parameter, value):
        parameter.grad = torch.full_like(parameter, value)
        optimizer.step()

    whole = torch.nn.Parameter(torch.ones(4))
    reference_optimizer = Adan([whole], lr=0.1)
    for value in (1.0, -2.0, 0.5):
        step(reference_optimizer, whole, value)
    first = torch.nn.Parameter(torch.ones(4))
    optimizer = Adan([first], lr=0.1)
    step(optimizer, first, 1.0)
    second = torch.nn.Parameter(first.detach().clone())
    resumed = Adan([second], lr=0.1)
    resumed.load_state_dict(optimizer.state_dict())
    for value in (-2.0, 0.5):
        step(resumed, second, value)
    assert torch.equal(second, whole)


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"betas": (0.9, 0.9)}, {"betas": (0.9, 0.9, 1.0)}])
def test_refuses_arguments_without_meaning(options):
    with pytest.raises(ConfigError):
        Adan([torch.nn.Parameter(torch.ones(1))], **options)
