"""How well a mesh agrees with the exact solid of a caption: numbers from what both look like and what both fill."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from triplaneturbo.exporters.render import Sight
from triplaneturbo.ops.mesh import Topology

from .color import delta_e, lab

# Opposite sides of the truth with a smaller mean squared difference cannot be told apart.
_SAME_SIDE = 1e-3
_PERFECT = 1e-10  # mean squared error below which all pictures are equally good: 100 dB


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Of one mesh and one caption. None: not defined, as where there is no mesh.

    iou: of the cells of a grid. chamfer: world units. silhouette_iou, psnr (dB): of the views. normal_error: degrees,
    color_error: CIEDE2000, means over the surface that is seen in both. r_at_1, r_at_1_object: whether the scorer finds
    the caption, for each view alone and for all views together. faces_right: of the pairs of opposite views, the share
    in which both sides look more like their own side of the truth than like the other one; janus: the share in which
    both look like the same side. watertight, genus_right: 1 or 0. faces: of the mesh.
    """

    iou: float
    chamfer: float | None = None
    silhouette_iou: float
    psnr: float
    normal_error: float | None = None
    color_error: float | None = None
    r_at_1: float
    r_at_1_object: float
    faces_right: float | None = None
    janus: float | None = None
    watertight: float = 0.0
    genus_right: float = 0.0
    faces: float = 0.0


MEASURES = tuple(field.name for field in fields(Numbers))


def silhouette_iou(a: Bool[Tensor, "V H W"], b: Bool[Tensor, "V H W"]) -> float:
    """Mean over the views of intersection over union of what is covered; two empty pictures agree (1)."""
    union = (a | b).sum(dim=(1, 2))
    return torch.where(union > 0, (a & b).sum(dim=(1, 2)) / union.clamp(min=1), 1.0).mean().item()


def psnr(a: Float[Tensor, "V H W 3"], b: Float[Tensor, "V H W 3"]) -> float:
    """Peak signal to noise ratio in dB, mean over the views; at most 100."""
    error = (a - b).square().mean(dim=(1, 2, 3)).clamp(min=_PERFECT)
    return (-10 * error.log10()).mean().item()


def normal_error(a: Sight, b: Sight) -> float | None:
    """Mean angle between the normals, degrees, over the pixels that are covered in both; None if there are none."""
    common = a.covered & b.covered
    if not common.any():
        return None
    cosine = (a.normal[common] * b.normal[common]).sum(-1)
    sine = torch.linalg.cross(a.normal[common], b.normal[common]).norm(dim=-1)
    return torch.atan2(sine, cosine).rad2deg().mean().item()


def color_error(a: Sight, b: Sight) -> float | None:
    """Mean CIEDE2000 over the pixels that are covered in both; None if there are none."""
    common = a.covered & b.covered
    return delta_e(lab(a.color[common]), lab(b.color[common])).mean().item() if common.any() else None


def two_faces(seen: Float[Tensor, "V H W 3"], true: Float[Tensor, "V H W 3"]) -> tuple[float, float] | None:
    """Shares of the pairs of opposite views that are right, and that show one side of the truth twice.

    Views go around the object, so that view k + V / 2 looks at the back of view k. A side is what it looks more like,
    by squared difference of the pictures. The rest of the pairs is turned around. None: the truth has no pair of
    sides that differ.
    """
    half = len(seen) // 2
    front, back, true_front, true_back = seen[:half], seen[half:], true[:half], true[half:]

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().mean(dim=(1, 2, 3))

    front_right = distance(front, true_front) < distance(front, true_back)
    back_right = distance(back, true_back) < distance(back, true_front)
    differ = distance(true_front, true_back) > _SAME_SIDE
    if not differ.any():
        return None
    right, twice = (front_right & back_right)[differ], (front_right != back_right)[differ]
    return right.float().mean().item(), twice.float().mean().item()


def genus_right(own: Topology, true: Topology) -> bool:
    """Whether a watertight mesh has the truth's handles and number of pieces."""
    return own.watertight and (own.genus, own.n_components) == (true.genus, true.n_components)
