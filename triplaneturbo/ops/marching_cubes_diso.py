"""Marching cubes by diso's `DiffMC` (CUDA; licence CC BY-NC 4.0), with the conventions of `marching_cubes.py`.

The package has the same ones: inside is where the value is below the level, faces point outwards, and a grid point is
moved by its deformation, in cells. Vertices are the same points in another order; faces differ where four crossed
edges of a cell can be joined in two ways. It works on the default stream, so not within a recorded CUDA graph.
"""

import functools

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def extract(
    sdf: Float[Tensor, "B X Y Z"], deformation: Float[Tensor, "B X Y Z 3"] | None, level: float
) -> tuple[Float[Tensor, "V 3"], Int[Tensor, "F 3"], list[tuple[int, int]]]:
    """See `marching_cubes.marching_cubes_packed`, with `pad`; differentiable once in both tensors."""
    extractor = _extractor(sdf.dtype, sdf.device)
    vertices, faces, sizes = [], [], []
    first = 0
    for number, values in enumerate(sdf):
        # The package surrounds every grid by outside, too, but takes one that is all inside for one without a surface.
        grid = F.pad(values, [1] * 6, value=level + 1)
        offset = None if deformation is None else F.pad(deformation[number], [0, 0] + [1] * 6)
        points, triangles = extractor(grid, offset, isovalue=level, normalize=False)
        vertices.append(points - 1)
        faces.append(triangles.long() + first)
        sizes.append((len(points), len(triangles)))
        first += len(points)
    return torch.cat(vertices), torch.cat(faces), sizes


@functools.cache
def _extractor(dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """One for all calls: it keeps the memory that it works in, on the device that it first saw."""
    import diso

    return diso.DiffMC(dtype=dtype).to(device)
