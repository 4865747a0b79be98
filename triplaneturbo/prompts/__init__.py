"""Text states of prompts, for the generator and for the teachers."""

from triplaneturbo.prompts.processors import DualTextProcessor, TextProcessor
from triplaneturbo.prompts.text_encoder import TextEncoder

__all__ = ["DualTextProcessor", "TextEncoder", "TextProcessor"]
