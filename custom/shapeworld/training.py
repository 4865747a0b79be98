"""What the trainings of the miniature world's networks share: time budget, averaged weights, saving."""

import json
import logging
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytorch_lightning as pl
import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from custom.shapeworld.data import Pool
from triplaneturbo.base import Component
from triplaneturbo.bounds import ProjectPath, Range, Seed
from triplaneturbo.draws import keyed_generator

logger = logging.getLogger(__name__)


class AveragedWeights:
    """Exponential moving average of parameters. The decay grows with the number of updates up to `decay`."""

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self.parameters = parameters
        self.averages = [p.detach().clone() for p in parameters]
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the parameters."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.averages, self.parameters, 1 - decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Write the averages into the parameters."""
        torch._foreach_copy_(self.parameters, self.averages)


class TrainingStage(Component, pl.LightningModule):
    """A training that ends after `minutes` of wall-clock time or `steps`, whichever comes first, then saves fp16.

    Subclasses build their networks in `configure`, and define `loss` and `save`.
    """

    @dataclass(kw_only=True)
    class Config:
        """Options."""

        out_dir: ProjectPath = "load/shapeworld"
        minutes: Annotated[float, Range(0, 1e6, above=True)] = 2.0  # the learning rate follows the elapsed share
        steps: Annotated[int, Range(1)] = 1_000_000
        lr: Annotated[float, Range(0, 10)] = 1e-3
        warmup_steps: Annotated[int, Range(1)] = 100
        weight_decay: Annotated[float, Range(0, 10)] = 0.01
        average_decay: Annotated[float, Range(0, 1, below=True)] = 0.998
        log_every: Annotated[int, Range(1)] = 200
        seed: Seed = 0

    stage: str

    def loss(self, rows: Tensor) -> Float[Tensor, ""]:
        """The loss of the objects in `rows` of the pool."""
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

    def elapsed_share(self) -> float:
        """How much of the training is over, 0 to 1."""
        minutes = (time.monotonic() - self.started) / 60
        return min(1.0, max(minutes / self.cfg.minutes, self.global_step / self.cfg.steps))

    def learning_rate_factor(self, step: int) -> float:
        """Linear warm-up, then half a cosine over the elapsed share down to 1 %."""
        warmup = min(1.0, (step + 1) / self.cfg.warmup_steps)
        return warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.elapsed_share())))

    def configure_optimizers(self) -> dict:
        self.started = time.monotonic()
        optimizer = torch.optim.AdamW(
            [p for p in self.parameters() if p.requires_grad],
            lr=self.cfg.lr,
            betas=(0.9, 0.99),
            weight_decay=self.cfg.weight_decay,
            fused=self.device.type == "cuda",
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        self.train()
        self.generator = keyed_generator(self.cfg.seed, self.stage, device=self.device)
        trained = [p for p in self.parameters() if p.requires_grad]
        self.averages = AveragedWeights(trained, self.cfg.average_decay)
        self.smooth_loss = torch.zeros((), device=self.device)
        self.started = time.monotonic()

    def training_step(self, rows: Tensor) -> Float[Tensor, ""]:
        loss = self.loss(rows)
        self.smooth_loss.lerp_(loss.detach(), max(0.02, 1 / (self.global_step + 1)))
        return loss

    def on_train_batch_end(self, outputs: object, batch: Tensor, batch_idx: int) -> None:
        self.averages.update()
        if self.global_step % self.cfg.log_every == 0:
            loss = self.smooth_loss.item()
            logger.info(
                "%s: step %d, %.0f %%, loss %.4f", self.stage, self.global_step, 100 * self.elapsed_share(), loss
            )
        if self.elapsed_share() >= 1:
            self.trainer.should_stop = True

    def on_train_end(self) -> None:
        """Save the averaged weights, then a record of the training, whose presence means that the stage is done."""
        seconds = time.monotonic() - self.started
        self.averages.apply()
        self.eval()
        folder = Path(self.cfg.out_dir)
        self.save(folder)
        cuda = self.device.type == "cuda"
        record = {
            "stage": self.stage,
            "seconds": round(seconds, 1),
            "steps": self.global_step,
            "objects": self.global_step * self.trainer.datamodule.cfg.batch_size,
            "views": self.trainer.datamodule.cfg.n_view,
            "loss": round(self.smooth_loss.item(), 5),
            "parameters": sum(p.numel() for p in self.parameters() if p.requires_grad),
            "device": torch.cuda.get_device_name(self.device) if cuda else "cpu",
            "peak_memory_mib": round(torch.cuda.max_memory_allocated() / 2**20) if cuda else None,
        }
        logger.info("%s is done: %s", self.stage, record)
        path = folder / "training" / f"{self.stage}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".partial")
        temporary.write_text(json.dumps(record, indent=2) + "\n")
        os.replace(temporary, path)
