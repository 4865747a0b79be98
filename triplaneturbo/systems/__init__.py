"""Trainings: the update (`training`), what scenes need (`scene`), learning from teachers (`distillation`, `prd`)."""

from triplaneturbo.systems.distillation import SceneDistillation
from triplaneturbo.systems.measure import Measure
from triplaneturbo.systems.prd import ProgressiveRenderingDistillation
from triplaneturbo.systems.scene import SceneSystem
from triplaneturbo.systems.training import TrainingSystem

__all__ = ["Measure", "ProgressiveRenderingDistillation", "SceneDistillation", "SceneSystem", "TrainingSystem"]
