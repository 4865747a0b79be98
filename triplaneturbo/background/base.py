"""What a background is."""

from abc import abstractmethod

from jaxtyping import Float
from torch import Tensor

from triplaneturbo.base import Module


class Background(Module):
    """What is seen where there is no object."""

    role = "background"

    @abstractmethod
    def forward(
        self, directions: Float[Tensor, "M H W 3"], pooled_text: Float[Tensor, "B T"]
    ) -> Float[Tensor, "M H W 3"]:
        """Colours of directions, M / B consecutive views for each prompt."""
