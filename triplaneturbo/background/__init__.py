"""What lies behind the object."""

from triplaneturbo.background.base import Background
from triplaneturbo.background.hashgrid_environment import HashGridEnvironment
from triplaneturbo.background.solid_color import SolidColor

__all__ = ["Background", "HashGridEnvironment", "SolidColor"]
