"""From feature planes and cameras to pictures: a volume renderer, a mesh rasteriser, and a patch wrapper."""

from triplaneturbo.renderers.base import Renderer
from triplaneturbo.renderers.mesh import MeshRenderer
from triplaneturbo.renderers.patch import PatchRenderer
from triplaneturbo.renderers.volume import VolumeRenderer

__all__ = ["MeshRenderer", "PatchRenderer", "Renderer", "VolumeRenderer"]
