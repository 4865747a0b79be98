"""Random numbers in the place of published weights, to run the full-size recipes without the real files.

Beside them lies a note that lists what was written, each file with a fingerprint: a real file is never overwritten by
a stand-in, and a stand-in never taken for a real file.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from triplaneturbo.errors import WeightsError

NOTE = "RANDOM_STAND_INS.txt"
_HEAD = (
    "The files listed here hold random numbers in the place of published weights, written by "
    "scripts/prepare/random_weights.py.\nWhat is made with them shows that the program runs, and nothing else. "
    "scripts/prepare/download_full.py replaces them.\n\n"
)
_WEIGHTS = (".safetensors", ".pt", ".ckpt", ".pth")
_ENDS = 1 << 20


class StandInNote:
    """The note of a folder: which of its files are stand-ins."""

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / NOTE
        lines = self.path.read_text(encoding="utf-8").split("\n\n", 1)[-1] if self.path.is_file() else ""
        marks = (line.split(maxsplit=1) for line in lines.splitlines())
        self._entries = {name: mark for mark, name in marks}

    def lists(self, path: Path) -> bool:
        """Whether `path` is a file that was written as a stand-in and not changed since."""
        name = path.relative_to(self.path.parent).as_posix()
        return name in self._entries and path.is_file() and fingerprint(path) == self._entries[name]

    def lists_weights(self, path: Path) -> bool:
        """The same, for files of tensors; the small files beside them are no worse than the published ones."""
        return path.suffix in _WEIGHTS and self.lists(path)

    def refuse_others(self, paths: Iterable[Path]) -> None:
        """Make sure that no real file is in the way of stand-ins.

        Raises:
            WeightsError: one is.
        """
        others = [path for path in paths if path.exists() and not self.lists(path)]
        if others:
            raise WeightsError(
                f"{len(others)} files are there and are not stand-ins, first {others[0]}; they are left as they are: "
                "give another folder with --out, or move them away"
            )

    def text_with(self, path: Path, written: Path) -> str:
        """The note's text with `path` among the stand-ins, whose content is that of `written`."""
        self._entries[path.relative_to(self.path.parent).as_posix()] = fingerprint(written)
        return _HEAD + "".join(f"{mark}  {name}\n" for name, mark in sorted(self._entries.items()))


def fingerprint(path: Path) -> str:
    """A text that changes with the size of a file and with its first and last MiB."""
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        digest.update(file.read(_ENDS))
        file.seek(max(size - _ENDS, 0))
        digest.update(file.read(_ENDS))
    return digest.hexdigest()
