"""Cameras as the multi-view teachers were told them in their training: a 4x4 matrix, flattened row by row.

Neither function changes the cameras it is given.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.types import Cameras

CamMethod = Literal["rel_x2", "rel", "abs"]


def _with_translation(c2w: Tensor, translation: Tensor) -> Tensor:
    column = torch.cat([translation, c2w.new_ones(c2w.shape[0], 1)], dim=1)
    return torch.cat([c2w[:, :, :3], column[:, :, None]], dim=2)


def mvdream_camera(cameras: Cameras) -> Float[Tensor, "M 16"]:
    """Camera-to-world matrices with the camera moved to unit distance."""
    position = cameras.positions
    unit = position / (position.norm(dim=1, keepdim=True) + 1e-8)
    return _with_translation(cameras.c2w, unit).flatten(1)


def richdreamer_camera(cameras: Cameras, method: CamMethod = "rel_x2") -> Float[Tensor, "M 16"]:
    """Rot_z(-90 degrees) @ camera-to-world, with the camera at 2 * distance_relative (rel_x2), distance_relative (rel)
    or distance (abs)."""
    distance = cameras.distance if method == "abs" else cameras.distance_relative
    if method == "rel_x2":
        distance = 2 * distance
    unit = mvdream_camera(cameras).unflatten(1, (4, 4))
    x, y, rest = unit[:, 0], unit[:, 1], unit[:, 2:]
    turned = torch.cat([y[:, None], -x[:, None], rest], dim=1)
    return _with_translation(turned, turned[:, :3, 3] * distance[:, None]).flatten(1)
