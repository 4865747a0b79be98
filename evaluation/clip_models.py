"""CLIP models of transformers and open_clip behind one interface, without torchvision."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from triplaneturbo.storage import read_json
from triplaneturbo.weights.folders import check_weights

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
OPEN_CLIP = "open_clip:"
BATCH = 64


@dataclass(frozen=True)
class ClipJudge:
    """Pictures and texts as unit vectors, whose products are cosine similarities.

    image_size: of the model's square input, pixels. mean, std: of its normalisation. max_tokens: length of its texts.
    """

    embed_images: Callable[[Tensor], Tensor]
    embed_tokens: Callable[[Tensor], Tensor]
    tokenize: Callable[[list[str]], list[list[int]]]
    pad_token: int
    max_tokens: int
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    device: str | torch.device

    @torch.no_grad()
    def images(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "N D"]:
        """Unit vectors of the pictures, resized to the model's size (bicubic, in 8 bits) and centre cropped."""
        pixels = torch.stack([self._prepare(picture) for picture in pictures])
        return F.normalize(self.embed_images(pixels.to(self.device)).float(), dim=-1)

    def _prepare(self, picture: Image.Image) -> Float[Tensor, "3 S S"]:
        short, size = min(picture.size), self.image_size
        resized = picture.convert("RGB").resize(
            [edge * size // short for edge in picture.size], Image.Resampling.BICUBIC
        )
        left, top = ((edge - size) // 2 for edge in resized.size)
        square = np.asarray(resized.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
        return torch.from_numpy((square - self.mean) / self.std).permute(2, 0, 1).float()

    def too_long(self, texts: Sequence[str]) -> list[str]:
        """Those of the texts that the model cannot read to their end."""
        rows = zip(texts, self.tokenize(list(texts)), strict=True)
        return [text for text, row in rows if len(row) > self.max_tokens]

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "N D"]:
        """Unit vectors of the texts. Of one that is too long the last tokens are left out, the end token is kept."""
        rows = [self._fit(row) for row in self.tokenize(list(texts))]
        ids = torch.tensor(rows, device=self.device)
        return F.normalize(torch.cat([self.embed_tokens(part) for part in ids.split(BATCH)]).float(), dim=-1)

    def _fit(self, row: list[int]) -> list[int]:
        if len(row) > self.max_tokens:
            return [*row[: self.max_tokens - 1], row[-1]]
        return row + [self.pad_token] * (self.max_tokens - len(row))


def load_clip(name: str, device: str | torch.device = "cpu") -> ClipJudge:
    """A CLIP model in float32.

    Args:
        name: a folder of transformers' CLIPModel (a local copy of openai/clip-vit-base-patch32, the miniature world's
            scorer), or `open_clip:ARCHITECTURE/WEIGHTS` for the package open_clip_torch if it is installed.

    Raises:
        ValueError: there is no such folder, or open_clip is not installed.
    """
    if name.startswith(OPEN_CLIP):
        return _load_open_clip(name.removeprefix(OPEN_CLIP), device)
    folder = Path(name)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{name} is not a CLIP model: give a folder with config.json, as `hf download openai/clip-vit-base-patch32 "
            f"--local-dir FOLDER` makes one, or {OPEN_CLIP}ARCHITECTURE/WEIGHTS"
        )
    return _load_transformers(folder, device)


def _load_transformers(folder: Path, device: str | torch.device) -> ClipJudge:
    check_weights(folder)
    try:
        model = CLIPModel.from_pretrained(folder, local_files_only=True).float().eval().to(device)
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, RuntimeError, TypeError) as error:
        raise ValueError(f"{folder} cannot be loaded as a CLIP model: {error}") from error
    settings = _preprocessor(folder)

    def embed_tokens(ids: Int[Tensor, "N L"]) -> Tensor:
        pooled = model.text_model(input_ids=ids).pooler_output
        return model.text_projection(pooled)

    def embed_images(pixels: Float[Tensor, "N 3 H W"]) -> Tensor:
        return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)

    return ClipJudge(
        embed_images=embed_images,
        embed_tokens=embed_tokens,
        tokenize=lambda texts: tokenizer(texts).input_ids,
        pad_token=tokenizer.pad_token_id,
        max_tokens=model.config.text_config.max_position_embeddings,
        image_size=model.config.vision_config.image_size,
        mean=tuple(settings.get("image_mean", CLIP_MEAN)),
        std=tuple(settings.get("image_std", CLIP_STD)),
        device=device,
    )


def _load_open_clip(name: str, device: str | torch.device) -> ClipJudge:
    try:
        import open_clip
    except ImportError as error:
        raise ValueError(
            "open_clip is not installed; `pip install open_clip_torch` (it brings torchvision), or give the folder of "
            "a transformers CLIP model"
        ) from error
    architecture, _, weights = name.partition("/")
    model = open_clip.create_model(architecture, pretrained=weights or None, device=device).float().eval()
    encode = open_clip.get_tokenizer(architecture)
    size = model.visual.image_size

    def tokenize(texts: list[str]) -> list[list[int]]:
        # One token more than the model reads shows which texts are too long; open_clip cuts and keeps the end token.
        length = model.context_length
        rows = encode(texts, context_length=length + 1)
        return [row[: int(row.argmax()) + 1].tolist() for row in rows]

    return ClipJudge(
        embed_images=model.encode_image,
        embed_tokens=model.encode_text,
        tokenize=tokenize,
        pad_token=0,
        max_tokens=model.context_length,
        image_size=size if isinstance(size, int) else size[0],
        mean=tuple(model.visual.image_mean or CLIP_MEAN),
        std=tuple(model.visual.image_std or CLIP_STD),
        device=device,
    )


def _preprocessor(folder: Path) -> dict[str, Any]:
    path = folder / "preprocessor_config.json"
    return read_json(path) if path.is_file() else {}
