"""Bilinear lookup in feature planes, with exact first derivatives as a forward computation.

`backend` chooses the implementation: "torch" (any device), "triton" (CUDA kernels of `planes_triton.py`), or
"auto", what `backends.choose` says. All agree to rounding.
On CUDA, the gradient of the planes is the same from run to run under `torch.use_deterministic_algorithms`, with Triton.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from triplaneturbo.ops.backends import choose

# Lookups handled at a time: bounds the temporaries (one gathered corner) and keeps them in cache on a CPU.
_CHUNK = 1 << 15
# Rows and columns of zeros around each plane, so that every corner of a clamped cell exists.
_BORDER = 2


def sample_planes(
    planes: Float[Tensor, "B P C H W"], coords: Float[Tensor, "B P N 2"], *, backend: str = "auto"
) -> Float[Tensor, "B P N C"]:
    """Bilinear lookup, zero outside, pixel centres at ((2j+1)/W - 1, (2i+1)/H - 1).

    `coords` are (u, v) = (column, row) in [-1, 1]. The same as `F.grid_sample(align_corners=False)`;
    differentiable once in both arguments.
    """
    if _use_triton(backend, planes):
        from triplaneturbo.ops.planes_triton import SamplePlanes

        return SamplePlanes.apply(planes, coords, False)
    batch, count = coords.shape[:2]
    grid = coords.flatten(0, 1).unsqueeze(2)
    values = F.grid_sample(planes.flatten(0, 1), grid, padding_mode="zeros", align_corners=False)
    return values.squeeze(-1).unflatten(0, (batch, count)).transpose(2, 3)


def sample_planes_with_jacobian(
    planes: Float[Tensor, "B P C H W"], coords: Float[Tensor, "B P N 2"], *, backend: str = "auto"
) -> tuple[Float[Tensor, "B P N C"], Float[Tensor, "B P N 2 C"]]:
    """Value of `sample_planes` and its exact derivative with respect to (u, v).

    With corner texels t00, t01, t10, t11 (row, column) and cell fractions (x, y),

        value  = (1-x)(1-y) t00 + x(1-y) t01 + (1-x)y t10 + xy t11
        d/du   = W/2 [(1-y)(t01 - t00) + y (t11 - t10)]
        d/dv   = H/2 [(1-x)(t10 - t00) + x (t11 - t01)]

    Both outputs are differentiable once, in planes and in coords (d/du of the d/dv row is the cross term
    WH/4 (t00 - t01 - t10 + t11), the pure second derivatives are zero). A loss on the spatial gradient of a
    field therefore needs ordinary reverse mode only, where `F.grid_sample` would need its double backward.
    On a cell boundary the derivative is that of the cell to the right and below.
    """
    if _use_triton(backend, planes):
        from triplaneturbo.ops.planes_triton import SamplePlanes

        return SamplePlanes.apply(planes, coords, True)
    return _SampleWithJacobian.apply(planes, coords)


def _use_triton(backend: str, planes: Tensor) -> bool:
    return choose("planes", planes.device, planes.dtype, asked=backend).name == "triton"


class _SampleWithJacobian(torch.autograd.Function):
    @staticmethod
    def forward(ctx, planes, coords):
        batch, count, channels, height, width = planes.shape
        table = _texel_table(planes)
        origin = _plane_origin(planes, coords)
        points = coords.reshape(-1, 2)
        value = planes.new_zeros(len(points), channels)
        jacobian = planes.new_zeros(len(points), 2, channels)
        for part in _chunks(len(points)):
            cells, weights = _stencil(points[part], origin[part], height, width)
            targets = (value[part], jacobian[part, 0], jacobian[part, 1])
            for cell, weight in zip(cells, weights, strict=True):
                texels = table.index_select(0, cell)
                for target, factor in zip(targets, weight, strict=True):
                    target.addcmul_(texels, factor.unsqueeze(1))
        ctx.save_for_backward(planes, coords)
        return value.view(batch, count, -1, channels), jacobian.view(batch, count, -1, 2, channels)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_value, grad_jacobian):
        planes, coords = ctx.saved_tensors
        _, _, channels, height, width = planes.shape
        wants_planes, wants_coords = ctx.needs_input_grad
        table = _texel_table(planes)
        origin = _plane_origin(planes, coords)
        points = coords.reshape(-1, 2)
        grad_value = grad_value.reshape(-1, channels)
        grad_jacobian = grad_jacobian.reshape(-1, 2, channels)
        grad_table = torch.zeros_like(table) if wants_planes else None
        grad_points = torch.zeros_like(points) if wants_coords else None
        for part in _chunks(len(points)):
            cells, weights = _stencil(points[part], origin[part], height, width)
            grads = (grad_value[part], grad_jacobian[part, 0], grad_jacobian[part, 1])
            if grad_table is not None:
                for cell, weight in zip(cells, weights, strict=True):
                    texel_grad = sum(w.unsqueeze(1) * g for w, g in zip(weight, grads, strict=True))
                    grad_table.index_add_(0, cell, texel_grad)
            if grad_points is not None:
                grad_points[part] = _coordinate_gradient(table, cells, weights, grads, height, width)
        return (
            None if grad_table is None else _texels_to_planes(grad_table, planes.shape),
            None if grad_points is None else grad_points.view_as(coords),
        )


def _chunks(total: int) -> list[slice]:
    return [slice(start, start + _CHUNK) for start in range(0, total, _CHUNK)]


def _texel_table(planes: Tensor) -> Tensor:
    """Zero-bordered texels, channels last: [B*P*(H+4)*(W+4), C]."""
    return F.pad(planes, [_BORDER] * 4).permute(0, 1, 3, 4, 2).reshape(-1, planes.shape[2])


def _texels_to_planes(table: Tensor, shape: torch.Size) -> Tensor:
    """Inverse of `_texel_table`."""
    batch, count, channels, height, width = shape
    padded = table.view(batch, count, height + 2 * _BORDER, width + 2 * _BORDER, channels)
    inner = padded[:, :, _BORDER : _BORDER + height, _BORDER : _BORDER + width]
    return inner.permute(0, 1, 4, 2, 3).contiguous()


def _plane_origin(planes: Tensor, coords: Tensor) -> Tensor:
    """Row of the texel table at which each point's plane starts: [B*P*N]."""
    batch, count, _, height, width = planes.shape
    size = (height + 2 * _BORDER) * (width + 2 * _BORDER)
    starts = torch.arange(batch * count, device=coords.device) * size
    return starts.unsqueeze(1).expand(-1, coords.shape[2]).reshape(-1)


