"""Meshes to and from files, chosen by suffix: .glb (gltf.py) and .obj."""

from pathlib import Path

import numpy as np
import torch
import trimesh
from torch import Tensor

from triplaneturbo.errors import EmptyFieldError
from triplaneturbo.exporters.gltf import read_glb, write_glb
from triplaneturbo.ops.mesh import vertex_normals
from triplaneturbo.types import Mesh
from triplaneturbo.weights.files import replacing

SUFFIXES = (".glb", ".obj")


def check_mesh(mesh: Mesh, prompt: str) -> None:
    """Raise if there is nothing to look at in `mesh`, made from `prompt`.

    Raises:
        EmptyFieldError: no faces, or numbers that are not finite.
    """
    advice = "try another seed; if every prompt fails, the weights are untrained or damaged"
    if len(mesh.faces) == 0:
        raise EmptyFieldError(f"the field of {prompt!r} has no surface: there is no mesh to export; {advice}")
    values = [mesh.vertices] if mesh.colors is None else [mesh.vertices, mesh.colors]
    if not all(bool(torch.isfinite(value).all()) for value in values):
        raise EmptyFieldError(f"the mesh of {prompt!r} has numbers that are not finite (NaN or infinite); {advice}")


def write_mesh(path: str | Path, mesh: Mesh, *, normals: bool = True) -> None:
    """Write `mesh` to a .glb or .obj file; an interrupted write leaves nothing behind.

    normals: also write vertex normals, so that viewers shade smoothly.

    Raises:
        ValueError: another suffix.
    """
    vectors = vertex_normals(mesh.vertices, mesh.faces) if normals else None
    if require_suffix(path) == ".glb":
        write_glb(path, mesh, vectors)
    else:
        _write_obj(Path(path), mesh, vectors)


def read_mesh(path: str | Path) -> Mesh:
    """Read a .glb or .obj file, in our axes, with display colours.

    Raises:
        ValueError: another suffix.
    """
    return read_glb(path) if require_suffix(path) == ".glb" else _read_obj(Path(path))


def require_suffix(path: str | Path) -> str:
    """The suffix of `path`, in lower case.

    Raises:
        ValueError: it is not one of SUFFIXES.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"cannot tell the kind of mesh from {str(path)!r}; the name must end in {' or '.join(SUFFIXES)}"
        )
    return suffix


def _write_obj(path: Path, mesh: Mesh, normals: Tensor | None) -> None:
    """`v x y z r g b` in our own axes (z up, front on +x) and display colours, as the original writes them."""
    vertices = mesh.vertices if mesh.colors is None else torch.cat([mesh.vertices, mesh.colors], dim=1)
    parts = [_lines("v" + " %.6f" * vertices.shape[1], vertices)]
    faces = mesh.faces + 1
    if normals is None:
        parts.append(_lines("f %d %d %d", faces))
    else:
        parts.append(_lines("vn %.5f %.5f %.5f", normals))
        parts.append(_lines("f %d//%d %d//%d %d//%d", faces.repeat_interleave(2, dim=1)))
    with replacing(path) as temporary:
        temporary.write_text("".join(parts))


def _lines(template: str, rows: Tensor) -> str:
    """One line a row: a single formatting call, which is ten times faster than one for each row."""
    return ((template + "\n") * len(rows)) % tuple(rows.detach().cpu().flatten().tolist())


def _read_obj(path: Path) -> Mesh:
    loaded = trimesh.load(path, force="mesh", process=False, maintain_order=True)
    if not isinstance(loaded, trimesh.Trimesh) or len(loaded.faces) == 0:
        raise ValueError(f"{path} holds no triangles")
    vertices = torch.from_numpy(np.asarray(loaded.vertices, dtype=np.float32))
    colors = None
    if loaded.visual.kind == "vertex":
        colors = torch.from_numpy(loaded.visual.vertex_colors[:, :3].astype(np.float32) / 255)
    return Mesh(vertices=vertices, faces=torch.from_numpy(np.asarray(loaded.faces, dtype=np.int64)), colors=colors)
