"""The bound: what the student could learn if its teachers knew the truth. configs/shapeworld/bound.yaml trains it.

Everything is as in prd.yaml, but the pictures are compared with exact ones, from the same cameras, in place of being
judged by diffusion models. So it is no method that learns without 3D data.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from custom.shapeworld.render import render
from custom.shapeworld.world import parse_caption
from triplaneturbo.bounds import Share, Weight
from triplaneturbo.errors import ConfigError
from triplaneturbo.guidance import Teacher
from triplaneturbo.guidance.draws import Drawn
from triplaneturbo.guidance.teacher import Question
from triplaneturbo.registry import register
from triplaneturbo.types import Views


@register("exact-pictures")
class ExactPictures(Teacher):
    """The mean absolute difference of all pixels from the exact pictures of the prompts' solids.

    Silhouettes are compared by the disparity, which is 0 where nothing is seen.
    """

    @dataclass(kw_only=True)
    class Config(Teacher.Config):
        rgb: Weight = 1.0
        """Weight of the colour pictures."""
        normal: Weight = 1.0
        """Weight of the normals, as colours."""
        disparity: Weight = 1.0
        """Weight of the disparity."""
        background: Share = 0.5
        """Grey level behind the exact solids: that of system.background."""

    multi_view = True

    def judge(self, question: Question, drawn: list[Drawn]) -> tuple[Float[Tensor, ""], list[dict[str, Tensor]]]:
        """See `Teacher.judge`; logs the mean differences."""
        truths: dict[int, Views] = {}
        losses, logs = [], []
        for sight in question.sights:
            size = self._side(sight.views)
            if size not in truths:
                truths[size] = self.truth(question, size)
            differences = {
                kind: (getattr(sight.views, kind) - getattr(truths[size], kind)).abs().mean()
                for kind in ("rgb", "normal", "disparity")
            }
            losses += [getattr(self.cfg, kind) * difference for kind, difference in differences.items()]
            logs.append({kind: difference.detach() for kind, difference in differences.items()})
        return torch.stack(losses).sum(), logs

    def truth(self, question: Question, size: int) -> Views:
        """Exact pictures of the prompts from the question's cameras, size x size pixels."""
        solids = [parse_caption(prompt) for prompt in question.prompts]
        return render(solids, question.cameras, size, background=self.cfg.background)

    @staticmethod
    def _side(views: Views) -> int:
        height, width = views.rgb.shape[1:3]
        if height != width:
            raise ConfigError(f"exact pictures are square, those of a renderer {width} x {height}: set data.width")
        return height
