"""3DConv-net: a StyleGAN generator with 3D convolutions, from noise and the text to voxels."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from custom.scaledreamer.fields import VoxelField
from custom.scaledreamer.generator import SceneGenerator
from triplaneturbo.bounds import Count, GridPoints, Width
from triplaneturbo.draws import Draws
from triplaneturbo.errors import ConfigError
from triplaneturbo.registry import register
from triplaneturbo.scenes import FieldScene
from triplaneturbo.types import TextStates

_SLOPE, _GAIN, _LIMIT, _EPSILON = 0.2, math.sqrt(2), 256.0, 1e-8
# Voxels along an edge of the learned tensor that everything grows from.
_START = 4


@dataclass(kw_only=True)
class VoxelGeneratorConfig:
    """Shape of the voxel generator."""

    noise_width: Width = 64
    """Width of the noise that tells scenes of a text apart."""
    text_width: Width = 1024
    """Width of the pooled text state."""
    style_width: Width = 256
    """Width of the style, which modulates every convolution."""
    n_mapping_layers: Count = 2
    """Layers between noise and style, before the text comes in."""
    widths: list[Width] = field(default_factory=lambda: [512, 512, 512, 256, 128, 64])
    """Channels at 4, 8, 16, ... voxels along an edge; as many as there are entries."""
    constants_until: GridPoints = 64
    """Resolution up to which each one has a learned volume that no prompt changes."""
    channels: Width = 32
    """Channels of the voxels that are made."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.widths) <= 8:
            raise ConfigError(f"widths must have 1 to 8 entries, for 4 to 512 voxels along an edge, not {self.widths}")

    @property
    def resolution(self) -> int:
        """Voxels along an edge of what is made."""
        return _START << (len(self.widths) - 1)

    @property
    def noise_sizes(self) -> list[int]:
        """Voxels along an edge of the noise of each convolution, in the order of the calls."""
        return [_START, *(_START << level for level in range(1, len(self.widths)) for _ in range(2))]


def _activated(x: Tensor) -> Tensor:
    return F.leaky_relu(x, _SLOPE) * _GAIN


class _Linear(nn.Module):
    """A linear layer whose weights start as N(0, 1) and are divided by sqrt(fan-in) in use (Karras et al. 2018)."""

    def __init__(self, n_in: int, n_out: int, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in))
        self.bias = nn.Parameter(torch.full((n_out,), bias))

    def forward(self, x: Float[Tensor, "B I"]) -> Float[Tensor, "B O"]:
        return F.linear(x, self.weight / math.sqrt(self.weight.shape[1]), self.bias)


class _Mapping(nn.Module):
    """Noise and text to the style: layers of the normalised noise, then one of these and the text."""

    def __init__(self, cfg: VoxelGeneratorConfig) -> None:
        super().__init__()
        widths = [cfg.noise_width, *[cfg.style_width] * cfg.n_mapping_layers]
        self.layers = nn.ModuleList(_Linear(a, b) for a, b in itertools.pairwise(widths))
        self.embed = _Linear(cfg.style_width + cfg.text_width, cfg.style_width)

    def forward(self, noise: Float[Tensor, "B Z"], text: Float[Tensor, "B T"]) -> Float[Tensor, "B W"]:
        x = noise * (noise.square().mean(1, keepdim=True) + _EPSILON).rsqrt()
        for layer in self.layers:
            x = _activated(layer(x))
        return self.embed(torch.cat([x, text], dim=1))


