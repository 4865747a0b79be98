"""An environment map for each prompt: one encoding of directions, a small network whose weights come from the text."""

from dataclasses import dataclass, field
from typing import Annotated

from jaxtyping import Float
from torch import Tensor

from triplaneturbo.background.base import Background
from triplaneturbo.bounds import Range, Share, Width
from triplaneturbo.errors import ConfigError
from triplaneturbo.nn.hypernet import Hypernet, HypernetConfig, apply_written
from triplaneturbo.ops.activations import ColorActivation, colors_of
from triplaneturbo.ops.hashgrid import HashGrid, HashGridConfig
from triplaneturbo.registry import register


@dataclass(kw_only=True)
class DirectionGridConfig(HashGridConfig):
    """Size of a hash grid of directions; the defaults are those of its finest 256."""

    n_levels: Annotated[int, Range(1, 32)] = 8
    """Grids of growing resolution."""
    base_resolution: Annotated[int, Range(1, 4096)] = 4
    """Points along an edge of the coarsest grid."""
    per_level_scale: Annotated[float, Range(1, 16)] = 1.8114473285278132
    """Ratio of neighbouring resolutions."""


@dataclass(kw_only=True)
class ColorHypernetConfig(HypernetConfig):
    """Shape of a hyper-network and of the network that it writes."""

    widths: list[Width] = field(default_factory=lambda: [64, 3])
    """Widths of the layers of the network it writes; the last are the colour channels."""


@register("text-environment")
class HashGridEnvironment(Background):
    """Colour of a direction d for a prompt with pooled text z: act(relu(h((d + 1) / 2) W1(z)) W2(z)).

    h is a hash grid shared by all prompts; a hyper-network gives W1 and W2. State: `encoding.*`, `hypernet.layers.*`.
    """

    @dataclass(kw_only=True)
    class Config(Background.Config):
        color_activation: ColorActivation = "sigmoid"
        """sigmoid-mipnerf: 1.002 sigmoid - 0.001."""
        encoding: DirectionGridConfig = field(default_factory=DirectionGridConfig)
        """The encoding of directions."""
        hypernet: ColorHypernetConfig = field(default_factory=ColorHypernetConfig)
        """The network from text to weights."""
        eval_color: tuple[Share, Share, Share] | None = None
        """The colour of every direction in evaluation mode; None: the learned map."""

        def __post_init__(self) -> None:
            if not self.hypernet.widths or self.hypernet.widths[-1] != 3:
                raise ConfigError(f"hypernet.widths must end with the 3 colour channels, not be {self.hypernet.widths}")

    def configure(self) -> None:
        self.encoding = HashGrid(**vars(self.cfg.encoding))
        widths = [self.encoding.n_output_dims, *self.cfg.hypernet.widths]
        self.hypernet = Hypernet(self.cfg.hypernet, {"color": widths})

    def forward(
        self, directions: Float[Tensor, "M H W 3"], pooled_text: Float[Tensor, "B T"]
    ) -> Float[Tensor, "M H W 3"]:
        """Colours of directions, M / B consecutive views for each prompt.

        Raises:
            ValueError: the views do not divide evenly among the prompts.
        """
        rows, prompts = directions.shape[0], pooled_text.shape[0]
        if rows % prompts:
            raise ValueError(f"{rows} views cannot be divided evenly among {prompts} prompts")
        if not self.training and self.cfg.eval_color is not None:
            return directions.new_tensor(self.cfg.eval_color).expand_as(directions)
        encoded = self.encoding((directions.reshape(-1, 3) + 1) / 2).unflatten(0, (prompts, -1))
        colors = apply_written(self.layer_weights(pooled_text), encoded)
        return colors_of(colors.view(directions.shape), self.cfg.color_activation)

    def layer_weights(self, pooled_text: Float[Tensor, "B T"]) -> list[Float[Tensor, "B _ _"]]:
        """Matrices [B, in, out] of the network from encoded direction to colour, one for each layer."""
        return list(self.hypernet(pooled_text).values())
