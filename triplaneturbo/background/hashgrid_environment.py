"""An environment map for each prompt: one encoding of directions, a small network whose weights come from the text."""

import itertools
import math
from dataclasses import dataclass, field
from typing import Annotated

import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.background.base import Background
from triplaneturbo.bounds import Range, Share, Width
from triplaneturbo.errors import ConfigError
from triplaneturbo.nn.tall import multiply_rows
from triplaneturbo.ops.activations import ColorActivation, colors_of
from triplaneturbo.ops.hashgrid import HashGrid
from triplaneturbo.registry import register


@dataclass(kw_only=True)
class EncodingConfig:
    n_levels: Annotated[int, Range(1, 32)] = 8
    """Grids of growing resolution."""
    n_features_per_level: Annotated[int, Range(1, 64)] = 2
    """Features each of them gives."""
    log2_hashmap_size: Annotated[int, Range(1, 28)] = 19
    """Entries of a grid that is too fine to be stored densely."""
    base_resolution: Annotated[int, Range(1, 4096)] = 4
    """Points along an edge of the coarsest grid."""
    per_level_scale: Annotated[float, Range(1, 16)] = 1.8114473285278132
    """Ratio of neighbouring resolutions."""


@dataclass(kw_only=True)
class HypernetConfig:
    text_width: Width = 1024
    """Width of the pooled text state."""
    widths: list[Width] = field(default_factory=lambda: [64, 3])
    """Widths of the layers of the network it writes; the last are the colour channels."""
    n_neurons: Width = 64
    """Width of its hidden layers."""
    n_hidden_layers: Annotated[int, Range(1, 64)] = 1
    """Hidden layers, each linear, layer norm, SiLU."""


@register("text-environment")
class HashGridEnvironment(Background):
    """Colour of a direction d for a prompt with pooled text z: act(relu(h((d + 1) / 2) W1(z)) W2(z)).

    h is a hash grid shared by all prompts; a hyper-network gives W1 and W2. State: `encoding.*`, `hypernet.layers.*`.
    """

    @dataclass(kw_only=True)
    class Config(Background.Config):
        color_activation: ColorActivation = "sigmoid"
        """sigmoid-mipnerf: 1.002 sigmoid - 0.001."""
        encoding: EncodingConfig = field(default_factory=EncodingConfig)
        """The encoding of directions."""
        hypernet: HypernetConfig = field(default_factory=HypernetConfig)
        """The network from text to weights."""
        eval_color: tuple[Share, Share, Share] | None = None
        """The colour of every direction in evaluation mode; None: the learned map."""

        def __post_init__(self) -> None:
            if not self.hypernet.widths or self.hypernet.widths[-1] != 3:
                raise ConfigError(f"hypernet.widths must end with the 3 colour channels, not be {self.hypernet.widths}")

    def configure(self) -> None:
        encoding, hypernet = self.cfg.encoding, self.cfg.hypernet
        self.encoding = HashGrid(
            n_levels=encoding.n_levels,
            n_features_per_level=encoding.n_features_per_level,
            log2_hashmap_size=encoding.log2_hashmap_size,
            base_resolution=encoding.base_resolution,
            per_level_scale=encoding.per_level_scale,
        )
        widths = [encoding.n_levels * encoding.n_features_per_level, *hypernet.widths]
        self.weight_shapes = list(itertools.pairwise(widths))
        self.hypernet = Hypernet(hypernet, sum(a * b for a, b in self.weight_shapes))

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
        x = self.encoding((directions.reshape(-1, 3) + 1) / 2).view(prompts, -1, self.weight_shapes[0][0])
        for i, weight in enumerate(self.layer_weights(pooled_text)):
            x = multiply_rows(x if i == 0 else F.relu(x), weight)
        return colors_of(x.view(directions.shape), self.cfg.color_activation)

    def layer_weights(self, pooled_text: Float[Tensor, "B T"]) -> list[Float[Tensor, "B _ _"]]:
        """Matrices [B, in, out] of the network from encoded direction to colour, one for each layer."""
        flat = self.hypernet(pooled_text).split([math.prod(shape) for shape in self.weight_shapes], dim=-1)
        return [part.unflatten(-1, shape) for part, shape in zip(flat, self.weight_shapes, strict=True)]


class Hypernet(nn.Module):
    """Pooled text -> numbers: hidden layers (linear, layer norm, SiLU), then a linear layer; Xavier-normal, no bias
    but that of the norms and of the last layer, zero at the start."""

    def __init__(self, cfg: HypernetConfig, n_out: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = cfg.text_width
        for _ in range(cfg.n_hidden_layers):
            layers += [nn.Linear(width, cfg.n_neurons, bias=False), nn.LayerNorm(cfg.n_neurons), nn.SiLU()]
            width = cfg.n_neurons
        last = nn.Linear(width, n_out)
        self.layers = nn.Sequential(*layers, last)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
        nn.init.zeros_(last.bias)

    def forward(self, pooled_text: Float[Tensor, "B T"]) -> Float[Tensor, "B n"]:
        return self.layers(pooled_text)
