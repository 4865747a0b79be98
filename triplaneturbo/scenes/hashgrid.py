"""A field in a multi-resolution hash grid: a signed distance or a density, and colours, of one scene."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.bounds import Length, Weight
from triplaneturbo.errors import ConfigError
from triplaneturbo.nn.mlp import Mlp, ShallowMlpConfig
from triplaneturbo.ops.activations import DensityActivation, densities_of
from triplaneturbo.ops.hashgrid import HashGrid, HashGridConfig
from triplaneturbo.registry import register
from triplaneturbo.scenes.base import FieldKind, Tensors
from triplaneturbo.scenes.bias import BlobShape, StartDensity
from triplaneturbo.scenes.encoded import EncodedField
from triplaneturbo.types import FieldSample


def encode_cube(
    grid: Callable[[Tensor], Tensor], points: Float[Tensor, "B N 3"], radius: float
) -> Float[Tensor, "B N D"]:
    """Features of points in the cube [-radius, radius]^3, which the grid covers. Beyond it is what is on its side."""
    unit = ((points / radius + 1) / 2).clamp(0, 1)
    return grid(unit.flatten(0, 1)).unflatten(0, points.shape[:2])


@register("hash-grid")
class HashGridField(EncodedField):
    """One scene in parameters of its own: `tensors` is empty, and there is one prompt.

    sdf(p) = network(h(p)) + bias(p), or density(p) = activation(network(h(p)) + blob(p)), with the hash grid h over the
    cube.
    """

    @dataclass(kw_only=True)
    class Config(EncodedField.Config):
        kind: FieldKind = "sdf"
        """What the values are."""
        encoding: HashGridConfig = field(default_factory=HashGridConfig)
        """The grid."""
        network: ShallowMlpConfig = field(default_factory=ShallowMlpConfig)
        """The networks that read values and colours from it."""
        bias: Literal["sphere", "ellipsoid"] | float = "sphere"
        """Start shape of a signed distance, or a constant; of a density, sphere is a blob."""
        bias_size: Length | tuple[Length, Length, Length] | None = 0.5
        """Radius of the sphere, or of the blob; the three semi-axes of the ellipsoid; world units."""
        density_blob: Weight = 10.0
        """Height of the blob that a density starts as."""
        density_blob_shape: BlobShape = "cone"
        """How it falls off, see `scenes.bias.StartDensity`."""
        density_activation: DensityActivation = "softplus"
        """What makes numbers densities, see `ops.activations.densities_of`."""
        level: float | None = None
        """The value on the surface; None: 0 of a signed distance, 25 of a density."""
        predict_normals: bool = False
        """Whether normals are read by a network of their own; then there is no d value / d point."""

        def __post_init__(self) -> None:
            if self.kind == "density" and self.bias == "ellipsoid":
                raise ConfigError("bias is 'ellipsoid', but a density starts as a blob: 'sphere', or as a constant")
            if self.kind == "density" and self.bias == "sphere" and not isinstance(self.bias_size, (int, float)):
                raise ConfigError(f"bias_size must be the radius of the blob, not {self.bias_size!r}")

    def configure(self) -> None:
        cfg = self.cfg
        super().configure()
        self.kind = cfg.kind
        self.level = cfg.level if cfg.level is not None else (0.0 if cfg.kind == "sdf" else 25.0)
        if cfg.kind == "density" and cfg.bias == "sphere":
            self.bias = StartDensity(cfg.density_blob, cfg.bias_size, cfg.density_blob_shape)
        self.encoding = HashGrid(**vars(cfg.encoding))
        hidden = cfg.network.n_neurons, cfg.network.n_hidden_layers
        self.value_network = Mlp(self.encoding.n_output_dims, 1, *hidden)
        self.feature_network = Mlp(self.encoding.n_output_dims, cfg.n_feature_dims, *hidden)
        if cfg.predict_normals:
            self.normal_network = Mlp(self.encoding.n_output_dims, 3, *hidden)

    def encode(self, tensors: Tensors, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N D"]:
        return encode_cube(self.encoding, points, self.radius)

    def raw_value(self, tensors: Tensors, encoded: Float[Tensor, "B N D"]) -> Float[Tensor, "B N 1"]:
        return self.value_network(encoded)

    def raw_features(self, tensors: Tensors, encoded: Float[Tensor, "B N D"]) -> Float[Tensor, "B N F"]:
        return self.feature_network(encoded)

    def finish(self, raw: Float[Tensor, "B N 1"], points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 1"]:
        value = super().finish(raw, points)
        return value if self.kind == "sdf" else densities_of(value, self.cfg.density_activation)

    def query(
        self, tensors: Tensors, points: Float[Tensor, "B N 3"], *, features: bool = True, normals: bool = False
    ) -> FieldSample:
        """See `Field.query`."""
        if not (normals and self.cfg.predict_normals):
            return super().query(tensors, points, features=features, normals=normals)
        encoded = self.encode(tensors, points)
        return FieldSample(
            self.finish(self.value_network(encoded), points),
            self.feature_network(encoded) if features else None,
            normal=F.normalize(self.normal_network(encoded), dim=-1),
        )