class _ModulatedConvolution(nn.Module):
    """A convolution whose input channels are scaled by the style (StyleGAN2, Karras et al. 2020)."""

    def __init__(self, n_in: int, n_out: int, size: int, style_width: int) -> None:
        super().__init__()
        self.affine = _Linear(style_width, n_in, bias=1.0)
        self.weight = nn.Parameter(torch.randn(n_out, n_in, size, size, size))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def convolve(
        self, x: Float[Tensor, "B I D D D"], scale: Float[Tensor, "B I"], *, demodulate: bool
    ) -> Float[Tensor, "B O D D D"]:
        """Each prompt's convolution, as one of groups. demodulate: with weights of norm 1 for each output."""
        weight = self.weight * scale[:, None, :, None, None, None]
        if demodulate:
            weight = weight * (weight.square().sum((2, 3, 4, 5), keepdim=True) + _EPSILON).rsqrt()
        padding = self.weight.shape[-1] // 2
        y = F.conv3d(x.flatten(0, 1)[None], weight.flatten(0, 1), padding=padding, groups=len(x))
        return y[0].unflatten(0, weight.shape[:2])


class _StyledConvolution(_ModulatedConvolution):
    """Convolution, enlargement, noise, bias and activation, in this order."""

    noise_const: Tensor
    """Noise of evaluation, the same for all prompts."""

    def __init__(self, n_in: int, n_out: int, style_width: int, resolution: int, *, enlarge: bool) -> None:
        super().__init__(n_in, n_out, 3, style_width)
        self.enlarge = enlarge
        self.noise_strength = nn.Parameter(torch.zeros(1))
        self.register_buffer("noise_const", torch.randn(resolution, resolution, resolution))

    def forward(
        self, x: Float[Tensor, "B I d d d"], style: Float[Tensor, "B W"], noise: Float[Tensor, "B 1 D D D"] | None
    ) -> Float[Tensor, "B O D D D"]:
        x = self.convolve(x, self.affine(style), demodulate=True)
        x = _enlarged(x) if self.enlarge else x
        noise = self.noise_const if noise is None else noise
        x = x + noise * self.noise_strength + self.bias[:, None, None, None]
        return _activated(x).clamp(-_LIMIT, _LIMIT)


class _ToVoxels(_ModulatedConvolution):
    """What a level adds to the voxels."""

    def __init__(self, n_in: int, n_out: int, style_width: int) -> None:
        super().__init__(n_in, n_out, 1, style_width)

    def forward(self, x: Float[Tensor, "B I D D D"], style: Float[Tensor, "B W"]) -> Float[Tensor, "B O D D D"]:
        scale = self.affine(style) / math.sqrt(self.weight.shape[1])
        y = self.convolve(x, scale, demodulate=False) + self.bias[:, None, None, None]
        return y.clamp(-_LIMIT, _LIMIT)


def _enlarged(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=True)


