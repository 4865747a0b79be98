"""Triplane transformer: learned tokens of three planes that attend to the text."""

from dataclasses import dataclass, field

import torch
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor, nn

from custom.scaledreamer.fields import ThreePlanesConfig
from custom.scaledreamer.generator import SceneGenerator
from triplaneturbo.attention import PlainAttention
from triplaneturbo.bounds import Count, LatentSize, Width
from triplaneturbo.draws import Draws
from triplaneturbo.errors import ConfigError
from triplaneturbo.registry import register
from triplaneturbo.scenes import FieldScene, PlaneField
from triplaneturbo.types import TextStates

_EPSILON = 1e-6


@dataclass(kw_only=True)
class TransformerConfig:
    """Shape of the transformer."""

    text_width: Width = 1024
    """Width of the text states."""
    width: Width = 768
    """Width of a token."""
    n_heads: Count = 16
    """Heads of each attention."""
    n_layers: Count = 12
    """Blocks."""
    mlp_ratio: Count = 4
    """Width of the hidden layers, in widths of a token."""
    token_resolution: LatentSize = 32
    """Tokens along an edge of a plane; the planes are twice as large."""
    channels: Width = 32
    """Channels of a plane."""
    pooled_text: bool = False
    """Whether the text is one more token, its pooled state, instead of states that are attended to."""

    def __post_init__(self) -> None:
        if self.width % self.n_heads:
            raise ConfigError(f"width ({self.width}) must be a multiple of n_heads ({self.n_heads})")


def _attention(cfg: TransformerConfig, text_width: int | None = None) -> Attention:
    head = cfg.width // cfg.n_heads
    processor = PlainAttention()
    return Attention(cfg.width, text_width, heads=cfg.n_heads, dim_head=head, out_bias=True, processor=processor)


class _Block(nn.Module):
    """x + attention to the text, x + attention to itself, x + MLP, each of normalised x."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        hidden = cfg.mlp_ratio * cfg.width
        self.norm1 = nn.LayerNorm(cfg.width, eps=_EPSILON)
        self.cross_attn = _attention(cfg, cfg.text_width)
        self.norm2 = nn.LayerNorm(cfg.width, eps=_EPSILON)
        self.self_attn = _attention(cfg)
        self.norm3 = nn.LayerNorm(cfg.width, eps=_EPSILON)
        # The original has dropout of nothing third, which counts in the names of the tensors.
        self.mlp = nn.Sequential(nn.Linear(cfg.width, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, cfg.width))

    def forward(self, x: Float[Tensor, "B S W"], text: Float[Tensor, "B L T"]) -> Float[Tensor, "B S W"]:
        x = x + self.cross_attn(self.norm1(x), text)
        x = x + self.self_attn(self.norm2(x))
        return x + self.mlp(self.norm3(x))


class _PooledBlock(nn.Module):
    """The text as a further token of the attention and of the MLP, which begins with its activation."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        hidden = cfg.mlp_ratio * cfg.width
        self.norm2 = nn.LayerNorm(cfg.width, eps=_EPSILON)
        self.self_attn = _attention(cfg)
        self.norm3 = nn.LayerNorm(cfg.width, eps=_EPSILON)
        self.mlp = nn.Sequential(nn.GELU(), nn.Linear(cfg.width, hidden), nn.GELU(), nn.Linear(hidden, cfg.width))

    def forward(self, x: Float[Tensor, "B S W"], text: Float[Tensor, "B 1 W"]) -> Float[Tensor, "B S W"]:
        x = torch.cat([text, x], dim=1)
        x = x + self.self_attn(self.norm2(x))
        x = x + self.mlp(self.norm3(x))
        return x[:, 1:]


class PlaneTransformer(nn.Module):
    """Text states to three planes, as a decoder of OpenLRM makes them from a picture (LRM, Hong et al. 2023)."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        n_tokens = 3 * cfg.token_resolution**2
        self.pos_embed = nn.Parameter(torch.randn(1, n_tokens, cfg.width) / cfg.width**0.5)
        if cfg.pooled_text:
            self.proj = nn.Linear(cfg.text_width, cfg.width)
        block = _PooledBlock if cfg.pooled_text else _Block
        self.layers = nn.ModuleList(block(cfg) for _ in range(cfg.n_layers))
        self.norm = nn.LayerNorm(cfg.width, eps=_EPSILON)
        self.deconv = nn.ConvTranspose2d(cfg.width, cfg.channels, 2, stride=2, bias=False)

    def forward(self, tokens: Float[Tensor, "B L T"], pooled: Float[Tensor, "B T"]) -> Float[Tensor, "B 3 C H H"]:
        """The planes xy, xz, zy of B prompts, R tokens along an edge; differentiable."""
        text = self.proj(pooled)[:, None] if self.cfg.pooled_text else tokens
        x = self.pos_embed.expand(len(text), -1, -1)
        for layer in self.layers:
            x = layer(x, text)
        edge = self.cfg.token_resolution
        maps = self.norm(x).unflatten(1, (3, edge, edge)).permute(0, 1, 4, 2, 3)
        return self.deconv(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])


@register("triplane-transformer")
class TriplaneTransformer(SceneGenerator):
    """Text states to three feature planes (ScaleDreamer, Ma et al. 2024). Nothing is random: a text is one scene."""

    @dataclass(kw_only=True)
    class Config(SceneGenerator.Config):
        space_generator: TransformerConfig = field(default_factory=TransformerConfig)
        """The transformer."""
        field: ThreePlanesConfig = field(default_factory=ThreePlanesConfig)
        """What is read from the planes."""

    field: PlaneField

    def configure(self) -> None:
        super().configure()
        self.space_generator = PlaneTransformer(self.cfg.space_generator)
        self.field = PlaneField(self.cfg.field, channels=self.cfg.space_generator.channels)

    def scene(self, condition: TextStates, draws: Draws | None = None) -> FieldScene:
        """The scenes of the prompts; `draws` are not used."""
        return FieldScene(self.field, {"planes": self.space_generator(condition.tokens, condition.pooled)})
