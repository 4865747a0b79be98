"""Attention of diffusion networks, by what the process wants for it (`backends.attention`).

Processors are put on the networks when they are built: `backends.use` comes before.
"""

import torch.nn.functional as F
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0, XFormersAttnProcessor
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.ops import backends


def attend(
    query: Float[Tensor, "B H S D"],
    key: Float[Tensor, "B H T D"],
    value: Float[Tensor, "B H T E"],
    *,
    scale: float,
    backend: str = "auto",
) -> Float[Tensor, "B H S E"]:
    """softmax(scale query key^T) value, for every head; differentiable.

    backend: auto, torch, xformers; see `backends.choose`, and for its errors.
    """
    if backends.choose("attention", query.device, query.dtype, asked=backend).name == "torch":
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    import xformers.ops

    heads_last = (x.transpose(1, 2) for x in (query, key, value))
    return xformers.ops.memory_efficient_attention(*heads_last, scale=scale).transpose(1, 2)


def processor() -> AttnProcessor2_0 | XFormersAttnProcessor:
    """A new processor of diffusers for attention as the network has it."""
    return XFormersAttnProcessor() if backends.current().attention == "xformers" else AttnProcessor2_0()


def install(network: UNet2DConditionModel | AutoencoderKL) -> None:
    """Put `processor` on every attention layer, in place, if it is another than diffusers' own."""
    if backends.current().attention == "xformers":
        network.set_attn_processor(processor())
