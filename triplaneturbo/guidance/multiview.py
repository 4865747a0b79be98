"""Self-attention that spans the views of a prompt: all that makes a Stable Diffusion U-Net a multi-view one."""

from typing import Any

from diffusers.models import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.attention import PlainAttention


class CrossViewAttnProcessor(PlainAttention):
    """Every token of a view attends to the tokens of all `num_frames` views of its prompt.

    Consecutive batch rows are the views of one prompt; another order goes unnoticed and is wrong.
    """

    def __init__(self, num_frames: int) -> None:
        self.num_frames = num_frames

    def __call__(
        self, attn: Attention, hidden_states: Float[Tensor, "N L C"], *args: Any, **kwargs: Any
    ) -> Float[Tensor, "N L C"]:
        n, length, channels = hidden_states.shape
        if n % self.num_frames:
            raise ValueError(f"{n} pictures are not a multiple of the {self.num_frames} views of a prompt")
        joined = hidden_states.reshape(n // self.num_frames, self.num_frames * length, channels)
        return super().__call__(attn, joined, *args, **kwargs).reshape(n, length, channels)


def install_cross_view_attention(unet: UNet2DConditionModel, n_view: int) -> None:
    """Give every self-attention (attn1) of `unet` a `CrossViewAttnProcessor`, in place; the rest stays as it is."""
    processors: dict[str, Any] = dict(unet.attn_processors)
    for name in processors:
        if name.endswith("attn1.processor"):
            processors[name] = CrossViewAttnProcessor(n_view)
    unet.set_attn_processor(processors)
