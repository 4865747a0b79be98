"""Solids with exact signed distances and exact pictures."""

from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F

from triplaneturbo.cameras import orbit_cameras
from triplaneturbo.types import FieldSample


def sphere_sdf(points, size):
    return points.norm(dim=-1, keepdim=True) - size


def box_sdf(points, size):
    q = points.abs() - size
    outside = q.clamp_min(0).square().sum(-1, keepdim=True).clamp_min(1e-18).sqrt()
    return outside + q.amax(-1, keepdim=True).clamp_max(0)


def planes_of(*sizes):
    """Planes of one prompt per size, the size in the first texel."""
    planes = torch.zeros(len(sizes), 6, 1, 2, 2)
    planes[:, 0, 0, 0, 0] = torch.tensor(sizes)
    return planes


class Solid(nn.Module):
    """A solid whose size is the first texel of its planes. Colour features: 2 * position."""

    def __init__(self, sdf):
        super().__init__()
        self.function = sdf
        self.cfg = SimpleNamespace(compat="right", isosurface_resolution=128)

    def sdf(self, planes, points):
        return self.function(points, planes[:, :1, 0, 0, 0, None])

    def sdf_and_deformation(self, planes, points):
        return self.sdf(planes, points), None

    def features(self, planes, points):
        return 2 * points

    def query(self, planes, points, *, features=True, normals=False):
        with torch.enable_grad():
            inner = points if points.requires_grad else points.detach().requires_grad_()
            sdf = self.sdf(planes, inner)
            (gradient,) = torch.autograd.grad(sdf.sum(), inner, create_graph=True)
        return FieldSample(sdf, self.features(planes, points), gradient, F.normalize(gradient, dim=-1))


def scene(geometry, material=torch.sigmoid, background=None):
    """Constructor arguments of a renderer."""
    return {"geometry": geometry, "material": material, "background": background or grey}


def grey(directions, pooled_text):
    return torch.full_like(directions, 0.5)


def cameras(*azimuths, elevation=20.0, distance=1.6, fovy=60.0, n_view=None):
    full = torch.ones(len(azimuths))
    return orbit_cameras(
        full * elevation,
        torch.tensor(azimuths, dtype=torch.float32),
        full * distance,
        full * fovy,
        n_view=n_view or len(azimuths),
        relative=False,
    )


def sphere_truth(origins, directions, size):
    """Where rays hit a sphere: mask [...], ray length [...], unit normal [..., 3]."""
    b = (origins * directions).sum(-1)
    root = b.square() - origins.square().sum(-1) + size**2
    t = -b - root.clamp_min(0).sqrt()
    return root > 0, t, F.normalize(origins + t[..., None] * directions, dim=-1)


def box_truth(origins, directions, size):
    """The same for a cube of half side `size`."""
    low, high = (-size - origins) / directions, (size - origins) / directions
    enter = torch.minimum(low, high)
    t, axis = enter.max(-1)
    hit = torch.maximum(low, high).amin(-1) > t
    return hit, t, -F.one_hot(axis, 3) * directions.sign()


SOLIDS = {"sphere": (sphere_sdf, sphere_truth, 0.6), "box": (box_sdf, box_truth, 0.5)}


def eroded(mask, pixels):
    """Where a mask [M, H, W] holds in a square of 2 * pixels + 1 around."""
    side = 2 * pixels + 1
    return F.max_pool2d((~mask).float(), side, stride=1, padding=pixels) == 0
