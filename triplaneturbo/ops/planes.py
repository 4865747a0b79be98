"""Bilinear lookup in feature planes, with exact first derivatives as a forward computation.

`backend` chooses the implementation: "torch" (any device), "triton" (CUDA kernels of `planes_triton.py`), or
"auto", what `backends.choose` says. All agree to rounding.
On CUDA, the gradient of the planes is the same from run to run under `torch.use_deterministic_algorithms`, with Triton.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from triplaneturbo.ops.backends import choose

# Lookups handled at a time: bounds the temporaries (one row for each corner) and keeps them in cache on a CPU.
_CHUNK = 1 << 14
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
    grid = coords.flatten(0, 1).unsqueeze(2).contiguous()  # otherwise a CPU takes a point at a time, not eight
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
        value = planes.new_empty(len(points), channels)
        jacobian = planes.new_empty(len(points), 2, channels)
        for part in _chunks(len(points)):
            cells, weights = _stencil(points[part], origin[part], height, width)
            for target, weight in zip((value, jacobian[:, 0], jacobian[:, 1]), weights, strict=True):
                target[part] = F.embedding_bag(cells, table, mode="sum", per_sample_weights=weight)
        ctx.save_for_backward(planes, coords)
        return value.view(batch, count, -1, channels), jacobian.view(batch, count, -1, 2, channels)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_value, grad_jacobian):
        planes, coords = ctx.saved_tensors
        channels, height, width = planes.shape[2:]
        wants_planes, wants_coords = ctx.needs_input_grad
        table = _texel_table(planes)
        origin = _plane_origin(planes, coords)
        points = coords.reshape(-1, 2)
        grad_value = grad_value.reshape(-1, channels)
        grad_jacobian = grad_jacobian.reshape(-1, 2, channels)
        # A row for all four corners of a cell: one sum by index takes less time than four.
        grad_cells = table.new_zeros(len(table), 4 * channels) if wants_planes else None
        grad_points = torch.zeros_like(points) if wants_coords else None
        for part in _chunks(len(points)):
            cells, weights = _stencil(points[part], origin[part], height, width)
            grads = (grad_value[part], grad_jacobian[part, 0], grad_jacobian[part, 1])
            if grad_cells is not None:
                rows = points.new_zeros(len(cells), 4, channels)
                for weight, grad in zip(weights, grads, strict=True):
                    rows.addcmul_(weight.unsqueeze(2), grad.unsqueeze(1))
                grad_cells.index_add_(0, cells[:, 0], rows.flatten(1))
            if grad_points is not None:
                grad_points[part] = _coordinate_gradient(table[cells], weights, grads, height, width)
        return (
            None if grad_cells is None else _cells_to_planes(grad_cells, planes.shape),
            None if grad_points is None else grad_points.view_as(coords),
        )


def _chunks(total: int) -> list[slice]:
    return [slice(start, start + _CHUNK) for start in range(0, total, _CHUNK)]


def _texel_table(planes: Tensor) -> Tensor:
    """Zero-bordered texels, channels last: [B*P*(H+4)*(W+4), C]."""
    return F.pad(planes, [_BORDER] * 4).permute(0, 1, 3, 4, 2).reshape(-1, planes.shape[2])


def _cells_to_planes(cells: Tensor, shape: torch.Size) -> Tensor:
    """What the corners [B*P*(H+4)*(W+4), 4C] of all cells add to their texels: [B, P, C, H, W]."""
    batch, count, channels, height, width = shape
    corners = cells.unflatten(1, (4, channels)).unbind(1)
    table = corners[0].clone()
    for corner, shift in zip(corners[1:], _corner_rows(width)[1:], strict=True):
        table[shift:] += corner[:-shift]
    padded = table.view(batch, count, height + 2 * _BORDER, width + 2 * _BORDER, channels)
    inner = padded[:, :, _BORDER : _BORDER + height, _BORDER : _BORDER + width]
    return inner.permute(0, 1, 4, 2, 3).contiguous()


def _corner_rows(width: int) -> tuple[int, int, int, int]:
    """Rows of the texel table from a cell's first corner to all four: t00, t01, t10, t11 (row, column)."""
    stride = width + 2 * _BORDER
    return 0, 1, stride, stride + 1


def _plane_origin(planes: Tensor, coords: Tensor) -> Tensor:
    """Row of the texel table at which each point's plane starts: [B*P*N]."""
    batch, count, _, height, width = planes.shape
    size = (height + 2 * _BORDER) * (width + 2 * _BORDER)
    starts = torch.arange(batch * count, device=coords.device) * size
    return starts.unsqueeze(1).expand(-1, coords.shape[2]).reshape(-1)


def _stencil(
    points: Tensor, origin: Tensor, height: int, width: int
) -> tuple[Int[Tensor, "n 4"], tuple[Float[Tensor, "n 4"], ...]]:
    """Table rows of the four corners, and the corners' weights in value, d/du and d/dv."""
    column = ((points[:, 0] + 1) * width - 1) / 2
    row = ((points[:, 1] + 1) * height - 1) / 2
    left, top = column.floor(), row.floor()
    x, y = column - left, row - top
    left = left.long().clamp_(-_BORDER, width)
    top = top.long().clamp_(-_BORDER, height)
    first = origin + (top + _BORDER) * (width + 2 * _BORDER) + left + _BORDER
    du, dv = width / 2, height / 2
    value = ((1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y)
    along_u = (du * (y - 1), du * (1 - y), -du * y, du * y)
    along_v = (dv * (x - 1), -dv * x, dv * (1 - x), dv * x)
    cells = torch.stack([first + shift for shift in _corner_rows(width)], 1)
    return cells, tuple(torch.stack(weight, 1) for weight in (value, along_u, along_v))


def _coordinate_gradient(
    texels: Float[Tensor, "n 4 C"],
    weights: tuple[Float[Tensor, "n 4"], ...],
    grads: tuple[Float[Tensor, "n C"], ...],
    height: int,
    width: int,
) -> Float[Tensor, "n 2"]:
    """Gradient with respect to (u, v) of <grads, (value, d/du, d/dv)>."""
    along_value, along_du, along_dv = ((texels * grad.unsqueeze(1)).sum(2) for grad in grads)
    # The u gradient sees the cross derivative through d/dv, the v gradient through d/du.
    cross = texels.new_tensor((1, -1, -1, 1)) * (height * width / 4)
    du = weights[1] * along_value + cross * along_dv
    dv = weights[2] * along_value + cross * along_du
    return torch.stack([du.sum(1), dv.sum(1)], 1)
