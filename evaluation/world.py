"""The miniature world as the evaluation needs it: `custom/shapeworld`, from where a launch takes its extensions.

Raises on import ConfigError: that extension is not there.
"""

from triplaneturbo.errors import ConfigError
from triplaneturbo.extensions import custom_folders, provide

if "custom.shapeworld" not in provide(*custom_folders()):
    places = " or ".join(map(str, dict.fromkeys(custom_folders())))
    raise ConfigError(
        f"the exact solids of the miniature world are in the extension shapeworld, which is not in {places}; "
        "start this in a checkout of the repository, or copy its custom/shapeworld there"
    )

from custom.shapeworld.measure import (
    GRID,
    best_constant,
    chamfer,
    exact_mesh,
    iou,
    mesh_occupancy,
    sample_mesh,
    sample_solid,
    solid_occupancy,
)
from custom.shapeworld.render import MEASURES as EXACTLY
from custom.shapeworld.render import render
from custom.shapeworld.scorer import Scorer
from custom.shapeworld.shapes import SHAPES
from custom.shapeworld.splits import EVALUATION_SPLITS, load_splits, retrieval_bank
from custom.shapeworld.world import PALETTE, Part, Solid, parse_caption

__all__ = [
    "EVALUATION_SPLITS",
    "EXACTLY",
    "GRID",
    "PALETTE",
    "SHAPES",
    "Part",
    "Scorer",
    "Solid",
    "best_constant",
    "chamfer",
    "exact_mesh",
    "iou",
    "load_splits",
    "mesh_occupancy",
    "parse_caption",
    "render",
    "retrieval_bank",
    "sample_mesh",
    "sample_solid",
    "solid_occupancy",
]
