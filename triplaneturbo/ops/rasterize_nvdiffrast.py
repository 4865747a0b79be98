"""Rasterisation, interpolation and antialiasing by nvdiffrast (CUDA; NVIDIA Source Code License, non-commercial).

Conventions are those of `rasterize.py`: row 0 is at y = -1, of two faces the one of smaller z/w is seen, from either
side. What differs: coverage is decided on a grid of 1/16 of a pixel; faces that reach behind the camera are clipped
there, not dropped; which of two faces at the same depth is seen is up to the package; and antialiasing finds only the
silhouette edges of faces that a pixel centre sees, so meshes with faces smaller than a pixel lose part of their
silhouette gradient. The depth of a pixel is differentiable here, too, which the package's own is not.

One mesh is drawn in the package's instanced mode, several in its range mode: every view has rows of its own in the
joint vertices (row v N + n is vertex n as view v sees it) and faces (row v F + f), image m V + v shows a range of them.
"""

import functools
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from triplaneturbo.errors import ConfigError
from triplaneturbo.ops.rasterize import Raster

# The package hands out the number of a face as a float32.
_MOST_FACES = 1 << 24


@dataclass
class NvdiffrastRaster(Raster):
    """A `Raster` with what the package needs to interpolate and to antialias.

    pixels: (u, v, z/w, row of triangles + 1). triangles: hold rows of one view's vertices if there is one mesh, else
    of those of all views. views: of each mesh.
    """

    pixels: Float[Tensor, "M H W 4"]
    triangles: Int[Tensor, "T 3"]
    one_mesh: bool
    views: int


def rasterize(
    positions_clip: Float[Tensor, "V N 4"],
    faces: Int[Tensor, "F 3"],
    height: int,
    width: int,
    mesh_index: Int[Tensor, " F"] | None,
    n_meshes: int,
) -> NvdiffrastRaster:
    """See `rasterize.rasterize`. F is not 0.

    Raises:
        ConfigError: there are more than 2^24 faces in all views together.
        ValueError: the faces are not sorted by mesh.
    """
    import nvdiffrast.torch as dr

    views, count, _ = positions_clip.shape
    several = None if n_meshes == 1 else mesh_index
    triangles, ranges = _triangles(faces, views, count, several, n_meshes)
    if len(triangles) > _MOST_FACES:
        raise ConfigError(
            f"nvdiffrast draws {_MOST_FACES} faces at once, not {len(triangles)}; draw fewer views at a time, or use "
            "backends.rasterizer=torch"
        )
    positions = _positions(positions_clip, one_mesh=ranges is None)
    context = _context(positions.device)
    pixels, _ = dr.rasterize(context, positions, triangles, (height, width), ranges=ranges, grad_db=False)
    row = pixels[..., 3].detach().long() - 1
    seen = row >= 0
    u, v = pixels[..., 0], pixels[..., 1]
    barycentric = torch.stack([u, v, 1 - u - v], -1) * seen.unsqueeze(-1)
    zw, _ = dr.interpolate(positions[..., 2:].contiguous(), pixels, triangles)
    depth = zw[..., 0] / torch.where(seen, zw[..., 1], 1)
    return NvdiffrastRaster(
        face_index=torch.where(seen, row % len(faces), -1),
        barycentric=barycentric,
        depth=depth,
        pixels=pixels,
        triangles=triangles,
        one_mesh=ranges is None,
        views=views,
    )


def interpolate(
    attributes: Float[Tensor, "V N C"] | Float[Tensor, "N C"], raster: NvdiffrastRaster
) -> Float[Tensor, "M H W C"]:
    """See `rasterize.interpolate`."""
    import nvdiffrast.torch as dr

    if raster.one_mesh:
        attributes = attributes if attributes.dim() == 3 else attributes.unsqueeze(0)
    else:
        attributes = attributes.expand(raster.views, *attributes.shape[-2:]).reshape(-1, attributes.shape[-1])
    image, _ = dr.interpolate(attributes.contiguous(), raster.pixels, raster.triangles)
    return image


def antialias(
    image: Float[Tensor, "M H W C"], raster: NvdiffrastRaster, positions_clip: Float[Tensor, "V N 4"]
) -> Float[Tensor, "M H W C"]:
    """See `rasterize.antialias`."""
    import nvdiffrast.torch as dr

    positions = _positions(positions_clip, raster.one_mesh)
    return dr.antialias(image.contiguous(), raster.pixels, positions, raster.triangles)


def _triangles(
    faces: Tensor, views: int, count: int, mesh_index: Tensor | None, n_meshes: int
) -> tuple[Int[Tensor, "T 3"], Int[Tensor, "M 2"] | None]:
    """Faces as the package wants them, and the first of each image and their number, on the CPU; None: all in each."""
    if mesh_index is None:
        return faces.int().contiguous(), None
    view = torch.arange(views, device=faces.device).view(-1, 1, 1)
    triangles = (faces + view * count).flatten(0, 1).int()
    # A host read: the package wants the ranges there.
    unsorted = (mesh_index.diff() < 0).any()
    number = torch.cat([torch.bincount(mesh_index, minlength=n_meshes), unsorted.view(1)]).cpu()
    if number[-1]:
        raise ValueError("nvdiffrast draws ranges of faces: sort faces and mesh_index by mesh")
    number = number[:-1]
    first = (number.cumsum(0) - number).unsqueeze(1) + torch.arange(views) * len(faces)
    return triangles, torch.stack([first, number.unsqueeze(1).expand(-1, views)], -1).flatten(0, 1).int()


def _positions(positions_clip: Tensor, one_mesh: bool) -> Tensor:
    return positions_clip.contiguous() if one_mesh else positions_clip.flatten(0, 1).contiguous()


@functools.cache
def _context(device: torch.device) -> object:
    """One for all calls: it keeps the memory that it works in."""
    import nvdiffrast.torch as dr

    return dr.RasterizeCudaContext(device=device)
