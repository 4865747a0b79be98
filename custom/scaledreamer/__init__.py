"""ScaleDreamer (Ma et al. 2024, arXiv 2407.02040): networks that make scenes of texts in one pass, and scenes of
a single prompt, learned by asynchronous score distillation.

Importing this package registers its geometries, its background, its cameras, and the original's files and checkpoints.
"""

import custom.scaledreamer.dialect  # noqa: F401  (registers it)
from custom.scaledreamer.cameras import RandomViews
from custom.scaledreamer.checkpoints import write_original
from custom.scaledreamer.conv3d_net import Conv3dNet
from custom.scaledreamer.environment import Environment
from custom.scaledreamer.hyper_ingp import HyperIngp
from custom.scaledreamer.triplane_transformer import TriplaneTransformer

__all__ = ["Conv3dNet", "Environment", "HyperIngp", "RandomViews", "TriplaneTransformer", "write_original"]
