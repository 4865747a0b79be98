"""How different two colours look: CIE Lab and CIEDE2000."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

# sRGB primaries under its white, D65 (IEC 61966-2-1), rows X, Y, Z, divided by the white's own.
_XYZ = (
    (0.4124564 / 0.95047, 0.3575761 / 0.95047, 0.1804375 / 0.95047),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339 / 1.08883, 0.1191920 / 1.08883, 0.9503041 / 1.08883),
)


def lab(display: Float[Tensor, "*N 3"]) -> Float[Tensor, "*N 3"]:
    """Display colours (sRGB in [0, 1]) as CIE L*, a*, b* under D65; L* from 0 to 100."""
    linear = torch.where(display <= 0.04045, display / 12.92, ((display + 0.055) / 1.055).clamp(min=0) ** 2.4)
    ratio = linear @ linear.new_tensor(_XYZ).T
    root = torch.where(ratio > (6 / 29) ** 3, ratio.clamp(min=1e-9) ** (1 / 3), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = root.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-1)


def delta_e(a: Float[Tensor, "*N 3"], b: Float[Tensor, "*N 3"]) -> Float[Tensor, "*N"]:
    """CIEDE2000 between L*a*b* colours, all weights 1: about 1 is just visible, 100 is black and white.

    Sharma, Wu and Dalal, "The CIEDE2000 color-difference formula" (2005), equations 2 to 22.
    """
    (l1, a1, b1), (l2, a2, b2) = a.unbind(-1), b.unbind(-1)
    mean_chroma = (torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2
    stretch = 1.5 - 0.5 * _saturation(mean_chroma)
    a1, a2 = a1 * stretch, a2 * stretch
    c1, c2 = torch.hypot(a1, b1), torch.hypot(a2, b2)
    h1, h2 = (torch.atan2(y, x).rad2deg() % 360 for y, x in ((b1, a1), (b2, a2)))
    grey = c1 * c2 == 0
    far = (h1 - h2).abs() > 180
    turn = torch.where(far, h2 - h1 - 360 * (h2 - h1).sign(), h2 - h1) * ~grey
    hue_step = 2 * (c1 * c2).sqrt() * torch.deg2rad(turn / 2).sin()
    hue = torch.where(far, torch.where(h1 + h2 < 360, h1 + h2 + 360, h1 + h2 - 360), h1 + h2) / 2
    hue = torch.where(grey, h1 + h2, hue)
    lightness, chroma = (l1 + l2) / 2, (c1 + c2) / 2

    def cosine(times: int, shift: int) -> Tensor:
        return torch.deg2rad(times * hue + shift).cos()

    t = 1 - 0.17 * cosine(1, -30) + 0.24 * cosine(2, 0) + 0.32 * cosine(3, 6) - 0.20 * cosine(4, -63)
    s_l = 1 + 0.015 * (lightness - 50).square() / (20 + (lightness - 50).square()).sqrt()
    s_c, s_h = 1 + 0.045 * chroma, 1 + 0.015 * chroma * t
    rotation = -2 * _saturation(chroma) * (math.pi / 3 * (-((hue - 275) / 25).square()).exp()).sin()
    dl, dc, dh = (l2 - l1) / s_l, (c2 - c1) / s_c, hue_step / s_h
    return (dl.square() + dc.square() + dh.square() + rotation * dc * dh).clamp(min=0).sqrt()


def _saturation(chroma: Tensor) -> Tensor:
    return (chroma**7 / (chroma**7 + 25**7)).sqrt()
