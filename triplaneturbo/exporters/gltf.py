"""Meshes as binary glTF 2.0 (.glb).

Two conventions differ from ours, and this module is the one place that converts them. glTF's world is y up with the
object's front on +z, ours z up with the front on +x: glTF (x, y, z) = ours (y, z, x). glTF's vertex colours are linear,
ours are display values (sRGB): the sRGB curve is taken off on the way out and put back on the way in. They are stored
as floats, because 8 linear bits are too coarse for dark colours and trimesh misreads 16. Textures are display values
in both, and v points downwards in both.
"""

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from triplaneturbo import __version__
from triplaneturbo.pictures import PictureKind, encode, from_image, to_bytes
from triplaneturbo.storage import replacing
from triplaneturbo.types import Mesh, Texture

MAGIC, JSON_CHUNK, BINARY_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
COMPONENT_TYPES = {5125: np.uint32, 5126: np.float32}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
LINEAR, LINEAR_MIPMAP_LINEAR, CLAMP_TO_EDGE = 9729, 9987, 33071
MIME_TYPES: dict[PictureKind, str] = {"png": "image/png", "jpg": "image/jpeg"}
TO_GLTF_AXES, FROM_GLTF_AXES = [1, 2, 0], [2, 0, 1]


def srgb_to_linear(srgb: np.ndarray) -> np.ndarray:
    """Display values in [0, 1] to linear light in [0, 1] (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: np.ndarray) -> np.ndarray:
    """Inverse of `srgb_to_linear`."""
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def write_glb(
    path: str | Path, mesh: Mesh, normals: torch.Tensor | None = None, texture_format: PictureKind = "png"
) -> None:
    """Write `mesh` as one primitive: positions, faces, and normals [V, 3] and colours or a texture where there are any.

    Vertices where charts of a texture meet are repeated, once for each of their coordinates. Without a texture there
    is no material: glTF's default is white, and trimesh drops vertex colours that stand beside a material.
    """
    buffers = _Buffers()
    rows = slice(None) if mesh.texture is None else mesh.texture.vertices
    vertices = _array(mesh.vertices[rows])[:, TO_GLTF_AXES]
    attributes = {"POSITION": buffers.add(vertices, "VEC3", ARRAY_BUFFER, bounds=True)}
    if normals is not None:
        attributes["NORMAL"] = buffers.add(_array(normals[rows])[:, TO_GLTF_AXES], "VEC3", ARRAY_BUFFER)
    if mesh.texture is not None:
        attributes["TEXCOORD_0"] = buffers.add(_array(mesh.texture.coordinates), "VEC2", ARRAY_BUFFER)
    elif mesh.colors is not None:
        linear = srgb_to_linear(_array(mesh.colors).clip(0, 1)).astype(np.float32)
        attributes["COLOR_0"] = buffers.add(linear, "VEC3", ARRAY_BUFFER)
    faces = mesh.faces if mesh.texture is None else mesh.texture.faces
    numbers = faces.detach().cpu().numpy().astype(np.uint32).reshape(-1)
    primitive = {"attributes": attributes, "indices": buffers.add(numbers, "SCALAR", ELEMENT_ARRAY_BUFFER)}
    appearance = {} if mesh.texture is None else _appearance(buffers, mesh.texture, texture_format)
    if appearance:
        primitive["material"] = 0
    document = {
        "asset": {"version": "2.0", "generator": f"triplaneturbo {__version__}"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        **appearance,
        "buffers": [{"byteLength": len(buffers.content)}],
        "bufferViews": buffers.views,
        "accessors": buffers.accessors,
    }
    with replacing(path) as temporary:
        temporary.write_bytes(_container(document, bytes(buffers.content)))


def read_glb(path: str | Path) -> Mesh:
    """Read a file that `write_glb` wrote, back in our axes and display colours.

    Raises:
        ValueError: another program wrote it: the file is not binary glTF 2.0, or stores meshes in another way.
    """
    document, content = _chunks(Path(path))
    primitive = document["meshes"][0]["primitives"][0]

    def read(accessor: int) -> np.ndarray:
        return _read_accessor(document, content, accessor)

    colors = texture = None
    if "COLOR_0" in primitive["attributes"]:
        colors = torch.from_numpy(linear_to_srgb(read(primitive["attributes"]["COLOR_0"])[:, :3]))
    vertices = np.ascontiguousarray(read(primitive["attributes"]["POSITION"])[:, FROM_GLTF_AXES])
    faces = torch.from_numpy(read(primitive["indices"]).astype(np.int64).reshape(-1, 3))
    if "TEXCOORD_0" in primitive["attributes"]:
        coordinates = torch.from_numpy(read(primitive["attributes"]["TEXCOORD_0"]).copy())
        texture = Texture(_read_image(document, content), coordinates, torch.arange(len(vertices)), faces)
    return Mesh(vertices=torch.from_numpy(vertices), faces=faces, colors=colors, texture=texture)


class _Buffers:
    """One binary buffer and the tables that describe its parts."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def add(self, array: np.ndarray, kind: str, target: int, *, bounds: bool = False) -> int:
        """Append `array` and return the index of its accessor. All our rows are multiples of 4 bytes, as required."""
        component = next(code for code, dtype in COMPONENT_TYPES.items() if array.dtype == dtype)
        accessor = {
            "bufferView": len(self.views),
            "componentType": component,
            "count": len(array),
            "type": kind,
        }
        if bounds:
            accessor["min"], accessor["max"] = array.min(0).tolist(), array.max(0).tolist()
        self.add_view(np.ascontiguousarray(array).tobytes(), target=target)
        self.accessors.append(accessor)
        return len(self.accessors) - 1

    def add_view(self, data: bytes, **properties: int) -> int:
        """Append `data` and return the index of its view."""
        self.views.append({"buffer": 0, "byteOffset": len(self.content), "byteLength": len(data), **properties})
        self.content += data + b"\0" * (-len(data) % 4)
        return len(self.views) - 1


