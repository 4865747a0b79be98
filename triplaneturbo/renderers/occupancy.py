"""Which cells of a cube hold matter, learned while the scene is: samples elsewhere need not be evaluated.

As in instant-ngp (Mueller et al. 2022) and nerfacc (Li et al. 2023), in plain torch.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from triplaneturbo.draws import Draws, keyed_generator
from triplaneturbo.schedule import Progress

RESOLUTION = 32
# Steps between updates; those before this one look at all cells.
EVERY, WARM_UP = 16, 256
# What is left of a cell's opacity at each update; opacity above which it may not be called empty.
_DECAY, _NEVER_EMPTY = 0.95, 0.01


class OccupancyGrid(nn.Module):
    """Cells of a cube in x, y, z order, with the largest opacity that one step of a ray met in each of late."""

    opacity: Float[Tensor, " N"]
    occupied: Bool[Tensor, " N"]

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("opacity", torch.zeros(RESOLUTION**3))
        self.register_buffer("occupied", torch.zeros(RESOLUTION**3, dtype=torch.bool))
        self._updated: int | None = None

    @torch.no_grad()
    def follow(self, opacity: Callable[[Tensor], Tensor], radius: float, draws: Draws, progress: Progress) -> None:
        """Look at the scene again if it is time to, once a step whatever the number of micro-batches.

        The random numbers depend on the seed and the step: all processes do the same. opacity, radius: see `update`.
        """
        if progress.step % EVERY or self._updated == progress.step:
            return
        self._updated = progress.step
        device = self.opacity.device
        generator = keyed_generator(draws.seed, "occupancy", progress.step, device=device)
        cells = torch.arange(len(self.opacity), device=device)
        if progress.step >= WARM_UP:
            cells = self._some_cells(generator)
        offsets = torch.rand(len(cells), 3, generator=generator, device=device)
        self.update(opacity, radius, cells, offsets)

    def _some_cells(self, generator: torch.Generator) -> Int[Tensor, " n"]:
        """A quarter of the cells at random, and the occupied ones, or as many of them."""
        device, quarter = self.opacity.device, len(self.opacity) // 4
        anywhere = torch.randint(len(self.opacity), (quarter,), generator=generator, device=device)
        occupied = self.occupied.nonzero().squeeze(1)
        if len(occupied) > quarter:
            occupied = occupied[torch.randint(len(occupied), (quarter,), generator=generator, device=device)]
        return torch.cat([anywhere, occupied])

    @torch.no_grad()
    def update(
        self,
        opacity: Callable[[Tensor], Tensor],
        radius: float,
        cells: Int[Tensor, " n"],
        offsets: Float[Tensor, "n 3"],
    ) -> None:
        """Look at the scene at one point in each of `cells`, which may repeat.

        opacity: density times the length of a step [1, n, 1] at points [1, n, 3]. radius: half the side of the cube.
        offsets: where in their cells the points are, in [0, 1).
        """
        corners = torch.stack([cells // RESOLUTION**2, cells // RESOLUTION % RESOLUTION, cells % RESOLUTION], 1)
        points = (2 * (corners + offsets) / RESOLUTION - 1) * radius
        decayed = self.opacity.index_copy(0, cells, self.opacity[cells] * _DECAY)
        self.opacity.copy_(decayed.scatter_reduce(0, cells, opacity(points[None]).flatten(), "amax"))
        self.occupied.copy_(self.opacity > self.threshold(_NEVER_EMPTY))

    def threshold(self, most: float) -> Float[Tensor, ""]:
        """The mean opacity of all cells, at most `most`."""
        return self.opacity.mean().clamp(max=most)

    def holds(self, points: Float[Tensor, "*N 3"], radius: float) -> Bool[Tensor, "*N"]:
        """Whether the cells of points are occupied."""
        corners = ((points / radius + 1) / 2 * RESOLUTION).long().clamp(0, RESOLUTION - 1)
        x, y, z = corners.unbind(-1)
        return self.occupied[(x * RESOLUTION + y) * RESOLUTION + z]