def _stencil(
    points: Tensor, origin: Tensor, height: int, width: int
) -> tuple[tuple[Tensor, ...], tuple[tuple[Tensor, ...], ...]]:
    """Table rows [n] of the four corners, and per corner its weights [n] in value, d/du and d/dv."""
    column = ((points[:, 0] + 1) * width - 1) / 2
    row = ((points[:, 1] + 1) * height - 1) / 2
    left, top = column.floor(), row.floor()
    x, y = column - left, row - top
    left = left.long().clamp_(-_BORDER, width)
    top = top.long().clamp_(-_BORDER, height)
    stride = width + 2 * _BORDER
    first = origin + (top + _BORDER) * stride + left + _BORDER
    du, dv = width / 2, height / 2
    weights = (
        ((1 - x) * (1 - y), du * (y - 1), dv * (x - 1)),
        (x * (1 - y), du * (1 - y), -dv * x),
        ((1 - x) * y, -du * y, dv * (1 - x)),
        (x * y, du * y, dv * x),
    )
    return (first, first + 1, first + stride, first + stride + 1), weights


def _coordinate_gradient(
    table: Tensor,
    cells: tuple[Tensor, ...],
    weights: tuple[tuple[Tensor, ...], ...],
    grads: tuple[Tensor, ...],
    height: int,
    width: int,
) -> Tensor:
    """Gradient [n, 2] with respect to (u, v) of <grads, (value, d/du, d/dv)>."""
    grad_value, grad_du, grad_dv = grads
    result = grad_value.new_zeros(len(grad_value), 2)
    # The u gradient sees the cross derivative through d/dv, the v gradient through d/du.
    for sign, cell, (_, weight_du, weight_dv) in zip((1, -1, -1, 1), cells, weights, strict=True):
        texels = table.index_select(0, cell)
        along_value = (grad_value * texels).sum(1)
        cross = sign * height * width / 4
        result[:, 0] += weight_du * along_value + cross * (grad_dv * texels).sum(1)
        result[:, 1] += weight_dv * along_value + cross * (grad_du * texels).sum(1)
    return result
