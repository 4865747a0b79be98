"""Pictures of finished meshes: unlit colours of vertices or textures, no gradients."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from triplaneturbo.cameras import ray_directions, turntable, world_to_clip
from triplaneturbo.ops.rasterize import Raster, interpolate, rasterize
from triplaneturbo.pictures import save_png, to_bytes
from triplaneturbo.types import Cameras, Mesh, Texture

PLAIN_COLOR = 0.7
TURNTABLE_FOVY_DEG, TURNTABLE_ELEVATION_DEG = 40.0, 20.0


@dataclass(frozen=True)
class Sight:
    """What the rays through pixel centres meet first, V square pictures.

    color: in [0, 1], black where nothing is met. normal: unit vectors in world axes, of the faces themselves and turned
    to the camera, so that neither smoothing nor the order of a face's corners matters; 0 where nothing is met.
    """

    color: Float[Tensor, "V H W 3"]
    normal: Float[Tensor, "V H W 3"]
    covered: Bool[Tensor, "V H W"]

    def pictures(self, background: float, *, pool: int) -> Float[Tensor, "V h w 3"]:
        """Pictures on grey of this level, each pixel the average of pool x pool rays."""
        picture = torch.where(self.covered[..., None], self.color, background)
        return F.avg_pool2d(picture.permute(0, 3, 1, 2), pool).permute(0, 2, 3, 1).clamp(0, 1)


@torch.no_grad()
def look_at(mesh: Mesh, cameras: Cameras, size: int) -> Sight:
    """What size x size rays of every camera meet, without gradient, on the device of the mesh.

    A mesh without colours or texture is grey.
    """
    cameras = cameras.to(mesh.vertices.device)
    vertices = mesh.vertices.float()
    homogeneous = F.pad(vertices, (0, 1), value=1.0)
    clip = homogeneous @ world_to_clip(cameras, aspect=1.0).transpose(1, 2)
    raster = rasterize(clip, mesh.faces, size, size)
    if mesh.texture is not None:
        colors = look_up(mesh.texture, raster)
    elif mesh.colors is not None:
        colors = interpolate(mesh.colors.float(), raster, mesh.faces)
    else:
        colors = torch.full_like(raster.barycentric, PLAIN_COLOR)
    covered = raster.face_index >= 0
    a, b, c = F.pad(vertices[mesh.faces.long()], (0, 0, 0, 0, 0, 1)).unbind(1)  # one face more, for the empty pixels
    normal = F.normalize(torch.linalg.cross(b - a, c - a), dim=-1)[raster.face_index]
    away = (normal * ray_directions(cameras, size, size)).sum(-1, keepdim=True) > 0
    return Sight(colors * covered[..., None], torch.where(away, -normal, normal), covered)


def render_mesh(
    mesh: Mesh, cameras: Cameras, size: int, background: float = 1.0, *, supersample: int = 2
) -> Float[Tensor, "V H W 3"]:
    """Square pictures of `mesh` from every camera, in [0, 1], on the device of the mesh.

    size: height and width in pixels. background: grey level behind the object. supersample: samples a pixel and axis;
    the picture is their average. A mesh without colours or texture is grey.
    """
    return look_at(mesh, cameras, size * supersample).pictures(background, pool=supersample)


def look_up(texture: Texture, raster: Raster) -> Float[Tensor, "M H W 3"]:
    """Bilinear values of the texture where the pixels of `raster` see its mesh, edge texels continued beyond the edge.

    Pixels that see nothing have the value at (0, 0).
    """
    coordinates = interpolate(texture.coordinates.float(), raster, texture.faces) * 2 - 1
    image = texture.image.float().permute(2, 0, 1).expand(len(coordinates), -1, -1, -1)
    return F.grid_sample(image, coordinates, padding_mode="border", align_corners=False).permute(0, 2, 3, 1)


def render_turntable(mesh: Mesh, n_views: int, size: int) -> Float[Tensor, "V H W 3"]:
    """`n_views` pictures around the mesh on white, the camera as near as shows all of it in every view."""
    low, high = mesh.vertices.amin(0), mesh.vertices.amax(0)
    centred = replace(mesh, vertices=mesh.vertices - (low + high) / 2)
    radius = float(centred.vertices.norm(dim=-1).max())
    distance = radius / np.sin(np.deg2rad(TURNTABLE_FOVY_DEG) / 2) * 1.05
    cameras = turntable(n_views, elevation_deg=TURNTABLE_ELEVATION_DEG, distance=distance, fovy_deg=TURNTABLE_FOVY_DEG)
    return render_mesh(centred, cameras, size)


def save_picture(path: str | Path, views: Float[Tensor, "V H W 3"], columns: int) -> None:
    """Write views, row by row in `columns` columns, as one PNG. The number of views must be a multiple of `columns`."""
    rows = views.unflatten(0, (-1, columns)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
    save_png(path, to_bytes(rows))
