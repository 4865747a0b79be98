"""Whether a file of tensors is what was once written: the digest of a safetensors file, the CRCs of a PyTorch archive.

Neither is looked at by the libraries that read these files: they would give other numbers in silence.
"""

import functools
import hashlib
import json
import logging
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from triplaneturbo.errors import WeightsError

log = logging.getLogger(__name__)

AGAIN = "fetch it again, or take another"
# Key and beginning of the digest in a file's metadata. Either is enough to know that there was one.
_KEY, _KIND = "triplaneturbo.digest", "content-sha256:"
_BLOCK = 1 << 20
_IS_FOLDER = 0x10  # among the attributes of an entry
_PATIENCE = 10.0  # seconds after which a long reading says how far it is


def with_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """`metadata` of a safetensors file, and the digest of its content, which `check_digest` looks for."""
    return {**metadata, _KEY: _digest(tensors, metadata)}


def has_digest(metadata: Mapping[str, str]) -> bool:
    """Whether a safetensors file with this metadata was written with a digest, be it damaged now."""
    return bool(_claimed(metadata))


def check_digest(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """See that names, kinds, shapes and bytes of `tensors` and the other metadata are what the file's digest says.

    A file without one, as others publish them, is let pass with a line in the log.

    Raises:
        WeightsError: they are not, or the digest itself is damaged.
    """
    if not has_digest(metadata):
        say_unverified(path)
    elif _claimed(metadata) != {_digest(tensors, {key: value for key, value in metadata.items() if key != _KEY})}:
        raise WeightsError(f"{path} is damaged: what it holds does not fit the digest it was written with; {AGAIN}")


def _claimed(metadata: Mapping[str, str]) -> set[str]:
    return {value for key, value in metadata.items() if key == _KEY or value.startswith(_KIND)}


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return _KIND + digest.hexdigest()


@functools.cache
def say_unverified(path: Path) -> None:
    """Log, once for each file, that nothing in it tells whether its numbers are still those that were written."""
    log.warning("%s carries no checksum: it is taken as it is, and damage to its numbers would not be noticed", path)


def check_archive(path: Path) -> None:
    """Read a zip archive of PyTorch once, and see that every entry has the CRC that it was written with.

    Raises:
        WeightsError: one has not, or the archive's directory is damaged, or is not that of this file.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            problem = _disorder(entries)
            if not problem:
                _read_all(archive, entries, path)
    # Of a damaged directory come errors of offsets, lengths and texts, beside those of the module's own.
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError, ValueError) as error:
        problem = str(error) or type(error).__name__
    if problem:
        raise WeightsError(f"{path} cannot be read: it is damaged or cut short; {AGAIN} ({problem})")


def _disorder(entries: list[zipfile.ZipInfo]) -> str:
    """What keeps the archive from being one that PyTorch wrote, and reads in the same way as `zipfile`; empty: nothing.

    PyTorch counts places from the file's beginning, `zipfile` allows for other bytes before; of a mapped file PyTorch
    takes the bytes as they lie there.
    """
    if not entries or min(entry.header_offset for entry in entries) != 0:
        return "its directory belongs to another file"
    if len({entry.filename for entry in entries}) != len(entries):
        return "two of its entries have the same name"
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        return "an entry is compressed, and PyTorch compresses none"
    if any(entry.is_dir() or entry.external_attr & _IS_FOLDER for entry in entries):
        return "an entry is marked as a folder, which PyTorch would not read at all"
    return ""


def _read_all(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], path: Path) -> None:
    """Read every entry, which compares its CRC; a long reading says how far it is."""
    total, done = sum(entry.file_size for entry in entries), 0
    told = time.monotonic()
    for entry in entries:
        with archive.open(entry) as content:
            while block := content.read(_BLOCK):
                done += len(block)
                if time.monotonic() - told > _PATIENCE:
                    told = time.monotonic()
                    log.info("reading %s: %.1f of %.1f GiB", path, done / 2**30, total / 2**30)
