"""Fields that three generators write: decoders of a hash grid, voxels, planes."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.bounds import Length, Width
from triplaneturbo.errors import ConfigError
from triplaneturbo.nn.hypernet import apply_written
from triplaneturbo.nn.mlp import Mlp, ShallowMlpConfig
from triplaneturbo.ops.hashgrid import HashGrid, HashGridConfig
from triplaneturbo.ops.rows import gather_rows
from triplaneturbo.registry import register
from triplaneturbo.scenes import PlaneField
from triplaneturbo.scenes.base import Normals, Tensors
from triplaneturbo.scenes.encoded import EncodedField
from triplaneturbo.scenes.hashgrid import encode_cube
from triplaneturbo.scenes.planes import Combination


@register("written-decoder")
class WrittenDecoderField(EncodedField):
    """A signed distance and colours from one hash grid for all prompts, read by networks that are written for each.

    sdf(p) = network(h(p)) + bias(p). `tensors` are the matrices [B, in, out] of the networks `value` and `color`,
    called value_0, value_1, ..., without biases, ReLU between them (ATT3D, Lorraine et al. 2023).
    """

    @dataclass(kw_only=True)
    class Config(EncodedField.Config):
        radius: Length = 2.0
        """Half the edge of the cube that the grid covers, world units."""
        encoding: HashGridConfig = field(default_factory=HashGridConfig)
        """The grid."""
        value_widths: list[Width] = field(default_factory=lambda: [64])
        """Widths of the hidden layers of the network that reads values."""
        color_widths: list[Width] = field(default_factory=lambda: [64])
        """Widths of those of the network that reads colours."""
        normals: Normals = "forward_inside"
        """How d value / d point is computed, see `scenes.base.Normals`."""

    free = False

    def configure(self) -> None:
        super().configure()
        self.encoding = HashGrid(**vars(self.cfg.encoding))

    @property
    def networks(self) -> dict[str, list[int]]:
        """By name, the widths of the networks that are to be written, from the input to the output."""
        width = self.encoding.n_output_dims
        return {
            "value": [width, *self.cfg.value_widths, 1],
            "color": [width, *self.cfg.color_widths, self.cfg.n_feature_dims],
        }

    def encode(self, tensors: Tensors, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N D"]:
        return encode_cube(self.encoding, points, self.radius)

    def raw_value(self, tensors: Tensors, encoded: Float[Tensor, "B N D"]) -> Float[Tensor, "B N 1"]:
        return apply_written(self._weights(tensors, "value"), encoded)

    def raw_features(self, tensors: Tensors, encoded: Float[Tensor, "B N D"]) -> Float[Tensor, "B N F"]:
        return apply_written(self._weights(tensors, "color"), encoded)

    def _weights(self, tensors: Tensors, network: str) -> Sequence[Tensor]:
        return [tensors[f"{network}_{i}"] for i in range(len(self.networks[network]) - 1)]


def look_up(voxels: Float[Tensor, "B C D H W"], places: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N C"]:
    """What `F.grid_sample` finds at places in [-1, 1]^3, zero outside; differentiable in both.

    On CUDA its gradient has a fixed order where that is asked for, which PyTorch's has not.
    """
    batch, channels, *sizes = voxels.shape
    size = places.new_tensor(sizes[::-1])
    position = ((places + 1) * size - 1) / 2
    lowest = position.detach().floor()
    lines = [torch.minimum(lowest + i, size).clamp(min=-1).long() + 1 for i in (0, 1)]
    shares = [1 - (position - lowest), position - lowest]
    padded = F.pad(voxels, [1] * 6)  # a border of what is outside
    depth, height, width = padded.shape[2:]
    table = padded.permute(0, 2, 3, 4, 1).reshape(-1, channels)
    first = torch.arange(batch, device=places.device)[:, None] * depth
    found = places.new_zeros(*places.shape[:2], channels)
    for corner in itertools.product((0, 1), repeat=3):
        x, y, z = (lines[i][..., axis] for axis, i in enumerate(corner))
        weight = math.prod(shares[i][..., axis] for axis, i in enumerate(corner))
        rows = gather_rows(table, (((first + z) * height + y) * width + x).flatten())
        found = found + weight[..., None] * rows.view_as(found)
    return found


@register("voxels")
class VoxelField(EncodedField):
    """A signed distance and colours read from the features of voxels by two networks that all prompts share.

    sdf(p) = network(v(p)) + bias(p). `tensors["voxels"]`, [B, C, D, H, W], fills the cube: x runs along W, y along H, z
    along D, the centre of voxel i of n is at (2i + 1) / n - 1 times the radius; features are trilinear, 0 outside.
    On CUDA the gradient of the voxels is the same from run to run under `torch.use_deterministic_algorithms`.
    """

    @dataclass(kw_only=True)
    class Config(EncodedField.Config):
        radius: Length = 2.0
        """Half the edge of the cube that the voxels fill, world units."""
        network: ShallowMlpConfig = field(default_factory=ShallowMlpConfig)
        """The networks that read values and colours from the features."""
        bias_size: Length | tuple[Length, Length, Length] | None = 0.8
        """Radius of the sphere; the three semi-axes of the ellipsoid; world units."""
        normals: Normals = "forward_inside"
        """How d value / d point is computed, see `scenes.base.Normals`; not analytic, whose derivative would be one of
        the lookup that PyTorch does not have."""

        def __post_init__(self) -> None:
            if self.normals == "analytic":
                raise ConfigError(
                    "normals is 'analytic', which voxels do not have; allowed: 'forward_inside', 'central_inside', "
                    "'finite_difference'"
                )

    free = False

    def configure(self, channels: int) -> None:
        """channels: C."""
        super().configure()
        hidden = self.cfg.network.n_neurons, self.cfg.network.n_hidden_layers
        self.sdf_network = Mlp(channels, 1, *hidden)
        self.feature_network = Mlp(channels, self.cfg.n_feature_dims, *hidden)

    def encode(self, tensors: Tensors, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N C"]:
        voxels, places = tensors["voxels"], points / self.radius
        if places.is_cuda and torch.are_deterministic_algorithms_enabled():
            return look_up(voxels, places)
        found = F.grid_sample(voxels, places[:, None, None], padding_mode="zeros", align_corners=False)
        return found[:, :, 0, 0].transpose(1, 2)

    def raw_value(self, tensors: Tensors, encoded: Float[Tensor, "B N C"]) -> Float[Tensor, "B N 1"]:
        return self.sdf_network(encoded)

    def raw_features(self, tensors: Tensors, encoded: Float[Tensor, "B N C"]) -> Float[Tensor, "B N F"]:
        return self.feature_network(encoded)


@dataclass(kw_only=True)
class ThreePlanesConfig(PlaneField.Config):
    """Options of a `PlaneField` of three planes along the axes themselves, whose features are joined."""

    dual: bool = False
    """Six planes, three for shape and three for colour; else three for both."""
    axes: Literal["yx", "xy", "plain"] = "plain"
    """How planes are laid on the axes, see `scenes.planes.PLANE_AXES`."""
    shape_features: Combination = "concat"
    """What is made of the features that the three planes have for shape."""
    radius: Length = 2.0
    """Half the edge of the box that the planes cover, world units."""
    bias: Literal["sphere", "ellipsoid"] | float = "sphere"
    """Start shape, or a constant."""
    bias_size: Length | tuple[Length, Length, Length] | None = 0.8
    """Radius of the sphere; the three semi-axes of the ellipsoid; world units."""
    normals: Normals = "forward_inside"
    """How d sdf / d point is computed, see `scenes.base.Normals`."""
