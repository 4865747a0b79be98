"""The surface that meshes approximate, read from the field at points instead of a grid."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.geometry.few_step_triplane import FewStepTriplaneDualStableDiffusion

# Points whose hidden layers are alive at a time.
_POINTS = 1 << 17
_PULL_BACKS, _NEWTON_STEPS = 3, 2
# Squared gradients below this say nothing about where the surface is.
_MIN_SQUARED_GRADIENT = 1e-8


class FieldSurface:
    """S = {x + u d(x) : sdf(x) = level}: the level set, moved by the deformation d as the grid points are.

    Marching cubes moves grid points by d and finds the level set between them; this is what its meshes converge to.
    """

    def __init__(
        self,
        geometry: FewStepTriplaneDualStableDiffusion,
        material: Callable[[Tensor], Tensor],
        planes: Float[Tensor, "1 6 C H W"],
        *,
        cell: float,
        deformation_unit: float,
    ) -> None:
        """cell: edge of the grid's cells, the largest distance that `project` covers. deformation_unit: u; both in
        world units."""
        self.geometry = geometry
        self.material = material
        self.planes = planes
        self.cell = cell
        self.deformation_unit = deformation_unit

    @torch.no_grad()
    def project(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """The points of S next to `points`; those that find none within a cell stay where they are.

        Solves x + u d(x) = p by x <- p - u d(x), then sdf(x) = level by Newton's method along the gradient g,
        x <- x - (sdf(x) - level) g / |g|^2, and returns x + u d(x).
        """
        return torch.cat([self._project(part) for part in points.split(_POINTS)])

    @torch.no_grad()
    def colors(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """The field's colours in [0, 1]."""
        parts = points.split(_POINTS)
        return torch.cat([self.material(self.geometry.features(self.planes, part[None]))[0] for part in parts]).clamp(
            0, 1
        )

    def _project(self, points: Tensor) -> Tensor:
        source = points
        if self.geometry.cfg.isosurface_deformable_grid:
            for _ in range(_PULL_BACKS):
                source = points - self._displacement(source)
        for _ in range(_NEWTON_STEPS):
            source = source - self._newton_step(source)
        found = source + self._displacement(source)
        near = (found - points).norm(dim=1, keepdim=True) <= self.cell
        return torch.where(near, found, points)

    def _displacement(self, points: Tensor) -> Tensor | float:
        _, deformation = self.geometry.sdf_and_deformation(self.planes, points[None])
        return 0.0 if deformation is None else deformation[0] * self.deformation_unit

    def _newton_step(self, points: Tensor) -> Tensor:
        sample = self.geometry.query(self.planes, points[None], features=False, normals=True)
        gradient = sample.sdf_grad[0]
        squared = gradient.square().sum(1, keepdim=True).clamp_min(_MIN_SQUARED_GRADIENT)
        return (sample.sdf[0] - self.geometry.cfg.isosurface_threshold) * gradient / squared
