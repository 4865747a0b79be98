"""One recorded case: what went in, what came out, and how far this project is from it."""

import json
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triplaneturbo.schedule import Progress

log = logging.getLogger(__name__)

# Hyper-parameters that describe a case and change nothing: its numbers are in its arrays.
_PROSE = {"case", "family", "note", "seed"}


class Meta(Mapping):
    """The hyper-parameters of a case, which remember those that nothing has asked for."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values
        self.unread = set(values) - _PROSE

    def __getitem__(self, key: str) -> Any:
        self.unread.discard(key)
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Case:
    """The arrays and the hyper-parameters of one file.

    Arrays are read by `case[name]`, hyper-parameters by `case.meta[key]`; `close` and `equal` compare, if the case
    carries what they are asked for. Failures are collected, so that one run shows them all; an array or a
    hyper-parameter that nothing has read is a failure, too, and so is a case of which nothing was compared.
    """

    def __init__(self, path: Path) -> None:
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
        self.meta = Meta(json.loads(bytes(arrays.pop("meta_json")).decode()))
        device = torch.get_default_device()
        self.arrays = {name: torch.from_numpy(value).to(device) for name, value in arrays.items()}
        self.unread = set(self.arrays)
        self.judged: set[str] = set()  # the names of what was compared, arrays and others
        self.failures: list[str] = []
        self.errors: dict[str, float] = {}

    @property
    def family(self) -> str:
        return self.meta["family"]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getitem__(self, name: str) -> Tensor:
        if name not in self:
            raise KeyError(f"family {self.family} needs {name!r}, which the case does not carry")
        self.unread.discard(name)
        return self.arrays[name]

    def get(self, name: str, default: Tensor) -> Tensor:
        if name not in self:
            return default
        return self[name]

    def with_prefix(self, prefix: str) -> list[str]:
        """What follows `prefix` in the names of arrays that begin with it."""
        return [name.removeprefix(prefix) for name in self.arrays if name.startswith(prefix)]

    def ignore(self, *names: str) -> None:
        """Arrays that have no counterpart here; the caller says why."""
        self.unread.difference_update(names)

    def told_by_arrays(self, *keys: str) -> None:
        """Hyper-parameters that say how large the arrays are, or what stands in them: the arrays tell."""
        self.meta.unread.difference_update(keys)

    def option(self, key: str, *allowed: Any) -> Any:
        """meta[key], which must be one of `allowed`."""
        value = self.meta[key]
        if value not in allowed:
            raise NotImplementedError(f"{key} is {value!r}; this runner knows {', '.join(map(repr, allowed))}")
        return value

    def options(self, *others: str) -> dict[str, Any]:
        """All of meta but `others` and what only describes the case, for a component that rejects what it does not
        know."""
        return {key: self.meta[key] for key in self.meta if key not in {*_PROSE, *others}}

    @property
    def progress(self) -> Progress:
        """Where the schedules stand; at their start if the case does not say."""
        return Progress(self.meta.get("global_step", 0), self.meta.get("epoch", 0))

    def close(
        self,
        name: str,
        actual: Tensor | float,
        tolerance: float,
        *,
        where: Tensor | None = None,
        stride: int = 1,
        outliers: float = 0.0,
    ) -> None:
        """max |actual - expected| over max |expected| is at most `tolerance`; nothing is asked if the case does not
        carry the array. A number may be recorded as an array with one entry.

        where: the entries that are compared; default: all.
        stride: the stored pictures [M, H, W, C] are every so many-th pixel of the actual ones.
        outliers: this share of the pixels [..., C] may be further away.
        """
        if name not in self:
            return
        expected = self[name].double()
        actual = torch.as_tensor(actual, device=expected.device).detach().double()
        if stride > 1:
            actual = actual[:, ::stride, ::stride]
        if actual.dim() == 0:
            actual = actual.expand_as(expected) if expected.numel() == 1 else actual
        if actual.shape != expected.shape:
            self.failures.append(f"{name}: shape {list(actual.shape)}, recorded {list(expected.shape)}")
            return
        gap = (actual - expected).abs() / expected.abs().max().clamp(min=1e-30)
        gap = gap if where is None else gap[where.expand_as(gap)]
        self.mostly_within(name, gap.amax(-1) if outliers else gap, tolerance, outliers)

    def equal(self, name: str, actual: Tensor) -> None:
        """Every entry is the same, if the case carries the array."""
        if name not in self:
            return
        expected = self[name]
        same = actual.shape == expected.shape and bool((actual == expected).all())
        self.within(name, 0.0 if same else float("inf"), 0.0)

    def mostly_within(self, name: str, errors: Tensor, tolerance: float, outliers: float) -> None:
        """All but a share `outliers` of the errors, rounded down to a number of them, are at most `tolerance`."""
        descending = errors.flatten().nan_to_num(nan=math.inf).sort(descending=True).values
        scope = f" for all but {outliers:.1%}" if outliers else ""
        self.within(name, float(descending[int(outliers * len(descending))]), tolerance, scope)

    def within(self, name: str, error: float, tolerance: float, scope: str = "") -> None:
        """An error measured by the caller is at most `tolerance`; NaN is not. scope: of what, for the message."""
        self.judged.add(name.partition(": ")[0])
        self.errors[name] = max(error, self.errors.get(name, 0.0))
        if not error <= tolerance:
            self.failures.append(f"{name}: error {error:.2e}, tolerance {tolerance:.0e}{scope}")

    def require(self, name: str, condition: bool) -> None:
        """`name` is a fact that must hold."""
        self.judged.add(name.partition(": ")[0])
        if not condition:
            self.failures.append(f"{name}: does not hold")

    def verdict(self) -> None:
        """Log the errors; raise AssertionError if there were failures or arrays that nothing has read."""
        if self.errors:
            worst = max(self.errors, key=self.errors.get)
            log.info("%s: %d compared, largest error %.1e (%s)", self.family, len(self.errors), *self._of(worst))
        failures = list(self.failures)
        if not self.judged & self.arrays.keys():
            failures.append("the case carries nothing that can be compared")
        if self.unread:
            failures.append(f"not compared: {', '.join(sorted(self.unread))}")
        if self.meta.unread:
            failures.append(f"hyper-parameters without effect here: {', '.join(sorted(self.meta.unread))}")
        assert not failures, "\n".join([f"family {self.family}:", *failures])

    def _of(self, name: str) -> tuple[float, str]:
        return self.errors[name], name
