"""An environment map that all prompts share."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.background import Background
from triplaneturbo.bounds import Width
from triplaneturbo.nn.mlp import Mlp, MlpConfig
from triplaneturbo.ops.activations import ColorActivation, colors_of
from triplaneturbo.ops.hashgrid import HashGrid, HashGridConfig
from triplaneturbo.registry import register

_N_HARMONICS = 9


def harmonics(directions: Float[Tensor, "*N 3"]) -> Float[Tensor, "*N 9"]:
    """Real spherical harmonics of the degrees 0, 1 and 2 of unit vectors, with the order and signs of tiny-cuda-nn."""
    x, y, z = directions.unbind(-1)
    one, two = 0.48860251190291987, 1.0925484305920792
    values = (
        torch.full_like(x, 0.28209479177387814),
        *(-one * y, one * z, -one * x),
        *(two * x * y, -two * y * z),
        0.94617469575755997 * z * z - 0.31539156525251999,
        -two * x * z,
        two / 2 * (x * x - y * y),
    )
    return torch.stack(values, dim=-1)


@dataclass(kw_only=True)
class ColorMlpConfig(MlpConfig):
    """Shape of the network from encoded directions to colours."""

    n_neurons: Width = 16
    """Width of a hidden layer."""


@register("environment")
class Environment(Background):
    """Colour of a direction d, act(network(h(d))), the same for all prompts."""

    @dataclass(kw_only=True)
    class Config(Background.Config):
        color_activation: ColorActivation = "sigmoid"
        """sigmoid-mipnerf: 1.002 sigmoid - 0.001."""
        encoding: HashGridConfig | None = None
        """h: a hash grid of (d + 1) / 2; None: nine spherical harmonics of d."""
        network: ColorMlpConfig = field(default_factory=ColorMlpConfig)
        """The network."""

    def configure(self) -> None:
        width = _N_HARMONICS
        if self.cfg.encoding is not None:
            self.encoding = HashGrid(**vars(self.cfg.encoding))
            width = self.encoding.n_output_dims
        self.network = Mlp(width, 3, self.cfg.network.n_neurons, self.cfg.network.n_hidden_layers)

    def forward(
        self, directions: Float[Tensor, "M H W 3"], pooled_text: Float[Tensor, "B T"]
    ) -> Float[Tensor, "M H W 3"]:
        """Colours of directions; the text changes nothing."""
        rows = directions.reshape(-1, 3)
        encoded = harmonics(rows) if self.cfg.encoding is None else self.encoding((rows + 1) / 2)
        return colors_of(self.network(encoded), self.cfg.color_activation).view(directions.shape)
