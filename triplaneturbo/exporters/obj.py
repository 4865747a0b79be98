"""Meshes as Wavefront OBJ, in our own axes (z up, front on +x) and display colours, as the original writes them.

The v of texture coordinates points upwards in OBJ and downwards in ours; this module is the one place that converts it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from triplaneturbo.pictures import PictureKind, encode, from_image, to_bytes
from triplaneturbo.storage import replacing, write_text
from triplaneturbo.types import Mesh, Texture

if TYPE_CHECKING:
    import trimesh

TEXTURE_NAME = "texture_kd"
MATERIAL = """newmtl surface
Ka 0 0 0
Kd 1 1 1
Ks 0 0 0
illum 1
map_Kd {picture}
"""


def write_obj(path: Path, mesh: Mesh, normals: Tensor | None = None, texture_format: PictureKind = "png") -> None:
    """Write `mesh` with normals [V, 3] where there are any.

    Colours stand behind the positions, `v x y z r g b`. A texture is written as texture_kd.png or .jpg beside `path`,
    with an .mtl file of the name of `path` that points to it; vertices where charts meet are not repeated.
    """
    parts = []
    if mesh.texture is not None:
        parts.append(f"mtllib {_write_material(path, mesh.texture, texture_format)}\nusemtl surface\n")
    vertices = mesh.vertices
    if mesh.colors is not None and mesh.texture is None:
        vertices = torch.cat([vertices, mesh.colors], dim=1)
    parts.append(_lines("v" + " %.6f" * vertices.shape[1], vertices))
    indices = [mesh.faces]
    corner = "%d"
    if mesh.texture is not None:
        parts.append(_lines("vt %.6f %.6f", _turned_over(mesh.texture.coordinates)))
        indices.append(mesh.texture.faces)
        corner += "/%d"
    if normals is not None:
        parts.append(_lines("vn %.5f %.5f %.5f", normals))
        indices.append(mesh.faces)
        corner += "/%d" if mesh.texture is not None else "//%d"
    parts.append(_lines(f"f {corner} {corner} {corner}", torch.stack(indices, dim=2) + 1))
    write_text(path, "".join(parts))


def read_obj(path: Path) -> Mesh:
    """Read a file with one object.

    Raises:
        ValueError: there are no triangles in it.
    """
    from trimesh.visual import ColorVisuals, TextureVisuals

    loaded = _load(path, maintain_order=True)
    if isinstance(loaded.visual, TextureVisuals):  # in this order a vertex has one coordinate, whatever the faces say
        loaded = _load(path, maintain_order=False)
    vertices = torch.from_numpy(np.asarray(loaded.vertices, dtype=np.float32))
    faces = torch.from_numpy(np.asarray(loaded.faces, dtype=np.int64))
    visual = loaded.visual
    if isinstance(visual, ColorVisuals) and visual.kind == "vertex":
        return Mesh(vertices, faces, torch.from_numpy(visual.vertex_colors[:, :3].astype(np.float32) / 255))
    if isinstance(visual, TextureVisuals) and visual.kind == "texture" and visual.material.image is not None:
        coordinates = _turned_over(torch.from_numpy(np.asarray(visual.uv, dtype=np.float32)))
        image = from_image(visual.material.image)
        return Mesh(vertices, faces, texture=Texture(image, coordinates, torch.arange(len(vertices)), faces))
    return Mesh(vertices, faces)


def _load(path: Path, *, maintain_order: bool) -> "trimesh.Trimesh":
    import trimesh  # takes a third of a second, and only reading needs it

    loaded = trimesh.load(path, force="mesh", process=False, maintain_order=maintain_order)
    if not isinstance(loaded, trimesh.Trimesh) or len(loaded.faces) == 0:
        raise ValueError(f"{path} holds no triangles")
    return loaded


def _write_material(path: Path, texture: Texture, kind: PictureKind) -> str:
    """The picture and the .mtl file; its name."""
    picture, material = path.with_name(f"{TEXTURE_NAME}.{kind}"), path.with_suffix(".mtl")
    with replacing(picture) as temporary:
        temporary.write_bytes(encode(to_bytes(texture.image), kind))
    write_text(material, MATERIAL.format(picture=picture.name))
    return material.name


def _turned_over(coordinates: Tensor) -> Tensor:
    u, v = coordinates.unbind(1)
    return torch.stack([u, 1 - v], dim=1)


def _lines(template: str, rows: Tensor) -> str:
    """One line a row: a single formatting call, which is ten times faster than one for each row."""
    return ((template + "\n") * len(rows)) % tuple(rows.detach().cpu().flatten().tolist())
