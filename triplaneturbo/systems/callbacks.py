"""What a person sees of a training run: a card at its start, a bar or lines with the time left, timings."""

import logging
import sys
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from tqdm import tqdm

from triplaneturbo.systems.losslog import LossLog

log = logging.getLogger(__name__)


class RunCard(pl.Callback):
    """Logs size, batch, device and folder of the run, and trims the loss log to the step it resumes from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, LossLog):
                logger.truncate(trainer.global_step)
        if trainer.is_global_zero:
            log.info("%s", run_card(trainer, pl_module, self.folder))


def run_card(trainer: pl.Trainer, module: pl.LightningModule, folder: Path) -> str:
    """Parameters, effective batch, device, precision, folder and starting step as lines of text."""
    parameters = list(module.parameters())
    rows = {
        "system": type(module).__name__,
        "parameters": f"{sum(p.numel() for p in parameters):,}",
        "trainable": f"{sum(p.numel() for p in parameters if p.requires_grad):,}",
    }
    batch = getattr(getattr(trainer, "datamodule", None), "samples_per_batch", None)
    if batch:
        accumulation = getattr(getattr(module, "cfg", None), "gradient_accumulation_steps", 1)
        total = batch * accumulation * trainer.world_size
        rows["prompts a step"] = f"{total} = {batch} x {accumulation} accumulated x {trainer.world_size} processes"
    device = module.device
    rows["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    rows["precision"] = str(trainer.precision)
    rows["folder"] = str(folder)
    rows["steps"] = f"{trainer.global_step} done, {trainer.max_steps if trainer.max_steps > 0 else 'no limit'} to reach"
    width = max(map(len, rows))
    return "\n".join(["", *(f"  {name:<{width}}  {value}" for name, value in rows.items())])


class ProgressReport(pl.Callback):
    """A bar on a terminal; elsewhere one line every `interval_s` seconds. Timings also go to TensorBoard."""

    def __init__(self, interval_s: float = 30.0) -> None:
        self.interval_s = interval_s
        self._bar: tqdm | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._first_step = self._line_step = trainer.global_step
        self._first_time = self._line_time = time.monotonic()
        if trainer.is_global_zero and sys.stderr.isatty():
            total = trainer.max_steps if trainer.max_steps > 0 else None
            self._bar = tqdm(total=total, initial=trainer.global_step, unit="step", dynamic_ncols=True)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object) -> None:
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(trainer.global_step - self._bar.n)
        if trainer.is_global_zero and now - self._line_time >= self.interval_s and trainer.global_step:
            self._report(trainer, now)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self._bar is not None:
            self._bar.close()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()
        if trainer.is_global_zero and trainer.global_step > self._line_step:
            self._report(trainer, time.monotonic())

    def _report(self, trainer: pl.Trainer, now: float) -> None:
        step, done = trainer.global_step, trainer.global_step - self._line_step
        if done:
            seconds = (now - self._line_time) / done
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.log_metrics({"time/seconds_a_step": seconds}, step)
            if self._bar is None:
                log.info("%s", progress_line(step, trainer.max_steps, seconds))
        self._line_step, self._line_time = step, now


def progress_line(step: int, max_steps: int, seconds_a_step: float) -> str:
    """`step 120/15000 (0.8 %)  0.82 s/step  3:23:21 left`; without a limit only step and speed.

    A batch with several optimizer steps may end beyond the limit: that is 100 %.
    """
    speed = f"{seconds_a_step:.3g} s/step"
    if max_steps <= 0:
        return f"step {step}  {speed}"
    step = min(step, max_steps)
    left = round((max_steps - step) * seconds_a_step)
    clock = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
    return f"step {step}/{max_steps} ({100 * step / max_steps:.1f} %)  {speed}  {clock} left"
