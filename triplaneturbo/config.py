"""The experiment configuration: YAML files, command-line overrides, resolvers."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from triplaneturbo.base import parse_config
from triplaneturbo.errors import ConfigError

_DERIVED = "it follows from exp_root_dir, name, tag and timestamp; set those"

RESOLVERS = {
    "calc_exp_lr_decay_rate": lambda factor, n: factor ** (1.0 / n),
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "idiv": lambda a, b: a // b,
    "basename": os.path.basename,
    "rmspace": lambda text, substitute: text.replace(" ", substitute),
    "tuple2": lambda x: [float(x), float(x)],
    "gt0": lambda x: x > 0,
    "not": lambda x: not x,
    # "scheduled maximum above 0": of one schedule, of either of two.
    "cmaxgt0": lambda schedule: _largest(schedule) > 0,
    "cmaxgt0orcmaxgt0": lambda a, b: max(_largest(a), _largest(b)) > 0,
}


@dataclass(kw_only=True)
class CheckpointConfig:
    """When training is saved and what is kept."""

    save_last: bool = True
    """Keep `last.ckpt`, the newest state."""
    save_top_k: int = -1
    """How many numbered checkpoints stay: the newest k, -1 all, 0 none."""
    every_n_train_steps: int = 1000
    """Optimizer steps between two checkpoints."""

    def __post_init__(self) -> None:
        if self.every_n_train_steps < 1:
            raise ConfigError(f"checkpoint.every_n_train_steps must be 1 or more, not {self.every_n_train_steps}")
        if self.save_top_k < -1:
            raise ConfigError(f"checkpoint.save_top_k must be -1 (all), 0 (none) or a number, not {self.save_top_k}")


@dataclass(kw_only=True)
class ExperimentConfig:
    """Everything a launch needs. Holds values only: it touches no disk and no clock."""

    REFUSED: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("exp_dir", "trial_name", "trial_dir"), _DERIVED),
        "guidance": "teachers belong to the system; write system.guidance, such as system.guidance.rd_weight=0",
    }

    name: str = "default"
    """Name of the experiment, a folder in exp_root_dir."""
    description: str = ""
    """For people."""
    tag: str = ""
    """Name of the trial, a folder in the experiment's."""
    seed: int = 0
    """Key of every random draw."""
    compat: Literal["right", "original"] | None = None
    """`original` reproduces the original's mistakes, see docs/compat.md; handed to every component that has this
    option. None: `right`, and a launch lists where that makes a difference."""
    use_timestamp: bool = True
    """Append the time of the launch to the trial's name (one process only)."""
    timestamp: str | None = None
    """The text to append; None: the launcher asks the clock."""
    exp_root_dir: str = "outputs"
    """Where experiments are written."""
    n_gpus: int = 1
    """Number of processes, for interpolations; the launcher sets it."""
    resume: str | None = None
    """A checkpoint to continue; `auto`: the newest of this experiment and tag, if there is one."""
    data_type: str
    """Registered name of the data module."""
    data: dict = field(default_factory=dict)
    """Its options."""
    system_type: str
    """Registered name of the system."""
    system: dict = field(default_factory=dict)
    """Its options."""
    trainer: dict = field(default_factory=dict)
    """Arguments of the Lightning trainer."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When training is saved."""

    @property
    def exp_dir(self) -> Path:
        """exp_root_dir/name."""
        return Path(self.exp_root_dir) / self.name

    @property
    def trial_name(self) -> str:
        """tag, then timestamp."""
        return self.tag + (self.timestamp or "")

    @property
    def trial_dir(self) -> Path:
        """exp_root_dir/name/trial_name."""
        return self.exp_dir / self.trial_name

    @property
    def handed_down(self) -> dict[str, Any]:
        """Options given once, for every component that has them."""
        return {"seed": self.seed, "compat": self.compat or "right"}


def load_config(paths: Sequence[str | Path], overrides: Sequence[str] = (), **values: Any) -> ExperimentConfig:
    """Read an experiment.

    Args:
        paths: YAML files; later ones win.
        overrides: `key.key=value` texts as on the command line; they win over the files.
        values: top-level values known to the launcher (`n_gpus`).

    Raises:
        UnknownNameError: a top-level key that does not exist. Keys inside a component's options are checked when the
            component is built.
        ConfigError: a file cannot be read, a required value is missing, an interpolation fails.
    """
    for name, resolver in RESOLVERS.items():
        OmegaConf.register_resolver(name, resolver, replace=True)
    files = ", ".join(map(str, paths))
    layers = [_read(path) for path in paths]
    try:
        merged = OmegaConf.merge(*layers, *map(_parse_override, overrides), values)
        given = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key
        raise ConfigError(f"{files}: {key} has no value yet; add {key}=... to the command line") from error
    except InterpolationResolutionError as error:
        raise ConfigError(f"{files}: {error.full_key} refers to something that cannot be resolved: {error}") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{files}: {error}") from error
    return parse_config(ExperimentConfig, given, "the configuration")


def _read(path: str | Path) -> Any:
    try:
        layer = OmegaConf.load(path)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no configuration file {path}") from error
    except OSError as error:
        raise ConfigError(f"the configuration file {path} cannot be read: {error}") from error
    except (UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not OmegaConf.is_dict(layer):
        raise ConfigError(f"{path} must hold a mapping of options")
    return layer


def _parse_override(override: str) -> Any:
    if "=" not in override or override.startswith(("-", "=")):
        raise ConfigError(f"{override!r} is neither a flag nor an override of the form key.key=value")
    try:
        return OmegaConf.from_dotlist([override])
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of {override!r} is not valid YAML; quote it: key='\"value\"'") from error


def _largest(schedule: Any) -> float:
    """The largest of a scheduled value's two ends, as the original defines it."""
    if not isinstance(schedule, Sequence):
        return float(schedule)
    first = 0 if len(schedule) == 3 else 1
    return max(schedule[first : first + 2])


def to_yaml(experiment: ExperimentConfig | Mapping[str, Any]) -> str:
    """The resolved configuration as YAML, to be kept beside the results."""
    return OmegaConf.to_yaml(OmegaConf.create(vars(experiment) | {"checkpoint": vars(experiment.checkpoint)}))
