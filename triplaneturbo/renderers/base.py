"""What the renderers share: the scene they look at and how they are called."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from triplaneturbo.base import NO_OWN_WEIGHTS, Module
from triplaneturbo.bounds import Length
from triplaneturbo.draws import Draws
from triplaneturbo.schedule import Progress
from triplaneturbo.types import Cameras, Views

NormalDirection = Literal["camera", "world", "front"]
# Before the first step: where schedules stand when nothing is said.
START = Progress()


@dataclass(frozen=True)
class Scene:
    """The siblings of a renderer. Not a module, so that their parameters stay theirs alone."""

    geometry: Any
    material: Any
    background: Any


class Renderer(Module):
    """Turns feature planes into pictures of them."""

    @dataclass(kw_only=True)
    class Config:
        REFUSED: ClassVar[dict[str, str]] = {"weights": NO_OWN_WEIGHTS}

        radius: Length = 1.0
        """Half the side of the cube that holds the object."""

    def configure(self, *, geometry: Any, material: Any, background: Any) -> None:
        self.scene = Scene(geometry, material, background)

    def forward(
        self,
        planes: Float[Tensor, "B 6 C h w"],
        cameras: Cameras,
        pooled_text: Float[Tensor, "B T"],
        *,
        size: tuple[int, int],
        draws: Draws | None = None,
        progress: Progress = START,
    ) -> Views:
        """Pictures of `size` (height, width) of every prompt's planes from that prompt's cameras.

        draws: random numbers of a training step, one row a prompt; not used in evaluation mode.
        progress: where the schedules stand.
        """
        raise NotImplementedError


def check_views(planes: Tensor, cameras: Cameras) -> None:
    """Raises ValueError unless the cameras are `n_view` for every prompt."""
    if len(cameras) != planes.shape[0] * cameras.n_view:
        raise ValueError(
            f"{len(cameras)} cameras with n_view={cameras.n_view} do not fit {planes.shape[0]} prompts: "
            f"give n_view consecutive cameras for each prompt"
        )
