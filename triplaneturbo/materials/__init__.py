"""Field features to colours."""

from triplaneturbo.materials.base import Material
from triplaneturbo.materials.unlit import Unlit

__all__ = ["Material", "Unlit"]
