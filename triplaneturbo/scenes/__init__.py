"""What can be looked at: fields, scenes of them, explicit meshes, and the surfaces of both."""

from triplaneturbo.scenes.base import Field, FieldScene
from triplaneturbo.scenes.hashgrid import HashGridField
from triplaneturbo.scenes.mesh import MeshScene
from triplaneturbo.scenes.planes import PlaneField

Scene = FieldScene | MeshScene

__all__ = ["Field", "FieldScene", "HashGridField", "MeshScene", "PlaneField", "Scene"]
