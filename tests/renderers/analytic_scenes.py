"""Solids with exact signed distances and exact pictures."""

import torch
import torch.nn.functional as F

from triplaneturbo.cameras import orbit_cameras
from triplaneturbo.scenes import Field, FieldScene
from triplaneturbo.types import FieldSample


def sphere_sdf(points, size):
    return points.norm(dim=-1, keepdim=True) - size


def box_sdf(points, size):
    q = points.abs() - size
    outside = q.clamp_min(0).square().sum(-1, keepdim=True).clamp_min(1e-18).sqrt()
    return outside + q.amax(-1, keepdim=True).clamp_max(0)


class Solid(Field):
    """A solid of the size that each prompt says. Colour features: 2 * position."""

    def configure(self, sdf):
        self.function, self.radius = sdf, 1.0

    def value(self, tensors, points):
        return self.function(points, tensors["size"][:, None])

    def features(self, tensors, points):
        return 2 * points

    def query(self, tensors, points, *, features=True, normals=False):
        with torch.enable_grad():
            inner = points if points.requires_grad else points.detach().requires_grad_()
            sdf = self.value(tensors, inner)
            (gradient,) = torch.autograd.grad(sdf.sum(), inner, create_graph=True)
        return FieldSample(sdf, self.features(tensors, points), gradient, F.normalize(gradient, dim=-1))


def solids(sdf, *sizes):
    """The scene of one prompt a size."""
    return FieldScene(Solid(None, sdf), {"size": torch.tensor(sizes)[:, None]})


def surroundings(material=torch.sigmoid, background=None):
    """Constructor arguments of a renderer."""
    return {"material": material, "background": background or grey}


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
