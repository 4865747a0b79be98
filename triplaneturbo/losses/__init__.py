"""Registered terms of the loss."""

import triplaneturbo.losses.terms  # noqa: F401 - registers them
from triplaneturbo.losses.base import LossConfig, Losses, LossTerm, Objective

__all__ = ["LossConfig", "LossTerm", "Losses", "Objective"]
