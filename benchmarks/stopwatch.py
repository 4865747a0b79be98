"""Seconds of the stages of a program that runs as it is."""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch


class Stopwatch:
    """Seconds of named stages of the micro-batch under way; what one stage calls by another's name counts for both."""

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda
        self._spans: list[tuple[str, Any, Any]] = []

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def timed(self, name: str, work: Callable) -> Callable:
        """`work`, timed as the stage `name`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            start = self._now()
            result = work(*args, **kwargs)
            self._spans.append((name, start, self._now()))
            return result

        return call

    def watch(self, owner: object, method: str, name: str) -> None:
        """Time a method of an object from now on."""
        setattr(owner, method, self.timed(name, getattr(owner, method)))

    def read(self) -> dict[str, float]:
        """The sums since the last reading; waits for the device."""
        if self.cuda:
            torch.cuda.synchronize()
        sums: dict[str, float] = defaultdict(float)
        for name, start, stop in self._spans:
            sums[name] += start.elapsed_time(stop) / 1000 if self.cuda else stop - start
        self._spans.clear()
        return dict(sums)
