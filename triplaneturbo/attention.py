"""Attention of diffusion networks, by what the process wants for it (`backends.attention`)."""

import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
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


class PlainAttention:
    """Attention of transformers: no norm, residual, scale of the result or mask, hence no pass over it for any."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "N S C"],
        encoder_hidden_states: Float[Tensor, "N T E"] | None = None,
        attention_mask: Tensor | None = None,
        **unused: object,
    ) -> Float[Tensor, "N S C"]:
        """The tokens after attention.

        Raises:
            ValueError: a mask is given, which no network of this project has.
        """
        if attention_mask is not None:
            raise ValueError("this attention takes no mask")
        seen = hidden_states if encoder_hidden_states is None else encoder_hidden_states

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        query, key, value = heads(attn.to_q(hidden_states)), heads(attn.to_k(seen)), heads(attn.to_v(seen))
        mixed = attend(query, key, value, scale=attn.scale).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](mixed))
