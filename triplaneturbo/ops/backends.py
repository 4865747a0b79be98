"""Which implementation does each numerical operation: the one place that chooses.

Every operation has a reference in torch, which runs anywhere. Some have a Triton twin, and some can be handed to a
package that many have installed. What is wanted belongs to the process, as `performance` does: a launch sets it from
its configuration (`use`), an operation asks `choose`, and `triplaneturbo doctor` shows the answers. All
implementations agree within the tolerances of the same tests, so neither checkpoints nor results depend on the choice.

`auto` takes a package only if it was measured to be faster than the torch reference: diso's marching cubes and
nvdiffrast's rasteriser were. Their licences forbid commercial use, so `auto` leaves them alone without
`allow_noncommercial`. tiny-cuda-nn and xFormers have to be asked for by name; `PLACES` says why.
"""

import functools
import importlib
import importlib.util
import logging
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from triplaneturbo.errors import ConfigError
from triplaneturbo.performance import current as current_performance

log = logging.getLogger(__name__)

PlaceName = Literal["norm", "planes", "rows", "isosurface", "rasterizer", "hashgrid", "attention"]


@dataclass(frozen=True, kw_only=True)
class Backends:
    """What is wanted for each operation that has a choice. torch: the reference; triton: kernels of this project."""

    isosurface: Literal["auto", "torch", "triton", "diso"] = "auto"
    """What extracts triangles from a grid; diso: CUDA kernels that may not be used commercially."""
    rasterizer: Literal["auto", "torch", "triton", "nvdiffrast"] = "auto"
    """What rasterises, interpolates and antialiases; nvdiffrast: CUDA kernels that may not be used commercially."""
    hashgrid: Literal["auto", "torch", "triton", "tinycudann"] = "auto"
    """What looks up hash grids; tinycudann: the CUDA kernels of tiny-cuda-nn, in float32."""
    attention: Literal["auto", "torch", "xformers"] = "auto"
    """What computes attention in diffusion networks; torch: scaled_dot_product_attention."""
    allow_noncommercial: bool = False
    """Whether auto may take diso and nvdiffrast, whose licences forbid commercial use."""


@dataclass(frozen=True)
class Package:
    """A package that can do an operation. noncommercial: the licence, if it forbids commercial use."""

    module: str
    install: str
    dtypes: tuple[torch.dtype, ...]
    noncommercial: str = ""


PACKAGES = {
    "diso": Package("diso", "pip install --no-build-isolation diso", (torch.float32, torch.float64), "CC BY-NC 4.0"),
    "nvdiffrast": Package(
        "nvdiffrast.torch",
        "pip install --no-build-isolation git+https://github.com/NVlabs/nvdiffrast",
        (torch.float32,),
        "NVIDIA Source Code License",
    ),
    "tinycudann": Package(
        "tinycudann",
        "pip install --no-build-isolation git+https://github.com/NVlabs/tiny-cuda-nn#subdirectory=bindings/torch",
        (torch.float32,),
    ),
    "xformers": Package("xformers.ops", "pip install xformers", (torch.float32, torch.float16, torch.bfloat16)),
}


@dataclass(frozen=True)
class Place:
    """An operation. file: of `triplaneturbo/ops`, with a Triton twin FILE_triton where there is one. package: that can
    do it, too. by_name_only: why `auto` does not take the package; empty: it does."""

    file: str
    package: str = ""
    by_name_only: str = ""


PLACES: dict[PlaceName, Place] = {
    "norm": Place("group_norm"),
    "planes": Place("planes"),
    "rows": Place("rows"),
    "isosurface": Place("marching_cubes", "diso"),
    "rasterizer": Place("rasterize", "nvdiffrast"),
    # Its speed in float32, which is what checkpoints need, is not known here; by default it computes in half precision.
    "hashgrid": Place("hashgrid", "tinycudann", "not measured against ours in float32"),
    # torch has the same kinds of kernels, and no wheel of xFormers fits another torch than the one it was built for.
    "attention": Place("attention", "xformers", "not measured against torch's own, which has the same kernels"),
}


@dataclass(frozen=True)
class Choice:
    """The name of an implementation, and why it is taken."""

    name: str
    reason: str


