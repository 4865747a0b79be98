"""Small meshes with known properties."""

import torch

from triplaneturbo.ops.marching_cubes import marching_cubes
from triplaneturbo.types import Mesh


def sphere(radius: float = 0.5, resolution: int = 24) -> Mesh:
    """A sphere at the origin; the colour of a vertex is its position in [0, 1]^3."""
    axis = torch.linspace(-1, 1, resolution)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    vertices, faces = marching_cubes(grid.norm(dim=-1) - radius)
    vertices = vertices * (2 / (resolution - 1)) - 1
    return Mesh(vertices, faces, (vertices + 1) / 2)


def tetrahedron() -> Mesh:
    """One vertex at the origin, one on each axis, outward faces; red, green, blue and a dark grey."""
    vertices = torch.tensor([[0.0, 0, 0], [0.9, 0, 0], [0, 0.6, 0], [0, 0, 0.3]])
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    colors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.1, 0.1, 0.1]])
    return Mesh(vertices, faces, colors)
