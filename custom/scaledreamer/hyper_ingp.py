"""Hyper-iNGP: one hash grid for all prompts, and a network that writes its decoders from the text."""

from dataclasses import dataclass, field

from custom.scaledreamer.fields import WrittenDecoderField
from custom.scaledreamer.generator import SceneGenerator
from triplaneturbo.draws import Draws
from triplaneturbo.nn.hypernet import Hypernet, HypernetConfig
from triplaneturbo.registry import register
from triplaneturbo.scenes import FieldScene
from triplaneturbo.types import TextStates


@register("hyper-ingp")
class HyperIngp(SceneGenerator):
    """Pooled text to the decoders of a hash grid (ATT3D, Lorraine et al. 2023; ScaleDreamer, Ma et al. 2024).

    Nothing is random: a text is one scene.
    """

    @dataclass(kw_only=True)
    class Config(SceneGenerator.Config):
        hypernet: HypernetConfig = field(default_factory=HypernetConfig)
        """The network that writes."""
        field: WrittenDecoderField.Config = field(default_factory=WrittenDecoderField.Config)
        """The grid and the shape of its decoders."""

    field: WrittenDecoderField

    def configure(self) -> None:
        super().configure()
        self.field = WrittenDecoderField(self.cfg.field)
        self.hypernet = Hypernet(self.cfg.hypernet, self.field.networks)

    def scene(self, condition: TextStates, draws: Draws | None = None) -> FieldScene:
        """The scenes of the prompts; `draws` are not used."""
        return FieldScene(self.field, self.hypernet(condition.pooled))
