"""Field features to colours."""

from triplaneturbo.materials.unlit import Unlit

__all__ = ["Unlit"]
