"""Diffusers networks with norm, shift and SiLU as one operation, and channels stored last throughout."""

from typing import Protocol, runtime_checkable

import torch
from diffusers.models import Transformer2DModel, UNet2DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.resnet import ResnetBlock2D
from jaxtyping import Float
from torch import Tensor, nn

from triplaneturbo.attention import PlainAttention
from triplaneturbo.ops.gated import geglu
from triplaneturbo.ops.group_norm import group_norm_silu
from triplaneturbo.ops.sums import add_with_bias, convolve

# Channels of a head in torch's kernels for attention.
_WIDEST_HEAD = 256


class FusedGroupNorm(nn.GroupNorm):
    """silu(norm(x + shift)), or without either; the same parameters as the norm it takes the place of."""

    silu = False

    def forward(self, x: Float[Tensor, "N C *S"], shift: Float[Tensor, "N C"] | None = None) -> Float[Tensor, "N C *S"]:
        return group_norm_silu(x, self.num_groups, self.weight, self.bias, self.eps, shift=shift, silu=self.silu)


class FusedResnetBlock(ResnetBlock2D):
    """The same block; its norms include the SiLU behind them and the time embedding that is added before the second."""

    def forward(
        self, input_tensor: Float[Tensor, "N C H W"], temb: Float[Tensor, "N T"] | None = None, *unused: object
    ) -> Float[Tensor, "N D H W"]:
        parts, shift = _parts(self.conv1, self.norm1(input_tensor))
        shift = None if shift is None else shift.expand(len(input_tensor), -1)
        if temb is not None and self.time_emb_proj is not None:
            embedded = self.time_emb_proj(self.nonlinearity(temb))
            shift = embedded if shift is None else shift + embedded
        parts, bias = _parts(self.conv2, self.dropout(self.norm2(add_with_bias(parts, None), shift)))
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        output = add_with_bias([input_tensor, *parts], bias)
        return output if self.output_scale_factor == 1 else output / self.output_scale_factor


def _parts(convolution: nn.Module, x: Float[Tensor, "N C H W"]) -> tuple[list[Tensor], Tensor | None]:
    """Tensors and a bias whose sum is the result of a convolution, adapted or not."""
    if isinstance(convolution, InParts):
        return convolution.parts(x)
    if type(convolution) is nn.Conv2d:
        return convolve(convolution, x)
    return [convolution(x)], None


@runtime_checkable
class InParts(Protocol):
    """A layer that gives its result as `sums.convolve` does."""

    def parts(self, x: Tensor) -> tuple[list[Tensor], Tensor | None]: ...


class ChannelsLastTransformer(Transformer2DModel):
    """The same transformer; what it returns is stored channels last, as it was computed, without a copy."""

    def _get_output_for_continuous_inputs(
        self, hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, inner_dim: int
    ) -> Tensor:
        if self.use_linear_projection:
            hidden_states = self.proj_out(hidden_states)
        hidden_states = hidden_states.unflatten(1, (height, width)).movedim(-1, 1)
        if not self.use_linear_projection:
            hidden_states = self.proj_out(hidden_states)
        return hidden_states + residual


class FusedGeglu(GEGLU):
    """The same layer; gates and values are read where they were written."""

    def forward(self, hidden_states: Float[Tensor, "N S C"], *unused: object, **unused_too: object) -> Tensor:
        return geglu(self.proj(hidden_states))


class WideHeadAttention(AttnProcessor):
    """Attention of autoencoders, with one head of 512 channels, as two products.

    No kernel of torch for attention is made for heads of more than 256 channels; the one it takes is ten times slower
    backward. Scores and softmax are float32, as inside of such kernels, and need L^2 numbers of memory a picture.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "N C H W"],
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: object,
        **kwargs: object,
    ) -> Float[Tensor, "N C H W"]:
        """The pictures after attention of every place to all places."""
        tokens = hidden_states.flatten(2)
        tokens = (tokens if attn.group_norm is None else attn.group_norm(tokens)).transpose(1, 2)
        query, key, value = attn.to_q(tokens), attn.to_k(tokens), attn.to_v(tokens)
        scores = (attn.scale * query.float()) @ key.float().mT
        mixed = attn.to_out[0](scores.softmax(-1).to(value.dtype) @ value)
        output = mixed.unflatten(1, hidden_states.shape[2:]).movedim(-1, 1)
        if attn.residual_connection:
            output = output + hidden_states
        return output if attn.rescale_output_factor == 1 else output / attn.rescale_output_factor


def streamline(network: nn.Module) -> None:
    """Let a diffusers network use what is in this file, in place. Names and parameters stay.

    The classes of modules are exchanged, since diffusers builds them by itself.
    """
    for module in list(network.modules()):
        if type(module) is nn.GroupNorm:
            module.__class__ = FusedGroupNorm
        if type(module) is Transformer2DModel and module.is_input_continuous:
            module.__class__ = ChannelsLastTransformer
        if type(module) is GEGLU:
            module.__class__ = FusedGeglu
        if isinstance(module, Attention) and type(module.processor) is AttnProcessor2_0:
            if module.heads == 1 and module.inner_dim > _WIDEST_HEAD:
                module.set_processor(WideHeadAttention())
            elif _is_bare(module):
                module.set_processor(PlainAttention())
    for module in list(network.modules()):
        if type(module) is ResnetBlock2D and _is_plain(module):
            module.__class__ = FusedResnetBlock
            for norm in (module.norm1, module.norm2):
                norm.silu = True  # type: ignore[assignment]  # a group norm, see above
        ends = isinstance(module, (UNet2DConditionModel, Encoder, Decoder))
        if ends and isinstance(module.conv_norm_out, FusedGroupNorm) and isinstance(module.conv_act, nn.SiLU):
            module.conv_norm_out.silu = True
            module.conv_act = nn.Identity()


def _is_bare(attention: Attention) -> bool:
    norms = (attention.group_norm, attention.spatial_norm, attention.norm_q, attention.norm_k, attention.norm_cross)
    scaled = attention.residual_connection or attention.rescale_output_factor != 1
    return not scaled and all(norm is None for norm in norms)


def _is_plain(block: ResnetBlock2D) -> bool:
    """Without resampling, scales in the time embedding, or another activation. Decoders, which have no time embedding,
    call this kind "group"."""
    return (
        isinstance(block.nonlinearity, nn.SiLU)
        and (block.time_embedding_norm == "default" or block.time_emb_proj is None)
        and not (block.up or block.down or block.skip_time_act)
    )


def store_channels_last(network: nn.Module) -> None:
    """Kernels of convolutions with their channels last, in place: then all that flows between them is stored so."""
    for parameter in network.parameters():
        if parameter.dim() == 4:  # plane-wise convolutions have a further axis
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
