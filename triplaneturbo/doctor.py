"""What this machine has of what the program can use: `triplaneturbo doctor`. Changes nothing."""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path

from triplaneturbo import __version__
from triplaneturbo.places import CHECKOUT, PACKAGE, PROJECT
from triplaneturbo.weights.hub import EVALUATION, EVERYTHING, Asset

# Distribution, module, what it is for.
OPTIONAL = (
    ("triton", "triton", "faster kernels on CUDA"),
    ("imageio-ffmpeg", "imageio_ffmpeg", "videos of validation and tests"),
    ("xatlas", "xatlas", "textures: system.exporter.save_uv and fmt=obj-mtl"),
    ("fast-simplification", "fast_simplification", "textures, too"),
    ("open_clip_torch", "open_clip", "CLIP models of that package in the evaluation"),
    ("gradio", "gradio", "a web page"),
    ("wandb", "wandb", "system.loggers.wandb"),
    ("xformers", "xformers", "attention, with backends.attention=xformers"),
    ("diso", "diso", "surfaces; not for commercial use: see backends"),
    ("nvdiffrast", "nvdiffrast", "pictures of meshes; not for commercial use: see backends"),
    ("tinycudann", "tinycudann", "hash grids, with backends.hashgrid=tinycudann"),
)
GIB = 2**30
# GiB that a card has at least, a little less than its name says, and what it is for at full size.
CARDS = (
    (30, "trains configs/TriplaneTurbo_v1_acc-2.yaml, and generates"),
    (22, "trains configs/TriplaneTurbo_24g.yaml, and generates"),
    (11, "trains configs/TriplaneTurbo_12g.yaml, slowly, and generates"),
    (5, "generates; training needs 12 GB"),
)


def report(root: Path = PROJECT) -> str:
    """Everything there is to say, as text."""
    sections = {
        "Machine": machine,
        "Devices": devices,
        "Required packages": required_packages,
        "Optional packages": optional_packages,
        "Backends": backends,
        "The miniature world": lambda: miniature(root),
        "Weights and prompts of the full-size recipes": lambda: weights(root),
    }
    return "\n\n".join("\n".join([title, *(f"  {line}" for line in _lines(of))]) for title, of in sections.items())


def _lines(section: Callable[[], Iterable[str]]) -> list[str]:
    """A section, or why it cannot be written: a broken installation is what a doctor is called for."""
    try:
        return list(section())
    except Exception as error:
        return [f"cannot be found out: {type(error).__name__}: {error}"]


def machine() -> Iterable[str]:
    yield f"triplaneturbo {__version__} in {PACKAGE}; relative paths of configurations start from {PROJECT}"
    yield f"Python {platform.python_version()} ({sys.executable})"
    yield f"{platform.platform()}, {os.cpu_count()} CPU cores"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    disk = shutil.disk_usage(PROJECT)
    yield f"memory {memory / GIB:.0f} GiB; disk {disk.free / GIB:.0f} GiB free"


def devices() -> Iterable[str]:
    import torch

    yield f"torch {torch.__version__}, built for CUDA {torch.version.cuda or 'no'}"
    if not torch.cuda.is_available():
        yield "no CUDA device can be used: everything runs on the CPU, in float32"
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        yield (
            f"{index}: {properties.name}, compute capability {properties.major}.{properties.minor}, "
            f"{free / GIB:.0f} of {total / GIB:.0f} GiB free"
        )
        yield f"   full size: {recipe_for(total)}"
    yield "networks run in bfloat16 (network_dtype: auto), fields and renderers in float32"


def recipe_for(memory: int) -> str:
    """What a card with so many bytes is enough for, by docs/performance.md."""
    for gib, what in CARDS:
        if memory >= gib * GIB:
            return what
    return "too little memory; the miniature world runs on it"


def required() -> list[str]:
    """Distributions that the program needs: what pyproject.toml says, in a checkout or as it was when installed."""
    if CHECKOUT is None:
        lines = [line for line in importlib.metadata.requires("triplaneturbo") or () if "extra ==" not in line]
    else:
        lines = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    return [re.split(r"[^\w.-]", line)[0] for line in lines]


def required_packages() -> Iterable[str]:
    for name in required():
        yield f"{name:18} {_version(name) or 'MISSING: ./setup.sh, or pip install -e .'}"


def optional_packages() -> Iterable[str]:
    for distribution, module, purpose in OPTIONAL:
        there = importlib.util.find_spec(module) is not None
        state = (_version(distribution) or "installed") if there else "not installed"
        yield f"{distribution:19} {state:14} {purpose}"


def backends() -> Iterable[str]:
    """What does each operation here, if nothing is asked for by name, and why nothing else."""
    import torch

    from triplaneturbo.ops.backends import PACKAGES, PLACES, choose

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name, place in PLACES.items():
        choice = choose(name, device)
        yield f"{name:18} {choice.name:14} {choice.reason}"
        if place.package:
            licence = PACKAGES[place.package].noncommercial
            terms = f" ({licence}: auto takes it with backends.allow_noncommercial=true)" if licence else ""
            yield f"{'':18} {'or':14} backends.{name}={place.package}{terms}"


def miniature(root: Path) -> Iterable[str]:
    folder = root / "load" / "shapeworld"
    parts = ("stable_diffusion", "mvdream", "richdreamer", "scorer")
    missing = [part for part in parts if not (folder / part).is_dir()]
    if missing:
        yield f"{folder}: missing {', '.join(missing)}; made by: bash scripts/train/shapeworld.sh"
    else:
        yield f"{folder}: there; try: ./setup.sh demo"


def weights(root: Path) -> Iterable[str]:
    states = {asset: asset.state(root) for asset in EVERYTHING}
    for asset, state in states.items():
        words = {"there": "there", "stand-in": "random stand-in", "missing": "MISSING"}
        yield f"{words[state]:8} {asset.target}: {asset.what}"
    yield from _how_to_get([asset for asset, state in states.items() if state != "there"])


def _how_to_get(absent: list[Asset]) -> Iterable[str]:
    if any(asset in EVALUATION for asset in absent):
        yield "for meshes and their evaluation: python scripts/prepare/download_eval_only.py"
    if absent:
        yield "for training: python scripts/prepare/download_full.py (--list says from where, --only NAME takes one)"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.stdout.write(report() + "\n")
