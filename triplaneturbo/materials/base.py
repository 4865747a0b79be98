"""What a material is."""

from abc import abstractmethod

from jaxtyping import Float
from torch import Tensor

from triplaneturbo.base import Module


class Material(Module):
    """Turns the features of a scene's surface into colours."""

    role = "material"

    @abstractmethod
    def forward(self, features: Float[Tensor, "*N F"]) -> Float[Tensor, "*N D"]:
        """Colours of features."""
