"""The update, written once: accumulation, averaging over processes, skipped steps, schedules, EMA, records, resume."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import reduce
from typing import Annotated, Any, ClassVar, Generic, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from triplaneturbo.base import Component, Dynamic
from triplaneturbo.bounds import Count, ProjectPath, Range
from triplaneturbo.errors import ConfigError, WeightsError
from triplaneturbo.interruption import interruption
from triplaneturbo.legacy.state_dicts import translate_checkpoint, translate_state
from triplaneturbo.schedule import Progress
from triplaneturbo.systems.ema import ParameterAverage
from triplaneturbo.systems.losslog import Records
from triplaneturbo.systems.optimizer import OptimizerConfig, ScheduledOptimizer, average_gradients, limit_norm
from triplaneturbo.types import MicroBatch, Numbered, Run
from triplaneturbo.weights.files import mismatch, named_tensors, read_checkpoint

log = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 20


@dataclass(kw_only=True)
class WandbConfig:
    """Losses on wandb.ai, beside the files."""

    enable: bool = False
    """Needs the package wandb."""
    project: str = "triplaneturbo"
    """Where they are shown."""
    name: str | None = None
    """As what; None: experiment and trial."""


@dataclass(kw_only=True)
class LoggersConfig:
    """Where losses go besides the trial's folder."""

    wandb: WandbConfig = field(default_factory=WandbConfig)


@runtime_checkable
class Consumed(Protocol):
    """How far a training has come in its data."""

    @property
    def samples(self) -> int: ...


@runtime_checkable
class TrainingData(Protocol):
    """What a training asks of its data module, see `data.stream.StreamData`."""

    n_view: int | None
    camera_sets: int | None
    step_of: Callable[[int], int]

    @property
    def condition_names(self) -> Collection[str]: ...

    @property
    def position(self) -> Consumed: ...

    @property
    def epoch(self) -> int: ...

    def advance(self, batch: Numbered) -> None: ...


