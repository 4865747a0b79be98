"""From what a ray met to what the teachers look at: disparity, normals as colours, compositing."""

import functools
import math

import torch
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.types import Cameras

# The object lies in [-1, 1]^3: no point of it is farther from the origin than this.
_REACH = math.sqrt(3)
# Behind the object, in pictures of camera-space normals: a surface that faces the camera.
NORMAL_BACKGROUND = (0.5, 0.5, 1.0)
WHITE = (1.0, 1.0, 1.0)


def disparity(
    depth: Float[Tensor, "M H W 1"], opacity: Float[Tensor, "M H W 1"], distance: Float[Tensor, " M"]
) -> Float[Tensor, "M H W 1"]:
    """(far - D) / (far - near) clipped to [0, 1], far and near = distance +- sqrt 3, D = depth a + far (1 - a).

    1 on the near plane, 0 on the background. RichDreamer was trained on this quantity; its depth, too, is summed
    with the weights of a ray and then weighted by opacity a second time.
    """
    far = (distance + _REACH)[:, None, None, None]
    blended = torch.lerp(far, depth, opacity)
    return ((far - blended) / (2 * _REACH)).clamp(0, 1)


def normals_as_colors(
    normal: Float[Tensor, "M H W 3"], cameras: Cameras, direction: str = "camera"
) -> Float[Tensor, "M H W 3"]:
    """World-space unit normals as colours (n + 1) / 2 in [0, 1].

    direction: "camera": axes right, up, backward of each view, x flipped, as RichDreamer was trained on;
        "front": axes of the first view of each prompt, x not flipped; "world": world axes.
    """
    if direction == "camera":
        rotation = cameras.w2c_rotation
        rotation = torch.cat([-rotation[:, :1], rotation[:, 1:]], 1)
    elif direction == "front":
        rotation = cameras.w2c_rotation[:: cameras.n_view].repeat_interleave(cameras.n_view, 0)
    elif direction == "world":
        return (normal + 1) / 2
    else:
        raise ValueError(f"normal_direction is {direction!r}; allowed: 'camera', 'front', 'world'")
    return (torch.einsum("mij,mhwj->mhwi", rotation, normal) + 1) / 2


def over(
    color: Float[Tensor, "M H W C"],
    opacity: Float[Tensor, "M H W 1"],
    background: Float[Tensor, "M H W C"] | tuple[float, ...],
) -> Float[Tensor, "M H W C"]:
    """color * opacity + background * (1 - opacity)."""
    if isinstance(background, tuple):
        background = _constant(background, color.dtype, color.device).expand_as(color)
    return torch.lerp(background, color, opacity)


@functools.cache
def _constant(color: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Kept, because the host waits for a device that numbers are sent to."""
    return torch.tensor(color, dtype=dtype, device=device)


def shrink_gradient(x: Float[Tensor, "*S"], share: float) -> Float[Tensor, "*S"]:
    """`x`, of whose gradient only `share` flows on; none at all, not even a zero one, for 0."""
    if share == 0.0:
        return x.detach()
    return x if share == 1.0 else torch.lerp(x.detach(), x, share)
