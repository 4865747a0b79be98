"""Differentiable triangle rasterisation: visibility, interpolation of attributes, antialiased silhouettes.

Row i, column j of an image is centred at ((2j+1)/W - 1, (2i+1)/H - 1) in normalised device coordinates.

Several meshes, each seen from V cameras of its own, are drawn at once: their vertices and faces are joined, faces hold
rows of the joint vertices, and the mesh of every face is given as `mesh_index`. Image m * V + v (of M in all) shows
mesh m from its camera v; `positions_clip[v]` has each vertex as camera v of the vertex's mesh sees it.

What rasterises is chosen by `backends.choose`, and interpolates and antialiases, too. The rules below on ties, clipping
and small faces are those of torch and of our Triton kernels, which need no host reads and agree on every visible face;
what differs with nvdiffrast is in `rasterize_nvdiffrast`. On CUDA with Triton, all gradients are the same from run to
run under `torch.use_deterministic_algorithms`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from triplaneturbo.ops.backends import choose
from triplaneturbo.ops.rows import add_rows, gather_rows

# Coverage is decided in integers, on a grid of 1/4096 of a pixel: neighbouring triangles leave no gap.
_SUBPIXEL_BITS = 12
_SUBPIXEL = 1 << _SUBPIXEL_BITS
# Screen coordinates beyond this many pixels are clamped, so that edge functions fit 64 bits.
_MAX_PIXELS = 1 << 16
# Pixels of triangle bounding boxes tested at a time.
_FRAGMENTS_CPU = 1 << 20
_FRAGMENTS_GPU = 1 << 24
_EMPTY = torch.iinfo(torch.int64).max


@dataclass
class Raster:
    """What each pixel centre sees.

    `face_index`: row of the face table, -1 where empty. `barycentric`: perspective-correct weights of the
    three face vertices, 0 where empty. `depth`: z/w, 0 where empty. The last two are differentiable in the
    positions.
    """

    face_index: Int[Tensor, "M H W"]
    barycentric: Float[Tensor, "M H W 3"]
    depth: Float[Tensor, "M H W"]


def rasterize(
    positions_clip: Float[Tensor, "V N 4"],
    faces: Int[Tensor, "F 3"],
    height: int,
    width: int,
    mesh_index: Int[Tensor, " F"] | None = None,
    n_meshes: int = 1,
    *,
    backend: str = "auto",
) -> Raster:
    """Nearest face at every pixel centre, seen from either side, for V views of each mesh.

    Smaller z/w is nearer, of equal depths the lower face index wins: the result is the same on every device.
    Faces with a vertex at w <= 0 are dropped, not clipped; so are pixels with z/w outside [-1, 1].

    backend: auto, torch, triton, nvdiffrast; see `backends.choose`, and for its errors.
    """
    chosen = choose("rasterizer", positions_clip.device, positions_clip.dtype, asked=backend).name
    if chosen == "nvdiffrast" and len(faces):
        from triplaneturbo.ops import rasterize_nvdiffrast

        return rasterize_nvdiffrast.rasterize(positions_clip, faces, height, width, mesh_index, n_meshes)
    views = positions_clip.shape[0]
    images = n_meshes * views
    if chosen == "triton":
        return _rasterize_in_kernels(positions_clip, faces, mesh_index, (images, height, width))
    with torch.no_grad():
        image = _images(views, faces, mesh_index)
        face_index = _visible_faces(positions_clip, faces, image, (images, height, width))
        pixels = (face_index >= 0).nonzero().squeeze(1)
        view, row, column = pixels // (height * width) % views, pixels // width % height, pixels % width
        corners = faces[face_index[pixels]] + (view * positions_clip.shape[1]).unsqueeze(1)
        x = (2 * column + 1).to(positions_clip.dtype) / width - 1
        y = (2 * row + 1).to(positions_clip.dtype) / height - 1
    vertices = gather_rows(positions_clip.reshape(-1, 4), corners.flatten()).view(-1, 3, 4)
    weights, depth = _perspective_barycentric(vertices, x, y)
    barycentric = weights.new_zeros(images * height * width, 3).index_copy(0, pixels, weights)
    depth_image = depth.new_zeros(images * height * width).index_copy(0, pixels, depth)
    return Raster(
        face_index.view(images, height, width),
        barycentric.view(images, height, width, 3),
        depth_image.view(images, height, width),
    )


def interpolate(
    attributes: Float[Tensor, "V N C"] | Float[Tensor, "N C"],
    raster: Raster,
    faces: Int[Tensor, "F 3"],
    *,
    backend: str = "auto",
) -> Float[Tensor, "M H W C"]:
    """Vertex attributes at every pixel, 0 where empty.

    Differentiable in the attributes and, through the barycentrics, in the positions.
    """
    from triplaneturbo.ops import rasterize_nvdiffrast

    if isinstance(raster, rasterize_nvdiffrast.NvdiffrastRaster):
        return rasterize_nvdiffrast.interpolate(attributes, raster)
    images, height, width = raster.face_index.shape
    count, channels = attributes.shape[-2:]
    if choose("rasterizer", attributes.device, attributes.dtype, asked=backend).name == "triton":
        from triplaneturbo.ops.interpolate_triton import Interpolate

        weights, face = raster.barycentric.flatten(0, 2), raster.face_index.flatten()
        values = Interpolate.apply(attributes, weights, face, faces, height, width)
        return values.view(images, height, width, channels)
    face = raster.face_index.flatten()
    pixels = (face >= 0).nonzero().squeeze(1)
    corners = faces[face[pixels]]
    if attributes.dim() == 3:
        view = pixels // (height * width) % len(attributes)
        corners = corners + (view * count).unsqueeze(1)
    values = gather_rows(attributes.reshape(-1, channels), corners.flatten()).view(-1, 3, channels)
    weights = gather_rows(raster.barycentric.reshape(-1, 3), pixels)
    seen = (weights.unsqueeze(2) * values).sum(1)
    return (
        seen.new_zeros(images * height * width, channels)
        .index_copy(0, pixels, seen)
        .view(images, height, width, channels)
    )


def antialias(
    image: Float[Tensor, "M H W C"],
    raster: Raster,
    positions_clip: Float[Tensor, "V N 4"],
    faces: Int[Tensor, "F 3"],
    mesh_index: Int[Tensor, " F"] | None = None,
    *,
    backend: str = "auto",
) -> Float[Tensor, "M H W C"]:
    """Blends pixels along silhouettes by how far the silhouette reaches into them (Laine et al. 2020, 3.6).

    Where a visible silhouette edge (no face on its other side, or one folded back) passes between two
    neighbouring pixel centres, at distance d from the centre it covers: for d > 1/2 the other pixel takes the
    share d - 1/2 of the covered pixel's colour, else the covered pixel takes the share 1/2 - d of the other's.
    Steep edges act on horizontal neighbours, flat ones on vertical neighbours, so each piece of a silhouette
    counts once. Unlike in the paper the edge need not belong to a face that a pixel centre sees: meshes with
    faces smaller than a pixel keep their silhouette gradient.

    Differentiable in the image and, through d, in the positions: this is what moves silhouettes. Linear in the
    image, so join channels and call it once.
    """
    from triplaneturbo.ops import rasterize_nvdiffrast

    if isinstance(raster, rasterize_nvdiffrast.NvdiffrastRaster):
        return rasterize_nvdiffrast.antialias(image, raster, positions_clip)
    height, width, channels = image.shape[1:]
    w = positions_clip[..., 3:]
    screen = _to_pixels(positions_clip[..., :2] / torch.where(w > 0, w, 1), height, width)
    if choose("rasterizer", image.device, image.dtype, asked=backend).name == "triton":
        return _blend_in_kernels(image, raster, screen, positions_clip, faces, mesh_index)
    with torch.no_grad():
        near, far, axis, line, cell, ends = _silhouette_crossings(raster, screen, positions_clip, faces, mesh_index)
    points = gather_rows(screen.reshape(-1, 2), ends.flatten()).view(-1, 2, 2)
    position, _ = _crossing(points, axis, line)
    share = torch.where(near < far, position - cell, cell + 1 - position) - 0.5
    reaches = share >= 0
    target, source = torch.where(reaches, far, near), torch.where(reaches, near, far)
    share = torch.where(reaches, share, -share).unsqueeze(1)
    pixels = image.reshape(-1, channels)
    change = share * (gather_rows(pixels, source) - gather_rows(pixels, target))
    return add_rows(pixels, target, change).view_as(image)


def _rasterize_in_kernels(
    positions: Tensor, faces: Tensor, mesh_index: Tensor | None, shape: tuple[int, int, int]
) -> Raster:
    from triplaneturbo.ops.rasterize_triton import SeePixels, nearest_keys

    with torch.no_grad():
        screen, depth = _screen_vertices(positions.reshape(-1, 4), *shape[1:])
        nearest = nearest_keys(positions, screen, depth, faces, mesh_index, shape, _SUBPIXEL_BITS)
    face_index, barycentric, depth = SeePixels.apply(positions, faces, nearest, *shape[1:])
    return Raster(face_index.view(shape), barycentric.view(*shape, 3), depth.view(shape))


def _blend_in_kernels(
    image: Tensor, raster: Raster, screen: Tensor, positions: Tensor, faces: Tensor, mesh_index: Tensor | None
) -> Tensor:
    from triplaneturbo.ops.antialias_triton import BlendPixels, farthest_crossings

    with torch.no_grad():
        depth = positions[..., 2] / positions[..., 3]
        opposite = _opposite_vertices(faces, positions.shape[1])
        slots = farthest_crossings(
            screen, depth, positions, faces, opposite, mesh_index, raster.face_index, raster.depth
        )
    blended = BlendPixels.apply(image.flatten(0, 2), screen, faces, slots, *image.shape[1:3])
    return blended.view_as(image)


class _Crossings(NamedTuple):
    """Places where a visible silhouette edge passes between two neighbouring pixel centres."""

    near: Tensor  # flat index of the pixel on the covered side
    far: Tensor
    axis: Tensor  # 0: the pixels are neighbours in a row, 1: in a column
    line: Tensor  # that row or column
    cell: Tensor  # place of the first of the two pixels in it
    ends: Tensor  # end points of the edge, rows of the flattened vertices [n, 2]


def _silhouette_crossings(
    raster: Raster, screen: Tensor, positions: Tensor, faces: Tensor, mesh_index: Tensor | None
) -> _Crossings:
    """At most one crossing for each pair of pixels and covered side: the one that reaches farthest."""
    height, width = raster.face_index.shape[1:]
    points = screen.reshape(-1, 2)
    edges, image = _silhouette_edges(screen, positions, faces, _images(len(screen), faces, mesh_index))
    edge, axis, line = _crossed_lines(points[edges[:, 0]], points[edges[:, 1]], height, width)
    start, stop, third = edges[edge].unbind(1)
    ends = torch.stack([start, stop], 1)
    position, fraction = _crossing(points[ends], axis, line)
    cell = position.floor().long()

    in_row = axis == 0
    inside = (cell >= 0) & (cell < torch.where(in_row, width, height) - 1)
    first = torch.where(in_row, line * width + cell, cell * width + line) + image[edge] * (height * width)
    first = torch.where(inside, first, 0)
    second = torch.where(inside, first + torch.where(in_row, 1, width), 0)
    direction = points[stop] - points[start]
    towards_second = torch.where(in_row, -direction[:, 1], direction[:, 0])
    covers_second = _cross(direction, points[third] - points[start]) * towards_second > 0
    near, far = torch.where(covers_second, second, first), torch.where(covers_second, first, second)

    z = (positions[..., 2] / positions[..., 3]).flatten()
    face, depth = raster.face_index.flatten(), raster.depth.flatten()
    unhidden = (face[far] < 0) | (torch.lerp(z[start], z[stop], fraction) < depth[far])
    visible = inside & (face[near] >= 0) & (face[near] != face[far]) & unhidden

    reach = torch.where(covers_second, cell + 1 - position, position - cell)
    slot = 2 * first + covers_second + axis * (2 * face.numel())
    key = _sortable(reach) << 32 | torch.arange(len(edge), device=edge.device)
    key = torch.where(visible, key, -1)
    farthest = torch.full((4 * face.numel(),), -1, device=key.device).scatter_reduce_(0, slot, key, "amax")
    kept = (visible & (farthest[slot] == key)).nonzero().squeeze(1)
    return _Crossings(*(field[kept] for field in (near, far, axis, line, cell, ends)))


def _crossed_lines(start: Tensor, stop: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lines of pixel centres that edges cross: rows by steep edges (axis 0), columns by flat ones (axis 1).

    Number of the edge, axis and number of the line, for each crossing.
    """
    extent = (stop - start).abs()
    axis = (extent[:, 0] > extent[:, 1]).long()
    across0, across1 = (end.gather(1, 1 - axis.unsqueeze(1)).squeeze(1) for end in (start, stop))
    first = (torch.minimum(across0, across1).floor().long() + 1).clamp_min(0)
    last = torch.minimum(torch.maximum(across0, across1).floor().long(), torch.where(axis == 0, height, width) - 1)
    count = (last - first + 1).clamp_min(0)
    edge = torch.arange(len(count), device=count.device).repeat_interleave(count)
    line = torch.arange(len(edge), device=edge.device) - (count.cumsum(0) - count - first)[edge]
    return edge, axis[edge], line