class TrainingSystem(Component, pl.LightningModule, Generic[MicroBatch]):
    """A training with everything but its loss.

    A subclass builds its networks in `assemble`, and says in `losses` what they learn from a batch, or, if one pass
    backward is not enough, in `accumulate`. Batches have a counter `step` (`data.stream`), so that a resumed run goes
    on where the checkpoint was made. Equal runs, resumed or not, in one process or several, are equal.
    """

    role = "system"

    in_training_only: ClassVar[tuple[str, ...]] = ()
    """Parts that `setup` adds for training. Where they are not there, their tensors in checkpoints are passed over."""

    @dataclass(kw_only=True)
    class Config(Component.Config):
        optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
        """Which optimiser updates what."""
        gradient_accumulation_steps: Count = 1
        """Micro-batches whose gradients are averaged in one optimizer step."""
        max_gradient_norm: Annotated[float, Range(0, 1e12, above=True)] | None = None
        """Longer gradients are shortened to this norm."""
        ema_decay: Annotated[float, Range(0, 1, below=True)] = 0.0
        """Decay of the average of the trained parameters that evaluation uses; 0: no average."""
        weights: ProjectPath | None = None
        """A checkpoint whose weights training or evaluation starts from."""
        weights_ignore_modules: list[str] | None = None
        """Parts of the system that do not take their weights from it."""
        loggers: LoggersConfig = field(default_factory=LoggersConfig)
        """Where losses go besides the trial's folder; read by the launcher."""

    def configure(self) -> None:
        self.automatic_optimization = False
        self.run = Run()
        self.progress = Progress()
        self.records = Records()
        self.measured: dict[str, Tensor] = {}
        self.skipped = self.skipped_in_a_row = 0
        self.assemble()
        if self.cfg.weights:
            self.load_weights(self.cfg.weights)
        self.average = ParameterAverage(self._trainable(), self.cfg.ema_decay) if self.cfg.ema_decay else None

    @abstractmethod
    def assemble(self) -> None:
        """Build the networks, as attributes."""

    def enter(self, run: Run) -> None:
        """Note what the launcher knows about the run."""
        self.run = run

    def setup(self, stage: str) -> None:
        """Raises ConfigError: the trainer is asked to choose the precision, or to clip gradients."""
        if self.trainer.precision != "32-true":
            raise ConfigError(
                f"trainer.precision must be 32, not {self.trainer.precision}: the frozen networks have types of their "
                "own, each its option network_dtype"
            )
        if self.trainer.gradient_clip_val is not None:
            raise ConfigError("trainer.gradient_clip_val: set system.max_gradient_norm instead")
        if stage == "fit":
            self.data_module.step_of = self.step_of

    def _trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    @property
    def data_module(self) -> TrainingData:
        """What the trainer trains on."""
        return self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it without declaring it

    # A step

    def step_of(self, batch: int) -> int:
        """The (first) optimizer step that micro-batch number `batch` is in."""
        return batch // self.cfg.gradient_accumulation_steps

    @property
    def share(self) -> float:
        """How much a micro-batch weighs in the gradient of an update."""
        return 1 / self.cfg.gradient_accumulation_steps

    def training_step(self, batch: MicroBatch, batch_idx: int) -> None:
        """Accumulate the gradient of a micro-batch; update after the last one."""
        with self.gradients_kept_local():
            self.accumulate(batch)
        if (batch.step + 1) % self.cfg.gradient_accumulation_steps == 0:
            self.update(batch)

    def accumulate(self, batch: MicroBatch) -> None:
        """Add the gradient of `share` times the loss of a micro-batch to the parameters."""
        losses = self.losses(batch)
        self.measure({f"loss_{name}": value for name, value in losses.items()}, self.share)
        self.manual_backward(self.share * reduce(torch.add, losses.values()))

    def losses(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Terms of the loss of a micro-batch by name, weighted; their sum is minimised."""
        raise NotImplementedError

    def measure(self, values: Mapping[str, Tensor], share: float) -> None:
        """Note scalars for the log of the coming update: the sum over its micro-batches of share * value."""
        for name, value in values.items():
            self.measured[name] = self.measured.get(name, 0.0) + share * value.detach()

    def gradients_kept_local(self) -> AbstractContextManager:
        """Gradients of several backward passes are averaged over processes once, by `update`, not by each pass."""
        strategy = self.trainer.strategy
        if not isinstance(strategy, DDPStrategy):
            return nullcontext()
        assert isinstance(strategy.model, DistributedDataParallel)
        return strategy.model.no_sync()

    def update(self, batch: MicroBatch) -> None:
        """One optimizer step with the gradients of all processes; skipped if they are not finite.

        Raises:
            RuntimeError: no update was possible 20 times in a row.
        """
        norm, wishes = average_gradients(self.scheduled_optimizer.parameters, interruption.take_wishes())
        interruption.agree(wishes)
        if self.cfg.max_gradient_norm is not None:
            limit_norm(self.scheduled_optimizer.parameters, norm, self.cfg.max_gradient_norm)
        rate = self.scheduled_optimizer.set_learning_rates(self.progress)
        measured, self.measured = self.measured, {}
        data = self.data_module
        data.advance(batch)
        if norm.isfinite():  # the host waits for the device
            optimizer = self.optimizers()
            assert not isinstance(optimizer, list)  # `configure_optimizers` gives one
            optimizer.step()
            self.progress = Progress(self.trainer.global_step, data.epoch)
            if self.average:
                self.average.update(self.progress.step)
            known = {"prompts": data.position.samples, "lr": rate, "skipped": self.skipped}
            self.records.add(self.progress.step, known, {**measured, "grad_norm": norm})
            self.skipped_in_a_row = 0
        else:
            self._note_skipped()
        self.zero_grad(set_to_none=True)
        if len(self.records) >= self.trainer.log_every_n_steps:  # type: ignore[attr-defined]  # set, not declared
            self.records.write(self.trainer.loggers)

    def _note_skipped(self) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        log.warning("gradients are not finite after step %d: update skipped", self.progress.step)
        if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise RuntimeError(
                f"gradients were not finite {MAX_SKIPPED_IN_A_ROW} times in a row after step {self.progress.step}: "
                "lower the learning rate, or continue from an earlier checkpoint"
            )

    # State

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.scheduled_optimizer = ScheduledOptimizer(self.cfg.optimizer, self)
        return self.scheduled_optimizer.optimizer

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Dynamic:
        """As for any module, with errors that name the tensors.

        Raises:
            WeightsError: `strict`, and tensors are missing, unexpected, or of another shape or kind.
        """
        state_dict = self._without_absent_parts(state_dict)
        problem = mismatch(state_dict, self.state_dict()) if strict else ""
        if problem:
            raise WeightsError(f"the checkpoint does not belong to this system: {problem}")
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _without_absent_parts(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        absent = tuple(f"{name}." for name in self.in_training_only if not hasattr(self, name))
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(absent)}

    def load_weights(self, path: str) -> None:
        """Start from the weights of a checkpoint of ours or of the original; averaged ones, if it has them.

        Parts of the system that are not in the file keep their start values, which is logged. Evaluation sees the
        schedules where the file left them; training starts them anew.

        Raises:
            WeightsError: the file cannot be read, has tensors that this system has no place for, or lacks some of a
                part.
        """
        given, self.progress = read_weights(path)
        ignored = tuple(f"{name}." for name in self.cfg.weights_ignore_modules or ())
        own = self.state_dict()
        state = translate_state(self._without_absent_parts(given), own, path)
        state = {name: value for name, value in state.items() if not name.startswith(ignored)}
        present = {name.split(".")[0] for name in state}
        problem = mismatch(state, {name: value for name, value in own.items() if name.split(".")[0] in present})
        if problem:
            raise WeightsError(f"{path} does not belong to this system: {problem}")
        self.load_state_dict(state, strict=False)
        absent = sorted({name.split(".")[0] for name in own} - present)
        log.info("took %s from %s; not in it: %s", sorted(present), path, absent or "nothing")

    def on_train_start(self) -> None:
        """Schedules begin where the trainer does, whatever weights were loaded."""
        self.train()
        self.progress = Progress(self.trainer.global_step, self.data_module.epoch)

    def on_train_end(self) -> None:
        self.records.write(self.trainer.loggers)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.records.write(self.trainer.loggers)
        checkpoint["progress"] = {"step": self.progress.step, "epoch": self.progress.epoch}
        checkpoint["skipped"] = [self.skipped, self.skipped_in_a_row]
        if self.average:
            checkpoint["ema"] = self.average.averages

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "progress" not in checkpoint:
            raise WeightsError("the checkpoint is of another program: it does not say how far its training had come")
        self.progress = Progress(**checkpoint["progress"])
        self.skipped, self.skipped_in_a_row = checkpoint["skipped"]
        translate_checkpoint(checkpoint, self.state_dict())
        if self.average:
            if "ema" not in checkpoint:
                raise WeightsError("the checkpoint has no averaged weights; set system.ema_decay=0")
            self.average.load(checkpoint["ema"])

    def swap_average(self) -> None:
        """Before and after evaluation: exchange the weights and their average, if there is one."""
        if self.average:
            self.average.swap()

    on_validation_start = on_validation_end = on_test_start = on_test_end = swap_average


def read_weights(path: str) -> tuple[dict[str, Tensor], Progress]:
    """The trained tensors of a file, averaged ones if there are any, and the progress they stand for, if known."""
    content = read_checkpoint(path)
    progress = content.get("progress", content)
    step, epoch = content.get("global_step", 0), progress.get("epoch", 0)
    return named_tensors(content, path), Progress(step, epoch)
