"""Endless streams of micro-batches that a resumed run continues exactly."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Generic

import pytorch_lightning as pl
from torch.utils.data import DataLoader, IterableDataset

from triplaneturbo.base import Component
from triplaneturbo.data.library import Position, micro_batches
from triplaneturbo.errors import ConfigError
from triplaneturbo.types import MicroBatch, Run


class StreamData(Component, pl.LightningDataModule, Generic[MicroBatch]):
    """Training data as one endless stream.

    Micro-batch m of process r holds global samples m * global_batch + r * local + (0 ... local - 1); everything random
    is keyed by these indices, and `position`, kept in checkpoints, is all that a resumed run needs. A subclass sets
    `samples_per_batch`, `samples_per_epoch` and `fingerprint` in `configure`.
    """

    role = "data"

    trainer: pl.Trainer
    """Lightning sets it before it asks for anything."""
    samples_per_batch: int
    """Samples in a micro-batch of one process."""
    samples_per_epoch: int
    """Samples after which all were seen once."""
    fingerprint: str
    """A text that changes with what is trained on."""
    n_view: int | None = None
    """Views of a sample, if there are any and it is known before the first batch; so for the next two."""
    camera_sets: int | None = None
    """Sets of cameras in a batch."""
    condition_names: Collection[str] = ()
    """Names of the encoders that say something about a sample."""
    step_of: Callable[[int], int] = staticmethod(lambda batch: batch)
    """The optimizer step that a micro-batch of this number is in; the system tells."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.run, self.position = Run(), Position()
        super().__init__(*args, **kwargs)
        missing = [
            name for name in ("samples_per_batch", "samples_per_epoch", "fingerprint") if not hasattr(self, name)
        ]
        if missing or type(self).training_batch is StreamData.training_batch:
            raise TypeError(
                f"{type(self).__name__} is a stream without {', '.join(missing) or 'training_batch'}: set "
                "samples_per_batch, samples_per_epoch and fingerprint in configure, and say in training_batch what a "
                "batch is"
            )

    def enter(self, run: Run) -> None:
        """Note what the launcher knows about the run."""
        self.run = run

    @abstractmethod
    def training_batch(self, step: int, samples: range) -> MicroBatch:
        """Micro-batch `step` with the given global samples, as an object with the attribute `step`: a pure function of
        the seed."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(_Stream(self, self.position), batch_size=None)

    def advance(self, batch: MicroBatch) -> None:
        """Note that training has used `batch`: a checkpoint made now continues after it."""
        used = batch.step + 1 - self.position.batches
        samples = self.position.samples + used * self.samples_per_batch * self.trainer.world_size
        self.position = Position(batch.step + 1, samples)

    @property
    def epoch(self) -> int:
        """Passes over the training samples."""
        return self.position.samples // self.samples_per_epoch

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.position.batches, "samples": self.position.samples, "prompts": self.fingerprint}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Raises ConfigError: the checkpoint was trained on something else."""
        if self.trainer.state.fn != "fit":
            return
        if state_dict["prompts"] != self.fingerprint:
            raise ConfigError(
                "the checkpoint was trained on other prompts, so its run cannot be continued; "
                "to start a new run from its weights use system.weights instead of resume"
            )
        self.position = Position(state_dict["batches"], state_dict["samples"])


class _Stream(IterableDataset, Generic[MicroBatch]):
    """This process's micro-batches."""

    def __init__(self, data: StreamData[MicroBatch], start: Position) -> None:
        self.data = data
        self.start = start

    def __iter__(self) -> Iterator[MicroBatch]:
        trainer = self.data.trainer
        stream = micro_batches(self.start, self.data.samples_per_batch, trainer.global_rank, trainer.world_size)
        return (self.data.training_batch(step, samples) for step, samples in stream)
