"""The folder of a run: the checkpoint it continues, one writer, and what each of its lives was given.

Process 0 decides all of this, and the others of the run are told.
"""

import dataclasses
import itertools
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch.distributed as dist

from triplaneturbo.config import ExperimentConfig, Reading, read_config
from triplaneturbo.errors import USER_ERRORS, ConfigError
from triplaneturbo.lock import FolderLock
from triplaneturbo.storage import copy_file, write_text
from triplaneturbo.systems.checkpoint import resolve_resume

log = logging.getLogger(__name__)

# What process 0 decided, for the processes that Lightning starts for it.
HANDED_DOWN = "TRIPLANETURBO_TRIAL"
# Keys that say where a run is or how it was started, not what it is.
_PLACE = ("resume", "name", "tag", "use_timestamp", "timestamp", "exp_root_dir")
_NOT_GIVEN = "not given"


@dataclass(frozen=True)
class Trial:
    """A run's configuration, as it was read and with its folder named, the checkpoint it starts from, and in training
    the folder's lock, which process 0 holds."""

    reading: Reading
    experiment: ExperimentConfig
    checkpoint: Path | None
    lock: FolderLock | None

    def record(self, configs: Sequence[str]) -> None:
        """Write what this life of the run was given to configs/life-NNN: the raw files, the resolved configuration, the
        command. The newest is also in configs/ and cmd.txt."""
        folder = self.experiment.trial_dir
        raw = "\n".join(Path(path).read_text(encoding="utf-8") for path in configs)
        texts = {
            "configs/raw.yaml": raw,
            "configs/parsed.yaml": self.reading.to_yaml(timestamp=self.experiment.timestamp),
            "cmd.txt": shlex.join(sys.argv) + "\n",
        }
        lives = (folder / "configs" / f"life-{number:03}" for number in itertools.count(1))
        life = next(path for path in lives if not path.exists())
        if life.name == "life-001" and (folder / "configs" / "parsed.yaml").is_file():  # of a version without lives
            for name in filter(lambda name: (folder / name).is_file(), texts):
                copy_file(folder / name, life / Path(name).name)
            life = next(lives)
        for place in (lambda name: life / Path(name).name, folder.joinpath):
            for name, text in texts.items():
                write_text(place(name), text)


def choose(experiment: ExperimentConfig) -> tuple[ExperimentConfig, Path | None]:
    """`experiment` with its trial named, and the checkpoint to start from.

    `resume=auto` continues in the folder of the checkpoint it finds; any other run of a single process gets a folder
    of its own by the time of its launch.
    """
    checkpoint = resolve_resume(experiment.resume, experiment.exp_dir, experiment.tag)
    timestamp = experiment.timestamp
    if experiment.resume == "auto" and checkpoint:
        trial = checkpoint.parent.parent.relative_to(experiment.exp_dir)
        timestamp = str(trial).removeprefix(experiment.tag)
    elif experiment.use_timestamp and timestamp is None and experiment.n_gpus == 1:
        timestamp = time.strftime("@%Y%m%d-%H%M%S")
    if experiment.resume == "auto":
        log.info("resume=auto: %s", checkpoint or f"nothing saved yet in {experiment.exp_dir}, starting at step 0")
    return dataclasses.replace(experiment, timestamp=timestamp), checkpoint


@contextmanager
def enter_trial(
    reading: Reading, experiment: ExperimentConfig, trainer: pl.Trainer, *, training: bool
) -> Iterator[Trial]:
    """Choose the folder and the checkpoint of a run, the same in all of its processes; in training also lock the
    folder. Evaluation writes only files that are complete or not there, and none that training writes.

    Raises:
        ConfigError: there is no such checkpoint, or the run it belongs to cannot be continued with this configuration.
        WriteError: another run is writing into the folder.
    """
    with ExitStack() as stack:
        lock: FolderLock | None = None

        def decide() -> list[str | None]:
            nonlocal lock
            chosen, checkpoint = choose(experiment)
            if training and trainer.is_global_zero:
                lock = stack.enter_context(FolderLock(chosen.trial_dir))
                if checkpoint:
                    compare_with_past(reading, checkpoint)
            return [chosen.timestamp, str(checkpoint) if checkpoint else None]

        timestamp, checkpoint = _decide_once(decide, trainer)
        stack.callback(os.environ.pop, HANDED_DOWN, None)
        chosen = dataclasses.replace(experiment, timestamp=timestamp)
        yield Trial(reading, chosen, Path(checkpoint) if checkpoint else None, lock)


