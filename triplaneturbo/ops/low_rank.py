"""A frozen linear layer with trained low-rank factors, as one function: sums are made where products are."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def adapted_linear(
    x: Float[Tensor, "N S I"],
    weight: Float[Tensor, "O I"],
    bias: Float[Tensor, " O"] | None,
    down: Float[Tensor, "P r R"],
    up: Float[Tensor, "P O r"],
    *,
    on_output: bool = False,
) -> Float[Tensor, "N S O"]:
    """y + U_p D_p x with y = W x + b, or y + U_p D_p y if `on_output` (then R is O, else I).

    P = 1: factors for all rows, else row n has those of n mod P. Differentiable once in x, down and up; the layer is
    frozen.
    """
    return _AdaptedLinear.apply(x, weight, bias, down, up, on_output)


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, down, up, on_output):
        y = F.linear(x, weight, bias)
        read = _grouped(y if on_output else x, len(down))
        narrow = torch.bmm(read, _for_groups(down, read).mT)
        total, wide = _grouped(y, len(down)), _for_groups(up, read).mT
        # What the backward pass reads must stay as it is.
        total = torch.baddbmm(total, narrow, wide) if on_output else total.baddbmm_(narrow, wide)
        ctx.save_for_backward(weight, down, up, read, narrow)
        ctx.on_output = on_output
        return total.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weight, down, up, read, narrow = ctx.saved_tensors
        grouped = _grouped(grad, len(up))
        grad_narrow = torch.bmm(grouped, _for_groups(up, read))
        grad_up = torch.bmm(grouped.mT, narrow).unflatten(0, (-1, len(up))).sum(0)
        grad_down = torch.bmm(grad_narrow.mT, read).unflatten(0, (-1, len(down))).sum(0)
        grad_x = None
        if ctx.needs_input_grad[0] and ctx.on_output:
            grad_x = torch.baddbmm(grouped, grad_narrow, _for_groups(down, read)).view_as(grad) @ weight
        elif ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            _grouped(grad_x, len(down)).baddbmm_(grad_narrow, _for_groups(down, read))
        return grad_x, None, None, grad_down, grad_up, None


def _grouped(x: Tensor, count: int) -> Tensor:
    """Rows that share factors together: [G, K, C], where factors change from one G to the next."""
    return x.reshape(1, -1, x.shape[-1]) if count == 1 else x


def _for_groups(factors: Tensor, rows: Tensor) -> Tensor:
    """[P, a, b] repeated for all groups of `rows`: [G, a, b]."""
    return factors.expand(len(rows) // len(factors), *factors.shape).reshape(-1, *factors.shape[1:])