class _FirstLevel(nn.Module):
    """The learned start, convolved once."""

    def __init__(self, cfg: VoxelGeneratorConfig) -> None:
        super().__init__()
        width, style = cfg.widths[0], cfg.style_width
        self.const = nn.Parameter(torch.randn(width, _START, _START, _START))
        self.conv1 = _StyledConvolution(width, width, style, _START, enlarge=False)
        self.torgb = _ToVoxels(width, cfg.channels, style)

    def forward(self, style: Tensor, noises: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        """The level's features and voxels."""
        x = self.conv1(self.const.expand(len(style), -1, -1, -1, -1), style, noises[0])
        return x, self.torgb(x, style)


class _Level(nn.Module):
    """Twice the resolution: two convolutions, and what they add to the enlarged voxels."""

    def __init__(self, cfg: VoxelGeneratorConfig, level: int) -> None:
        super().__init__()
        (n_in, n_out), resolution = cfg.widths[level - 1 : level + 1], _START << level
        self.conv0 = _StyledConvolution(n_in, n_out, cfg.style_width, resolution, enlarge=True)
        if resolution <= cfg.constants_until:
            volume = torch.randn(n_out, resolution, resolution, resolution) / math.sqrt(n_out)
            self.const_bias = nn.Parameter(volume)
        self.conv1 = _StyledConvolution(n_out, n_out, cfg.style_width, resolution, enlarge=False)
        self.torgb = _ToVoxels(n_out, cfg.channels, cfg.style_width)

    def forward(
        self, x: Tensor, voxels: Tensor, style: Tensor, noises: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """The level's features, and the voxels with what it adds."""
        x = self.conv0(x, style, noises[0])
        if hasattr(self, "const_bias"):
            x = x + self.const_bias
        x = self.conv1(x, style, noises[1])
        return x, _enlarged(voxels) + self.torgb(x, style)


class _Synthesis(nn.Module):
    """From a style to voxels, level by level."""

    def __init__(self, cfg: VoxelGeneratorConfig) -> None:
        super().__init__()
        self.first_block = _FirstLevel(cfg)
        self.blocks = nn.ModuleList(_Level(cfg, level) for level in range(1, len(cfg.widths)))

    def forward(self, style: Tensor, noises: Sequence[Tensor | None]) -> Tensor:
        x, voxels = self.first_block(style, noises[:1])
        for i, block in enumerate(self.blocks):
            x, voxels = block(x, voxels, style, noises[1 + 2 * i : 3 + 2 * i])
        return voxels


class VoxelGenerator(nn.Module):
    """Noise and text to voxels (CC3D, Bahmani et al. 2023, without its layout)."""

    def __init__(self, cfg: VoxelGeneratorConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.mapping = _Mapping(cfg)
        self.synthesis = _Synthesis(cfg)

    def forward(
        self,
        noise: Float[Tensor, "B Z"],
        text: Float[Tensor, "B T"],
        noises: Sequence[Float[Tensor, "B 1 _ _ _"]] | None = None,
    ) -> Float[Tensor, "B C D D D"]:
        """The voxels of B prompts; differentiable.

        text: pooled. noises: of each convolution, of `cfg.noise_sizes` voxels along an edge; None: that of evaluation,
        the same for all prompts.
        """
        given = noises if noises is not None else [None] * len(self.cfg.noise_sizes)
        return self.synthesis(self.mapping(noise, text), given)


@register("conv3d-net")
class Conv3dNet(SceneGenerator):
    """Noise and pooled text to voxels (ScaleDreamer, Ma et al. 2024).

    The noise of a seed makes a scene in evaluation; the noises of the convolutions are fixed there.
    """

    @dataclass(kw_only=True)
    class Config(SceneGenerator.Config):
        space_generator: VoxelGeneratorConfig = field(default_factory=VoxelGeneratorConfig)
        """The network."""
        field: VoxelField.Config = field(default_factory=VoxelField.Config)
        """What is read from the voxels."""

    field: VoxelField

    def configure(self) -> None:
        super().configure()
        self.space_generator = VoxelGenerator(self.cfg.space_generator)
        self.field = VoxelField(self.cfg.field, channels=self.cfg.space_generator.channels)

    def scene(self, condition: TextStates, draws: Draws | None = None) -> FieldScene:
        """The scenes of the prompts.

        Raises:
            ValueError: there are no `draws`.
        """
        if draws is None:
            raise ValueError("conv3d-net makes a scene from noise: give draws, or generate() the noise of a seed")
        cfg = self.cfg.space_generator
        noises = [draws.normal(f"noise_{i}", 1, n, n, n) for i, n in enumerate(cfg.noise_sizes)]
        return self._scene(draws.normal("z", cfg.noise_width), condition, noises)

    @torch.no_grad()
    def generate(self, condition: TextStates, noise: Float[Tensor, "N c h w"], n_steps: int = 1) -> FieldScene:
        """The scenes of the prompts, without gradients; the first numbers of each one's noise are used.

        Raises:
            ValueError: the noise of a prompt has too few numbers.
        """
        rows, wanted = noise.reshape(len(condition.pooled), -1), self.cfg.space_generator.noise_width
        if rows.shape[1] < wanted:
            raise ValueError(
                f"conv3d-net needs {wanted} numbers of noise for a prompt, not {rows.shape[1]}; "
                "give data.latent_shape more, such as [6, 4, 32, 32]"
            )
        return self._scene(rows[:, :wanted], condition, None)

    def _scene(self, noise: Tensor, condition: TextStates, noises: Sequence[Tensor] | None) -> FieldScene:
        return FieldScene(self.field, {"voxels": self.space_generator(noise, condition.pooled, noises)})
