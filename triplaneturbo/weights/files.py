"""Tensors on disk. Files are written atomically; pickled code is never executed."""

import os
import pickle
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from triplaneturbo.errors import WeightsError

PICKLED_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`; on leaving without an error the file there is synced and takes its place.

    A reader sees the old file or the new one, never a part of it, whatever happens in between.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a .safetensors file atomically."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(contiguous, temporary, metadata=dict(metadata or {}))


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a PyTorch checkpoint (.pt, .pth, .ckpt, .bin), on the CPU.

    A checkpoint that keeps its tensors under "state_dict" is unwrapped. Checkpoints are read with
    `weights_only=True`: nothing in them is executed.

    Raises:
        WeightsError: the file is missing, truncated, of an unknown kind, or holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a weights file" if path.is_dir() else "does not exist"
        raise WeightsError(f"{path} {what}; give the path of a .safetensors, .pt, .pth or .ckpt file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise WeightsError(
                f"{path} cannot be read ({error}); it is damaged or cut short: fetch it again"
            ) from error
    if path.suffix not in PICKLED_SUFFIXES:
        raise WeightsError(f"{path} is of an unknown kind; allowed: .safetensors, {', '.join(PICKLED_SUFFIXES)}")
    content = _load_checkpoint(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not named tensors: it is not a weights file")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _load_checkpoint(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds more than tensors and plain values, or is not a PyTorch file; reading it could run code, so "
            "it is refused. If you trust it, keep its tensors only: torch.save({'state_dict': ...}, path)"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise WeightsError(f"{path} cannot be read ({error}); it is damaged or cut short: fetch it again") from error


def describe_mismatch(
    missing: Collection[str], unexpected: Collection[str], shapes: Mapping[str, tuple[object, object]]
) -> str:
    """One line for an error message: how many tensors are missing, unexpected or of the wrong shape, and the first few.

    shapes: by name, the shape in the file and the shape in the model.
    """
    parts = []
    for names, what in ((missing, "missing"), (unexpected, "unexpected")):
        if names:
            parts.append(f"{len(names)} {what} ({_first(names)})")
    if shapes:
        wrong = [f"{name}: {tuple(given)} instead of {tuple(wanted)}" for name, (given, wanted) in shapes.items()]
        parts.append(f"{len(shapes)} of the wrong shape ({_first(wrong)})")
    return ", ".join(parts)


def _first(names: Collection[str], n: int = 3) -> str:
    shown = sorted(names)[:n]
    return ", ".join(shown) + (", ..." if len(names) > n else "")


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """`module.load_state_dict` with every name and shape accounted for.

    Raises:
        WeightsError: `tensors` (from `source`) do not fit the module, with what differs.
    """
    wanted = module.state_dict()
    shapes = {
        name: (tensors[name].shape, wanted[name].shape)
        for name in wanted.keys() & tensors.keys()
        if tensors[name].shape != wanted[name].shape
    }
    problem = describe_mismatch(wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys(), shapes)
    if problem:
        raise WeightsError(f"{source} does not fit {type(module).__name__}: {problem}")
    module.load_state_dict(tensors)
