"""One colour behind every object."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from triplaneturbo.background.base import Background
from triplaneturbo.bounds import Share
from triplaneturbo.registry import register


@register("solid-color")
class SolidColor(Background):
    """The same colour in every direction for every prompt. Has no parameters."""

    @dataclass(kw_only=True)
    class Config(Background.Config):
        color: tuple[Share, Share, Share] = (0.5, 0.5, 0.5)
        """In training."""
        eval_color: tuple[Share, Share, Share] | None = (1.0, 1.0, 1.0)
        """In evaluation mode; None: `color`."""

    def forward(
        self, directions: Float[Tensor, "M H W 3"], pooled_text: Float[Tensor, "B T"]
    ) -> Float[Tensor, "M H W 3"]:
        """The colour, for every direction."""
        color = self.cfg.color if self.training or self.cfg.eval_color is None else self.cfg.eval_color
        return directions.new_tensor(color).expand_as(directions)
