"""From scenes to triangle meshes."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from triplaneturbo.errors import EmptyFieldError
from triplaneturbo.ops.cavities import cavities
from triplaneturbo.ops.marching_cubes import marching_cubes, touched_points
from triplaneturbo.ops.mesh import keep_large_components
from triplaneturbo.scenes.base import FieldScene
from triplaneturbo.scenes.mesh import MeshScene
from triplaneturbo.scenes.surface import FieldSurface, PaintedMesh
from triplaneturbo.types import Mesh


@torch.no_grad()
def extract_meshes(
    scene: FieldScene | MeshScene,
    material: Callable[[Tensor], Tensor],
    resolution: int,
    prompts: Sequence[str],
    *,
    smallest_component: float = 0.0,
    fill_cavities: float | None = None,
) -> list[Mesh]:
    """One coloured mesh a prompt, colours in [0, 1], and the surface it approximates.

    resolution: grid points along an edge in which a field's surface is searched; a scene of meshes does not need it.
    smallest_component: components of a field's surface with less than this share of the largest one's faces are
    dropped. fill_cavities: what a field encloses becomes a part of it; openings of its walls up to this width, world
    units, count as closed. None: nothing is filled.

    Raises:
        EmptyFieldError: a field has no surface; the message names its prompt.
    """
    if isinstance(scene, MeshScene):
        return [_painted(scene.prompt(number), material) for number in range(len(scene))]
    return [
        _searched(scene.prompt(number), material, resolution, prompt, smallest_component, fill_cavities)
        for number, prompt in enumerate(prompts)
    ]


def _painted(scene: MeshScene, material: Callable[[Tensor], Tensor]) -> Mesh:
    (mesh,) = scene.meshes
    if scene.texture is None:
        return mesh
    surface = PaintedMesh(scene, material)
    return replace(mesh, colors=surface.colors(mesh.vertices), surface=surface)


def _searched(
    scene: FieldScene,
    material: Callable[[Tensor], Tensor],
    resolution: int,
    prompt: str,
    smallest_component: float,
    fill_cavities: float | None,
) -> Mesh:
    (values,) = scene.grid(resolution)
    check_surface(values, prompt)
    if fill_cavities is not None:
        opening = round(fill_cavities * (resolution - 1) / (4 * scene.radius))
        values = values.masked_fill(cavities(values >= 0, opening), -1.0)
    vertices, faces = extract(values, _offsets(scene, touched_points(values), resolution), scene.radius)
    if smallest_component:
        vertices, faces = keep_large_components(vertices, faces, smallest_component)
    surface = FieldSurface(scene, material, resolution)
    return Mesh(vertices, faces, surface.colors(vertices), surface=surface)


def check_surface(values: Float[Tensor, "X Y Z"], prompt: str) -> None:
    """Make sure that there is a surface to extract from values that are negative inside.

    Raises:
        EmptyFieldError: the field of `prompt` is not finite, or everywhere on one side of the surface.
    """
    low, high = values.amin().item(), values.amax().item()
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise EmptyFieldError(
            f"the field of {prompt!r} is not finite. The weights or the text states are broken: check that the "
            "checkpoint loaded completely, or try network_dtype float32."
        )
    if low >= 0 or high < 0:
        side = "outside" if low >= 0 else "inside"
        raise EmptyFieldError(
            f"the field of {prompt!r} has no surface: every grid point is {side} (from {low:.3g} to {high:.3g}). "
            "Try another seed or a simpler prompt; if no prompt works, the adapters are untrained or do not belong "
            "to this configuration."
        )


def _offsets(scene: FieldScene, touched: Bool[Tensor, "R R R"], resolution: int) -> Float[Tensor, "R R R 3"] | None:
    """How far the touched grid points of one prompt's scene are moved, in cells; 0 elsewhere. None: grids do not
    deform."""
    line, place = scene.field.grid_line(resolution, scene.tensors), touched.nonzero()
    _, found = scene.level_set(line[place][None], resolution=resolution)
    return None if found is None else found.new_zeros(*touched.shape, 3).index_put_(place.unbind(1), found[0])


def extract(
    values: Float[Tensor, "R R R"], offset: Float[Tensor, "R R R 3"] | None, radius: float
) -> tuple[Float[Tensor, "V 3"], Int[Tensor, "F 3"]]:
    """Closed surface where values are 0 over [-radius, radius]^3: vertices in world units, faces; differentiable.

    offset: how far each grid point is moved, in cells. A field without a surface gives an empty mesh.
    """
    vertices, faces = marching_cubes(values, offset)
    return vertices * (2 * radius / (values.shape[0] - 1)) - radius, faces
