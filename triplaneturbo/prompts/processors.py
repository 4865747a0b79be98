"""From prompts to `TextStates`, on the fly."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from triplaneturbo.base import Module, option
from triplaneturbo.bounds import ProjectPath, Range
from triplaneturbo.prompts.text_encoder import TextEncoder
from triplaneturbo.registry import register
from triplaneturbo.types import SIDES, TextStates

Angle = Annotated[float, Range(0, 180)]


class ConditionEncoder(Module):
    """Says about prompts what networks are told: `data.conditions.NAME` in a configuration."""

    role = "condition"

    @abstractmethod
    def forward(self, prompts: Sequence[str]) -> TextStates:
        """States of the prompts, in their order, on the module's device."""

    def precompute(self, prompts: Sequence[str]) -> int:
        """Write what is missing to a cache, if there is one; returns the number of prompts."""
        return 0


@register("clip-text")
class ClipText(ConditionEncoder):
    """The hidden states of a frozen CLIP text model."""

    @dataclass(kw_only=True)
    class Config(ConditionEncoder.Config):
        pretrained_model_name_or_path: ProjectPath = "pretrained/stable-diffusion-2-1-base"
        """A diffusers folder with text_encoder/ and tokenizer/."""
        negative_prompt: str = ""
        """What teachers are told to keep away from."""
        by_view: bool = False
        """Also encode the prompts with the side that a camera may see: "a cat, back view"."""
        view_limits: tuple[Angle, Angle, Angle] = (45.0, 45.0, 60.0)
        """Degrees: azimuth up to which the front is seen, and from 180 down the back; elevation from which it is
        overhead."""
        pooled: Literal["end_of_text", "all_states"] = "end_of_text"
        """What networks read that take a text as one vector: the state of its end, or the states of all tokens, one
        after another, for encoders whose last state was never taught to sum a text up."""
        side_first: bool = False
        """Name it before the prompt: "back view of a cat"."""
        use_cache: bool = False
        """Keep encoded prompts in files, see `precompute`. Encoding on the fly is usually as fast."""
        cache_dir: ProjectPath = ".threestudio_cache/text_embeddings"
        """Where these files are."""
        offload: bool = False
        """Keep the network in the host's memory, and bring it to the device for new prompts only."""
        remembered: Annotated[int, Range(0, 2**20)] = 512
        """Recently used prompts whose encodings stay in memory."""
        quirks: list[Literal["lost-end-token"]] = option([])
        """lost-end-token: prompts that are too long lose it."""

    def configure(self) -> None:
        self.encoder = TextEncoder(
            self.cfg.pretrained_model_name_or_path,
            keep_end_token="lost-end-token" not in self.cfg.quirks,
            remembered=self.cfg.remembered,
            offload=self.cfg.offload,
            cache_dir=self.cfg.cache_dir if self.cfg.use_cache else None,
        )

    def forward(self, prompts: Sequence[str]) -> TextStates:
        tokens, pooled = self.encoder.encode([*prompts, self.cfg.negative_prompt, ""])
        return TextStates(
            tokens=tokens[:-2],
            pooled=pooled[:-2] if self.cfg.pooled == "end_of_text" else tokens[:-2].flatten(1),
            negative=tokens[-2:-1],
            empty=tokens[-1:],
            by_view=self._by_view(prompts) if self.cfg.by_view else None,
            view_limits=self.cfg.view_limits,
        )

    def _by_view(self, prompts: Sequence[str]) -> Tensor:
        texts = ([self._seen_from(prompt, side) for prompt in prompts] for side in SIDES)
        return torch.stack([self.encoder.encode(each)[0] for each in texts])

    def _seen_from(self, prompt: str, side: str) -> str:
        return seen_from(prompt, side, first=self.cfg.side_first)

    def precompute(self, prompts: Sequence[str]) -> int:
        """With `use_cache`, write those prompts to the cache that it lacks; returns their number."""
        sides = [self._seen_from(prompt, side) for prompt in prompts for side in SIDES] if self.cfg.by_view else []
        return self.encoder.precompute([*prompts, *sides, "", self.cfg.negative_prompt])


def seen_from(prompt: str, side: str, *, first: bool = False) -> str:
    """The prompt with the side that is seen, after it (DreamFusion, Poole et al. 2022) or before it."""
    if first:
        return f"{'backside' if side == 'back' else side} view of {prompt}"
    return f"{prompt}, {side} view"
