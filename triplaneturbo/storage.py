"""Files that are complete or not there, whatever happens while they are written."""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from triplaneturbo.errors import ConfigError, WriteError

# What a JSON or YAML file may hold; who reads it sees whether it is what it should be.
Json = Any
Tree = dict[str, Json]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MIB = 2**20


@contextmanager
def replacing(path: str | Path, size: int | None = None) -> Iterator[Path]:
    """A temporary name beside `path`; on leaving without an error the file there is synced and takes its place.

    A reader sees the old file or the new one, never a part of it, whatever happens in between.

    size: of the file, in bytes, if it is known; it is said when the disk is full.

    Raises:
        WriteError: the disk is full, or nothing can be written there. The old file, if there is one, is unchanged.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with explaining(path, temporary, size):
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def explaining(path: Path, written: Path, size: int | None = None) -> Iterator[None]:
    """Turns a refusal of the operating system to write `path` into a WriteError that says what to do.

    written: where the content goes at first; if it is a file, its size is what did fit on a full disk. size: what
    should have fitted.
    """
    try:
        yield
    except Exception as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        raise WriteError(_explanation(refusal, path, written, size)) from error


def _refusal(error: Exception) -> OSError | None:
    """What the operating system said; torch raises an error of its own over it, safetensors puts it into a text."""
    for cause in (error, error.__context__):
        if isinstance(cause, OSError):
            return cause
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


def _explanation(refusal: OSError, path: Path, written: Path, size: int | None) -> str:
    if refusal.errno not in _FULL:
        return f"cannot write {path}: {refusal}"
    done = f" after {written.stat().st_size / _MIB:.1f} MiB of it" if written.is_file() else ""
    whole = "" if size is None else f" (it has {size / _MIB:.1f} MiB)"
    kept = "; the file of that name is still the old one" if path.is_file() and path != written else ""
    return (
        f"cannot write {path}{whole}: {refusal.strerror}{done}; {shutil.disk_usage(path.parent).free / _MIB:.1f} MiB "
        f"are free now{kept}. Make room there, or write elsewhere"
    )


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Create `folder` and those above it, where they are not there yet.

    Raises:
        WriteError: that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"cannot create the folder {folder}: {error}; choose another place") from error


def require_writable(folder: Path) -> None:
    """Create `folder` and see whether files can be made there, before hours are spent on what shall go there.

    Raises:
        WriteError: they cannot.
    """
    make_folder(folder)
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise WriteError(f"cannot write into the folder {folder}: {error}; choose another place") from error


def read_json(path: str | Path) -> Json:
    """The content of a JSON file, UTF-8.

    Raises:
        ConfigError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, UTF-8, line ends as they are; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode())


def link_file(source: Path, target: Path) -> None:
    """A second name for a file, or a copy on a disk that cannot have that; see `replacing`."""
    with replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def copy_file(source: str | Path, target: str | Path) -> None:
    """Copy a file; see `replacing`."""
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
