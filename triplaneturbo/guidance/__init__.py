"""Frozen teachers and the rules that turn their opinion into gradients of pictures."""

from triplaneturbo.guidance.asd import AsynchronousScoreDistillation
from triplaneturbo.guidance.distillation import ScoreDistillationGuidance
from triplaneturbo.guidance.teachers import MVDreamTeacher, RichDreamerTeacher, StableDiffusionTeacher, Teacher

__all__ = [
    "AsynchronousScoreDistillation",
    "MVDreamTeacher",
    "RichDreamerTeacher",
    "ScoreDistillationGuidance",
    "StableDiffusionTeacher",
    "Teacher",
]
