"""MVDream's and RichDreamer's published checkpoints as stock diffusers models.

Both files hold a U-Net in the naming of the original latent diffusion code, with a camera embedding that diffusers
knows as a class embedding. Widths, depths and text size are read off the tensors; only the number of attention
heads is not in them.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from triplaneturbo.errors import WeightsError
from triplaneturbo.weights.files import load_exactly

UNET_PREFIX = "model.diffusion_model."
EMA_PREFIX = "model_ema."
VAE_PREFIX = "first_stage_model."
SCALING_FACTOR = 0.18215
# The schedule that Stable Diffusion 1 and 2, MVDream and RichDreamer were trained with.
LDM_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000, "beta_schedule": "scaled_linear"}

Model = TypeVar("Model", UNet2DConditionModel, AutoencoderKL)

logger = logging.getLogger(__name__)


def build_unet(
    state: Mapping[str, Tensor], source: str | Path, *, heads: int | None = None, head_width: int | None = None
) -> UNet2DConditionModel:
    """The U-Net of a checkpoint; its running averages where the file holds them beside the weights.

    Args:
        state: the tensors of the file, any others among them.
        source: named in errors.
        heads: attention heads of every level, or
        head_width: channels of a head.
    """
    state = {
        name.replace("camera_embed.", "label_emb.0."): state.get(_average_of(name), tensor)
        for name, tensor in state.items()
        if name.startswith(UNET_PREFIX)
    }
    if not state:
        raise WeightsError(f"{source} holds no tensors named {UNET_PREFIX}*: it is not a latent diffusion checkpoint")
    try:
        config = _unet_config(state, heads, head_width)
        converted = convert_ldm_unet_checkpoint(state, config)
    except KeyError as error:
        raise WeightsError(f"{source} does not hold a complete U-Net: {error} is missing") from error
    unet = _empty(UNet2DConditionModel, config)
    load_exactly(unet, converted, source)
    return unet.eval()


def build_vae(state: Mapping[str, Tensor], source: str | Path) -> AutoencoderKL:
    """The autoencoder of a checkpoint."""
    state = {name: t for name, t in state.items() if name.startswith(VAE_PREFIX)}
    if not state:
        raise WeightsError(f"{source} holds no tensors named {VAE_PREFIX}*: give the autoencoder by another path")
    try:
        config = _vae_config(state)
        converted = convert_ldm_vae_checkpoint(state, config)
    except KeyError as error:
        raise WeightsError(f"{source} does not hold a complete autoencoder: {error} is missing") from error
    vae = _empty(AutoencoderKL, config)
    load_exactly(vae, converted, source)
    return vae.eval()


def log_unused(state: Mapping[str, Tensor], source: str | Path, used: tuple[str, ...]) -> None:
    """Say, by their first name, which tensors of the file are not used (text encoders, schedules)."""
    rest = {name.split(".")[0] for name in state if not name.startswith(used)}
    if rest:
        logger.info("%s: not used: %s", source, ", ".join(sorted(rest)))


def _average_of(name: str) -> str:
    return EMA_PREFIX + name.removeprefix("model.").replace(".", "")


def _empty(cls: type[Model], config: dict) -> Model:
    """A model with its memory allocated and not initialised: `load_exactly` fills every tensor."""
    with torch.device("meta"):
        model = cls.from_config(config)
    assert isinstance(model, cls)
    return model.to_empty(device="cpu")


def _unet_config(state: Mapping[str, Tensor], heads: int | None, head_width: int | None) -> dict:
    def shape(name: str) -> torch.Size:
        return state[UNET_PREFIX + name].shape

    def n_heads(width: int) -> int:
        if heads is not None:
            return heads
        assert head_width is not None, "one of the two is given"
        return width // head_width

    inputs = _level_blocks(state)
    widths = [shape(f"input_blocks.{level[0]}.0.out_layers.3.weight")[0] for level in inputs]
    attends = [UNET_PREFIX + f"input_blocks.{level[0]}.1.proj_in.weight" in state for level in inputs]
    first = f"input_blocks.{inputs[attends.index(True)][0]}.1."
    camera = UNET_PREFIX + "label_emb.0.0.weight"
    return {
        "sample_size": None,
        "in_channels": shape("input_blocks.0.0.weight")[1],
        "out_channels": shape("out.2.weight")[0],
        "block_out_channels": widths,
        "layers_per_block": len(inputs[0]),
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "cross_attention_dim": shape(first + "transformer_blocks.0.attn2.to_k.weight")[1],
        "attention_head_dim": list(map(n_heads, widths)),  # in diffusers: the number of heads
        "use_linear_projection": len(shape(first + "proj_in.weight")) == 2,
        "class_embed_type": "projection" if camera in state else None,
        "projection_class_embeddings_input_dim": state[camera].shape[1] if camera in state else None,
    }


def _level_blocks(state: Mapping[str, Tensor]) -> list[list[int]]:
    """Indices of the residual input blocks of each resolution; a downsampling block ends a resolution."""
    count = 1 + max(int(n.split(".")[3]) for n in state if n.startswith(UNET_PREFIX + "input_blocks."))
    levels: list[list[int]] = [[]]
    for i in range(1, count):
        if UNET_PREFIX + f"input_blocks.{i}.0.op.weight" in state:
            levels.append([])
        else:
            levels[-1].append(i)
    return levels


def _vae_config(state: Mapping[str, Tensor]) -> dict:
    encoder = VAE_PREFIX + "encoder."
    n_levels = 1 + max(int(n.split(".")[3]) for n in state if n.startswith(encoder + "down."))
    blocks = {n.split(".")[5] for n in state if n.startswith(encoder + "down.0.block.")}
    widths = [state[encoder + f"down.{i}.block.0.conv2.weight"].shape[0] for i in range(n_levels)]
    return {
        "in_channels": state[encoder + "conv_in.weight"].shape[1],
        "out_channels": state[VAE_PREFIX + "decoder.conv_out.weight"].shape[0],
        "latent_channels": state[VAE_PREFIX + "post_quant_conv.weight"].shape[1],
        "block_out_channels": widths,
        "layers_per_block": len(blocks),
        "down_block_types": ["DownEncoderBlock2D"] * n_levels,
        "up_block_types": ["UpDecoderBlock2D"] * n_levels,
        "scaling_factor": SCALING_FACTOR,
    }
