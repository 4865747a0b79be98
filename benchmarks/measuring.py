"""What benchmarks share: the time and memory of a piece of work, the machine, and the JSON file of the results."""

import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from triplaneturbo.errors import WriteError
from triplaneturbo.storage import write_text


@dataclass(frozen=True)
class Timing:
    """Seconds of one execution, over all that were measured. peak_bytes: the most memory of the device that tensors
    held meanwhile, those from before included; 0 on a CPU, where it is not known."""

    median_s: float
    min_s: float
    max_s: float
    peak_bytes: int = 0

    def seconds(self) -> dict[str, float]:
        """What the JSON file says of a stage."""
        return {"median_s": self.median_s, "min_s": self.min_s, "max_s": self.max_s}


def timing(seconds: list[float], peak_bytes: int = 0) -> Timing:
    """Of executions that were measured one by one."""
    return Timing(statistics.median(seconds), min(seconds), max(seconds), peak_bytes)


def measure(work: Callable[[], object], warmup: int = 3, repeats: int = 10) -> Timing:
    """Time of `work()`, after `warmup` executions that do not count.

    Where there is a CUDA device: between events on its current stream, waiting once at the end, so that executions
    follow each other as they do in a program; what work() does on the CPU counts where the device waits for it.
    """
    for _ in range(warmup):
        work()
    if not torch.cuda.is_available():
        return timing([_wall_seconds(work) for _ in range(repeats)])
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    seconds = [before.elapsed_time(after) / 1000 for before, after in itertools.pairwise(marks)]
    return timing(seconds, torch.cuda.max_memory_allocated())


def _wall_seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def machine() -> dict[str, Any]:
    """What the numbers belong to."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "compute_capability": ".".join(map(str, torch.cuda.get_device_capability())) if cuda else None,
        "device_bytes": torch.cuda.get_device_properties(0).total_memory if cuda else None,
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def require_new(path: Path | None) -> None:
    """Before hours are measured: the results of an earlier run are not replaced.

    Raises:
        WriteError: there is a file of that name.
    """
    if path is not None and path.exists():
        raise WriteError(f"{path} is there already; give --json another name, or move that file")


def write_json(
    path: Path,
    config: Mapping[str, Any],
    stages: Mapping[str, Timing],
    total: Timing | None = None,
    **more: Any,
) -> None:
    """Write {"machine", "config", "stages": {NAME: {"median_s", "min_s", "max_s"}}, "total", "peak_bytes"}.

    config: what was measured, and how. total: of the whole, null if the stages are apart from each other. peak_bytes is
    the largest of all. more: further entries.
    """
    timings = [*stages.values(), *([] if total is None else [total])]
    content = {
        "machine": machine(),
        "config": dict(config),
        "stages": {name: stage.seconds() for name, stage in stages.items()},
        "total": None if total is None else total.seconds(),
        "peak_bytes": max((timing.peak_bytes for timing in timings), default=0),
        **more,
    }
    require_new(path)
    write_text(path, json.dumps(content, indent=2) + "\n")
