"""From text to scenes."""

from triplaneturbo.geometry.base import Geometry
from triplaneturbo.geometry.few_step_triplane import FewStepTriplanes
from triplaneturbo.geometry.free import FreeParameters

__all__ = ["FewStepTriplanes", "FreeParameters", "Geometry"]
