"""Fewer faces and texture coordinates, by two packages that are only needed for this."""

import importlib
from types import ModuleType
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from triplaneturbo.errors import ConfigError, UnknownNameError, nearest

# Texels between charts, unless the options say otherwise.
PADDING = 4
Options = TypeVar("Options")


def simplify(
    vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"], max_faces: int
) -> tuple[Float[Tensor, "N 3"], Int[Tensor, "M 3"]]:
    """The mesh with at most about `max_faces` faces (0: as it is), by quadric edge collapse.

    Garland & Heckbert 1997. Collapses that would turn a face over are not made; a closed mesh stays closed.

    Raises:
        ConfigError: the package fast-simplification is not installed.
    """
    if max_faces == 0 or len(faces) <= max_faces:
        return vertices, faces
    simplification = _load("fast_simplification")
    fewer = simplification.simplify(vertices.cpu().numpy(), faces.int().cpu().numpy(), target_count=max_faces)
    points, triangles = map(torch.from_numpy, fewer)
    return points.to(vertices), triangles.to(faces)


def unwrap(
    vertices: Float[Tensor, "V 3"],
    faces: Int[Tensor, "F 3"],
    size: int,
    chart_options: dict[str, Any] | None = None,
    pack_options: dict[str, Any] | None = None,
) -> tuple[Float[Tensor, "T 2"], Int[Tensor, " T"], Int[Tensor, "F 3"]]:
    """Charts side by side in [0, 1]^2, `PADDING` texels apart in a texture of about `size`^2 texels, by xatlas.

    Returns coordinates, the vertex of each, and the faces as rows of coordinates. The options are xatlas' own; padding
    and resolution may be among them.

    Raises:
        ConfigError: xatlas is not installed, or the charts do not fit into one texture.
    """
    xatlas = _load("xatlas")
    charts = _with_options(xatlas.ChartOptions(), chart_options or {}, "xatlas_chart_options")
    pack = {"resolution": size, "padding": PADDING, **(pack_options or {})}
    atlas = xatlas.Atlas()
    atlas.add_mesh(vertices.cpu().numpy(), faces.cpu().numpy().astype("uint32"))
    atlas.generate(charts, _with_options(xatlas.PackOptions(), pack, "xatlas_pack_options"))
    if atlas.atlas_count != 1:
        raise ConfigError(
            f"xatlas_pack_options {pack_options} spread the charts over {atlas.atlas_count} textures, and one is "
            "written; leave out texels_per_unit, or give a larger resolution"
        )
    origin, triangles, coordinates = (torch.from_numpy(part).to(vertices.device) for part in _arrays(atlas[0]))
    return coordinates.to(vertices.dtype), origin, triangles


def check_available(chart_options: dict[str, Any], pack_options: dict[str, Any]) -> None:
    """Find out before any mesh is made what `simplify` and `unwrap` would complain about.

    Raises:
        ConfigError: a package is not installed, or an option of xatlas does not exist or has no such value.
    """
    _load("fast_simplification")
    xatlas = _load("xatlas")
    _with_options(xatlas.ChartOptions(), chart_options, "xatlas_chart_options")
    _with_options(xatlas.PackOptions(), pack_options, "xatlas_pack_options")


def _load(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"textures need the package {module.replace('_', '-')}, which is not installed: run `pip install xatlas "
            "fast-simplification`, or write colours per vertex with fmt=glb or fmt=obj and save_uv=false"
        ) from error


def _with_options(target: Options, options: dict[str, Any], place: str) -> Options:
    allowed = [name for name in dir(target) if not name.startswith("_")]
    for name, value in options.items():
        if name not in allowed:
            raise UnknownNameError(f"{place} has no option {name!r}; {nearest(str(name), allowed)}")
        try:
            setattr(target, name, value)
        except TypeError as error:
            kind = type(getattr(target, name)).__name__
            raise ConfigError(f"{place}.{name} must be of type {kind}, not {value!r}") from error
    return target


def _arrays(parts: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    """Of xatlas' mesh, integers as torch knows them."""
    origin, triangles, coordinates = parts
    return origin.astype("int64"), triangles.astype("int64"), coordinates
