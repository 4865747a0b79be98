"""What the renderers share: their siblings and how they are called."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, Protocol, TypeVar, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from triplaneturbo.base import Module
from triplaneturbo.bounds import Length
from triplaneturbo.draws import Draws
from triplaneturbo.errors import ConfigError
from triplaneturbo.scenes import Field, FieldScene, Scene
from triplaneturbo.schedule import Progress
from triplaneturbo.types import Cameras, Views

NormalDirection = Literal["camera", "world", "front"]
# Before the first step: where schedules stand when nothing is said.
START = Progress()


Drawn = TypeVar("Drawn", bound=Scene)
# Features to colours; directions and pooled texts to colours.
Material = Callable[[Tensor], Tensor]
Background = Callable[[Tensor, Tensor], Tensor]


@runtime_checkable
class MakesScenes(Protocol):
    """What a renderer asks of a geometry."""

    @property
    def makes(self) -> type: ...


@runtime_checkable
class RandomBackground(Protocol):
    """A background that is another one by chance in a step of training."""

    def in_step(self, draws: Draws, n_view: int) -> Background: ...


class MakesFields(MakesScenes, Protocol):
    """Of one whose scenes are fields."""

    @property
    def field(self) -> Field: ...


@dataclass(frozen=True)
class Surroundings:
    """The siblings of a renderer. Not a module, so that their parameters stay theirs alone."""

    material: Material
    background: Background


class Renderer(Module, Generic[Drawn]):
    """Turns scenes into pictures of them."""

    role = "renderer"

    @dataclass(kw_only=True)
    class Config(Module.Config):
        radius: Length | None = None
        """Half the side of the cube that holds the object, world units; None: that of the scene."""
        label: str | None = None
        """What ends the names of its draws and losses; None: _ and its name."""

    draws_triangles: ClassVar[bool] = False
    """Whether its pictures have the size meant for rasterised triangles, or that for rays."""
    draws_scenes: ClassVar[tuple[type, ...]] = (FieldScene,)
    """Kinds of scenes it can draw."""

    def configure(self, *, material: Material, background: Background) -> None:
        self._surroundings = Surroundings(material, background)

    def check_geometry(self, geometry: MakesScenes) -> None:
        """Make sure that the scenes `geometry` makes can be drawn.

        Raises:
            ConfigError: they are of another kind.
        """
        if not issubclass(geometry.makes, self.draws_scenes):
            kinds = " or ".join(kind.__name__ for kind in self.draws_scenes)
            raise ConfigError(
                f"{type(self).__name__} draws scenes of the kind {kinds}, but {type(geometry).__name__} makes a "
                f"{geometry.makes.__name__}; choose another renderer"
            )

    def radius_of(self, scene: Scene) -> float:
        """Half the side of the cube that is looked at, world units."""
        return scene.radius if self.cfg.radius is None else self.cfg.radius

    @property
    def material(self) -> Material:
        """What turns features into colours."""
        return self._surroundings.material

    @property
    def background(self) -> Background:
        """What lies behind the object."""
        return self._surroundings.background

    def background_in(self, draws: Draws | None, n_view: int) -> Background:
        """What lies behind the object in a call with these random numbers and `n_view` views a prompt."""
        background = self.background
        if self.training and draws is not None and isinstance(background, RandomBackground):
            return background.in_step(draws, n_view)
        return background

    def forward(
        self,
        scene: Drawn,
        cameras: Cameras,
        pooled_text: Float[Tensor, "B T"],
        *,
        size: tuple[int, int],
        draws: Draws | None = None,
        progress: Progress = START,
    ) -> Views:
        """Pictures of `size` (height, width) of every prompt's scene from that prompt's cameras.

        draws: random numbers of a training step, one row a prompt; not used in evaluation mode.
        progress: where the schedules stand.
        """
        raise NotImplementedError


def check_views(scene: Scene, cameras: Cameras) -> None:
    """Raises ValueError unless the cameras are `n_view` for every prompt."""
    if len(cameras) != len(scene) * cameras.n_view:
        raise ValueError(
            f"{len(cameras)} cameras with n_view={cameras.n_view} do not fit {len(scene)} prompts: "
            f"give n_view consecutive cameras for each prompt"
        )
