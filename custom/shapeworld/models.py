"""The networks of the miniature world: diffusers and transformers classes, other sizes.

stable_diffusion  U-Net on 16 x 16 x 4 latents of 64-pixel pictures, with VAE, text encoder and tokenizer
mvdream           the same U-Net with cameras and attention across the views; shares VAE and text encoder
richdreamer       U-Net on 32 x 32 normal and disparity pictures, no VAE
scorer            a CLIP model that judges pictures by caption
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn as nn
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from custom.shapeworld.shapes import SHAPES
from custom.shapeworld.world import PALETTE, PATTERNS, PROPORTIONS, RELATIONS
from triplaneturbo.storage import copy_file
from triplaneturbo.weights.files import add_digests

IMAGE_SIZE, ND_SIZE, LATENT_SIZE, LATENT_CHANNELS = 64, 32, 16, 4
TEXT_LENGTH, TEXT_WIDTH = 24, 128
LATENT_SCALE = 0.18215  # the usual one; the VAE's latents are brought to a deviation of 1 / LATENT_SCALE
N_VIEW = 4
TeacherKind = Literal["stable_diffusion", "mvdream", "richdreamer"]


# So that no earlier merge of the tokenizer breaks a later word apart: short ones that others begin with come last.
WORDS = sorted(
    [*PALETTE, *SHAPES, *PATTERNS, *PROPORTIONS, *RELATIONS, "small", "an", "a"],
    key=lambda word: (word in ("orange", "on", "an", "a"), -len(word), word),
)


def build_tokenizer(words: Sequence[str] = WORDS, length: int = TEXT_LENGTH) -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer of so many tokens a text: one for each of the words, letters for other words.

    A merge joins the beginning of a word with its next letter.
    """
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in words:
        symbols = [*word[:-1], word[-1] + "</w>"]
        start = symbols[0]
        for symbol in symbols[1:]:
            merge = (start, symbol)
            start += symbol
            if merge not in merges:
                merges.append(merge)
                vocabulary.append(start)
    ids = {token: index for index, token in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=length)


def _text_config(tokenizer: CLIPTokenizer, layers: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=3 * TEXT_WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text model of three layers."""
    return CLIPTextModel(_text_config(tokenizer, layers=3))


def build_vae() -> AutoencoderKL:
    """64-pixel pictures in [-1, 1] to 16 x 16 x 4 latents and back."""
    return AutoencoderKL(
        block_out_channels=(32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=16,
        sample_size=IMAGE_SIZE,
        scaling_factor=LATENT_SCALE,
    )


def build_unet(kind: TeacherKind) -> UNet2DConditionModel:
    """The denoiser of a teacher. RichDreamer has no attention at its finest level, which is twice as fine."""
    plain_top = kind == "richdreamer"
    camera = {} if kind == "stable_diffusion" else {"class_embed_type": "projection"}
    if camera:
        camera["projection_class_embeddings_input_dim"] = 16
    return UNet2DConditionModel(
        sample_size=ND_SIZE if plain_top else LATENT_SIZE,
        block_out_channels=(64, 96, 112),
        down_block_types=(
            "DownBlock2D" if plain_top else "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
        ),
        up_block_types=(
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
            "UpBlock2D" if plain_top else "CrossAttnUpBlock2D",
        ),
        layers_per_block=1,
        norm_num_groups=16,
        attention_head_dim=(4, 6, 7),  # the number of heads: 16 channels each
        cross_attention_dim=TEXT_WIDTH,
        **camera,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule with v-prediction."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def build_scorer(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A CLIP model on 64-pixel pictures."""
    vision = {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": 8,
        "projection_dim": TEXT_WIDTH,
    }
    text = _text_config(tokenizer, layers=2).to_dict()
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=TEXT_WIDTH))


IMAGE_PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": IMAGE_SIZE},
    "do_center_crop": True,
    "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
}

# model_index.json: lets diffusers load the folder as a pipeline
PIPELINE = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> Int[Tensor, "B L"]:
    """Padded token ids; the empty caption stands for no condition."""
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


@torch.no_grad()
def standardise_latents(vae: AutoencoderKL, mean: Float[Tensor, " C"], std: Float[Tensor, " C"]) -> None:
    """Fold an affine map into the 1 x 1 convolutions around the latents: mean 0 and deviation 1 / LATENT_SCALE.

    Args:
        mean, std: of the latents a channel, before. Decoded pictures stay the same.
    """
    gain = 1 / (LATENT_SCALE * std)
    double_gain = torch.cat([gain, torch.ones_like(gain)])  # means, then log variances
    shift = torch.cat([-mean * gain, 2 * gain.log()])
    encode, decode = vae.quant_conv, vae.post_quant_conv
    encode.weight.mul_(double_gain[:, None, None, None])
    encode.bias.mul_(double_gain).add_(shift)
    decode.bias.add_(decode.weight[:, :, 0, 0] @ mean)
    decode.weight.div_(gain[None, :, None, None])


@runtime_checkable
class Saved(Protocol):
    """What diffusers and transformers write as a folder."""

    def save_pretrained(self, save_directory: str | Path) -> object: ...


def save_part(part: Saved, folder: Path) -> None:
    """Write a network, tokenizer or scheduler into `folder`, weights with digests; each file whole or not at all."""
    with tempfile.TemporaryDirectory() as temporary:
        part.save_pretrained(temporary)
        add_digests(temporary)
        for path in sorted(Path(temporary).iterdir()):
            copy_file(path, folder / path.name)


def parameter_count(model: nn.Module) -> int:
    """The number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
