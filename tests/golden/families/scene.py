"""What the recorded pictures show: the analytic field, its colours and its background."""

import re
from typing import Any

import torch
import torch.nn.functional as F
from golden_case import Case
from torch import Tensor

from triplaneturbo.background.base import Background
from triplaneturbo.materials import Unlit
from triplaneturbo.registry import register
from triplaneturbo.scenes import Field, FieldScene
from triplaneturbo.scenes.base import Tensors
from triplaneturbo.types import FieldSample

LINEAR_BACKGROUND = "recorded-linear-background"


@register(LINEAR_BACKGROUND)
class LinearBackground(Background):
    """0.5 + 0.4 direction."""

    def forward(self, directions: Tensor, pooled_text: Tensor) -> Tensor:
        return 0.5 + 0.4 * directions


def wave(points: Tensor) -> Tensor:
    """sin 5x sin 4y sin 3z."""
    return (points * points.new_tensor([5, 4, 3])).sin().prod(dim=-1, keepdim=True)


def wave_gradient(points: Tensor) -> Tensor:
    """Its derivative with respect to the points."""
    rates = points.new_tensor([5, 4, 3])
    sine, cosine = (points * rates).sin(), (points * rates).cos()
    others = sine[..., [1, 0, 0]] * sine[..., [2, 2, 1]]
    return rates * cosine * others


def colors(points: Tensor) -> Tensor:
    """2 sin((3x, 2y, 4z) + (0, 1, 2)), before their activation."""
    return 2 * (points * points.new_tensor([3, 2, 4]) + points.new_tensor([0, 1, 2])).sin()


class AnalyticField(Field):
    """sdf = |p| - 0.5 + a sin 5x sin 4y sin 3z; features = 2 sin((3x, 2y, 4z) + (0, 1, 2)). One prompt."""

    def configure(self, amplitude: float) -> None:
        self.amplitude, self.radius = amplitude, 1.0

    def value(self, tensors: Tensors, points: Tensor) -> Tensor:
        return points.norm(dim=-1, keepdim=True) - 0.5 + self.amplitude * wave(points)

    def features(self, tensors: Tensors, points: Tensor) -> Tensor:
        return colors(points)

    def query(self, tensors: Tensors, points: Tensor, *, features: bool = True, normals: bool = False) -> FieldSample:
        with torch.enable_grad():
            inner = points.detach().requires_grad_()
            sdf = self.value(tensors, inner)
            (gradient,) = torch.autograd.grad(sdf.sum(), inner)
        return FieldSample(sdf.detach(), self.features(tensors, points), gradient, F.normalize(gradient, dim=-1))


def analytic_scene(description: str) -> FieldScene:
    """The scene that a case describes in words."""
    found = re.match(
        r"analytic(?: amp=|: \|x\|-0\.5\+)([\d.]+)(?:$|\*sin\(5x\)sin\(4y\)sin\(3z\); features )", description
    )
    if found is None:
        raise NotImplementedError(f"no analytic field is known as {description!r}")
    return FieldScene(AnalyticField(None, float(found[1])))


def surroundings(case: Case) -> dict[str, Any]:
    """Constructor arguments of a renderer."""
    case.option("background", "0.5+0.4*dirs")
    material = Unlit({"color_activation": "sigmoid-mipnerf"})
    return {"material": material, "background": LinearBackground()}
