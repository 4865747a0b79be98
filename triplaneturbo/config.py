"""The experiment configuration: YAML files and command-line overrides.

A file may name others that it builds on, `base: NAME.yaml` (or a list), beside it or among the recipes: it then says
what differs. A mapping changes the one below it key by key; one with another `type` takes its place; null takes away
what a mapping of named things has.

A relative path in a file or a default starts from the project's folder, wherever the program is started and wherever
the file lies: `load/shapeworld` is the shipped one. Where the package is installed without a checkout, the project's
folder is the working directory. A relative path on the command line starts, as everywhere, from the working directory.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from triplaneturbo.base import Chosen, Part, as_tree, parse_config
from triplaneturbo.bounds import Count, ProjectPath, Range, Seed, inside
from triplaneturbo.errors import ConfigError
from triplaneturbo.interpolation import Place, check_size, plain, resolve, resolve_known
from triplaneturbo.legacy import dialects
from triplaneturbo.legacy.trees import merge
from triplaneturbo.ops.backends import Backends
from triplaneturbo.performance import Level, Precision
from triplaneturbo.places import find_recipe
from triplaneturbo.storage import Json, Tree

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

    name: Annotated[str, inside] = "default"
    """Name of the experiment, a folder in exp_root_dir."""
    description: str = ""
    """For people."""
    tag: Annotated[str, inside] = ""
    """Name of the trial, a folder in the experiment's."""
    seed: Seed = 0
    """Key of every random draw."""
    use_timestamp: bool = True
    """Append the time of the launch to the trial's name (one process only)."""
    timestamp: Annotated[str, inside] | None = None
    """The text to append; None: the launcher asks the clock."""
    exp_root_dir: ProjectPath = "outputs"
    """Where experiments are written."""
    n_gpus: Count = 1
    """Number of processes, for interpolations; the launcher sets it."""
    performance: Level = "fast"
    """reference: as the formulas stand; fast: kernels and graphs of this project; max: also shorter factors in products
    of float32 (docs/performance.md)."""
    precision: Precision = "auto"
    """What network_dtype: auto means: 32, bf16 or 16 bits; auto: bfloat16 on CUDA, float32 elsewhere."""
    backends: Backends = field(default_factory=Backends)
    """What does an operation that several packages can do; `triplaneturbo doctor` says what auto takes."""
    resume: Literal["auto"] | ProjectPath | None = None
    """A checkpoint to continue; `auto`: the newest of this experiment and tag, if there is one."""
    data: Annotated[Chosen, Part("data")]
    """What is trained on."""
    system: Annotated[Chosen, Part("system")]
    """What is trained."""
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


@dataclass(frozen=True)
class Reading:
    """A configuration as it was read.

    tree: in our names, resolved. origins: by dotted place, where a value was given. from_environment: by place, the
    texts of the values that come from environment variables, which are not written to files. differences: by name, in
    what results differ from those of an original configuration (docs/compat.md), if it does not say `compat`.
    """

    tree: Tree
    origins: dict[str, str]
    from_environment: dict[Place, str]
    differences: dict[str, str]

    def experiment(self) -> ExperimentConfig:
        """With every component's options checked.

        Raises:
            UnknownNameError: a name or an option that does not exist.
            ConfigError: a value that an option cannot have. Either says where it was given.
        """
        try:
            return parse_config(ExperimentConfig, copy.deepcopy(self.tree), "")
        except ConfigError as error:
            place, option = re.findall(r"^([\w.]*)(?: has no option '(\w+)')?", str(error))[0]
            origin = _origin(f"{place}.{option}".rstrip("."), self.origins)
            raise error if origin == "default" else type(error)(f"{error} ({origin})") from None

    def complete(self) -> Tree:
        """The tree with all defaults; what was given stays as it was written."""
        return merge(as_tree(self.experiment()), self.tree)

    def to_yaml(self, **known: Json) -> str:
        """Everything as YAML, defaults too, to be kept beside results; `${oc.env:NAME}` stays as it is.

        known: further top-level values.
        """
        values = self.complete() | {key: value for key, value in known.items() if value is not None}
        for (*above, key), text in self.from_environment.items():
            level: Json = values
            for part in above:
                level = level[part]
            level[key] = text
        return _yaml(values)

    def show(self) -> str:
        """The whole configuration as YAML, defaults too, each value with where it came from."""
        return _annotated(as_tree(self.experiment()), self.origins)


def load_config(paths: Sequence[str | Path], overrides: Sequence[str] = (), **values: Json) -> ExperimentConfig:
    """Read an experiment; see `read_config`."""
    return read_config(paths, overrides, **values).experiment()


