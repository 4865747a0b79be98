"""Low-rank adapters on stock diffusers networks: one per plane, or one shared by all planes.

Six planes of a prompt are rows 6b + p of the batch. An adapted layer computes `base(x) + up(down(x))`; a plane-wise
one has six (down, up) pairs, stored stacked, and row n uses pair n mod 6. Adapters take the place of the layer they
adapt, which becomes their `base`, so that no library patching and no processor class per kind is needed.
"""

from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.autoencoders.vae import Decoder
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.attention import attend
from triplaneturbo.ops.low_rank import adapted_linear
from triplaneturbo.ops.sums import add_with_bias, convolve

N_PLANES = 6
_CONVS = ("conv1", "conv2", "conv_shortcut")
_SAMPLERS = ("downsamplers", "upsamplers")
Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


SelfAdapters = Literal["plane_lora", "shared_lora", "separate_planes", "none"]


@dataclass(frozen=True)
class Ranks:
    """Of adapters, 0: none, and whether they have biases."""

    self_attention: int = 0
    cross_attention: int = 0
    convolution: int = 0
    with_bias: bool = False


class Adapter(nn.Module):
    """A frozen `base` layer with trained low-rank factors: `down` drawn from N(0, 1/rank^2), `up` zero.

    down, up (and `bias`, if asked for) have a leading axis of 6 if `planes`.
    """

    def __init__(self, base: nn.Module, down: tuple[int, ...], up: tuple[int, ...], planes: bool, with_bias: bool):
        super().__init__()
        stack = (N_PLANES,) if planes else ()
        self.base = base
        self.down = nn.Parameter(torch.randn(*stack, *down) / down[0])
        self.up = nn.Parameter(torch.zeros(*stack, *up))
        self.bias = nn.Parameter(torch.zeros(*stack, up[0])) if with_bias else None

    def factors(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """down, up, bias in the type the network runs in; the trained masters stay float32."""
        bias = None if self.bias is None else self.bias.to(like.dtype)
        return self.down.to(like.dtype), self.up.to(like.dtype), bias


class LoraLinear(Adapter):
    """y = W x + b + U D x (+ c), the same for all planes."""

    base: nn.Linear

    def __init__(self, base: nn.Linear, rank: int, with_bias: bool = False):
        super().__init__(base, (rank, base.in_features), (base.out_features, rank), False, with_bias)

    def forward(self, x: Float[Tensor, "N S I"]) -> Float[Tensor, "N S O"]:
        down, up, bias = self.factors(x)
        y = adapted_linear(x, self.base.weight, self.base.bias, down[None], up[None])
        return y if bias is None else y + bias

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The plain layer that computes the same."""
        return _folded(self.base, self.up @ self.down, self.bias)


class PlaneLoraLinear(Adapter):
    """y = W x + b + U_p D_p x (+ c_p) for rows of plane p.

    on_output: the adapter reads the base layer's output instead of its input, y = (I + U_p D_p)(W x + b) (+ c_p):
    the published weights were trained so for the output projection of attention.
    """

    base: nn.Linear

    def __init__(self, base: nn.Linear, rank: int, with_bias: bool = False, on_output: bool = False):
        read = base.out_features if on_output else base.in_features
        super().__init__(base, (rank, read), (base.out_features, rank), True, with_bias)
        self.on_output = on_output

    def forward(self, x: Float[Tensor, "N S I"]) -> Float[Tensor, "N S O"]:
        down, up, bias = self.factors(x)
        y = adapted_linear(x, self.base.weight, self.base.bias, down, up, on_output=self.on_output)
        return y if bias is None else (y.unflatten(0, (-1, N_PLANES)) + bias.unsqueeze(1)).flatten(0, 1)

    @torch.no_grad()
    def merged(self) -> "PlaneLinear":
        """One full matrix a plane: six times the memory of the base layer, one product instead of three."""
        product = self.up @ self.down
        weight = self.base.weight.to(product.dtype)
        bias = None if self.base.bias is None else self.base.bias.to(product.dtype).expand(N_PLANES, -1)
        weights = weight + (product @ weight if self.on_output else product)
        if bias is not None and self.on_output:
            bias = bias + (product @ bias.unsqueeze(-1)).squeeze(-1)
        if self.bias is not None:
            bias = self.bias if bias is None else bias + self.bias
        return PlaneLinear(weights, bias, self.base.weight.dtype)


class PlaneLinear(nn.Module):
    """y = W_p x (+ b_p) for rows of plane p, not trained."""

    def __init__(self, weight: Float[Tensor, "6 O I"], bias: Float[Tensor, "6 O"] | None, dtype: torch.dtype):
        super().__init__()
        self.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)

    def forward(self, x: Float[Tensor, "N S I"]) -> Float[Tensor, "N S O"]:
        y = x.unflatten(0, (-1, N_PLANES)) @ self.weight.mT
        return (y if self.bias is None else y + self.bias.unsqueeze(1)).flatten(0, 1)


class LoraConv(Adapter):
    """y = conv(x) + U * (D * x) with D of the convolution's size, stride and padding, U 1x1; shared by all planes."""

    base: nn.Conv2d

    def __init__(self, base: nn.Conv2d, rank: int, with_bias: bool = False):
        down, up = (rank, base.in_channels, *base.kernel_size), (base.out_channels, rank, 1, 1)
        super().__init__(base, down, up, False, with_bias)

    def forward(self, x: Float[Tensor, "N I H W"]) -> Float[Tensor, "N O h w"]:
        return add_with_bias(*self.parts(x))

    def parts(self, x: Float[Tensor, "N I H W"]) -> tuple[list[Tensor], Tensor | None]:
        """The results of both, and a bias, whose sum it is; see `sums.convolve`."""
        down, up, bias = self.factors(x)
        narrow = F.conv2d(x, down, stride=self.base.stride, padding=self.base.padding)
        base, of_base = convolve(self.base, x)
        return [*base, F.conv2d(narrow, up, bias)], of_base

    @torch.no_grad()
    def merged(self) -> nn.Conv2d:
        """The plain layer that computes the same."""
        return _folded(self.base, torch.einsum("or,rikl->oikl", self.up[..., 0, 0], self.down), self.bias)


class PlaneLoraConv(Adapter):
    """y = conv(x) + U_p * (D_p * x) (+ c_p) for rows of plane p, all six as one grouped convolution."""

    base: nn.Conv2d

    def __init__(self, base: nn.Conv2d, rank: int, with_bias: bool = False):
        down, up = (rank, base.in_channels, *base.kernel_size), (base.out_channels, rank, 1, 1)
        super().__init__(base, down, up, True, with_bias)

    def forward(self, x: Float[Tensor, "N I H W"]) -> Float[Tensor, "N O h w"]:
        down, up, bias = self.factors(x)
        planes = x.unflatten(0, (-1, N_PLANES)).flatten(1, 2)
        narrow = F.conv2d(
            planes, down.flatten(0, 1), stride=self.base.stride, padding=self.base.padding, groups=N_PLANES
        )
        change = F.conv2d(narrow, up.flatten(0, 1), None if bias is None else bias.flatten(), groups=N_PLANES)
        return self.base(x) + change.unflatten(1, (N_PLANES, -1)).flatten(0, 1)


def _folded(base: Layer, change: Tensor, bias: Tensor | None) -> Layer:
    """`base` with `change` added to its weight and `bias` to its bias; sums in float32, stored in its own type."""
    base.weight.copy_(base.weight.float() + change.float())
    if bias is not None:
        if base.bias is None:
            base.bias = nn.Parameter(torch.zeros_like(bias, dtype=base.weight.dtype), requires_grad=False)
        base.bias.copy_(base.bias.float() + bias.float())
    return base


class CrossPlaneAttention(AttnProcessor):
    """Self-attention in which every token of a plane sees the tokens of all six planes of its prompt."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "N S C"] | Float[Tensor, "N C H W"],
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: object,
        **kwargs: object,
    ) -> Tensor:
        """The tokens after attention.

        Raises:
            ValueError: others to attend to, or a mask, are given, which self-attention has not.
        """
        if encoder_hidden_states is not None or attention_mask is not None:
            raise ValueError("attention across planes is self-attention: it takes neither other states nor a mask")
        residual, shape = hidden_states, hidden_states.shape
        if len(shape) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        tokens = hidden_states.shape[1]

        def heads(x: Tensor) -> Tensor:
            return x.reshape(-1, N_PLANES * tokens, attn.heads, x.shape[-1] // attn.heads).transpose(1, 2)

        mixed = attend(
            heads(attn.to_q(hidden_states)),
            heads(attn.to_k(hidden_states)),
            heads(attn.to_v(hidden_states)),
            scale=attn.scale,
        )
        mixed = mixed.transpose(1, 2).reshape(shape[0], tokens, -1)
        output = attn.to_out[1](attn.to_out[0](mixed))
        if len(shape) == 4:
            output = output.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            output = output + residual
        return output if attn.rescale_output_factor == 1 else output / attn.rescale_output_factor


def adapt_attention(attention: Attention, kind: str, rank: int, with_bias: bool, cross_plane: bool) -> None:
    """Put adapters on the four projections of `attention`, and let planes see each other if `cross_plane`.

    kind: plane_lora (one adapter a plane), none, or another (one for all planes).
    """
    if cross_plane:
        attention.set_processor(CrossPlaneAttention())
    if kind == "none" or rank == 0:
        return
    for name in ("to_q", "to_k", "to_v"):
        base = getattr(attention, name)
        adapter = PlaneLoraLinear if kind == "plane_lora" else LoraLinear
        setattr(attention, name, adapter(base, rank, with_bias))
    base = attention.to_out[0]
    assert isinstance(base, nn.Linear)
    if kind == "plane_lora":
        attention.to_out[0] = PlaneLoraLinear(base, rank, with_bias, on_output=True)
    else:
        attention.to_out[0] = LoraLinear(base, rank, with_bias)


def _planes_see_each_other(kind: str) -> bool:
    return kind in ("plane_lora", "shared_lora")


def adapt_unet(unet: nn.Module, ranks: Ranks, self_kind: str, cross_kind: str, convolution_kind: str) -> None:
    """Adapters on all attention layers, ResNet and resampling convolutions of a `UNet2DConditionModel`, in place."""
    for name, module in list(unet.named_modules()):
        if not name.endswith((".attn1", ".attn2")):
            continue
        assert isinstance(module, Attention), name
        if name.endswith(".attn1"):
            see = _planes_see_each_other(self_kind)
            adapt_attention(module, self_kind, ranks.self_attention, ranks.with_bias, see)
        else:
            adapt_attention(module, cross_kind, ranks.cross_attention, ranks.with_bias, False)
    _adapt_convolutions(unet, convolution_kind, ranks)


def adapt_decoder(decoder: Decoder, ranks: Ranks, attention_kind: str) -> None:
    """The same for a VAE decoder, in place: its convolution adapters are always shared by the planes."""
    for attention in decoder.mid_block.attentions:
        assert isinstance(attention, Attention)
        see = _planes_see_each_other(attention_kind)
        adapt_attention(attention, attention_kind, ranks.self_attention, ranks.with_bias, see)
    _adapt_convolutions(decoder, "shared_lora", ranks)


def _adapt_convolutions(network: nn.Module, kind: str, ranks: Ranks) -> None:
    if ranks.convolution == 0:
        return
    adapter = PlaneLoraConv if kind == "plane_lora" else LoraConv
    for name, module in list(network.named_modules()):
        sampler = any(part in name.split(".") for part in _SAMPLERS) and name.endswith(".conv")
        if isinstance(module, nn.Conv2d) and (sampler or name.rsplit(".", 1)[-1] in _CONVS):
            network.set_submodule(name, adapter(module, ranks.convolution, ranks.with_bias))


def merge_adapters(network: nn.Module) -> None:
    """Fold adapters into the weights of their layers, in place and for good: for inference.

    Shared adapters vanish into the layer, plane-wise linear ones become one matrix a plane. Plane-wise convolutions
    stay: six full kernels would cost more than they save.
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, (LoraLinear, PlaneLoraLinear, LoraConv)):
            network.set_submodule(name, module.merged())
