"""The experiment configuration: YAML files and command-line overrides.

A relative path in a file or a default starts from the project's folder, wherever the program is started and wherever
the file lies: `load/shapeworld` is the shipped one. Where the package is installed without a checkout, the project's
folder is the working directory. A relative path on the command line starts, as everywhere, from the working directory.
"""

import copy
import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from triplaneturbo.base import parse_config
from triplaneturbo.bounds import Count, ProjectPath, Range, Seed, inside
from triplaneturbo.errors import ConfigError
from triplaneturbo.interpolation import Place, check_size, resolve

_DERIVED = "it follows from exp_root_dir, name, tag and timestamp; set those"

# Options that hold a path, for the command line, by their names: there the classes are not known yet.
_PATH = re.compile(r"((.+_)?(path|dir)(_2nd)?|weights|resume)")


@dataclass(kw_only=True)
class CheckpointConfig:
    """When training is saved and what is kept."""

    save_last: bool = True
    """Keep `last.ckpt`, the newest state."""
    save_top_k: Annotated[int, Range(-1)] = -1
    """How many numbered checkpoints stay: the newest k, -1 all, 0 none."""
    every_n_train_steps: Annotated[int, Range(1)] = 1000
    """Optimizer steps between two checkpoints."""


@dataclass(kw_only=True)
class ExperimentConfig:
    """Everything a launch needs. Holds values only: it touches no disk and no clock."""

    REFUSED: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("exp_dir", "trial_name", "trial_dir"), _DERIVED),
        "from_environment": "it is read off the values; write ${oc.env:NAME} in place of one",
        "guidance": "teachers belong to the system; write system.guidance, such as system.guidance.rd_weight=0",
    }

    name: Annotated[str, inside] = "default"
    """Name of the experiment, a folder in exp_root_dir."""
    description: str = ""
    """For people."""
    tag: Annotated[str, inside] = ""
    """Name of the trial, a folder in the experiment's."""
    seed: Seed = 0
    """Key of every random draw."""
    compat: Literal["right", "original"] | None = None
    """`original` reproduces the original's mistakes, see docs/compat.md; handed to every component that has this
    option. None: `right`, and a launch lists where that makes a difference."""
    use_timestamp: bool = True
    """Append the time of the launch to the trial's name (one process only)."""
    timestamp: Annotated[str, inside] | None = None
    """The text to append; None: the launcher asks the clock."""
    exp_root_dir: ProjectPath = "outputs"
    """Where experiments are written."""
    n_gpus: Count = 1
    """Number of processes, for interpolations; the launcher sets it."""
    resume: Literal["auto"] | ProjectPath | None = None
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
    from_environment: dict[Place, str] = field(default_factory=dict, compare=False, repr=False)
    """Texts of the values that come from environment variables, which are not written to files."""

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
    files = ", ".join(map(str, paths))
    layers = [_read(path) for path in paths]
    try:
        merged = OmegaConf.merge(*layers, *map(_parse_override, overrides), values)
        given, from_environment = resolve(merged)
    except MissingMandatoryValue as error:
        key = error.full_key
        raise ConfigError(f"{files}: {key} has no value yet; add {key}=... to the command line") from error
    except InterpolationResolutionError as error:
        raise ConfigError(f"{files}: {error.full_key} refers to something that cannot be resolved: {error}") from error
    except (OmegaConfBaseException, TypeError, RecursionError) as error:  # such as a list in place of a mapping
        raise ConfigError(f"{files}, {' '.join(overrides)}: {error}") from error
    return dataclasses.replace(
        parse_config(ExperimentConfig, given, "the configuration"), from_environment=from_environment
    )


def _read(path: str | Path) -> Any:
    try:
        text = Path(path).read_text(encoding="utf-8")
        check_size(text)
        layer = OmegaConf.create(text) if text.strip() else None
    except FileNotFoundError as error:
        raise ConfigError(f"there is no configuration file {path}") from error
    except OSError as error:
        raise ConfigError(f"the configuration file {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    except (ValueError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not OmegaConf.is_dict(layer):
        raise ConfigError(f"{path} must hold a mapping of options")
    return layer


def _parse_override(override: str) -> Any:
    if "=" not in override or override.startswith(("-", "=")):
        raise ConfigError(f"{override!r} is neither a flag nor an override of the form key.key=value")
    key, _, value = override.partition("=")
    if len(override) > 100_000 or not re.fullmatch(r"[^.\s\[\]{}$]+(\.[^.\s\[\]{}$]+){0,30}", key):
        raise ConfigError(f"{override[:80]!r} does not name an option in the form key.key=value")
    try:
        check_size(value)
        return OmegaConf.create(_from_here(OmegaConf.to_container(OmegaConf.from_dotlist([override]))))
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of {override!r} is not valid YAML; quote it: key='\"value\"'") from error
    except (ValueError, OmegaConfBaseException) as error:
        raise ConfigError(f"the value of {override[:80]!r}: {error}") from error


def _from_here(options: Any, key: str = "") -> Any:
    """`options` with the relative paths in them as they are from the working directory."""
    if isinstance(options, dict):
        return {key: _from_here(value, str(key)) for key, value in options.items()}
    if isinstance(options, str) and options not in ("", "auto") and "${" not in options and _PATH.fullmatch(key):
        return str(Path.cwd() / options)
    return options


def to_yaml(experiment: ExperimentConfig) -> str:
    """The resolved configuration as YAML, to be kept beside the results; `${oc.env:NAME}` stays as it is."""
    values = {name: value for name, value in vars(experiment).items() if name != "from_environment"}
    values = copy.deepcopy(values | {"checkpoint": vars(experiment.checkpoint)})
    for (*above, key), text in experiment.from_environment.items():
        reduce(lambda level, part: level[part], above, values)[key] = text
    return OmegaConf.to_yaml(OmegaConf.create(values))
