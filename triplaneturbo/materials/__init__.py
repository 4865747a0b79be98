"""Field features to colours."""

from triplaneturbo.materials.no_material import NoMaterial

__all__ = ["NoMaterial"]
