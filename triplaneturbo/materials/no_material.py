"""Colours straight from the field: no light, no shading."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from triplaneturbo.base import NO_OWN_WEIGHTS, Module
from triplaneturbo.bounds import Width
from triplaneturbo.errors import ConfigError
from triplaneturbo.nn.mlp import Mlp, MlpConfig
from triplaneturbo.ops.activations import ColorActivation, colors_of
from triplaneturbo.registry import register


@register("no-material")
class NoMaterial(Module):
    """Activates features as albedo."""

    @dataclass(kw_only=True)
    class Config:
        REFUSED: ClassVar[dict[str, str]] = {
            "weights": NO_OWN_WEIGHTS,
        }

        n_output_dims: Width = 3
        """Colour channels."""
        color_activation: ColorActivation = "sigmoid"
        """sigmoid-mipnerf reaches from -0.001 to 1.001, so that pure black and white are within reach."""
        requires_normal: bool = False
        """Accepted for old configurations: colours do not depend on normals."""
        input_feature_dims: Width | None = None
        """Features a further network reads; needs mlp_network_config. None: features are colours already."""
        mlp_network_config: MlpConfig | None = None
        """That network."""

        def __post_init__(self) -> None:
            if (self.input_feature_dims is None) != (self.mlp_network_config is None):
                raise ConfigError("material.input_feature_dims and material.mlp_network_config need each other")

    def configure(self) -> None:
        network = self.cfg.mlp_network_config
        if network is not None:
            shape = network.n_neurons, network.n_hidden_layers
            self.network = Mlp(self.cfg.input_feature_dims, self.cfg.n_output_dims, *shape)

    def forward(self, features: Float[Tensor, "*N F"]) -> Float[Tensor, "*N D"]:
        """The activation (`ops.activations`) of the features or of what the network makes of them.

        Raises:
            ValueError: the features do not have the number of channels that the options say.
        """
        if self.cfg.mlp_network_config is not None:
            features = self.network(features)
        if features.shape[-1] != self.cfg.n_output_dims:
            raise ValueError(
                f"material.n_output_dims is {self.cfg.n_output_dims}, but the features have {features.shape[-1]} "
                "channels; set it to geometry.n_feature_dims"
            )
        return colors_of(features, self.cfg.color_activation)