def read_config(paths: Sequence[str | Path], overrides: Sequence[str] = (), **values: Json) -> Reading:
    """Read the tree of an experiment, in whatever dialect it is written (`legacy.dialects`).

    Args:
        paths: YAML files; later ones win.
        overrides: `key.key=value` texts as on the command line; they win over the files.
        values: top-level values known to the launcher (`n_gpus`).

    Raises:
        ConfigError: a file cannot be read, a required value is missing, an interpolation fails.
        UnknownNameError: an option of the original's dialect that it does not have.
    """
    files = ", ".join(map(str, paths))
    layers = [layer for path in paths for layer in _with_bases(Path(path), ())]
    given = [dialects.Layer(_parse_override(text), f"command line: {text}") for text in overrides]
    known = [dialects.Layer(values, "the launcher")] if values else []
    try:
        merged = dialects.join(layers, [*given, *known], _resolved)
    except MissingMandatoryValue as error:
        key = error.full_key
        raise ConfigError(f"{files}: {key} has no value yet; add {key}=... to the command line") from error
    except InterpolationResolutionError as error:
        raise ConfigError(f"{files}: {error.full_key} refers to something that cannot be resolved: {error}") from error
    except ConfigError:
        raise
    except (OmegaConfBaseException, TypeError, ValueError, RecursionError) as error:  # such as a list for a mapping
        raise ConfigError(f"{files}, {' '.join(overrides)}: {error}") from error
    return Reading(merged.tree, merged.origins, merged.from_environment, merged.differences)


def translate_file(path: str | Path, overrides: Sequence[str] = ()) -> str:
    """A file of another dialect as YAML in our names; what it leaves open stays open.

    Raises:
        ConfigError: it cannot be read, or is written in our names already.
    """
    layers = _with_bases(Path(path), ())
    if dialects.dialect_of(layers[-1].tree) in ("ours", None):
        raise ConfigError(f"{path} is not in the original's names: there is nothing to translate")
    given = [dialects.Layer(_parse_override(text), f"command line: {text}") for text in overrides]
    try:
        merged = dialects.join(layers, given, lambda tree: resolve_known(OmegaConf.create(tree)))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {error}") from error
    return _yaml(merged.tree)


def _yaml(tree: Tree) -> str:
    return yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)


def _resolved(tree: Tree) -> tuple[Tree, dict[Place, str]]:
    return resolve(OmegaConf.create(tree))


def _with_bases(path: Path, chain: tuple[Path, ...]) -> list[dialects.Layer]:
    """The file, after those it builds on."""
    where = path.resolve()
    if where in chain:
        raise ConfigError(f"{path} builds on itself: {' -> '.join(map(str, (*chain, where)))}")
    tree = _read(path)
    bases = tree.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: base must be the name of a file, or a list of names, not {bases!r}")
    beside = [path.parent / base if (path.parent / base).exists() else find_recipe(base) for base in bases]
    layers = [layer for base in beside for layer in _with_bases(base, (*chain, where))]
    return [*layers, dialects.Layer(tree, str(path))]


def _read(path: str | Path) -> Tree:
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
    if not isinstance(layer, DictConfig):
        raise ConfigError(f"{path} must hold a mapping of options")
    return plain(layer)


def _parse_override(override: str) -> Tree:
    if "=" not in override or override.startswith(("-", "=")):
        raise ConfigError(f"{override!r} is neither a flag nor an override of the form key.key=value")
    key, _, value = override.partition("=")
    if len(override) > 100_000 or not re.fullmatch(r"[^.\s\[\]{}$]+(\.[^.\s\[\]{}$]+){0,30}", key):
        raise ConfigError(f"{override[:80]!r} does not name an option in the form key.key=value")
    try:
        check_size(value)
        return _from_here(plain(OmegaConf.from_dotlist([override])))
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of {override!r} is not valid YAML; quote it: key='\"value\"'") from error
    except (ValueError, OmegaConfBaseException) as error:
        raise ConfigError(f"the value of {override[:80]!r}: {error}") from error


def _from_here(options: Json, key: str = "") -> Json:
    """`options` with the relative paths in them as they are from the working directory."""
    if isinstance(options, dict):
        return {key: _from_here(value, str(key)) for key, value in options.items()}
    if isinstance(options, str) and options not in ("", "auto") and "${" not in options and _PATH.fullmatch(key):
        return str(Path.cwd() / options)
    return options


def _annotated(tree: Tree, origins: Mapping[str, str]) -> str:
    """YAML with the origin of each value behind it."""
    lines: list[tuple[str, str]] = []

    def write(value: Mapping[str, Json], place: str, indent: str) -> None:
        for key, inner in value.items():
            here = f"{place}.{key}" if place else str(key)
            if isinstance(inner, Mapping) and inner:
                lines.append((f"{indent}{key}:", ""))
                write(inner, here, indent + "  ")
            else:
                text = yaml.safe_dump(inner, default_flow_style=True, width=10**6, allow_unicode=True)
                text = text.removesuffix("\n").removesuffix("\n...")
                lines.append((f"{indent}{key}: {text}", _origin(here, origins)))

    write(tree, "", "")
    width = min(80, max(len(text) for text, origin in lines if origin))
    return "\n".join(f"{text:<{width}}  # {origin}" if origin else text for text, origin in lines)


def _origin(place: str, origins: Mapping[str, str]) -> str:
    """Where the value at `place`, or the mapping or list that it is part of, was given."""
    while place:
        if place in origins:
            return origins[place]
        place = place.rpartition(".")[0]
    return "default"
