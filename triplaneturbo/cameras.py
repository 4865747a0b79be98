"""Camera geometry: poses, rays, projections.

World: right-handed, z up, azimuth 0 on +x, growing towards +y. Camera: OpenGL, looking along -z, y up. Row 0 of a
picture is its top. Angles are degrees in configs and in the *_deg arguments, radians everywhere else.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.types import Cameras

NEAR, FAR = 0.1, 1000.0


def look_at(
    position: Float[Tensor, "M 3"], target: Float[Tensor, "M 3"], up: Float[Tensor, "M 3"]
) -> Float[Tensor, "M 4 4"]:
    """Camera-to-world matrices at `position`, looking at `target`. Not defined where `up` is the direction of sight."""
    backward = torch.nn.functional.normalize(position - target, dim=-1)
    right = torch.nn.functional.normalize(torch.cross(up, backward, dim=-1), dim=-1)
    upward = torch.cross(backward, right, dim=-1)
    c2w = torch.zeros(position.shape[0], 4, 4, dtype=position.dtype, device=position.device)
    c2w[:, :3] = torch.stack([right, upward, backward, position], dim=-1)
    c2w[:, 3, 3] = 1
    return c2w


def look_at_origin(position: Float[Tensor, "M 3"]) -> Float[Tensor, "M 4 4"]:
    """Camera-to-world matrices at `position`, looking at the origin, +z up. Not defined straight above or below it."""
    world_up = torch.tensor([0.0, 0.0, 1.0], dtype=position.dtype, device=position.device)
    return look_at(position, torch.zeros_like(position), world_up.expand_as(position))


def orbit_cameras(
    elevation_deg: Float[Tensor, " M"],
    azimuth_deg: Float[Tensor, " M"],
    distance: Float[Tensor, " M"],
    fovy_deg: Float[Tensor, " M"],
    *,
    n_view: int,
    relative: bool,
) -> Cameras:
    """Cameras on spheres around the origin.

    Args:
        distance: absolute, or with `relative` in units of 1 / tan(fovy / 2): the same relative distance shows an
            object at the same size whatever the field of view.
        n_view: consecutive rows that belong to one prompt.
    """
    elevation, azimuth, fovy = (x * (math.pi / 180) for x in (elevation_deg, azimuth_deg, fovy_deg))
    scale = torch.tan(0.5 * fovy)
    absolute = distance / scale if relative else distance
    direction = torch.stack([elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()], dim=-1)
    return Cameras(
        c2w=look_at_origin(direction * absolute[:, None]),
        fovy=fovy,
        distance=absolute,
        distance_relative=distance,
        elevation_deg=elevation_deg,
        azimuth_deg=azimuth_deg,
        n_view=n_view,
    )


def turntable(n: int, *, elevation_deg: float, distance: float, fovy_deg: float, repeat_first: bool = False) -> Cameras:
    """`n` views of one prompt around the object at an absolute distance, azimuth from 0 upwards.

    repeat_first: end at azimuth 360, a copy of the first view (compat=original), instead of n distinct views.
    """
    azimuth = torch.linspace(0, 360, n if repeat_first else n + 1)[:n]
    return orbit_cameras(
        torch.full((n,), float(elevation_deg)),
        azimuth,
        torch.full((n,), float(distance)),
        torch.full((n,), float(fovy_deg)),
        n_view=n,
        relative=False,
    )


def ray_directions(
    cameras: Cameras, height: int, width: int, *, focal_height: int | None = None
) -> Float[Tensor, "M H W 3"]:
    """Unit world directions through the pixel centres; the origin of every ray is the camera position.

    Pixel (row i, column j) looks along ((j + .5 - W/2) / f, -(i + .5 - H/2) / f, -1), f = H / (2 tan(fovy / 2)).
    focal_height: the H of the focal length when it is not `height` (docs/compat.md).
    """
    device, dtype = cameras.c2w.device, cameras.c2w.dtype
    x = torch.arange(width, device=device, dtype=dtype) + (0.5 - width / 2)
    y = torch.arange(height, device=device, dtype=dtype) + (0.5 - height / 2)
    inverse_focal = 2 * torch.tan(0.5 * cameras.fovy) / (focal_height or height)
    grid_y, grid_x = torch.meshgrid(-y, x, indexing="ij")
    xy = torch.stack([grid_x, grid_y], dim=-1) * inverse_focal[:, None, None, None]
    local = torch.cat([xy, -torch.ones_like(xy[..., :1])], dim=-1)
    world = torch.einsum("mij,mhwj->mhwi", cameras.c2w[:, :3, :3], local)
    return torch.nn.functional.normalize(world, dim=-1)


def projection_matrices(
    cameras: Cameras, aspect: float, planes: tuple[float, float] = (NEAR, FAR)
) -> Float[Tensor, "M 4 4"]:
    """OpenGL projection with y flipped, so that row 0 of the rasterised picture is its top. planes: near and far."""
    near, far = planes
    matrix = torch.zeros_like(cameras.c2w)
    tangent = torch.tan(0.5 * cameras.fovy)
    matrix[:, 0, 0] = 1 / (tangent * aspect)
    matrix[:, 1, 1] = -1 / tangent
    matrix[:, 2, 2] = -(far + near) / (far - near)
    matrix[:, 2, 3] = -2 * far * near / (far - near)
    matrix[:, 3, 2] = -1
    return matrix


def world_to_clip(cameras: Cameras, aspect: float, planes: tuple[float, float] = (NEAR, FAR)) -> Float[Tensor, "M 4 4"]:
    """Model-view-projection matrices: clip = matrix @ (x, y, z, 1). planes: near and far."""
    w2c = torch.zeros_like(cameras.c2w)
    w2c[:, :3, :3] = cameras.w2c_rotation
    w2c[:, :3, 3] = -(cameras.w2c_rotation @ cameras.positions[..., None])[..., 0]
    w2c[:, 3, 3] = 1
    return projection_matrices(cameras, aspect, planes) @ w2c
