"""Frozen teachers and the rules that turn their opinion into gradients of pictures."""

from triplaneturbo.guidance.diffusion import DiffusionTeacher
from triplaneturbo.guidance.distillation import Guidance, ScoreDistillation
from triplaneturbo.guidance.rules import Rule
from triplaneturbo.guidance.shaping import Shaping
from triplaneturbo.guidance.teacher import Question, Teacher
from triplaneturbo.guidance.teachers import MVDreamTeacher, RichDreamerTeacher, StableDiffusionTeacher

__all__ = [
    "DiffusionTeacher",
    "Guidance",
    "MVDreamTeacher",
    "Question",
    "RichDreamerTeacher",
    "Rule",
    "ScoreDistillation",
    "Shaping",
    "StableDiffusionTeacher",
    "Teacher",
]