def _appearance(buffers: _Buffers, texture: Texture, kind: PictureKind) -> dict[str, Any]:
    """The texture as the colour of a rough material that is no metal, and the picture among the buffers."""
    view = buffers.add_view(encode(to_bytes(texture.image), kind))
    filters = {"magFilter": LINEAR, "minFilter": LINEAR_MIPMAP_LINEAR, "wrapS": CLAMP_TO_EDGE, "wrapT": CLAMP_TO_EDGE}
    color = {"baseColorTexture": {"index": 0}, "metallicFactor": 0.0, "roughnessFactor": 1.0}
    return {
        "materials": [{"pbrMetallicRoughness": color}],
        "textures": [{"source": 0, "sampler": 0}],
        "images": [{"bufferView": view, "mimeType": MIME_TYPES[kind]}],
        "samplers": [filters],
    }


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def _container(document: dict[str, Any], content: bytes) -> bytes:
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    content += b"\0" * (-len(content) % 4)
    body = struct.pack("<II", len(text), JSON_CHUNK) + text + struct.pack("<II", len(content), BINARY_CHUNK) + content
    return struct.pack("<III", MAGIC, 2, 12 + len(body)) + body


def _chunks(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    if len(data) < 20 or struct.unpack_from("<II", data) != (MAGIC, 2):
        raise ValueError(f"{path} is not a binary glTF 2.0 file")
    length = struct.unpack_from("<I", data, 12)[0]
    document = json.loads(data[20 : 20 + length])
    if not document["asset"].get("generator", "").startswith("triplaneturbo"):
        raise ValueError(f"{path} comes from another program; convert it to .obj to have it read")
    return document, data[28 + length :]


def _read_accessor(document: dict[str, Any], content: bytes, index: int) -> np.ndarray:
    accessor = document["accessors"][index]
    offset = document["bufferViews"][accessor["bufferView"]]["byteOffset"]
    width, dtype = WIDTHS[accessor["type"]], COMPONENT_TYPES[accessor["componentType"]]
    return np.frombuffer(content, dtype, accessor["count"] * width, offset).reshape(-1, width)


def _read_image(document: dict[str, Any], content: bytes) -> torch.Tensor:
    view = document["bufferViews"][document["images"][0]["bufferView"]]
    data = content[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
    return from_image(Image.open(io.BytesIO(data)))
