"""Trainings of another length: all that their schedules do, sooner or later."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

from triplaneturbo.config import ExperimentConfig
from triplaneturbo.schedule import Schedule


def stretched(value: Any, factor: float) -> Any:
    """A configuration in which everything that a schedule does at a step happens at `factor` times that step.

    Steps are rounded and stay apart; schedules that count epochs stay as they are.
    """
    if isinstance(value, Schedule):
        if value.clock != "step" or len(value.points) == 1:
            return value
        times = [round(time * factor) for time, _ in value.points]
        for i in range(1, len(times)):
            times[i] = max(times[i], times[i - 1] + 1)
        return replace(
            value, points=tuple((float(t), level) for t, (_, level) in zip(times, value.points, strict=True))
        )
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: stretched(getattr(value, f.name), factor) for f in fields(value) if f.init})
    if isinstance(value, dict):
        return {key: stretched(item, factor) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(stretched(item, factor) for item in value)
    return value


def rounds_of(experiment: ExperimentConfig) -> int:
    """How many rounds of rendering its training has."""
    cfg = experiment.system.cfg
    return experiment.trainer["max_steps"] * (1 if cfg.update_every_round else cfg.rounds)


def compressed(experiment: ExperimentConfig, rounds: int) -> ExperimentConfig:
    """The same training, with its schedules, in so many rounds."""
    factor = rounds / rounds_of(experiment)
    steps = max(1, round(experiment.trainer["max_steps"] * factor))
    unseen = {"limit_val_batches": 0, "limit_test_batches": 0}
    saved = replace(experiment.checkpoint, save_top_k=0, every_n_train_steps=max(1, steps // 4))
    trainer = experiment.trainer | {"max_steps": steps, **unseen}
    return replace(stretched(experiment, factor), trainer=trainer, checkpoint=saved)
