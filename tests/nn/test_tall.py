"""Linear layers for many rows."""

import pytest
import torch

from triplaneturbo.nn import tall
from triplaneturbo.nn.tall import TallLinear, product_in_parts


@pytest.mark.parametrize("shape", [(0,), (5,), (128,), (3, 1000)])
def test_a_product_in_parts_is_the_product(shape):
    torch.manual_seed(0)
    a, b = torch.randn(*shape, 3, dtype=torch.float64), torch.randn(*shape, 4, dtype=torch.float64)
    torch.testing.assert_close(product_in_parts(a, b), a.mT @ b)


def test_gradients_in_parts_are_those_of_the_product():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 150, 3, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(tall._ProductInParts.apply, (x.requires_grad_(), weight.requires_grad_()))


@pytest.mark.gpu
def test_many_rows_on_a_gpu_have_the_gradients_of_few(monkeypatch):
    torch.manual_seed(0)
    layer, x = TallLinear(8, 4).cuda(), torch.randn(2, 70_000, 8, device="cuda", requires_grad=True)
    results = []
    for many in (1 << 16, 1 << 30):
        monkeypatch.setattr(tall, "_MANY", many)
        results.append(torch.autograd.grad(layer(x).square().sum(), (x, layer.weight)))
    for found, expected in zip(*results, strict=True):
        assert (found - expected).norm() <= 1e-5 * expected.norm()
