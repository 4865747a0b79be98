"""Pictures of exported meshes, the same for every method: see mesh_visualize.py.

Each mesh is centred and scaled to [-0.9, 0.9]^3 and seen from 15 degrees above, at azimuth 0, 90, 180 and 270,
distance 3, vertical field of view 50 degrees, in unlit colours on white. `--protocol original` repeats what the
original's renderer did with the axes: views in the order 0, 270, 180, 90, each mirrored.

A second call goes on where the first was stopped: meshes that have their pictures are left alone, unless the mesh is
newer. A mesh that cannot be read or shown is named at the end, the exit code is then 1.
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from triplaneturbo.cameras import turntable
from triplaneturbo.exporters.files import SUFFIXES, check_mesh, read_mesh
from triplaneturbo.exporters.render import render_mesh, save_picture
from triplaneturbo.interruption import interrupts_blocked
from triplaneturbo.storage import copy_file, read_json
from triplaneturbo.types import Mesh

from .common import PROMPT_FILE, Protocol, add_device_option, add_protocol_option, write_json

BOUND, DISTANCE, FOVY_DEG, ELEVATION_DEG = 0.9, 3.0, 50.0, 15.0
N_VIEWS = 4
ORIGINAL_ORDER = (0, 3, 2, 1)
VIEWS_FILE = "views.json"


@dataclass(frozen=True)
class ViewSettings:
    """How pictures are made; kept beside them in VIEWS_FILE. size: height and width, pixels."""

    protocol: Protocol = "right"
    size: int = 512


@dataclass(frozen=True)
class Rendered:
    """What became of the meshes of a folder, by name. kept: had their pictures. failed: with the reason."""

    written: list[str]
    kept: list[str]
    failed: dict[str, BaseException]


def protocol_views(mesh: Mesh, settings: ViewSettings) -> Float[Tensor, "4 H W 3"]:
    """The four pictures of one mesh, in [0, 1]."""
    low, high = mesh.vertices.amin(0), mesh.vertices.amax(0)
    scale = 2 * BOUND / (high - low).max()
    framed = replace(mesh, vertices=(mesh.vertices - (low + high) / 2) * scale)
    cameras = turntable(N_VIEWS, elevation_deg=ELEVATION_DEG, distance=DISTANCE, fovy_deg=FOVY_DEG)
    views = render_mesh(framed, cameras, settings.size)
    return views[list(ORIGINAL_ORDER)].flip(2) if settings.protocol == "original" else views


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


def read_settings(folder: Path) -> ViewSettings | None:
    """How the pictures in the folder of one prompt were made; None if another program made them."""
    path = folder / VIEWS_FILE
    return ViewSettings(**read_json(path)) if path.is_file() else None


def render_folder(
    source: Path,
    target: Path,
    settings: ViewSettings,
    *,
    devices: Sequence[torch.device] = (torch.device("cpu"),),
    force: bool = False,
) -> Rendered:
    """Write target/NAME/rgb_0.png to rgb_3.png for every mesh of `source`, with its prompt.txt.

    devices: one process each, if there are several; the pictures do not depend on their number.
    force: also where there are pictures already.

    Raises:
        ValueError: without `force`, there are pictures of other settings or of another program.
    """
    meshes = find_meshes(source)
    kept = [] if force else [name for name, path in meshes.items() if _is_done(path, target / name, settings)]
    waiting = [name for name in meshes if name not in set(kept)]
    failed: dict[str, BaseException] = {}
    with ExitStack() as stack:
        executors = [_executor(devices) for _ in devices]
        for executor in executors:
            stack.callback(executor.shutdown, cancel_futures=True)
        names: dict[Future, str] = {}
        for i, name in enumerate(waiting):
            turn = i % len(devices)
            prompt = _prompt_file(source, meshes[name])
            with interrupts_blocked():  # the first job of an executor starts its process
                job = executors[turn].submit(_write_views, meshes[name], prompt, target / name, settings, devices[turn])
            names[job] = name
        for job in tqdm(as_completed(names), total=len(names), unit="mesh", disable=not names):
            if error := job.exception():
                failed[names[job]] = error
    return Rendered([name for name in waiting if name not in failed], kept, dict(sorted(failed.items())))


def _executor(devices: Sequence[torch.device]) -> Executor:
    """For one device: a thread of this process if it is the only one, else a process of its own."""
    if len(devices) == 1:
        return ThreadPoolExecutor(1)
    threads = max(1, (os.cpu_count() or 1) // len(devices))
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,))


def _write_views(
    mesh_path: Path, prompt: Path | None, folder: Path, settings: ViewSettings, device: torch.device
) -> None:
    """Old pictures go first and the record comes before the new ones: a folder never holds two kinds unnoticed."""
    for path in _pictures(folder):
        path.unlink(missing_ok=True)
    mesh = read_mesh(mesh_path)
    check_mesh(mesh, folder.name)
    views = protocol_views(mesh.to(device), settings)
    write_json(folder / VIEWS_FILE, asdict(settings))
    if prompt:
        copy_file(prompt, folder / PROMPT_FILE)
    for path, view in zip(_pictures(folder), views, strict=True):
        save_picture(path, view[None], columns=1)


def _pictures(folder: Path) -> list[Path]:
    return [folder / f"rgb_{k}.png" for k in range(N_VIEWS)]


def _prompt_file(source: Path, mesh: Path) -> Path | None:
    path = mesh.parent / PROMPT_FILE
    return path if mesh.parent != source and path.is_file() else None


def _is_done(mesh: Path, folder: Path, settings: ViewSettings) -> bool:
    """Are all pictures there, and not older than the mesh?"""
    present = [path for path in _pictures(folder) if path.is_file()]
    if not present:
        return False
    made = read_settings(folder)
    if made != settings:
        by = "another program" if made is None else f"--protocol {made.protocol} --size {made.size}"
        raise ValueError(f"{folder} has pictures made by {by}: choose another --save_dir, or replace them with --force")
    return len(present) == N_VIEWS and min(p.stat().st_mtime_ns for p in present) >= mesh.stat().st_mtime_ns


def _arguments(arguments: list[str] | None, program: str | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("meshes", metavar="OBJ_DIR", type=Path, help="folder that launch.py --export wrote")
    parser.add_argument("--save_dir", type=Path, required=True)
    parser.add_argument("--size", type=int, default=512, help="pixels (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="render again what has pictures, whoever made them")
    add_protocol_option(parser)
    add_device_option(parser)
    parser.add_argument("--jobs", type=int, metavar="N", help="use the CPU, with N processes; of GPUs each has one")
    return parser, parser.parse_args(arguments)


def main(arguments: list[str] | None = None, program: str | None = None) -> int:
    """Command line; 1 if a mesh has no pictures."""
    parser, given = _arguments(arguments, program)
    if given.jobs is not None and given.jobs < 1:
        parser.error(f"--jobs must be at least 1, not {given.jobs}")
    devices = [torch.device("cpu")] * given.jobs if given.jobs else given.devices
    settings = ViewSettings(given.protocol, given.size)
    try:
        result = render_folder(given.meshes, given.save_dir, settings, devices=devices, force=given.force)
    except ValueError as error:
        parser.error(str(error))
    print(f"{given.save_dir}: {len(result.written)} meshes rendered, {len(result.kept)} had their pictures")
    for name, error in result.failed.items():
        print(f"{given.meshes / name}: {type(error).__name__}: {error}", file=sys.stderr)
    if result.failed:
        print(f"{len(result.failed)} meshes have no pictures", file=sys.stderr)
    return 1 if result.failed else 0
