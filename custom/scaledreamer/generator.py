"""What the geometries that write scenes from a text have in common."""

from dataclasses import dataclass

from triplaneturbo.bounds import GridPoints, Share
from triplaneturbo.geometry import Geometry


class SceneGenerator(Geometry):
    """A network that makes a scene of each prompt in one pass."""

    @dataclass(kw_only=True)
    class Config(Geometry.Config):
        resolution: GridPoints = 128
        """Grid points along an edge for exported meshes."""
        smallest_component: Share = 0.0
        """Components of exported meshes with less than this share of the largest one's faces are dropped."""

    def configure(self) -> None:
        self.resolution, self.smallest_component = self.cfg.resolution, self.cfg.smallest_component
