"""What makes scenes."""

from abc import abstractmethod
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from triplaneturbo.base import Module
from triplaneturbo.draws import Draws
from triplaneturbo.scenes import Field, FieldScene, Scene
from triplaneturbo.types import TextStates


class Geometry(Module):
    """Turns conditions into scenes, one per prompt: a generator that reads the text, or parameters of its own."""

    role = "geometry"

    makes: ClassVar[type] = FieldScene
    """The kind of scene; renderers say which kinds they draw."""
    field: Field
    """Of its scenes, if they are fields."""
    smallest_component: float = 0.0
    """Components of exported meshes with less than this share of the largest one's faces are dropped."""
    fill_cavities: float | None = None
    """What exported meshes enclose becomes a part of them, see `extract_meshes`."""
    resolution: int = 128
    """Grid points along an edge for exported meshes, if nothing else is said."""

    @abstractmethod
    def scene(self, condition: TextStates, draws: Draws | None = None) -> Scene:
        """The scenes of the prompts for a step of training; differentiable.

        draws: random numbers of the step, one row a prompt.
        """

    def generate(self, condition: TextStates, noise: Float[Tensor, "N c h w"], n_steps: int) -> Scene:
        """The scenes of the prompts to look at and to export, without gradients.

        noise: of the seed. n_steps: of denoising. Geometries that do not denoise use neither.
        """
        return self.scene(condition)

    def merge(self) -> None:
        """Prepare for exports, for good: the geometry is not trained afterwards."""