def _decide_once(decide: Callable[[], list[str | None]], trainer: pl.Trainer) -> list[str | None]:
    """The result of `decide`, or its error, of process 0 in all processes of the run.

    Lightning starts the other processes of a machine when training begins, with this one's environment. Those that
    torchrun, SLURM and the like have started are here already, and meet. Of several machines on which this program
    was started by hand, the first process decides for its machine; `TrialGuard` sees whether they agree.
    """
    if trainer.world_size == 1:
        return decide()
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if environment is None or not environment.creates_processes_externally:
        result = decide()
        os.environ[HANDED_DOWN] = json.dumps(result)
        return result
    if not trainer.is_global_zero and HANDED_DOWN in os.environ:
        return json.loads(os.environ[HANDED_DOWN])
    trainer.strategy.setup_environment()
    result = []
    error: Exception | None = None
    if trainer.is_global_zero:
        try:
            result = decide()
        except USER_ERRORS as raised:
            error = raised
    result, error = trainer.strategy.broadcast((result, error))
    if error:
        raise error
    return result


class TrialGuard(pl.Callback):
    """Stops a run whose processes do not continue the same checkpoint, or that has lost the lock of its folder."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compare the checkpoints before any is loaded."""
        if trainer.world_size > 1:
            chosen: list[Any] = [None] * trainer.world_size
            dist.all_gather_object(chosen, str(self.trial.checkpoint))
            if len(set(chosen)) > 1:
                raise ConfigError(
                    f"process 0 starts from {chosen[0]}, others from {set(chosen[1:])}: all machines must see the same "
                    "files. Give resume=PATH, or start the processes with torchrun or srun"
                )

    def _check(self, *args: object, **kwargs: object) -> None:
        if self.trial.lock:
            self.trial.lock.check()

    on_train_batch_end = on_validation_batch_end = on_test_batch_end = _check


def compare_with_past(reading: Reading, checkpoint: Path) -> None:
    """Log as a table what differs from the configuration that the run of `checkpoint` had last.

    A run may go on with another batch size, learning rate or number of steps: what it has learned is still what the
    log says. Refused is what would make its past another one. With another seed it would meet samples again, or
    never, while log and checkpoint count them as new; another system is another method. Other prompts are refused by
    the data module, which knows their content.

    Raises:
        ConfigError: a seed or the system differs.
    """
    path = checkpoint.parent.parent / "configs" / "parsed.yaml"
    try:
        then = read_config([path]).complete()
    except ConfigError as error:
        log.warning("resume: %s cannot be compared with what the run was before: %s", checkpoint, error)
        return
    rows = differences(then, reading.complete())
    if not rows:
        return
    width, middle = (max(len(row[column]) for row in [("key", "then"), *rows]) for column in (0, 1))
    table = "\n".join(f"  {key:{width}}  {old:{middle}}  {new}" for key, old, new in [("key", "then", "now"), *rows])
    for key, old, new in rows:
        if key == "system.type" or key.rpartition(".")[2] == "seed":
            raise ConfigError(
                f"resume: {key} was {old} in the run of {checkpoint} and is {new} now: this would not be the same run. "
                f"Give {key}={old} to continue it, or start a new one from its weights with "
                f"system.weights={checkpoint}\n{table}"
            )
    log.warning("resume: this configuration is not that of %s\n%s", path, table)


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Dotted key, old and new value of all options that differ, leaving out where the run is."""
    old, new = dict(_flat(then)), dict(_flat(now))
    rows = []
    for key in sorted(old.keys() | new.keys()):
        values = [side.get(key, _NOT_GIVEN) for side in (old, new)]
        if values[0] != values[1] and key not in _PLACE:
            rows.append((key, str(values[0]), str(values[1])))
    return rows


def _flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
