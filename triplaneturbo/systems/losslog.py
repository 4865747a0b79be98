"""The loss log: one JSON line an optimizer step, the same bytes whether or not the run was interrupted."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only


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

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration is kept in a file of its own."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one line and hand it to the operating system, so that a killed process loses nothing."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    @rank_zero_only
    def truncate(self, step: int) -> None:
        """Forget what was logged after `step`: the resumed run will log it again."""
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        temporary = self.path.with_suffix(".unfinished")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(self.path)
