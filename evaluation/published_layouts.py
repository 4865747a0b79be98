"""What is in the published files: configurations, names and shapes of tensors, at full size or with small widths."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from triplaneturbo.base import as_tree
from triplaneturbo.config import load_config
from triplaneturbo.geometry import FewStepTriplanes, sd_configs
from triplaneturbo.legacy.state_dicts import to_original
from triplaneturbo.places import RECIPES
from triplaneturbo.weights import hub
from triplaneturbo.weights.ldm_names import SCHEDULE, unet_shapes, vae_shapes

Shapes = Mapping[str, Sequence[int]]
RECIPE = RECIPES / "TriplaneTurbo_v1_acc-2.yaml"
# Names in autoencoders that were saved by diffusers before 0.17, as that of Stable Diffusion 2.1 was.
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_START, _END = "<|startoftext|>", "<|endoftext|>"
_VOCABULARY, _START_ID, _END_ID = 49408, 49406, 49407


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Configurations of all networks. Changes to the defaults of Stable Diffusion 2.1 base and CLIP ViT-B/32."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_1: Mapping[str, Any]
    text_2: Mapping[str, Any]
    clip_text: Mapping[str, Any]
    clip_vision: Mapping[str, Any]
    clip_projection: int
    teachers: Mapping[str, Any]
    """Widths of the latent diffusion U-Nets of MVDream and RichDreamer."""
    mvdream_vae: Mapping[str, Any]


def _text(width: int, layers: int, heads: int, **others: Any) -> dict[str, Any]:
    """Of a text encoder. The token ids are those of the published configurations: the end token is found as the largest
    one."""
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    ids = {"vocab_size": _VOCABULARY, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    return {**sizes, "num_attention_heads": heads, **ids, **others}


_LDM = {"num_res_blocks": 2, "attention_resolutions": (1, 2, 4)}
FULL = Widths(
    unet={},
    vae={},
    text_1=_text(768, 12, 12, projection_dim=768),
    text_2=_text(1024, 23, 16, hidden_act="gelu", projection_dim=512),
    clip_text={},
    clip_vision={},
    clip_projection=512,
    teachers={**_LDM, "model_channels": 320, "channel_mult": (1, 2, 4, 4)},
    mvdream_vae={"ch": 128, "channel_mult": (1, 2, 4, 4), "num_res_blocks": 2},
)
_TINY_CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY = Widths(
    unet={
        "block_out_channels": [32, 64, 64, 64],
        "attention_head_dim": [1, 2, 2, 2],
        "cross_attention_dim": 32,
        "sample_size": 8,
    },
    vae={"block_out_channels": [32, 64, 64, 64], "sample_size": 64},
    text_1=_text(24, 2, 2),
    text_2=_text(32, 2, 2),
    clip_text=_TINY_CLIP,
    clip_vision={**_TINY_CLIP, "image_size": 32, "patch_size": 16},
    clip_projection=16,
    teachers={**_LDM, "model_channels": 64, "channel_mult": (1, 2, 2, 2)},
    mvdream_vae={"ch": 32, "channel_mult": (1, 2, 2, 2), "num_res_blocks": 2},
)
WIDTHS = {"full": FULL, "tiny": TINY}


def contents(asset: hub.Asset, widths: Widths) -> dict[str, str | Shapes]:
    """What a published folder or file consists of: by file, its text, or names and shapes of its tensors.

    A single file has the name "".
    """
    return _LAYOUTS[asset.name](widths)


def _stable_diffusion_2(widths: Widths) -> dict[str, str | Shapes]:
    return _networks(widths) | _text_encoder(widths.text_2, pad="!")


def _stable_diffusion_1(widths: Widths) -> dict[str, str | Shapes]:
    return _text_encoder(widths.text_1, pad=_END)


def _networks(widths: Widths) -> dict[str, str | Shapes]:
    unet, vae = {**sd_configs.UNET, **widths.unet}, {**sd_configs.VAE, **widths.vae}
    with torch.device("meta"):
        unet_names = shapes_of(UNet2DConditionModel.from_config(unet))
        vae_names = shapes_of(AutoencoderKL.from_config(vae))
    weights = "diffusion_pytorch_model.safetensors"
    return {
        "unet/config.json": _json({"_class_name": "UNet2DConditionModel", **unet}),
        f"unet/{weights}": unet_names,
        "vae/config.json": _json({"_class_name": "AutoencoderKL", **vae}),
        f"vae/{weights}": {_old_name(name): shape for name, shape in vae_names.items()},
        "scheduler/scheduler_config.json": _json({"_class_name": "PNDMScheduler", **sd_configs.SCHEDULER}),
    }


def _old_name(name: str) -> str:
    for new, old in _OLD_ATTENTION.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name


def _text_encoder(config: Mapping[str, Any], pad: str) -> dict[str, str | Shapes]:
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(**config))
    kind = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}
    names = {f"text_model.{name}": shape for name, shape in shapes_of(model).items()}
    tokenizer = {f"tokenizer/{file}": text for file, text in tokenizer_files(pad).items()}
    return {
        "text_encoder/config.json": _json({**kind, **config}),
        "text_encoder/model.safetensors": names,
        **tokenizer,
    }


def _mvdream(widths: Widths) -> dict[str, str | Shapes]:
    model = {**widths.teachers, "context_dim": widths.text_2["hidden_size"]}
    return {"": SCHEDULE | unet_shapes(model, linear=True) | vae_shapes(widths.mvdream_vae)}


def _richdreamer(widths: Widths) -> dict[str, str | Shapes]:
    model = {**widths.teachers, "context_dim": widths.text_1["hidden_size"]}
    return {"": SCHEDULE | unet_shapes(model, linear=False)}


def _student(widths: Widths) -> dict[str, str | Shapes]:
    options = as_tree(load_config([RECIPE], ["data.prompt_library=none"]).system.cfg.geometry.cfg)
    with tempfile.TemporaryDirectory() as folder:
        for file, text in _networks(widths).items():
            if file.endswith(".json"):
                (Path(folder) / file).parent.mkdir()
                (Path(folder) / file).write_text(text)
        options["space_generator"]["pretrained_model_name_or_path"] = folder
        with torch.device("meta"):
            state = FewStepTriplanes(options).state_dict()
    return {"": {f"geometry.{name}": tuple(tensor.shape) for name, tensor in to_original(state).items()}}


def _clip(widths: Widths) -> dict[str, str | Shapes]:
    config = CLIPConfig(
        text_config=dict(widths.clip_text),
        vision_config=dict(widths.clip_vision),
        projection_dim=widths.clip_projection,
    )
    with torch.device("meta"):
        names = shapes_of(CLIPModel(config))
    files = tokenizer_files(pad=_END)
    with tempfile.TemporaryDirectory() as folder:
        for file, text in files.items():
            (Path(folder) / file).write_text(text, encoding="utf-8")
        CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
        files["tokenizer.json"] = (Path(folder) / "tokenizer.json").read_text(encoding="utf-8")
    size = config.vision_config.image_size
    pictures = {"crop_size": size, "do_center_crop": True, "do_normalize": True, "do_resize": True, "size": size}
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    return {
        "config.json": config.to_json_string(),
        "model.safetensors": names,
        "preprocessor_config.json": _json({**pictures, "image_mean": mean, "image_std": std, "resample": 3}),
        **files,
    }


def tokenizer_files(pad: str) -> dict[str, str]:
    """A CLIP tokenizer for any text: tokens are bytes and pairs of letters, special tokens have the published ids."""
    bytes_ = _byte_symbols()
    letters = "abcdefghijklmnopqrstuvwxyz"
    merges = [(first, second + end) for end in ("", "</w>") for first in letters for second in letters]
    tokens = [*bytes_, *(symbol + "</w>" for symbol in bytes_), *map("".join, merges)]
    vocabulary = {token: number for number, token in enumerate(tokens)} | {_START: _START_ID, _END: _END_ID}
    special = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": pad}
    return {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "".join(f"{first} {second}\n" for first, second in merges),
        "special_tokens_map.json": _json(special),
        "tokenizer_config.json": _json(
            {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **special}
        ),
    }


def _byte_symbols() -> list[str]:
    """The symbols that byte-level tokenizers write bytes with: printable ones as themselves, others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [*map(chr, printable), *(chr(256 + i) for i in range(256 - len(printable)))]


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's state."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


_LAYOUTS: dict[str, Callable[[Widths], dict[str, str | Shapes]]] = {
    hub.STABLE_DIFFUSION_2.name: _stable_diffusion_2,
    hub.STABLE_DIFFUSION_1.name: _stable_diffusion_1,
    hub.MVDREAM.name: _mvdream,
    hub.RICHDREAMER.name: _richdreamer,
    hub.STUDENT.name: _student,
    hub.CLIP.name: _clip,
}
