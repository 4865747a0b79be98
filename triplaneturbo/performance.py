"""What is done for speed: one switch, `performance`, and the types of large networks, `precision`.

Both belong to the process, as torch's own switches do: a launch sets them from its configuration (`use`), code that has
a faster way asks `current()`. They change rounding and memory, never what is computed.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

Level = Literal["reference", "fast", "max"]
Precision = Literal["auto", 32, "bf16", 16]


@dataclass(frozen=True)
class Ways:
    """What a level turns on; on CUDA alone, except for what is said to be otherwise."""

    kernels: bool
    """Triton kernels in place of their torch references, and convolutions that store channels last."""
    graphs: bool
    """Networks of unchanging shapes are recorded as CUDA graphs, forward and backward."""
    short_factors: bool
    """Products of float32 tensors take factors of 10 bits (TF32) everywhere, in fields and renderers, too."""
    memory_kept: bool
    """On a CPU: a launch keeps the memory that tensors free, for the next ones (`host.keep_freed_memory`)."""


WAYS: dict[Level, Ways] = {
    "reference": Ways(kernels=False, graphs=False, short_factors=False, memory_kept=False),
    "fast": Ways(kernels=True, graphs=True, short_factors=False, memory_kept=True),
    "max": Ways(kernels=True, graphs=True, short_factors=True, memory_kept=True),
}


@dataclass(frozen=True)
class Performance:
    """The switches of a process. precision: what `network_dtype: auto` means; auto: bfloat16 on CUDA."""

    level: Level = "fast"
    precision: Precision = "auto"

    @property
    def ways(self) -> Ways:
        """What is done."""
        return WAYS[self.level]


_current = Performance()


def current() -> Performance:
    """The switches that hold now."""
    return _current


def use(performance: Performance) -> None:
    """Set the switches of the process, before its networks are built."""
    global _current
    _current = performance
    torch.set_float32_matmul_precision("high" if performance.ways.short_factors else "highest")


@contextmanager
def using(performance: Performance) -> Iterator[None]:
    """The switches within a block; for tests and comparisons."""
    before = current()
    use(performance)
    try:
        yield
    finally:
        use(before)


def kernels_run_on(device: torch.device) -> bool:
    """Triton's: on CUDA where it is installed, unless `performance` is reference; elsewhere in its interpreter only."""
    if not current().ways.kernels or importlib.util.find_spec("triton") is None:
        return False
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


def graphs_run_on(device: torch.device) -> bool:
    """CUDA graphs: on CUDA, unless `performance` is reference, or runs must be equal to the bit."""
    return device.type == "cuda" and current().ways.graphs and not torch.are_deterministic_algorithms_enabled()
