"""What networks are told about prompts."""

from triplaneturbo.prompts.processors import ClipText, ConditionEncoder
from triplaneturbo.prompts.text_encoder import TextEncoder

__all__ = ["ClipText", "ConditionEncoder", "TextEncoder"]
