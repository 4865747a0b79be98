"""The loss log: one JSON line an optimizer step, the same bytes whether or not the run was interrupted.

TensorBoard's log is beside it, for people.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from triplaneturbo.storage import explaining, write_text

log = logging.getLogger(__name__)


class LossLog(Logger):
    """Appends `{"step": ..., name: value, ...}` to a file. Holds no times, so that equal runs write equal files."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        return "losses"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        """Nothing: the configuration is kept in a file of its own."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | int], step: int | None = None) -> None:
        """Append one line and hand it to the operating system, so that a killed process loses nothing."""
        with explaining(self.path, self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    @rank_zero_only
    def truncate(self, step: int) -> None:
        """Forget what was logged after `step`: the resumed run will log it again."""
        if not self.path.exists():
            return
        rows, damaged = read_losses(self.path)
        if damaged:
            log.warning("%s: %d damaged lines are left out", self.path, damaged)
        write_text(self.path, "".join(line + "\n" for row, line in rows if row["step"] <= step))


def read_losses(path: Path) -> tuple[list[tuple[dict[str, float | int], str]], int]:
    """The lines of a loss log, each as numbers by name and as it is written, and how many could not be read.

    A line that was cut off, or took other bytes, costs no other line.
    """
    rows, damaged = [], 0
    for line in path.read_bytes().split(b"\n"):
        try:
            text = line.decode()
            row = json.loads(text) if text else None
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append((row, text))
        else:
            damaged += bool(line)
    return rows, damaged


class EventLog(TensorBoardLogger):
    """TensorBoard's files, with a full disk as an error that says so."""

    def log_metrics(self, metrics: Mapping[str, float | int], step: int | None = None) -> None:
        """Note the values; they are written by a thread, whose failures come up at one of the next calls."""
        with explaining(Path(self.log_dir), Path(self.log_dir)):
            super().log_metrics(metrics, step)

    def finalize(self, status: str) -> None:
        """Wait until all is written."""
        with explaining(Path(self.log_dir), Path(self.log_dir)):
            super().finalize(status)


class Records:
    """Training quantities by optimizer step, kept on the device until they are read together: one synchronisation
    for many steps."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, Mapping[str, float | int], dict[str, Tensor]]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, step: int, known: Mapping[str, float | int], measured: dict[str, Tensor]) -> None:
        """Keep one row: numbers the host knows, and scalars that are still being computed."""
        self._rows.append((step, known, measured))

    def write(self, loggers: Iterable[Logger]) -> None:
        """Log all rows, measured values averaged over all processes, and forget them. All processes must call it."""
        if not self._rows:
            return
        values = torch.stack([value for *_, measured in self._rows for value in measured.values()]).float()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(values)
            values /= dist.get_world_size()
        numbers = iter(values.tolist())
        for step, known, measured in self._rows:
            row = {**known, **{name: next(numbers) for name in measured}}
            for logger in loggers:
                logger.log_metrics(row, step)
        self._rows.clear()
