"""Checkpoints that survive a kill: written aside, flushed to the disk, renamed; then the old ones are removed."""

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
from lightning_fabric.plugins import TorchCheckpointIO
from torch.serialization import MAP_LOCATION

from triplaneturbo.config import CheckpointConfig
from triplaneturbo.errors import ConfigError, WeightsError
from triplaneturbo.interruption import Stopped, Wishes, interruption
from triplaneturbo.storage import link_file
from triplaneturbo.weights.checksums import check_archive
from triplaneturbo.weights.files import read_checkpoint, save_checkpoint

log = logging.getLogger(__name__)

LAST = "last.ckpt"
# What a training of Lightning saves, whatever the system, and a file of weights alone does not have.
_STATE = ("state_dict", "global_step", "pytorch-lightning_version", "loops")
_NUMBERED = re.compile(r"epoch=\d+-step=(\d+)\.ckpt")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's reading and writing of checkpoints, made safe: a name that exists is a complete file.

    Files hold tensors and plain values only and are read with `weights_only=True`.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        """Write under a temporary name, flush to the disk, rename."""
        save_checkpoint(path, checkpoint)

    def load_checkpoint(
        self, path: str | Path, map_location: MAP_LOCATION = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read `path` without executing anything stored in it.

        Raises:
            WeightsError: the file cannot be read, or is not the state of a training.
        """
        content = read_checkpoint(path, map_location)
        _require_state(content, path)
        return content


def _require_state(content: dict[str, Any], path: str | Path) -> None:
    missing = [key for key in _STATE if key not in content]
    if missing:
        raise WeightsError(
            f"{path} is not the state of a training (it has no {missing[0]}): resume= cannot continue it; to start "
            f"from its weights give system.weights={path} instead"
        )


class Checkpointer(pl.Callback):
    """Saves the training state every n optimizer steps, at the end of training, and when a signal asks for it.

    It acts on signals after an update only, and after the same one in all processes. A system with manual optimization
    has to let its processes agree (`average_gradients`, `Interruption.agree`); for any other it is done here.

    Args:
        folder: where the files go, as `epoch=E-step=S.ckpt` and `last.ckpt`.
    """

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        self.folder = folder
        self.config = config
        self._saved_step = self._last_step = 0
        self._began = False
        self._saved: Path | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove what a killed run left unfinished; from now on there are updates to lose."""
        self._saved_step = self._last_step = trainer.global_step
        self._began = True
        interruption.hold()
        if trainer.is_global_zero:
            for path in self.folder.glob(".*.tmp"):
                path.unlink()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object) -> None:
        """Save when the batch reached or passed a multiple of n optimizer steps, or when told to.

        Raises:
            Stopped: all processes have agreed to stop; what they had done is saved.
        """
        every = self.config.every_n_train_steps
        wishes = self._wishes(trainer, pl_module)
        if any(wishes) or trainer.global_step // every > self._saved_step // every:
            self._save(trainer)
        if wishes.stop:
            raise Stopped(self._how_to_go_on(trainer))
        if wishes.save:
            log.info("SIGUSR1: %s", self._state(trainer))

    def _wishes(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Wishes:
        updated, self._last_step = trainer.global_step != self._last_step, trainer.global_step
        if updated and (pl_module.automatic_optimization or trainer.world_size == 1):
            any_process = trainer.strategy.reduce_boolean_decision
            interruption.agree(Wishes(*(any_process(wish, all=False) for wish in interruption.take_wishes())))
        return interruption.take_agreed()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the final state."""
        self._save(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Everything is saved: what comes now stops at once, also for a signal that came late.

        Raises:
            Stopped: there was one.
        """
        if not self._began:  # a finished run that was resumed
            self._saved_step = trainer.global_step
        interruption.remains = self._how_to_go_on(trainer)
        interruption.release()
        interruption.check()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Training has failed or was stopped; there is nothing left to wait for."""
        interruption.release()

    def _how_to_go_on(self, trainer: pl.Trainer) -> str:
        return f" {self._state(trainer)}; to go on, repeat the command with resume=auto"

    def _state(self, trainer: pl.Trainer) -> str:
        if self._saved_step == trainer.global_step:
            return f"after step {self._saved_step}, " + (f"saved as {self._saved}" if self._saved else "as it began")
        return f"after step {trainer.global_step}, not saved: checkpoint.save_last and checkpoint.save_top_k are off"

    def _save(self, trainer: pl.Trainer) -> None:
        keeps_numbered = self.config.save_top_k != 0
        if trainer.global_step == self._saved_step or not (keeps_numbered or self.config.save_last):
            return
        name = f"epoch={trainer.current_epoch}-step={trainer.global_step}.ckpt" if keeps_numbered else LAST
        trainer.save_checkpoint(self.folder / name, weights_only=False)
        self._saved_step, self._saved = trainer.global_step, self.folder / name
        if trainer.is_global_zero and keeps_numbered:
            if self.config.save_last:
                link_file(self.folder / name, self.folder / LAST)
            self._prune()

    def _prune(self) -> None:
        if self.config.save_top_k > 0:
            for path in numbered_checkpoints(self.folder)[: -self.config.save_top_k]:
                path.unlink()


def numbered_checkpoints(folder: Path) -> list[Path]:
    """The complete `epoch=E-step=S.ckpt` files of `folder`, by increasing step."""
    return [path for _, path in _numbered(folder)]


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """Steps and paths of the same."""
    matches = ((_NUMBERED.fullmatch(path.name), path) for path in folder.glob("*.ckpt"))
    return sorted((int(match[1]), path) for match, path in matches if match)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a trial's `ckpts` folder by its name, unread, or None."""
    numbered = numbered_checkpoints(folder)
    if numbered:
        return numbered[-1]
    last = folder / LAST
    return last if last.exists() else None


class Choice(NamedTuple):
    """The checkpoint to go on from, or None; and why each of the files that were looked at before cannot be it."""

    path: Path | None
    passed_over: dict[Path, str]


def newest_valid_checkpoint(folders: Iterable[Path]) -> Choice:
    """The valid checkpoint of the largest step in the `ckpts` folders of any number of trials.

    Valid is what has the checksums it was written with and is the state of a training at the step that its name says.
    Files are read from the largest step on, each once, until one is valid; the time of a file does not matter. Nothing
    is changed, and what is returned can be sent to other processes.
    """
    candidates: list[tuple[int, Path]] = []
    passed_over: dict[Path, str] = {}
    for folder in folders:
        numbered = _numbered(folder)
        candidates += numbered
        last = folder / LAST
        if last.exists() and not any(last.samefile(path) for _, path in numbered):
            try:
                candidates.append((_step_of(last), last))
            except WeightsError as error:
                passed_over[last] = str(error)
        passed_over |= {path: f"{path} is what a save left that was cut off" for path in sorted(folder.glob(".*.tmp"))}
    for step, path in sorted(candidates, reverse=True):
        try:
            if _step_of(path) != step:
                raise WeightsError(f"{path} holds step {_step_of(path)}, which is not what its name says")
            check_archive(path)
        except WeightsError as error:
            passed_over[path] = str(error)
        else:
            return Choice(path, passed_over)
    return Choice(None, passed_over)


def _step_of(path: Path) -> int:
    """The optimizer steps of a training's state; its tensors are not read."""
    content = read_checkpoint(path, mapped=True)
    _require_state(content, path)
    return content["global_step"]


def resolve_resume(resume: str | None, exp_dir: Path, tag: str) -> Path | None:
    """The file that the option `resume` stands for.

    Args:
        resume: a path; a path in which one component ends in LAST, for the alphabetically last folder or file with
            that beginning; or `auto`, for the newest valid checkpoint of the trials of `tag` in `exp_dir`. The log gets
            a line for each file that is passed over.

    Returns:
        The path; None if `resume` is None, or `auto` and nothing has been saved yet.

    Raises:
        ConfigError: the path does not exist.
        WeightsError: `auto`, and of the checkpoints that have been saved none is valid.
    """
    if resume is None:
        return None
    if resume == "auto":
        trials = [exp_dir / tag, *exp_dir.glob(f"{_glob_escape(tag)}@*")]
        chosen, passed_over = newest_valid_checkpoint(trial / "ckpts" for trial in trials)
        for reason in passed_over.values():
            log.warning("resume=auto passes over a file: %s", reason)
        damaged = [path for path in passed_over if path.suffix == ".ckpt"]
        if damaged and chosen is None:
            raise WeightsError(
                f"resume=auto: none of the {len(damaged)} checkpoints of {tag} in {exp_dir} is valid, first "
                f"{damaged[0]}; move them away to start at step 0"
            )
        return chosen
    path = _resolve_last(Path(resume))
    if not path.is_file():
        raise ConfigError(f"resume={resume}: there is no checkpoint {path}; give a file or `auto`")
    return path


def _resolve_last(path: Path) -> Path:
    resolved = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        if part.endswith("LAST"):
            candidates = sorted(resolved.glob(_glob_escape(part.removesuffix("LAST")) + "*"))
            if not candidates:
                raise ConfigError(f"{path}: nothing in {resolved} begins with {part.removesuffix('LAST')!r}")
            resolved = candidates[-1]
        else:
            resolved = resolved / part
    return resolved


def _glob_escape(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)
