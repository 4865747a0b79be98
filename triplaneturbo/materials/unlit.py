"""Colours straight from the field: no light, no shading."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from triplaneturbo.bounds import Width
from triplaneturbo.errors import ConfigError
from triplaneturbo.materials.base import Material
from triplaneturbo.nn.mlp import Mlp, MlpConfig
from triplaneturbo.ops.activations import ColorActivation, colors_of
from triplaneturbo.registry import register


@register("unlit")
class Unlit(Material):
    """Activates features as albedo."""

    @dataclass(kw_only=True)
    class Config(Material.Config):
        n_output_dims: Width = 3
        """Colour channels."""
        color_activation: ColorActivation = "sigmoid"
        """sigmoid-mipnerf reaches from -0.001 to 1.001, so that pure black and white are within reach."""
        input_feature_dims: Width | None = None
        """Features a further network reads; needs `network`. None: features are colours already."""
        network: MlpConfig | None = None
        """The network that makes colours of features."""

        def __post_init__(self) -> None:
            if (self.input_feature_dims is None) != (self.network is None):
                raise ConfigError("input_feature_dims and network need each other")

    def configure(self) -> None:
        network = self.cfg.network
        if network is not None:
            shape = network.n_neurons, network.n_hidden_layers
            self.network = Mlp(self.cfg.input_feature_dims, self.cfg.n_output_dims, *shape)

    def forward(self, features: Float[Tensor, "*N F"]) -> Float[Tensor, "*N D"]:
        """The activation (`ops.activations`) of the features or of what the network makes of them.

        Raises:
            ValueError: the features do not have the number of channels that the options say.
        """
        if self.cfg.network is not None:
            features = self.network(features)
        if features.shape[-1] != self.cfg.n_output_dims:
            raise ValueError(
                f"material.n_output_dims is {self.cfg.n_output_dims}, but the features have {features.shape[-1]} "
                "channels; set it to n_feature_dims of the field"
            )
        return colors_of(features, self.cfg.color_activation)
