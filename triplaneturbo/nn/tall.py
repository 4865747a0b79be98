"""Linear layers for many rows of few channels.

The gradient of their weights is a product of two thin matrices over all rows, for which libraries on a GPU may take one
program for each of the few tiles of the result (272 of the 1600 ms of a step with two prompts). It is made in parts.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

# From so many rows on, it is the sum of so many products.
_MANY, _PARTS = 1 << 16, 128


def multiply_rows(x: Float[Tensor, "*B K I"], weight: Float[Tensor, "*B I O"]) -> Float[Tensor, "*B K O"]:
    """x @ weight, differentiable in both."""
    if x.is_cuda and x.shape[-2] >= _MANY and torch.is_grad_enabled() and weight.requires_grad:
        return _ProductInParts.apply(x, weight)
    return x @ weight


class TallLinear(nn.Linear):
    """A linear layer without bias."""

    def __init__(self, n_input: int, n_output: int) -> None:
        super().__init__(n_input, n_output, bias=False)

    def forward(self, x: Float[Tensor, "*N I"]) -> Float[Tensor, "*N O"]:
        return multiply_rows(x.reshape(-1, self.in_features), self.weight.T).view(*x.shape[:-1], self.out_features)


class _ProductInParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight.mT if ctx.needs_input_grad[0] else None, product_in_parts(x, grad)


def product_in_parts(a: Float[Tensor, "*B K I"], b: Float[Tensor, "*B K O"]) -> Float[Tensor, "*B I O"]:
    """a^T b, as the sum of the products of equal parts of the rows, and of what is left over."""
    count = a.shape[-2]
    even = count // _PARTS * _PARTS
    parts = [x[..., :even, :].unflatten(-2, (_PARTS, -1)) for x in (a, b)]
    rest = [x[..., even:, :] for x in (a, b)]
    return (parts[0].mT @ parts[1]).sum(-3) + rest[0].mT @ rest[1]
