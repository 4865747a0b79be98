"""Pictures of exported meshes, the same for every method: see mesh_visualize.py.

Each mesh is centred and scaled to [-0.9, 0.9]^3 and seen from 15 degrees above, at azimuth 0, 90, 180 and 270,
distance 3, vertical field of view 50 degrees, in unlit colours on white. `--protocol original` repeats what the
original's renderer did with the axes: views in the order 0, 270, 180, 90, each mirrored.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.cameras import turntable
from triplaneturbo.exporters.files import SUFFIXES, check_mesh, read_mesh
from triplaneturbo.exporters.render import render_mesh, save_picture
from triplaneturbo.types import Mesh

Protocol = Literal["right", "original"]
PROMPT_FILE = "prompt.txt"
BOUND, DISTANCE, FOVY_DEG, ELEVATION_DEG = 0.9, 3.0, 50.0, 15.0


def protocol_views(mesh: Mesh, size: int, protocol: Protocol = "right") -> Float[Tensor, "4 H W 3"]:
    """The four pictures of one mesh."""
    low, high = mesh.vertices.amin(0), mesh.vertices.amax(0)
    scale = 2 * BOUND / (high - low).max()
    framed = replace(mesh, vertices=(mesh.vertices - (low + high) / 2) * scale)
    cameras = turntable(4, elevation_deg=ELEVATION_DEG, distance=DISTANCE, fovy_deg=FOVY_DEG)
    views = render_mesh(framed, cameras, size)
    return views[[0, 3, 2, 1]].flip(2) if protocol == "original" else views


def find_meshes(folder: Path) -> dict[str, Path]:
    """Meshes by name: `NAME/model.glb` (or any single mesh file in a folder NAME) and `NAME.obj`.

    Raises:
        ValueError: there are none, or one name has several files.
    """
    meshes: dict[str, Path] = {}
    files = [p for p in sorted([*folder.glob("*"), *folder.glob("*/*")]) if p.suffix.lower() in SUFFIXES]
    for path in files:
        name = path.stem if path.parent == folder else path.parent.name
        if name in meshes:
            raise ValueError(f"{meshes[name]} and {path} belong to the same prompt; keep one of them")
        meshes[name] = path
    if not meshes:
        raise ValueError(f"there are no meshes in {folder}: expected NAME/model{SUFFIXES[0]} or NAME{SUFFIXES[1]}")
    return meshes


def render_folder(
    source: Path, target: Path, *, size: int = 512, protocol: Protocol = "right", device: str | torch.device = "cpu"
) -> int:
    """Write target/NAME/rgb_0.png to rgb_3.png for every mesh of `source`, with its prompt.txt; returns their number.

    Raises:
        EmptyFieldError: a mesh has nothing to see.
    """
    meshes = find_meshes(source)
    for name, path in meshes.items():
        mesh = read_mesh(path)
        check_mesh(mesh, name)
        for i, view in enumerate(protocol_views(mesh.to(device), size, protocol)):
            save_picture(target / name / f"rgb_{i}.png", view[None], columns=1)
        if (path.parent / PROMPT_FILE).is_file() and path.parent != source:
            shutil.copy(path.parent / PROMPT_FILE, target / name / PROMPT_FILE)
    return len(meshes)


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """`--gpu N`; without it the first GPU, or the CPU if there is none. Of a list, as the original takes it, the first:
    the work is too little to be divided."""
    first = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--gpu", dest="device", metavar="N", type=_gpu, default=first, help="GPU to use; of several, the first"
    )


def _gpu(numbers: str) -> torch.device:
    return torch.device("cuda", int(numbers.split(",")[0]))


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("meshes", metavar="OBJ_DIR", type=Path, help="folder that launch.py --export wrote")
    parser.add_argument("--save_dir", type=Path, required=True)
    parser.add_argument("--size", type=int, default=512, help="pixels")
    parser.add_argument("--protocol", choices=("right", "original"), default="right")
    add_device_option(parser)
    given = parser.parse_args(arguments)
    n = render_folder(given.meshes, given.save_dir, size=given.size, protocol=given.protocol, device=given.device)
    print(f"rendered {n} meshes into {given.save_dir}")
