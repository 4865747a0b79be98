"""ScaleDreamer (Ma et al. 2024, arXiv 2407.02040): networks that make scenes of texts in one pass, and scenes of a
single prompt, both learned by asynchronous score distillation.

Importing this package registers its geometries, background and cameras, and the layout of the original's checkpoints.
"""

from custom.scaledreamer.cameras import RandomViews
from custom.scaledreamer.checkpoints import write_original
from custom.scaledreamer.conv3d_net import Conv3dNet
from custom.scaledreamer.environment import Environment
from custom.scaledreamer.hyper_ingp import HyperIngp
from custom.scaledreamer.triplane_transformer import TriplaneTransformer

__all__ = ["Conv3dNet", "Environment", "HyperIngp", "RandomViews", "TriplaneTransformer", "write_original"]
