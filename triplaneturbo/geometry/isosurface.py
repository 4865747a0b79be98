"""From a field to triangle meshes."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from triplaneturbo.errors import EmptyFieldError
from triplaneturbo.geometry.few_step_triplane import FewStepTriplaneDualStableDiffusion
from triplaneturbo.geometry.field import Mlp, plane_coordinates
from triplaneturbo.geometry.field_surface import FieldSurface
from triplaneturbo.ops.marching_cubes import marching_cubes
from triplaneturbo.ops.mesh import keep_large_components
from triplaneturbo.ops.planes import sample_planes
from triplaneturbo.types import Mesh

Compat = Literal["right", "original"]

# Grid points whose hidden layers are alive at a time. What fits the cache of a CPU is 1.5 to 4 times as fast there.
_SLAB, _SLAB_ON_CPU = 1 << 19, 1 << 15
# World axes that the planes xy, xz, yz span.
_SPANS = ((0, 1), (0, 2), (1, 2))


def field_grid(
    geometry: FewStepTriplaneDualStableDiffusion,
    planes: Float[Tensor, "B 6 C H W"],
    resolution: int,
    *,
    with_deformation: bool,
    compat: Compat | None = None,
) -> tuple[Float[Tensor, "B R R R"], Float[Tensor, "B R R R 3"] | None]:
    """sdf, and deformation in cells of this grid, at `resolution`^3 points over the box; axes in order x, y, z.

    A plane's feature at a grid point depends on two coordinates only and the first layer of the networks is linear:
    planes are read, and that layer is applied, at 3 R^2 points; their sums at R^3 points are what a point-wise
    query computes. Differentiable in planes and parameters; slabs are recomputed in the backward pass.

    compat: see `cells_per_unit`; None: as the geometry is configured.
    """
    radius, device = geometry.cfg.radius, planes.device
    line = torch.linspace(-radius, radius, resolution, device=device, dtype=planes.dtype)
    features = _plane_grids(geometry, planes, line)
    networks = [geometry.sdf_network]
    if with_deformation:
        networks.append(geometry.deformation_network)
    parts = [_first_layer(network, features, geometry.cfg.geo_interpolate) for network in networks]

    def slab(start: int, stop: int) -> tuple[Tensor, ...]:
        return tuple(
            network.from_first_layer(
                xy[:, start:stop, :, None] + xz[:, start:stop, None, :] + yz[:, None, :, :],
            )
            for network, (xy, xz, yz) in zip(networks, parts, strict=True)
        )

    slab_size = _SLAB_ON_CPU if device.type == "cpu" else _SLAB
    thickness = max(1, slab_size // (resolution**2 * len(planes)))
    results = _run(slab, resolution, thickness)
    points = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), dim=-1)
    sdf = (results[0] + geometry.bias.value(points)).squeeze(-1)
    if not with_deformation:
        return sdf, None
    return sdf, results[1] * cells_per_unit(geometry.cfg, resolution, compat)


def cells_per_unit(cfg: Any, resolution: int, compat: Compat | None = None) -> float:
    """Cells of a grid with `resolution` points along an edge in one unit of the deformation that the networks give.

    The unit is a cell of the training grid, or with compat=original of whatever grid is in use (docs/compat.md row 12).
    cfg: the geometry's options.
    """
    if (compat or cfg.compat) == "original":
        return 1.0
    return (resolution - 1) / (cfg.isosurface_resolution - 1)


def check_surface(sdf: Float[Tensor, "X Y Z"], prompt: str, level: float = 0.0) -> None:
    """Make sure that there is a surface to extract.

    Raises:
        EmptyFieldError: the field of `prompt` is not finite, or everywhere on one side of the surface.
    """
    low, high = sdf.amin().item(), sdf.amax().item()
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise EmptyFieldError(
            f"the field of {prompt!r} is not finite. The weights or the text states are broken: check that the "
            "checkpoint loaded completely, or try network_dtype float32."
        )
    if low >= level or high < level:
        side = "outside" if low >= level else "inside"
        raise EmptyFieldError(
            f"the field of {prompt!r} has no surface: every grid point is {side} (sdf from {low:.3g} to {high:.3g}). "
            "Try another seed or a simpler prompt; if no prompt works, the adapters are untrained or do not belong "
            "to this configuration."
        )


def extract(
    sdf: Float[Tensor, "R R R"],
    deformation: Float[Tensor, "R R R 3"] | None,
    radius: float,
    *,
    level: float = 0.0,
) -> tuple[Float[Tensor, "V 3"], Int[Tensor, "F 3"]]:
    """Closed surface sdf = level over [-radius, radius]^3: vertices in world units, faces; differentiable.

    deformation: how far each grid point is moved, in cells. A field without a surface gives an empty mesh.
    """
    vertices, faces = marching_cubes(sdf, deformation, level=level)
    return vertices * (2 * radius / (sdf.shape[0] - 1)) - radius, faces


@torch.no_grad()
def extract_meshes(
    geometry: FewStepTriplaneDualStableDiffusion,
    material: Callable[[Tensor], Tensor],
    planes: Float[Tensor, "B 6 C H W"],
    resolution: int,
    prompts: Sequence[str],
    compat: Compat | None = None,
) -> list[Mesh]:
    """One coloured mesh a prompt, colours in [0, 1], and the surface it approximates; see `field_grid` for `compat`.

    Raises:
        EmptyFieldError: a field has no surface; the message names its prompt.
    """
    cfg = geometry.cfg
    compat = compat or cfg.compat
    cell = 2 * cfg.radius / (resolution - 1)
    deformation_unit = 2 * cfg.radius / (cfg.isosurface_resolution - 1) if compat == "right" else cell
    meshes = []
    for single, prompt in zip(planes.split(1), prompts, strict=True):
        deformable = cfg.isosurface_deformable_grid
        sdf, deformation = field_grid(geometry, single, resolution, with_deformation=deformable, compat=compat)
        check_surface(sdf[0], prompt, cfg.isosurface_threshold)
        grid = None if deformation is None else deformation[0]
        vertices, faces = extract(sdf[0], grid, cfg.radius, level=cfg.isosurface_threshold)
        if cfg.isosurface_remove_outliers:
            vertices, faces = keep_large_components(vertices, faces, cfg.isosurface_outlier_n_faces_threshold)
        surface = FieldSurface(geometry, material, single, cell=cell, deformation_unit=deformation_unit)
        meshes.append(Mesh(vertices, faces, surface.colors(vertices), surface=surface))
    return meshes


def _plane_grids(geometry: FewStepTriplaneDualStableDiffusion, planes: Tensor, line: Tensor) -> Tensor:
    """Features of the three shape planes on the grids they span, [B, 3, R, R, C]."""
    points = line.new_zeros(3, len(line), len(line), 3)
    for plane, (first, second) in enumerate(_SPANS):
        points[plane, :, :, first] = line[:, None]
        points[plane, :, :, second] = line[None, :]
    on_planes = plane_coordinates((points / geometry.cfg.radius).flatten(1, 2), geometry.plane_axes)
    coords = torch.stack([on_planes[plane, plane] for plane in range(3)])
    values = sample_planes(planes[:, :3], coords.expand(len(planes), -1, -1, -1))
    return values.unflatten(2, (len(line), len(line)))


def _first_layer(network: Mlp, features: Tensor, how: str) -> tuple[Tensor, ...]:
    """What each plane adds to the pre-activation of the first layer, 3 x [B, R, R, H]."""
    weight = network.layers[0].weight
    weights = [weight] * 3 if how == "v1" else weight.chunk(3, dim=1)
    return tuple(x @ w.T for x, w in zip(features.unbind(1), weights, strict=True))


def _run(slab: Callable[[int, int], tuple[Tensor, ...]], size: int, thickness: int) -> list[Tensor]:
    """All slabs along x, joined; recomputed in the backward pass, if there is one."""
    bounds = [(start, min(start + thickness, size)) for start in range(0, size, thickness)]
    if torch.is_grad_enabled():
        pieces = [checkpoint(slab, *bound, use_reentrant=False) for bound in bounds]
        return [torch.cat(piece, dim=1) for piece in zip(*pieces, strict=True)]
    # Written in place: pieces that live on between the slabs' large temporaries fragment the heap of a thread, which
    # takes ten times the memory (10 GB for 256 points along an edge).
    joined: list[Tensor] = []
    for start, stop in bounds:
        pieces = slab(start, stop)
        joined = joined or [piece.new_empty(len(piece), size, *piece.shape[2:]) for piece in pieces]
        for whole, piece in zip(joined, pieces, strict=True):
            whole[:, start:stop] = piece
    return joined
