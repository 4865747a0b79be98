"""The surface that meshes approximate, read from the field at points instead of a grid."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.scenes.base import FieldScene
from triplaneturbo.scenes.mesh import MeshScene

# Points whose hidden layers are alive at a time.
_POINTS = 1 << 17
_PULL_BACKS, _NEWTON_STEPS = 3, 2
# Squared gradients below this say nothing about where the surface is.
_MIN_SQUARED_GRADIENT = 1e-8


class FieldSurface:
    """S = {x + d(x) : value(x) = level}: the level set, moved by the offset d as the points of a grid are.

    Marching cubes moves grid points by d and finds the level set between them; this is what its meshes converge to.
    """

    def __init__(self, scene: FieldScene, material: Callable[[Tensor], Tensor], resolution: int) -> None:
        """scene: of one prompt. resolution: of the grid, points along an edge; `project` covers one cell of it."""
        self.scene = scene
        self.material = material
        self.resolution = resolution
        self.cell = 2 * scene.radius / (resolution - 1)

    @torch.no_grad()
    def project(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """The points of S next to `points`; those that find none within a cell stay where they are.

        Solves x + d(x) = p by x <- p - d(x), then f(x) = 0 for the field f that is negative inside by Newton's method
        along its gradient g, x <- x - f(x) g / |g|^2, and returns x + d(x).
        """
        return torch.cat([self._project(part) for part in points.split(_POINTS)])

    @torch.no_grad()
    def colors(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """The field's colours in [0, 1]."""
        return colors_at(self.scene, self.material, points)

    def _project(self, points: Tensor) -> Tensor:
        source = points
        for _ in range(_PULL_BACKS):
            if (offset := self._offset(source)) is None:
                break
            source = points - offset
        for _ in range(_NEWTON_STEPS):
            source = source - self._newton_step(source)
        offset = self._offset(source)
        found = source if offset is None else source + offset
        near = (found - points).norm(dim=1, keepdim=True) <= self.cell
        return torch.where(near, found, points)

    def _offset(self, points: Tensor) -> Tensor | None:
        _, offset = self.scene.level_set(points[None], resolution=self.resolution)
        return None if offset is None else offset[0] * self.cell

    def _newton_step(self, points: Tensor) -> Tensor:
        sample = self.scene.query(points[None], features=False, normals=True)
        assert sample.gradient is not None  # it was asked for
        gradient = sample.gradient[0] if self.scene.field.kind == "sdf" else -sample.gradient[0]
        squared = gradient.square().sum(1, keepdim=True).clamp_min(_MIN_SQUARED_GRADIENT)
        return self.scene.field.inside(sample.value[0]) * gradient / squared


class PaintedMesh:
    """An explicit mesh as the surface that it is, coloured by a field."""

    def __init__(self, scene: MeshScene, material: Callable[[Tensor], Tensor]) -> None:
        """scene: of one prompt, with a texture."""
        self.scene = scene
        self.material = material

    def project(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """The points themselves: they are on the mesh, or on one with fewer faces in its place."""
        return points

    @torch.no_grad()
    def colors(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """The colours in [0, 1] that the texture has at `points`."""
        return colors_at(self.scene, self.material, points)


def colors_at(
    scene: FieldScene | MeshScene, material: Callable[[Tensor], Tensor], points: Float[Tensor, "N 3"]
) -> Float[Tensor, "N 3"]:
    """Colours in [0, 1] of points in the scene of one prompt, as many at a time as memory should hold."""
    parts = points.split(_POINTS)
    return torch.cat([material(scene.features(part[None]))[0] for part in parts]).clamp(0, 1)