def _crossing(ends: Tensor, axis: Tensor, line: Tensor) -> tuple[Tensor, Tensor]:
    """Where edges [n, 2 ends, 2] cross their lines: position along the line, and fraction of the edge."""
    along = torch.where((axis == 0).unsqueeze(1), ends[..., 0], ends[..., 1])
    across = torch.where((axis == 0).unsqueeze(1), ends[..., 1], ends[..., 0])
    fraction = (line - across[:, 0]) / (across[:, 1] - across[:, 0])
    return along[:, 0] + fraction * (along[:, 1] - along[:, 0]), fraction


def _silhouette_edges(screen: Tensor, positions: Tensor, faces: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Edges with no face on their other side as seen: their ends and their face's third vertex [n, 3], and the image
    that shows them [n].

    Vertices are rows of the flattened [V*N]. Edges of faces with a vertex at w <= 0 are left out.
    """
    count = screen.shape[1]
    a, b, c = (faces.roll(-turn, 1).flatten() for turn in range(3))
    other = _opposite_vertices(faces, count).flatten()
    origin = screen[:, a]
    direction = screen[:, b] - origin
    folded = _cross(direction, screen[:, c] - origin) * _cross(direction, screen[:, other] - origin) > 0
    drawn = (positions[..., 3] > 0)[:, faces].all(-1).repeat_interleave(3, 1)
    view, edge = (drawn & (folded | (other < 0))).nonzero().unbind(1)
    return torch.stack([a[edge], b[edge], c[edge]], 1) + (view * count).unsqueeze(1), image[view, edge // 3]


def _opposite_vertices(faces: Tensor, count: int) -> Tensor:
    """For the edge from vertex k to k+1 of a face, the third vertex of the face beyond, -1 if none: [F, 3]."""
    start, stop, own = (faces.roll(-turn, 1).flatten() for turn in range(3))
    key, order = (torch.minimum(start, stop) * count + torch.maximum(start, stop)).sort(stable=True)
    own = own[order]
    paired = key[1:] == key[:-1]
    opposite = torch.full_like(own, -1)
    opposite[:-1] = torch.where(paired, own[1:], -1)
    opposite[1:] = torch.where(paired, own[:-1], opposite[1:])
    return torch.empty_like(opposite).scatter_(0, order, opposite).view_as(faces)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _perspective_barycentric(vertices: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Barycentrics [n, 3] of the points of clip-space triangles [n, 3, 4] seen at (x, y), and their z/w.

    With X' = X - x w and Y' = Y - y w the weight of a vertex is the determinant of the other two: homogeneous,
    hence perspective-correct without a division by w.
    """
    dx = vertices[..., 0] - x.unsqueeze(1) * vertices[..., 3]
    dy = vertices[..., 1] - y.unsqueeze(1) * vertices[..., 3]
    determinants = dx.roll(-1, 1) * dy.roll(-2, 1) - dx.roll(-2, 1) * dy.roll(-1, 1)
    weights = determinants / determinants.sum(1, keepdim=True)
    depth = (weights * vertices[..., 2]).sum(1) / (weights * vertices[..., 3]).sum(1)
    return weights, depth


def _images(views: int, faces: Tensor, mesh_index: Tensor | None) -> Tensor:
    """Image that shows each face in each view: [V, F]."""
    view = torch.arange(views, device=faces.device).unsqueeze(1)
    return view.expand(-1, len(faces)) if mesh_index is None else mesh_index * views + view


def _visible_faces(positions: Tensor, faces: Tensor, image: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Index of the nearest face at every pixel, -1 where there is none: [M*H*W]."""
    images, height, width = shape
    views, count, _ = positions.shape
    screen, depth = _screen_vertices(positions.reshape(-1, 4), height, width)
    in_front = positions[..., 3].reshape(-1) > 0
    first_vertex = torch.arange(views, device=faces.device).view(-1, 1, 1) * count
    corners = (faces + first_vertex).view(-1, 3).unbind(1)
    low, extent = _pixel_boxes([screen[corner] for corner in corners], height, width)
    boxes = extent[:, 0].long() * extent[:, 1] * (in_front[corners[0]] & in_front[corners[1]] & in_front[corners[2]])
    image = image.flatten()

    nearest = torch.full((images * height * width,), _EMPTY, device=positions.device)
    for part in _bounded_parts(boxes, _FRAGMENTS_GPU if positions.is_cuda else _FRAGMENTS_CPU):
        sizes = boxes[part]
        row = torch.arange(len(part), device=part.device).repeat_interleave(sizes)
        triangle = part[row]
        within = torch.arange(len(triangle), device=part.device) - (sizes.cumsum(0) - sizes)[row]
        offset = torch.stack([within % extent[triangle, 0], within // extent[triangle, 0]], 1)
        pixel = low[triangle] + offset
        owner = [corner[triangle] for corner in corners]
        covered, z = _coverage([screen[o] for o in owner], [depth[o] for o in owner], pixel)
        index = (image[triangle] * height + pixel[:, 1]) * width + pixel[:, 0]
        key = _sortable(z) << 32 | triangle % len(faces)
        nearest.scatter_reduce_(0, index[covered], key[covered], "amin")
    return torch.where(nearest == _EMPTY, -1, nearest & 0xFFFFFFFF)


def _screen_vertices(positions: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Subpixel coordinates (column, row) as integers and z/w of clip-space vertices; pixel centres are whole."""
    w = positions[:, 3:]
    ndc = positions[:, :3] / torch.where(w > 0, w, 1)
    screen = _to_pixels(ndc[:, :2], height, width)
    screen = (screen.clamp(-_MAX_PIXELS, _MAX_PIXELS).double() * _SUBPIXEL).round().int()
    return screen, ndc[:, 2]


def _to_pixels(ndc: Tensor, height: int, width: int) -> Tensor:
    """Pixel coordinates (column, row) of normalised device coordinates [..., 2]; pixel centres are whole."""
    column, row = ndc.unbind(-1)
    return torch.stack([((column + 1) * width - 1) / 2, ((row + 1) * height - 1) / 2], -1)


def _pixel_boxes(corners: list[Tensor], height: int, width: int) -> tuple[Tensor, Tensor]:
    """First pixel (column, row) whose centre is in the bounding box of each triangle, and the box's size."""
    a, b, c = corners
    low = torch.minimum(torch.minimum(a, b), c)
    high = torch.maximum(torch.maximum(a, b), c)
    first = ((low + (_SUBPIXEL - 1)) >> _SUBPIXEL_BITS).clamp_(min=0)
    last = torch.minimum(high >> _SUBPIXEL_BITS, high.new_tensor([width - 1, height - 1]))
    return first, (last - first + 1).clamp_(min=0)


def _bounded_parts(sizes: Tensor, budget: int) -> list[Tensor]:
    """Indices of the non-zero sizes, in groups whose sum is about `budget` at most (or that are single)."""
    present = sizes.nonzero().squeeze(1)
    group = sizes[present].cumsum(0) // budget
    _, lengths = group.unique_consecutive(return_counts=True)
    return list(present.split(lengths.tolist()))


def _coverage(corners: list[Tensor], depths: list[Tensor], pixel: Tensor) -> tuple[Tensor, Tensor]:
    """Whether pixel centres lie in triangles (edges included), and z/w there, linear on the screen."""
    a, b, c = ((corner - (pixel << _SUBPIXEL_BITS)).long().unbind(1) for corner in corners)
    edges = [p[0] * q[1] - q[0] * p[1] for p, q in ((b, c), (c, a), (a, b))]
    area = edges[0] + edges[1] + edges[2]
    low = torch.minimum(torch.minimum(edges[0], edges[1]), edges[2])
    high = torch.maximum(torch.maximum(edges[0], edges[1]), edges[2])
    inside = ((low >= 0) | (high <= 0)) & (area != 0)
    z = sum(edge * depth for edge, depth in zip(edges, depths, strict=True)) / area
    return inside & (z.abs() <= 1), z


def _sortable(depth: Tensor) -> Tensor:
    """Integers in the order of float32 values."""
    bits = depth.float().view(torch.int32)
    return (bits ^ (bits >> 31 & 0x7FFFFFFF)).long()
