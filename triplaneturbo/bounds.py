"""What the value of an option may be, declared with its type: `height: Annotated[int, Range(1, 8192)]`.

`base.parse_config` calls what stands beside the type with the value and its place; it returns the value, or another
form of it, or raises ConfigError. Whatever is declared here holds for every number of a list and of a schedule.
"""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from triplaneturbo.errors import ConfigError
from triplaneturbo.places import PROJECT
from triplaneturbo.schedule import Schedule

Value = TypeVar("Value", bound=int | float | Schedule)


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included unless `above` leaves out low or `below` leaves out high."""

    low: int | float = -math.inf
    high: int | float = math.inf
    above: bool = False
    below: bool = False
    even: bool = False

    def __call__(self, value: Value, place: str) -> Value:
        """`value` if all its numbers are in the range.

        Raises:
            ConfigError: with the range and the number that is not in it.
        """
        numbers = [level for _, level in value.points] if isinstance(value, Schedule) else [value]
        for number in numbers:
            if number not in self:
                raise ConfigError(f"{place} must be {self}, not {number!r}")
        return value

    def __contains__(self, number: int | float) -> bool:
        low = number > self.low if self.above else number >= self.low
        high = number < self.high if self.below else number <= self.high
        return low and high and not (self.even and number % 2)

    def __str__(self) -> str:
        if math.isinf(self.high):
            text = f"above {self.low:g}" if self.above else f"{self.low:g} or more"
        else:
            text = f"in {'(' if self.above else '['}{_short(self.low)}, {_short(self.high)}{')' if self.below else ']'}"
        return f"an even number {text}" if self.even else text


def _short(number: int | float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def inside(value: str, place: str) -> str:
    """A relative path that stays in the folder it is appended to.

    Raises:
        ConfigError: it is absolute, leads upwards, or no file can have it.
    """
    path = Path(value)
    if path.is_absolute() or ".." in path.parts:
        raise ConfigError(f"{place} must be a name or path that stays in its folder, not {value!r}")
    return _possible(value, place)


def file_name(value: str, place: str) -> str:
    """The name of a file, without a folder.

    Raises:
        ConfigError: it is not one.
    """
    if Path(value).name != value:
        raise ConfigError(f"{place} must be the name of a file, not {value!r}")
    return inside(value, place)


def from_project(value: str, place: str) -> str:
    """A path as it is from everywhere: a relative one starts from the project's folder."""
    return str(PROJECT / _possible(value, place)) if value else value


def present(value: str, place: str) -> str:
    """The path of a file that is there.

    Raises:
        ConfigError: it is not.
    """
    if not Path(value).is_file():
        raise ConfigError(
            f"{place}: there is no file {value}; a relative path in a file or a default starts from {PROJECT}, one on "
            "the command line from the working directory"
        )
    return value


def _possible(path: str, place: str) -> str:
    """A path that the file system can have."""
    if re.search(r"[\x00-\x1f]", path) or any(len(os.fsencode(part)) > 200 for part in Path(path).parts):
        raise ConfigError(f"{place} cannot be the path of a file: {path[:80]!r}")
    return path


# Paths to files that are read or folders that are written; see `config.load_config` for those of the command line.
ProjectPath = Annotated[str, from_project]
ProjectFile = Annotated[str, from_project, present]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Count = Annotated[int, Range(1, 2**20)]
Width = Annotated[int, Range(1, 2**16)]
Pixels = Annotated[int, Range(1, 8192)]
LatentSize = Annotated[int, Range(1, 1024)]
GridPoints = Annotated[int, Range(2, 2048)]
Length = Annotated[float, Range(0, 1000, above=True)]
Degrees = Annotated[float, Range(-360, 360)]
FieldOfView = Annotated[float, Range(0, 180, above=True, below=True)]
Share = Annotated[float, Range(0, 1)]
ScheduledShare = Annotated[Schedule, Range(0, 1)]
Weight = Annotated[float, Range(0, 1e6)]
ScheduledWeight = Annotated[Schedule, Range(0, 1e6)]
Elevation = Annotated[float, Range(-90, 90)]
