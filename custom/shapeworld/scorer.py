"""The judge of the benchmark: which caption does a picture show?"""

from collections.abc import Sequence
from dataclasses import dataclass, field
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
    _last: tuple[tuple[str, ...], Tensor] = field(default=((), torch.empty(0)), init=False, repr=False)

    @classmethod
    def load(cls, folder: Path, device: str | torch.device = "cpu") -> "Scorer":
        """From a folder as `save_pretrained` writes it."""
        check_weights(folder)
        model = CLIPModel.from_pretrained(folder).float().eval().requires_grad_(False)
        return cls(model.to(device), CLIPTokenizer.from_pretrained(folder))

    @torch.no_grad()
    def similarity(self, pictures: Float[Tensor, "M 3 H W"], captions: Sequence[str]) -> Float[Tensor, "M K"]:
        """Cosine similarities of pictures in [0, 1], resized to 64 pixels, and captions."""
        small = F.interpolate(pictures.to(self.model.device), size=IMAGE_SIZE, mode="bilinear", antialias=True)
        seen = self.model.visual_projection(self.model.vision_model(pixel_values=small * 2 - 1).pooler_output)
        return F.normalize(seen, dim=-1) @ self._read(tuple(captions)).T

    def _read(self, captions: tuple[str, ...]) -> Float[Tensor, "K E"]:
        """Unit embeddings of captions; the latest ones are remembered, since a bank is asked for again and again."""
        if captions != self._last[0]:
            ids = token_ids(self.tokenizer, list(captions)).to(self.model.device)
            read = [self.model.text_model(input_ids=part).pooler_output for part in ids.split(1024)]
            self._last = captions, F.normalize(self.model.text_projection(torch.cat(read)), dim=-1)
        return self._last[1]

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
