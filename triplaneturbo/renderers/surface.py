"""The surface of a field as a mesh for training: gradients flow through the few grid points that touch it."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from triplaneturbo.errors import EmptyFieldError
from triplaneturbo.geometry.isosurface import extract
from triplaneturbo.renderers.shading import shrink_gradient

# Grid points evaluated at a time without gradient.
_CHUNK = 1 << 19
# Grid points next to the boundary that are put outside when a field has no surface.
_BORDER = 2


def surface_mesh(
    geometry: Any,
    planes: Float[Tensor, "1 6 C h w"],
    resolution: int,
    *,
    radius: float,
    sdf_share: float = 1.0,
    deformation_share: float = 1.0,
    detach_if_empty: bool = False,
) -> tuple[Float[Tensor, "V 3"], Int[Tensor, "F 3"]]:
    """Surface of one field on a grid of `resolution`^3 points over [-radius, radius]^3: world vertices, faces.

    Vertices depend on the ends of crossed grid edges alone. The whole grid is therefore evaluated without gradient
    and only those points again with it: the gradients are the same as through the whole grid.

    Args:
        sdf_share, deformation_share: of the gradient, in [0, 1], that vertices pass on to either.
        detach_if_empty: a field without a surface gets a stand-in (`force_surface`); whether it passes no gradient.

    Raises:
        EmptyFieldError: the field is not finite.
    """
    line = torch.linspace(-radius, radius, resolution, device=planes.device, dtype=planes.dtype)
    points = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).view(-1, 3)
    with torch.no_grad():
        values = torch.cat([geometry.sdf(planes, part[None]) for part in points.split(_CHUNK)], 1).view(-1)
        shape = (resolution,) * 3
        extremes = torch.stack([values.argmin(), values.argmax()])
        empty = _is_empty(values[extremes])
        if empty:
            stand_in = force_surface(values.view(shape), extremes)
            active = torch.cat([surface_points(stand_in), extremes]).unique()
        else:
            active = surface_points(values.view(shape))
    if empty and detach_if_empty:
        sdf_share = deformation_share = 0.0
    with torch.set_grad_enabled(torch.is_grad_enabled() and max(sdf_share, deformation_share) > 0):
        sdf, deformation = geometry.sdf_and_deformation(planes, points[active][None])
        dense = values.index_copy(0, active, shrink_gradient(sdf.flatten(), sdf_share)).view(shape)
        if deformation is not None:
            cells = shrink_gradient(deformation[0], deformation_share) * _cells(geometry, resolution)
            deformation = torch.zeros_like(points).index_copy(0, active, cells).view(*shape, 3)
        return extract(force_surface(dense, extremes) if empty else dense, deformation, radius)


def surface_points(sdf: Float[Tensor, "X Y Z"]) -> Int[Tensor, " K"]:
    """Flat indices, ascending, of the grid points at either end of a grid edge that crosses the surface; beyond the
    grid is outside."""
    inside = F.pad(sdf < 0, [1] * 6)
    touched = torch.zeros_like(inside)
    for axis in range(3):
        size = inside.shape[axis] - 1
        crossed = inside.narrow(axis, 0, size) ^ inside.narrow(axis, 1, size)
        touched.narrow(axis, 0, size).logical_or_(crossed)
        touched.narrow(axis, 1, size).logical_or_(crossed)
    return touched[1:-1, 1:-1, 1:-1].flatten().nonzero().squeeze(1)


def force_surface(sdf: Float[Tensor, "R R R"], extremes: Int[Tensor, "2"]) -> Float[Tensor, "R R R"]:
    """A field of one sign made to have a surface (InstantMesh, Xu et al. 2024): -1 - max is added to the centre
    point, 1 - min to the two outermost layers, and points that become exactly 0 keep their value.

    extremes: flat indices of a smallest and a largest value. Gradients flow to the points at the surface so made
    and to these two.
    """
    low, high = sdf.flatten()[extremes]
    outer = torch.ones_like(sdf)
    outer[_BORDER:-_BORDER, _BORDER:-_BORDER, _BORDER:-_BORDER] = 0
    centre = torch.zeros_like(sdf)
    centre[tuple(n // 2 for n in sdf.shape)] = 1
    forced = sdf + outer * (1 - low) - centre * (1 + high)
    return torch.where(forced == 0, sdf, forced)


def _is_empty(extremes: Tensor) -> bool:
    """Whether values between these two, smallest and largest, are all of one sign."""
    low, high = extremes.tolist()
    if not (math.isfinite(low) and math.isfinite(high)):
        raise EmptyFieldError(
            "the field is not finite: training has diverged or the planes are broken; lower the learning rate, or "
            "go back to an earlier checkpoint"
        )
    return low > 0 or high < 0


def _cells(geometry: Any, resolution: int) -> float:
    """Cells of this grid in one unit of the deformation (compat.md row 12; see `isosurface.field_grid`)."""
    if geometry.cfg.compat == "original":
        return 1.0
    return (resolution - 1) / (geometry.cfg.isosurface_resolution - 1)
