"""The miniature world: captioned solids with exact geometry, and teachers small enough to be trained in minutes.

Importing this package registers its data module and trainings.
"""

from custom.shapeworld.bound import ExactPictures
from custom.shapeworld.data import ShapeWorldData
from custom.shapeworld.stages import DiffusionStage, ScorerStage, VaeStage

__all__ = ["DiffusionStage", "ExactPictures", "ScorerStage", "ShapeWorldData", "VaeStage"]
