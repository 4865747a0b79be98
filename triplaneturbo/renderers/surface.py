"""The surfaces of fields as meshes for training: gradients flow through the few grid points that touch them."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from triplaneturbo.errors import EmptyFieldError
from triplaneturbo.ops.marching_cubes import marching_cubes_packed, touched_points
from triplaneturbo.renderers.packing import PromptTable, split_meshes
from triplaneturbo.renderers.shading import shrink_gradient
from triplaneturbo.scenes import FieldScene
from triplaneturbo.types import Mesh

# Grid points next to the boundary that are put outside when a field has no surface.
_BORDER = 2


def surface_meshes(
    scene: FieldScene,
    resolution: int,
    *,
    radius: float,
    value_share: float = 1.0,
    offset_share: float = 1.0,
    detach_if_empty: bool = False,
) -> list[Mesh]:
    """Surface of every field on a grid of `resolution`^3 points over [-radius, radius]^3, in world units.

    Vertices depend on the ends of crossed grid edges alone. The whole grid is therefore evaluated without gradient
    and only those points again with it: the gradients are the same as through the whole grid.

    Args:
        value_share: of the gradient, in [0, 1], that vertices pass on to the field's values.
        offset_share: the same, to the offset of its grid points.
        detach_if_empty: a field without a surface gets a stand-in (`force_surface`); whether it passes no gradient.

    Raises:
        EmptyFieldError: a field is not finite.
    """
    prompts = len(scene)
    grids = (prompts, *(resolution,) * 3)
    line, cell = scene.field.grid_line(resolution, scene.tensors, radius), 2 * radius / (resolution - 1)
    points = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).view(-1, 3)
    with torch.no_grad():
        values = scene.grid(resolution, radius).flatten(1)
        extremes = torch.stack([values.argmin(1), values.argmax(1)], 1)
        touched = touched_points(values.view(grids)).flatten(1)
        empty, counts = _looked_through(values, extremes, touched)
        if len(empty) > 0:
            touched = _touched_with_stand_ins(values.view(grids), extremes, empty)
            counts = touched.sum(1).tolist()
        active = torch.nonzero_static(touched.flatten(), size=sum(counts)).squeeze(1)
        place = active % len(points)
    if detach_if_empty and len(empty) == prompts:
        value_share = offset_share = 0.0
    with torch.set_grad_enabled(torch.is_grad_enabled() and max(value_share, offset_share) > 0):
        table = PromptTable(counts, active.device)
        found, offset = scene.level_set(table.fill(points[place]), resolution=resolution)
        attached = ~torch.isin(active // len(points), empty).unsqueeze(1) if detach_if_empty and len(empty) else None

        def at_surface(field: Tensor, share: float) -> Tensor:
            at_points = shrink_gradient(table.read(field), share)
            return at_points if attached is None else torch.where(attached, at_points, at_points.detach())

        dense = values.flatten().index_copy(0, active, at_surface(found, value_share)[:, 0]).view(grids)
        if offset is not None:
            cells = at_surface(offset, offset_share)
            offset = cells.new_zeros(dense.numel(), 3).index_copy(0, active, cells).view(*grids, 3)
        vertices, faces, sizes = marching_cubes_packed(_with_stand_ins(dense, extremes, empty), offset)
        vertices = vertices * cell - radius
    return split_meshes(vertices, faces, sizes)


def force_surface(sdf: Float[Tensor, "*B R R R"], extremes: Int[Tensor, "*B 2"]) -> Float[Tensor, "*B R R R"]:
    """Fields of one sign made to have a surface (InstantMesh, Xu et al. 2024): -1 - max is added to the centre
    point, 1 - min to the two outermost layers, and points that become exactly 0 keep their value.

    extremes: flat indices, in its grid, of a smallest and a largest value. Gradients flow to the points at the surface
    so made and to these two.
    """
    low, high = sdf.flatten(-3).gather(-1, extremes)[..., None, None, None].unbind(-4)
    outer = sdf.new_ones(sdf.shape[-3:])
    outer[_BORDER:-_BORDER, _BORDER:-_BORDER, _BORDER:-_BORDER] = 0
    centre = torch.zeros_like(outer)
    centre[tuple(n // 2 for n in outer.shape)] = 1
    forced = sdf + outer * (1 - low) - centre * (1 + high)
    return torch.where(forced == 0, sdf, forced)


def _looked_through(values: Tensor, extremes: Tensor, touched: Tensor) -> tuple[Tensor, list[int]]:
    """Numbers of the fields [B, N] that are of one sign everywhere, and how many points of each are touched.

    All that the host must know is read at once: it waits for the device.
    """
    empty, counts = [], []
    facts = torch.cat([values.gather(1, extremes).double(), touched.sum(1, keepdim=True).double()], 1)
    for number, (low, high, count) in enumerate(facts.tolist()):
        if not (math.isfinite(low) and math.isfinite(high)):
            raise EmptyFieldError(
                "the field is not finite: training has diverged or the planes are broken; lower the learning rate, or "
                "go back to an earlier checkpoint"
            )
        if low > 0 or high < 0:
            empty.append(number)
        counts.append(int(count))
    device = extremes.device
    # Without numbers nothing is sent to the device, which the host would wait for.
    return torch.tensor(empty, device=device) if empty else torch.empty(0, dtype=torch.long, device=device), counts


def _touched_with_stand_ins(values: Tensor, extremes: Tensor, empty: Tensor) -> Tensor:
    """Which grid points the meshes depend on where some are stand-ins: [B, N]."""
    touched = touched_points(_with_stand_ins(values, extremes, empty)).flatten(1)
    of_stand_ins = torch.zeros_like(touched).scatter_(1, extremes, True)
    return touched.index_copy(0, empty, touched[empty] | of_stand_ins[empty])


def _with_stand_ins(sdf: Tensor, extremes: Tensor, empty: Tensor) -> Tensor:
    if len(empty) == 0:
        return sdf
    return sdf.index_copy(0, empty, force_surface(sdf[empty], extremes[empty]))
