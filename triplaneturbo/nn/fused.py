"""Diffusers networks with norm, shift and SiLU as one operation, and channels stored last."""

import torch
from diffusers.models import UNet2DConditionModel
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.resnet import ResnetBlock2D
from jaxtyping import Float
from torch import Tensor, nn

from triplaneturbo.ops.group_norm import group_norm_silu


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
        hidden = self.conv1(self.norm1(input_tensor))
        shift = None if temb is None or self.time_emb_proj is None else self.time_emb_proj(self.nonlinearity(temb))
        hidden = self.conv2(self.dropout(self.norm2(hidden, shift)))
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        output = input_tensor + hidden
        return output if self.output_scale_factor == 1 else output / self.output_scale_factor


def fuse_norms(network: nn.Module) -> None:
    """Let every group norm of a diffusers network use `ops.group_norm`, in place. Names and parameters stay.

    The classes of modules are exchanged, since diffusers builds them by itself.
    """
    for module in list(network.modules()):
        if type(module) is nn.GroupNorm:
            module.__class__ = FusedGroupNorm
    for module in list(network.modules()):
        if type(module) is ResnetBlock2D and _is_plain(module):
            module.__class__ = FusedResnetBlock
            for norm in (module.norm1, module.norm2):
                norm.silu = True  # type: ignore[assignment]  # a group norm, see above
        ends = isinstance(module, (UNet2DConditionModel, Encoder, Decoder))
        if ends and isinstance(module.conv_norm_out, FusedGroupNorm) and isinstance(module.conv_act, nn.SiLU):
            module.conv_norm_out.silu = True
            module.conv_act = nn.Identity()


def _is_plain(block: ResnetBlock2D) -> bool:
    """Without resampling, scales in the time embedding, or another activation."""
    return (
        isinstance(block.nonlinearity, nn.SiLU)
        and block.time_embedding_norm == "default"
        and not (block.up or block.down or block.skip_time_act)
    )


def store_channels_last(network: nn.Module) -> None:
    """Kernels of convolutions with their channels last, in place: then all that flows between them is stored so."""
    for parameter in network.parameters():
        if parameter.dim() == 4:  # plane-wise convolutions have a further axis
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
