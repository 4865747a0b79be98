"""What a background is."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from triplaneturbo.base import Module
from triplaneturbo.bounds import Share
from triplaneturbo.draws import Draws


@dataclass(frozen=True)
class RandomColors:
    """One colour for each of M pictures, and which of them have it in the place of the background."""

    chosen: Bool[Tensor, " M"]
    colors: Float[Tensor, "M 3"]

    def over(self, background: Float[Tensor, "M H W 3"]) -> Float[Tensor, "M H W 3"]:
        """The background of the pictures that were not chosen, the colour of the others. Gradients of these are 0."""
        return torch.where(self.chosen[:, None, None, None], self.colors[:, None, None], background)


class Background(Module):
    """What is seen where there is no object."""

    role = "background"

    @dataclass(kw_only=True)
    class Config(Module.Config):
        random_color: Share = 0.0
        """Probability that a prompt has one random colour behind each of its pictures, in a step of training: then the
        object cannot be a part of the background."""
        random_range: tuple[Share, Share] = (0.0, 1.0)
        """Range of the values of random colours."""

    @abstractmethod
    def forward(
        self, directions: Float[Tensor, "M H W 3"], pooled_text: Float[Tensor, "B T"]
    ) -> Float[Tensor, "M H W 3"]:
        """Colours of directions, M / B consecutive views for each prompt."""

    def draw(self, draws: Draws, n_view: int) -> RandomColors | None:
        """What is random in a step with `n_view` views a prompt; None: nothing is."""
        if not (self.training and self.cfg.random_color):
            return None
        chosen = draws.uniform("background/chosen")[:, None] < self.cfg.random_color
        low, high = self.cfg.random_range
        colors = low + (high - low) * draws.uniform("background/colors", n_view, 3)
        return RandomColors(chosen.expand(-1, n_view).flatten(), colors.flatten(0, 1))

    def in_step(self, draws: Draws, n_view: int) -> Callable[[Tensor, Tensor], Tensor]:
        """The background as the renderers of one step of training see it, called like the module itself."""
        drawn = self.draw(draws, n_view)
        return self if drawn is None else lambda directions, text: drawn.over(self(directions, text))
