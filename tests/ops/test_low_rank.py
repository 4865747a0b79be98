"""A linear layer with low-rank factors: its value written out, its gradients against differences."""

import pytest
import torch

from triplaneturbo.ops.low_rank import adapted_linear


def example(planes, on_output):
    torch.manual_seed(0)
    wide = 5 if on_output else 3
    shapes = (2 * planes, 4, 3), (5, 3), (5,), (planes, 2, wide), (planes, 5, 2)
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("on_output", [False, True])
@pytest.mark.parametrize("planes", [1, 3])
def test_equals_what_is_written_out_and_has_its_gradients(planes, on_output):
    x, weight, bias, down, up = example(planes, on_output)
    y = x @ weight.T + bias
    expected = [row + (row if on_output else x[n]) @ down[n % planes].T @ up[n % planes].T for n, row in enumerate(y)]
    found = adapted_linear(x, weight, bias, down, up, on_output=on_output)
    torch.testing.assert_close(found, torch.stack(expected))

    learned = [t.requires_grad_() for t in (x, down, up)]
    assert torch.autograd.gradcheck(
        lambda x, down, up: adapted_linear(x, weight, bias, down, up, on_output=on_output), learned
    )


def test_rows_without_gradient_are_not_given_one():
    x, weight, _, down, up = example(1, False)
    adapted_linear(x, weight, None, down.requires_grad_(), up).sum().backward()
    assert x.grad is None
    assert down.grad.abs().sum() > 0
