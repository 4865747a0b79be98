"""Errors a user can act on. Each message says what was given, what is allowed and what to do."""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A configuration file or command-line override cannot be used."""


class UnknownNameError(ConfigError):
    """A registered name, an option or a file key does not exist."""


class EmptyFieldError(ValueError):
    """A field has no surface to extract: everywhere outside, everywhere inside, or not finite."""


class WeightsError(ValueError):
    """A checkpoint cannot be found, read, trusted, or does not fit the model."""


class WriteError(OSError):
    """A file cannot be written: the disk is full, or the place is not one to write to."""


# What the programs of this project report as one message, without a traceback.
USER_ERRORS = (ConfigError, EmptyFieldError, WeightsError, WriteError)


def nearest(name: str, allowed: Iterable[str]) -> str:
    """The tail of an error message: the closest allowed names, or all of them when they are few."""
    options = sorted(allowed)
    matches = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    if matches:
        return "did you mean " + " or ".join(repr(m) for m in matches) + "?"
    if len(options) <= 12:
        return "allowed: " + (", ".join(options) or "none")
    return f"{len(options)} names are allowed, none of them is close"
