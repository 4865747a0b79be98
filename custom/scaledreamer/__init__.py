"""ScaleDreamer (Ma et al. 2024, arXiv 2407.02040): asynchronous score distillation of generators of many prompts."""

from custom.scaledreamer.cameras import RandomViews

__all__ = ["RandomViews"]
