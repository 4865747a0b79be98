"""What the trainings of the miniature world's networks share: their draws, and what is written when one is over."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from custom.shapeworld.data import Pool, PoolBatch
from triplaneturbo.bounds import ProjectPath
from triplaneturbo.draws import keyed_generator
from triplaneturbo.graphs import TrainingReplay
from triplaneturbo.performance import graphs_run_on
from triplaneturbo.storage import write_text
from triplaneturbo.systems.training import TrainingSystem

logger = logging.getLogger(__name__)

# Share of the newest update in the running mean of the loss.
_NEWEST = 0.02


class TrainingStage(TrainingSystem):
    """A training that writes averaged networks in half precision, and a record of itself, when all steps are done.

    Subclasses name the stage and define `assemble`, `inputs`, `terms` and `save`. The networks are small: a step has
    thousands of kernels, more than the host can issue while the device runs them. On CUDA `terms` and its way back are
    recorded as graphs (`graphs.TrainingReplay`).
    """

    @dataclass(kw_only=True)
    class Config(TrainingSystem.Config):
        out_dir: ProjectPath = "load/shapeworld"
        """Folder of the miniature world: networks of earlier stages are read there, this one's are written."""
        graphs: bool = True
        """Record a step as CUDA graphs; without CUDA it changes nothing."""

    stage: str

    terms: Callable[..., dict[str, Tensor]]
    """terms(*inputs): terms of the loss by name, weighted. The networks and what is computed of their answers; nothing
    random, no waiting for the device, and of the batch and the pool only what `inputs` gave."""

    def configure(self) -> None:
        self._replay = TrainingReplay()
        super().configure()
        self.register_buffer("mean_loss", torch.zeros(()))
        self.seconds = 0.0

    def inputs(self, batch: PoolBatch) -> tuple[Tensor, ...]:
        """All that a step draws or picks from the pool; the same shapes from step to step."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write the networks below `folder`, which holds all of the miniature world."""
        raise NotImplementedError

    @property
    def pool(self) -> Pool:
        return self.trainer.datamodule.pool

    def autocast(self) -> torch.autocast:
        """bfloat16 on CUDA, float32 elsewhere."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda")

    def generator(self, batch: PoolBatch) -> torch.Generator:
        """Of everything random that is done with `batch`, on the device of the networks."""
        return keyed_generator(self.run.seed, self.stage, batch.sample, device=self.device)

    def on_train_start(self) -> None:
        super().on_train_start()
        self._trained = list(self._trainable().values())
        self._clock = time.monotonic()

    def losses(self, batch: PoolBatch) -> dict[str, Tensor]:
        """See `TrainingSystem.losses`."""
        return self.terms(*self.inputs(batch))

    def accumulate(self, batch: PoolBatch) -> None:
        """As for any training; from the second step on replayed, where that is wanted and possible."""
        if not (self.cfg.graphs and graphs_run_on(self.device)):
            super().accumulate(batch)
            return
        *values, total = self._replay(self._terms_and_total, self.inputs(batch), self._trained, key=self.training)
        self.measure({f"loss_{name}": value for name, value in zip(self._names, values, strict=True)}, self.share)
        self.manual_backward(self.share * total)

    def _terms_and_total(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The terms of the loss, whose names are noted, and their sum, which is what gradients come back to."""
        terms = self.terms(*inputs)
        self._names = tuple(terms)
        return *terms.values(), reduce(torch.add, terms.values())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TrainingStage":
        """Moving weights leaves recordings with their old addresses."""
        self._replay = TrainingReplay()
        return super()._apply(fn, recurse)

    def update(self, batch: PoolBatch) -> None:
        """As for any training; also keeps time and the running mean of the loss."""
        loss = sum(value for name, value in self.measured.items() if name.startswith("loss_"))
        super().update(batch)
        if not self.skipped_in_a_row:
            self.mean_loss.lerp_(loss, max(_NEWEST, 1 / self.progress.step))
        now = time.monotonic()
        self.seconds, self._clock = self.seconds + now - self._clock, now

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["seconds"] = self.seconds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.seconds = checkpoint["seconds"]

    def on_fit_end(self) -> None:
        """Write the networks, then the record, whose presence means that the stage is done.

        The state of the training is saved by now. A run that was killed before this goes on with no step to do, so that
        no hook of the training is called in it, but this one is. The networks are of no use for training afterwards.
        """
        step, wanted = self.trainer.global_step, self.trainer.max_steps
        if step < wanted:
            logger.info("%s is not done: %d of %d steps", self.stage, step, wanted)
            return
        if not self.trainer.is_global_zero:
            return
        self.to(self.pool.tokens.device)  # from the CPU, where Lightning has put them
        self.swap_average()
        self.eval()
        folder = Path(self.cfg.out_dir)
        with torch.no_grad():
            self.save(folder)
        record = self._record()
        logger.info("%s is done: %s", self.stage, record)
        write_text(folder / "training" / f"{self.stage}.json", json.dumps(record, indent=2) + "\n")

    def _record(self) -> dict[str, str | int | float | None]:
        cuda, data = self.device.type == "cuda", self.trainer.datamodule
        return {
            "stage": self.stage,
            "seconds": round(self.seconds, 1),
            "steps": self.trainer.global_step,
            "objects": data.position.samples,
            "views": data.cfg.n_view,
            "loss": round(self.mean_loss.item(), 5),
            "parameters": sum(p.numel() for p in self.parameters() if p.requires_grad),
            "device": torch.cuda.get_device_name(self.device) if cuda else "cpu",
            "peak_memory_mib": round(torch.cuda.max_memory_allocated() / 2**20) if cuda else None,
        }
