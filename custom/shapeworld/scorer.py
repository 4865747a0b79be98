"""The judge of the benchmark: which caption does a picture show?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from custom.shapeworld.models import IMAGE_SIZE, token_ids
from triplaneturbo.weights.folders import check_weights


@dataclass
class Scorer:
    """A CLIP model of the miniature world in float32, with its tokenizer."""

    model: CLIPModel
    tokenizer: CLIPTokenizer

    @classmethod
    def load(cls, folder: Path, device: str | torch.device = "cpu") -> "Scorer":
        """From a folder as `save_pretrained` writes it."""
        check_weights(folder)
        model = CLIPModel.from_pretrained(folder).float().eval().requires_grad_(False)
        return cls(model.to(device), CLIPTokenizer.from_pretrained(folder))

    @torch.no_grad()
    def similarity(self, pictures: Float[Tensor, "M 3 H W"], captions: Sequence[str]) -> Float[Tensor, "M K"]:
        """Cosine similarities of pictures in [0, 1], resized to 64 pixels, and captions."""
        device = self.model.device
        ids = token_ids(self.tokenizer, list(captions)).to(device)
        small = F.interpolate(pictures.to(device), size=IMAGE_SIZE, mode="bilinear", antialias=True)
        output = self.model(input_ids=ids, pixel_values=small * 2 - 1)
        return output.image_embeds @ output.text_embeds.T

    def recall(self, pictures: Float[Tensor, "M 3 H W"], captions: Sequence[str], bank: Sequence[str]) -> float:
        """R@1: the share of pictures whose nearest caption in `bank` is their own.

        Raises:
            ValueError: a caption is not in the bank.
        """
        missing = set(captions) - set(bank)
        if missing:
            raise ValueError(f"the bank lacks {sorted(missing)[0]!r}; R@1 needs every caption among its candidates")
        position = {caption: index for index, caption in enumerate(bank)}
        best = self.similarity(pictures, bank).argmax(dim=1).tolist()
        return sum(b == position[c] for b, c in zip(best, captions, strict=True)) / len(captions)
