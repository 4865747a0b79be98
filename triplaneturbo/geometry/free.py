"""One scene whose parameters are trained directly: for a single prompt."""

from dataclasses import dataclass
from typing import Annotated

from triplaneturbo.base import Chosen, Part, option
from triplaneturbo.bounds import GridPoints, Range, Share
from triplaneturbo.draws import Draws
from triplaneturbo.errors import ConfigError
from triplaneturbo.geometry.base import Geometry
from triplaneturbo.registry import register
from triplaneturbo.scenes import FieldScene
from triplaneturbo.types import TextStates


@register("free-parameters")
class FreeParameters(Geometry):
    """The same scene whatever the prompt: the parameters of a field that needs nothing else, such as a hash grid."""

    @dataclass(kw_only=True)
    class Config(Geometry.Config):
        field: Annotated[Chosen, Part("scene", "hash-grid")] = option("hash-grid")
        """The field."""
        resolution: GridPoints = 128
        """Grid points along an edge for exported meshes."""
        smallest_component: Share = 0.0
        """Components of exported meshes with less than this share of the largest one's faces are dropped."""
        fill_cavities: Annotated[float, Range(0, 2)] | None = None
        """What exported meshes enclose becomes a part of them; openings of their walls up to this width, world units,
        count as closed. No picture says what is inside, and a density that is opaque at its surface may be hollow.
        None: nothing is filled."""

    def configure(self) -> None:
        if not self.cfg.field.cls.free:
            raise ConfigError(
                f"geometry.field is {self.cfg.field.type!r}, which needs tensors of each prompt; free-parameters hold "
                "a field that is a scene by itself, such as hash-grid"
            )
        self.field = self.cfg.field.build()
        self.resolution, self.smallest_component = self.cfg.resolution, self.cfg.smallest_component
        self.fill_cavities = self.cfg.fill_cavities

    def scene(self, condition: TextStates, draws: Draws | None = None) -> FieldScene:
        """The scene.

        Raises:
            ValueError: it is asked for several prompts.
        """
        if len(condition.tokens) > 1:
            raise ValueError(f"free-parameters hold one scene, not {len(condition.tokens)}: train one prompt at a time")
        return FieldScene(self.field, {})
