"""Tensors on disk. Files are written atomically; pickled code is never executed."""

import pickle
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.serialization import MAP_LOCATION

from triplaneturbo.errors import WeightsError
from triplaneturbo.storage import replacing
from triplaneturbo.weights.checksums import AGAIN, check_archive, check_digest, has_digest, say_unverified, with_digest

# A PyTorch file is a zip archive; before version 1.6 it was a pickle of protocol 2.
_ARCHIVE, _PICKLE = b"PK\x03\x04", b"\x80\x02"


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a .safetensors file atomically, with the digest of its content among the metadata."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path, size=sum(tensor.nbytes for tensor in contiguous.values())) as temporary:
        save_file(contiguous, temporary, metadata=with_digest(contiguous, metadata or {}))


def save_checkpoint(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a PyTorch checkpoint atomically."""
    # Of a file that is opened here, unlike of a path, torch lets one see why it could not be written.
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def read_checkpoint(path: str | Path, map_location: MAP_LOCATION = "cpu", *, mapped: bool = False) -> dict[str, Any]:
    """The content of a PyTorch checkpoint, or the tensors of a safetensors file, which are told apart by their bytes.

    Nothing in the file is executed: it may hold tensors and plain values only. All of it is compared with the checksums
    that it carries; of a file without any a line in the log says so.

    Args:
        mapped: leave the tensors of an archive on the disk until they are used; they are not compared with anything.

    Raises:
        WeightsError: the file is missing, damaged, something else, or holds more than tensors and plain values.
    """
    path = Path(path)
    start = _first_bytes(path)
    if start[8:9] == b"{":  # after eight bytes with the length of the header
        return read_safetensors(path)[0]
    if start.startswith(_ARCHIVE):
        if not mapped:
            check_archive(path)
    elif start.startswith(_PICKLE):
        say_unverified(path)
    else:
        raise WeightsError(f"{path} {_what_else(start)}")
    content = _unpickle(path, map_location, mapped and start.startswith(_ARCHIVE))
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not named tensors: it is not a weights file")
    return content


def _unpickle(path: Path, map_location: MAP_LOCATION, mapped: bool) -> object:
    try:
        if mapped:
            return torch.load(path, map_location=map_location, weights_only=True, mmap=True)
        with path.open("rb") as file:  # of a path, torch would heed the suffix
            return torch.load(file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        blamed = re.search(r"GLOBAL (\S+)", str(error))
        found = f" ({blamed[1]})" if blamed else ", or is damaged"
        raise WeightsError(
            f"{path} holds more than tensors and plain values{found}; reading it could run code, so it is refused. If "
            "you trust it, keep its tensors only: torch.save({'state_dict': ...}, path)"
        ) from error
    except Exception as error:  # a damaged pickle asks for anything: lengths, keys, types that are not there
        reason = str(error).partition(". ")[0] or type(error).__name__
        raise WeightsError(f"{path} cannot be read: it is damaged or cut short; {AGAIN} ({reason})") from error


def _first_bytes(path: Path) -> bytes:
    if not path.is_file():
        what = "is a folder, not a weights file" if path.is_dir() else "does not exist"
        raise WeightsError(f"{path} {what}; give the path of a .safetensors, .pt, .pth or .ckpt file")
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, compared with its digest; see `read_checkpoint`."""
    tensors, metadata = _open_safetensors(Path(path))
    check_digest(Path(path), tensors, metadata)
    return tensors, metadata


def add_digests(folder: str | Path) -> None:
    """Write the safetensors files of a folder that another library has just made anew, with digests."""
    for path in sorted(Path(folder).glob("*.safetensors")):
        tensors, metadata = _open_safetensors(path)
        if not has_digest(metadata):
            save_tensors(path, tensors, metadata)


def _open_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read: it is damaged or cut short; {AGAIN} ({error})") from error


def _what_else(start: bytes) -> str:
    """What a file is that begins like this and is no weights file, and what to do."""
    if not start:
        return f"is empty; {AGAIN}"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights themselves: run git lfs pull where it came from"
    if start.lstrip().startswith(b"<"):
        return f"is a web page, not weights: its download has failed; {AGAIN}"
    return f"is neither a safetensors file nor a PyTorch checkpoint, or its beginning is damaged; {AGAIN}"


def named_tensors(content: Mapping[str, Any], source: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's `content`: those under "state_dict", if it has that; of a training of ours their
    running averages where there are any.

    Raises:
        WeightsError: there are none. `source` names the file.
    """
    state, averages = content.get("state_dict", content), content.get("ema", {}) if "state_dict" in content else {}
    tensors = {}
    if isinstance(state, dict) and isinstance(averages, dict):
        tensors = {n: t for n, t in (state | averages).items() if isinstance(n, str) and isinstance(t, Tensor)}
    if not tensors:
        raise WeightsError(f"{source} holds no named tensors: it is not a weights file")
    return tensors


def tensor_names(path: str | Path) -> set[str]:
    """The names of a file's tensors, which are not read.

    Raises:
        WeightsError: the file cannot be read, or holds no tensors.
    """
    return set(named_tensors(read_checkpoint(path, mapped=True), path))


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file, on the CPU; see `read_checkpoint` and `named_tensors`."""
    return named_tensors(read_checkpoint(path), path)


def describe_mismatch(
    missing: Collection[str],
    unexpected: Collection[str],
    shapes: Mapping[str, tuple[Iterable[int], Iterable[int]]],
    kinds: Mapping[str, tuple[object, object]] = MappingProxyType({}),
) -> str:
    """One line for an error message: how many tensors are missing, unexpected, of the wrong shape or of the wrong kind
    of number, and the first few; empty if there are none.

    shapes, kinds: by name, what is in the file and what the model needs.
    """
    wrong_shapes = [f"{name}: {tuple(given)} instead of {tuple(wanted)}" for name, (given, wanted) in shapes.items()]
    wrong_kinds = [f"{name}: {given} instead of {wanted}" for name, (given, wanted) in kinds.items()]
    groups = {
        "missing": missing,
        "unexpected": unexpected,
        "of the wrong shape": wrong_shapes,
        "of the wrong kind": wrong_kinds,
    }
    return ", ".join(f"{len(names)} {what} ({_first(names)})" for what, names in groups.items() if names)


def _first(names: Collection[str], n: int = 3) -> str:
    shown = sorted(names)[:n]
    return ", ".join(shown) + (", ..." if len(names) > n else "")


def mismatch(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """How `tensors` differ from what a model has, see `describe_mismatch`; empty if they fit.

    Any floating-point type fits any other; integers in place of them would be weights that were rounded away.
    """
    shared = sorted(wanted.keys() & tensors.keys())
    shapes = {n: (tensors[n].shape, wanted[n].shape) for n in shared if tensors[n].shape != wanted[n].shape}
    kinds = {
        n: (tensors[n].dtype, wanted[n].dtype)
        for n in shared
        if tensors[n].is_floating_point() != wanted[n].is_floating_point()
    }
    return describe_mismatch(wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys(), shapes, kinds)


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """`module.load_state_dict` with every name, shape and kind of number accounted for.

    Raises:
        WeightsError: `tensors` (from `source`) do not fit the module, with what differs.
    """
    problem = mismatch(tensors, module.state_dict())
    if problem:
        raise WeightsError(f"{source} does not fit {type(module).__name__}: {problem}")
    module.load_state_dict(tensors)
