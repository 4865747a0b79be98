"""A surface with known colours, and a mesh near it."""

from dataclasses import replace

import torch
from solids import sphere

RADIUS = 0.5
# Colours are 0.5 + AMPLITUDE sin(FREQUENCY x), and so for y and z.
AMPLITUDE, FREQUENCY = 0.4, 6.0
STEEPEST = AMPLITUDE * FREQUENCY


class PaintedBall:
    """Waves along the three axes."""

    def project(self, points):
        return RADIUS * torch.nn.functional.normalize(points, dim=1)

    def colors(self, points):
        return 0.5 + AMPLITUDE * torch.sin(FREQUENCY * points)


class DepthBall(PaintedBall):
    """Grey by the distance from the centre, so that points off the surface have other colours."""

    def colors(self, points):
        return (0.5 + 20 * (points.norm(dim=1, keepdim=True) - RADIUS)).clamp(0, 1).expand(-1, 3)


def painted_ball(resolution=24, surface=None):
    """The ball's mesh, with the surface behind it."""
    mesh = sphere(RADIUS, resolution)
    surface = surface or PaintedBall()
    return replace(mesh, colors=surface.colors(mesh.vertices), surface=surface)


def surface_points(mesh, count=20000):
    """Random points on the faces of a textured mesh: their faces, where in space, and where in the texture."""
    generator = torch.Generator().manual_seed(0)
    a, b, c = mesh.vertices[mesh.faces].unbind(1)
    areas = torch.linalg.cross(b - a, c - a).norm(dim=1)
    face = torch.multinomial(areas, count, replacement=True, generator=generator)
    weights = torch.empty(count, 3, 1).exponential_(generator=generator)
    weights /= weights.sum(1, keepdim=True)
    corners = mesh.vertices[mesh.faces[face]], mesh.texture.coordinates[mesh.texture.faces[face]]
    return face, *[(weights * values).sum(1) for values in corners]


def bilinear(image, coordinates):
    """The image [H, W, 3] at (u, v), by the definition: texel (i, j) is centred at ((j + .5) / W, (i + .5) / H)."""
    size = torch.tensor(image.shape[1::-1])
    place = coordinates * size - 0.5
    low = place.floor().long()
    fraction = place - low
    total = torch.zeros(len(coordinates), 3)
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        column, row = (low + torch.tensor([dx, dy])).clamp(torch.zeros(2).long(), size - 1).unbind(1)
        weight = (1 - fraction - torch.tensor([dx, dy])).abs().prod(1, keepdim=True)
        total += weight * image[row, column]
    return total
