"""Tiny models under the names of MVDream's and RichDreamer's files, written down independently of the code."""

import re

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

LAYERS = 1
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding.linear_1": "camera_embed.0",
    "class_embedding.linear_2": "camera_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def tiny_unet(linear: bool, widths: tuple[int, int], heads: tuple[int, int]) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=widths,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=LAYERS,
        attention_head_dim=heads,
        cross_attention_dim=12,
        use_linear_projection=linear,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=16,
    ).eval()


def published_place(name: str) -> str:
    """Where the published U-Net keeps the diffusers module `name` (without weight or bias)."""
    if name in OUTER:
        return OUTER[name]
    part, *rest = name.split(".")
    if part == "mid_block":
        kind, index, *rest = rest
        place = "middle_block." + ("1" if kind == "attentions" else str(2 * int(index)))
    else:
        level, kind, index, *rest = rest
        if part == "down_blocks":
            at = 1 + int(level) * (LAYERS + 1) + (LAYERS if kind == "downsamplers" else int(index))
            place = f"input_blocks.{at}." + {"resnets": "0", "attentions": "1", "downsamplers": "0"}[kind]
        else:
            at = int(level) * (LAYERS + 1) + (LAYERS if kind == "upsamplers" else int(index))
            # an upsampler follows the residual block, and the attention if there is one
            last = "2" if name.startswith("up_blocks.1") else "1"
            place = f"output_blocks.{at}." + {"resnets": "0", "attentions": "1", "upsamplers": last}[kind]
    if kind == "resnets":
        return f"{place}.{RESNET[rest[0]]}"
    if kind == "downsamplers":
        return f"{place}.op"
    return ".".join([place, *rest])


def published_unet(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    state = {}
    for name, value in unet.state_dict().items():
        module, leaf = name.rsplit(".", 1)
        state[f"model.diffusion_model.{published_place(module)}.{leaf}"] = value
    assert len(state) == len(unet.state_dict())
    return state


def tiny_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=LAYERS,
        sample_size=16,
    ).eval()


def published_vae(vae: AutoencoderKL) -> dict[str, Tensor]:
    rules = [
        (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.0\.resnets\.(\d)", r"up.1.block.\1"),
        (r"up_blocks\.1\.resnets\.(\d)", r"up.0.block.\1"),
        (r"up_blocks\.0\.upsamplers\.0", r"up.1.upsample"),
        (r"mid_block\.resnets\.0", "mid.block_1"),
        (r"mid_block\.resnets\.1", "mid.block_2"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_(q|k|v)", r"mid.attn_1.\1"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
    ]
    state = {}
    for name, value in vae.state_dict().items():
        is_projection = re.search(r"attentions.*to_.*weight", name)
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        state[f"first_stage_model.{name}"] = value[:, :, None, None] if is_projection else value
    return state


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