# Looked up once: compiled networks pass here, and what they pass must be plain.
_FILES = frozenset(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
_TRITON_IS_INSTALLED = importlib.util.find_spec("triton") is not None

_current = Backends()


def current() -> Backends:
    """What is wanted now."""
    return _current


def use(backends: Backends) -> None:
    """Set what the process wants, before its networks are built.

    Raises:
        ConfigError: an implementation that is asked for by name is not installed or cannot be loaded.
    """
    for place in PLACES:
        wanted = vars(backends).get(place, "auto")
        problem = _missing(place, wanted)
        if problem:
            raise ConfigError(f"backends.{place}={wanted} cannot be used: {problem}")
        licence = PACKAGES[wanted].noncommercial if wanted in PACKAGES else ""
        if licence:
            log.warning("backends.%s=%s: its licence (%s) forbids commercial use", place, wanted, licence)
    global _current
    _current = backends


@contextmanager
def using(backends: Backends) -> Iterator[None]:
    """What is wanted within a block; for tests and comparisons."""
    before = current()
    use(backends)
    try:
        yield
    finally:
        use(before)


def choose(
    place: PlaceName, device: torch.device, dtype: torch.dtype = torch.float32, *, asked: str = "auto"
) -> Choice:
    """The implementation that `place` takes for tensors of this kind.

    asked: by the caller; auto: what the process wants (`use`).

    Raises:
        ConfigError: what is asked for by name cannot do it. Nothing else is taken in its stead.
    """
    if asked == "auto":
        asked = vars(_current).get(place, "auto")
    if asked == "auto":
        return _automatic(place, device, dtype)
    problem = _missing(place, asked) or _unfit(asked, device, dtype)
    if problem:
        raise ConfigError(f"backend={asked!r} was asked for ({place}), but {problem}; or use backend='auto' or 'torch'")
    return Choice(asked, "asked for")


def _automatic(place: PlaceName, device: torch.device, dtype: torch.dtype) -> Choice:
    if not current_performance().ways.kernels:
        return Choice("torch", "performance: reference")
    if device.type != "cuda":
        return Choice("torch", "all others run on CUDA")
    against: list[str] = []
    for name in filter(None, (PLACES[place].package, "triton" if has_twin(place) else "")):
        problem = _reluctance(place, name) or _missing(place, name) or _unfit(name, device, dtype)
        if not problem:
            return Choice(name, "; ".join(["the fastest that can be used", *against]))
        against.append(f"{name}: {problem}")
    return Choice("torch", "; ".join(against) or "there is no other")


def _reluctance(place: PlaceName, name: str) -> str:
    """Why `auto` does not take a package that may well be there; empty if it does."""
    if name not in PACKAGES:
        return ""
    licence = PACKAGES[name].noncommercial
    if licence and not _current.allow_noncommercial:
        return f"{licence}, needs backends.allow_noncommercial=true"
    return PLACES[place].by_name_only


def _missing(place: PlaceName, name: str) -> str:
    """Why this process does not have an implementation; empty if it has."""
    if name in ("auto", "torch"):
        return ""
    if name == "triton":
        if not has_twin(place):
            return f"there is no Triton kernel for {place}"
        return "" if _TRITON_IS_INSTALLED else "the package triton is not installed (pip install triton)"
    if name != PLACES[place].package:
        return f"{place} has no such implementation"
    return loading_problem(name)


def _unfit(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Why an implementation that is there cannot be used for such tensors; empty if it can."""
    if name == "torch":
        return ""
    if not runs_on(name, device):
        interpreter = " (on a CPU with TRITON_INTERPRET=1, set before start)" if name == "triton" else ""
        return f"it runs on CUDA tensors{interpreter}, not on {device}"
    if name == "triton":
        return ""
    package = PACKAGES[name]
    if dtype not in package.dtypes:
        return f"it computes in {', '.join(map(str, package.dtypes))}, not in {dtype}"
    if torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled():
        return "its sums differ from run to run, and deterministic algorithms are asked for"
    return ""


def runs_on(name: str, device: torch.device) -> bool:
    """Whether an implementation other than torch's runs there: on CUDA, and in Triton's interpreter on a CPU, too."""
    if name == "triton" and device.type == "cpu":
        import triton

        return bool(triton.knobs.runtime.interpret)
    return device.type == "cuda"


def has_twin(place: PlaceName) -> bool:
    """Whether there is a Triton kernel for the place."""
    return f"{PLACES[place].file}_triton" in _FILES


@functools.cache
def loading_problem(package: str) -> str:
    """Why a package of `PACKAGES` cannot be imported, and what to do; empty if it can."""
    module, install = PACKAGES[package].module, PACKAGES[package].install
    if importlib.util.find_spec(module.split(".")[0]) is None:
        return f"{package} is not installed ({install})"
    try:
        importlib.import_module(module)
    except Exception as error:  # of a compiled package: whatever its libraries and its build bring about
        return f"{package} cannot be imported: {type(error).__name__}: {error} (build it anew: {install})"
    return ""
