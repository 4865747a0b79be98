"""From prompts to `TextStates`, on the fly."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from triplaneturbo.base import Module
from triplaneturbo.bounds import ProjectPath, Range
from triplaneturbo.errors import ConfigError
from triplaneturbo.prompts.text_encoder import TextEncoder
from triplaneturbo.registry import register
from triplaneturbo.types import TextStates

_NO_VIEW_TEXT = "prompts do not depend on the view: no teacher of this project was trained with direction words"
_IN_DATA = "the prompt library belongs to the data module; set it under data"
_NO_PICTURES = "prompts come without reference pictures"
_ALWAYS_BOTH = "token and pooled states are always both there"

REFUSED = {
    **dict.fromkeys(("overhead_threshold", "front_threshold", "back_threshold"), _NO_VIEW_TEXT),
    **dict.fromkeys(("view_dependent_prompt_front", "use_prompt_debiasing", "use_perp_neg"), _NO_VIEW_TEXT),
    **dict.fromkeys(("perp_neg_f_sb", "perp_neg_f_fsb", "perp_neg_f_fs", "perp_neg_f_sf"), _NO_VIEW_TEXT),
    **dict.fromkeys(("prompt_library", "prompt_library_dir", "prompt_library_format"), _IN_DATA),
    **dict.fromkeys(("eval_prompt", "eval_prompt_target"), _IN_DATA),
    **dict.fromkeys(("image_root_dir", "default_prompt", "use_latent"), _NO_PICTURES),
    **dict.fromkeys(("use_embed_global", "use_embed_local"), _ALWAYS_BOTH),
    "other_prompts": "prompts are encoded when they are needed, none has to be announced",
}


class Processor(Module):
    """Shared options of the processors. Encodes on the device it is on; its weights are frozen."""

    @dataclass(kw_only=True)
    class Config(Module.Config):
        pretrained_model_name_or_path: ProjectPath = "runwayml/stable-diffusion-v1-5"
        """A diffusers folder with text_encoder/ and tokenizer/."""
        negative_prompt: str = ""
        use_cache: bool = False
        """Keep encoded prompts in files, see `precompute`. Encoding on the fly is usually as fast."""
        cache_dir: ProjectPath = ".threestudio_cache/text_embeddings"
        remembered: Annotated[int, Range(0, 2**20)] = 512
        """Recently used prompts whose encodings stay in memory."""
        use_local_text_embeddings: bool = True
        """Text reaches the networks as token states; the only way here."""
        spawn: bool = False
        """Accepted for old configurations: nothing is encoded in another process."""
        compat: Literal["right", "original"] = "right"
        """original: prompts that are too long lose their end token (docs/compat.md row 10)."""

        REFUSED: ClassVar[dict[str, str]] = REFUSED

        def __post_init__(self) -> None:
            if not self.use_local_text_embeddings:
                raise ConfigError(
                    "use_local_text_embeddings: false gives the networks a single pooled state, which none of them can "
                    "read; leave it out"
                )

    @classmethod
    def differences(cls, cfg: Any) -> dict[int, str]:
        return {10: "a prompt longer than the text encoder reads is cut before its end token, which stays"}

    def _load(self, folder: str) -> TextEncoder:
        return TextEncoder(
            folder,
            compat=self.cfg.compat,
            remembered=self.cfg.remembered,
            cache_dir=self.cfg.cache_dir if self.cfg.use_cache else None,
        )


@register("stable-diffusion-multi-prompt-processor-callable")
class TextProcessor(Processor):
    """Text states of one encoder: what the generator is conditioned on."""

    def configure(self) -> None:
        self.encoder = self._load(self.cfg.pretrained_model_name_or_path)

    def forward(self, prompts: Sequence[str]) -> TextStates:
        """States of the prompts, in their order, on the module's device."""
        return _states(self.encoder, prompts, self.cfg.negative_prompt)

    def precompute(self, prompts: Sequence[str]) -> int:
        """With `use_cache`, write those prompts to the cache that it lacks; returns their number."""
        return self.encoder.precompute([*prompts, "", self.cfg.negative_prompt])


@register("dual-stable-diffusion-multi-prompt-processor-callable")
class DualTextProcessor(Processor):
    """Text states of two encoders: for RichDreamer, and for MVDream and Stable Diffusion."""

    @dataclass(kw_only=True)
    class Config(Processor.Config):
        pretrained_model_name_or_path: ProjectPath = "pretrained/stable-diffusion-v1-5"
        pretrained_model_name_or_path_2nd: ProjectPath = "pretrained/stable-diffusion-2-1-base"
        """Folder of the second encoder; one encoder serves both when it is the same folder."""
        negative_prompt_2nd: str = ""

    def configure(self) -> None:
        first, second = self.cfg.pretrained_model_name_or_path, self.cfg.pretrained_model_name_or_path_2nd
        self.encoder = self._load(first)
        same = Path(first).resolve() == Path(second).resolve()
        self.encoder_2nd = self.encoder if same else self._load(second)

    def forward(self, prompts: Sequence[str]) -> tuple[TextStates, TextStates]:
        """States of the prompts from the first and the second encoder."""
        return (
            _states(self.encoder, prompts, self.cfg.negative_prompt),
            _states(self.encoder_2nd, prompts, self.cfg.negative_prompt_2nd),
        )

    def precompute(self, prompts: Sequence[str]) -> int:
        """With `use_cache`, write those prompts to the caches that they lack; returns their number."""
        written = self.encoder.precompute([*prompts, "", self.cfg.negative_prompt])
        return written + self.encoder_2nd.precompute([*prompts, "", self.cfg.negative_prompt_2nd])


def _states(encoder: TextEncoder, prompts: Sequence[str], negative: str) -> TextStates:
    tokens, pooled = encoder.encode([*prompts, negative, ""])
    return TextStates(tokens=tokens[:-2], pooled=pooled[:-2], negative=tokens[-2:-1], empty=tokens[-1:])
