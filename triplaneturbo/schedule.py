"""Numbers that change during training.

A schedule is written in YAML as a number, as `[s0, v0, v1, s1]` (linear from v0 at step s0 to v1 at step s1), as
`[v0, v1, s1]` (s0 = 0), or as `[s0, v0, v1, s1, v2, s2, ...]` (piecewise linear through the points). The last
entry decides the clock: an integer counts optimizer steps, a float counts epochs.
"""

import itertools
import sys
from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

from triplaneturbo.errors import ConfigError


class Progress(NamedTuple):
    """Where training stands: `step` counts optimizer steps, `epoch` passes over the prompt library."""

    step: int = 0
    epoch: int = 0


@dataclass(frozen=True)
class Schedule:
    """Piecewise linear function of training progress, constant outside its points.

    points: increasing (time, value) pairs; one pair is a constant.
    clock: "step" or "epoch", what `time` counts.
    """

    points: tuple[tuple[float, float], ...]
    clock: str = "step"

    @classmethod
    def parse(cls, spec: "float | int | list | tuple | Schedule") -> "Schedule":
        """Build a schedule from its YAML form.

        Raises:
            ConfigError: the form is none of those described at the top of this module.
        """
        if isinstance(spec, Schedule):
            return spec
        if _is_number(spec):
            return cls(((0.0, float(spec)),))
        help_text = "write a number, [s0, v0, v1, s1], [v0, v1, s1] or [s0, v0, v1, s1, v2, s2, ...]"
        if not isinstance(spec, (list, tuple)) or not all(map(_is_number, spec)):
            raise ConfigError(f"cannot read {spec!r} as a schedule; {help_text}")
        values = [0, *spec] if len(spec) == 3 else list(spec)
        if len(values) < 4 or len(values) % 2:
            raise ConfigError(f"a schedule of {len(spec)} entries ({spec!r}) has no meaning; {help_text}")
        times = [values[0], *values[3::2]]
        levels = [values[1], values[2], *values[4::2]]
        if any(b <= a for a, b in itertools.pairwise(times)):
            raise ConfigError(f"the times {times} of schedule {spec!r} must increase")
        clock = "step" if isinstance(values[-1], int) else "epoch"
        return cls(tuple(zip(map(float, times), map(float, levels), strict=True)), clock)

    def as_written(self) -> float | list[float | int]:
        """The form in which `parse` reads it."""
        (first_time, first), *others = self.points
        if not others:
            return first
        number = int if self.clock == "step" else float
        (second_time, second), *others = others
        written: list[float | int] = [number(first_time), first, second, number(second_time)]
        for time, value in others:
            written += [value, number(time)]
        return written

    def __call__(self, progress: Progress) -> float:
        """The value at `progress`."""
        return self.at(progress.step if self.clock == "step" else progress.epoch)

    def at(self, now: int | float) -> float:
        """The value at a time of its own clock."""
        (time, value) = self.points[0]
        for next_time, next_value in self.points[1:]:
            share = min(max((now - time) / (next_time - time), 0.0), 1.0)
            if share < 1.0:
                return value + (next_value - value) * share
            time, value = next_time, next_value
        return value


def _is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a finite number that a float can hold."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
