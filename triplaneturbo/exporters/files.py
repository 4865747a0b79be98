"""Meshes to and from files, chosen by suffix: .glb (gltf.py) and .obj (obj.py)."""

from pathlib import Path

import torch

from triplaneturbo.errors import EmptyFieldError
from triplaneturbo.exporters.gltf import read_glb, write_glb
from triplaneturbo.exporters.obj import read_obj, write_obj
from triplaneturbo.ops.mesh import vertex_normals
from triplaneturbo.pictures import PictureKind
from triplaneturbo.types import Mesh

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


def write_mesh(path: str | Path, mesh: Mesh, *, normals: bool = True, texture_format: PictureKind = "png") -> None:
    """Write `mesh` to a .glb or .obj file; an interrupted write leaves nothing behind.

    normals: also write vertex normals, so that viewers shade smoothly. texture_format: of the texture, if there is one.
    It is part of a .glb file, and beside an .obj file there are an .mtl file and the picture, texture_kd.

    Raises:
        ValueError: another suffix.
    """
    # There normals are summed in one order: equal meshes give equal files.
    mesh = mesh.to(torch.device("cpu"))
    vectors = vertex_normals(mesh.vertices, mesh.faces) if normals else None
    if require_suffix(path) == ".glb":
        write_glb(path, mesh, vectors, texture_format)
    else:
        write_obj(Path(path), mesh, vectors, texture_format)


def read_mesh(path: str | Path) -> Mesh:
    """Read a .glb or .obj file, in our axes, with display colours or a texture.

    Raises:
        ValueError: another suffix.
    """
    return read_glb(path) if require_suffix(path) == ".glb" else read_obj(Path(path))


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
