"""Text and noise to feature planes, feature planes to a field and a surface."""

from triplaneturbo.geometry.few_step_triplane import FewStepTriplaneDualStableDiffusion

__all__ = ["FewStepTriplaneDualStableDiffusion"]
