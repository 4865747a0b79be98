"""A frozen CLIP text model with its tokenizer, from a diffusers folder."""

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from triplaneturbo.errors import WeightsError
from triplaneturbo.graphs import GraphReplay, side_by_side
from triplaneturbo.offload import HostCopy
from triplaneturbo.performance import graphs_run_on
from triplaneturbo.precision import short_factors
from triplaneturbo.prompts.cache import EncodingCache, fingerprint
from triplaneturbo.weights.folders import load_model, require_part

log = logging.getLogger(__name__)

# Prompts that a recording encodes side by side; fewer have recordings of their own.
_SIDE_BY_SIDE = (4, 1)


class Encoding(NamedTuple):
    """tokens: last hidden states. pooled: the state of the end-of-text token."""

    tokens: Float[Tensor, "L C"]
    pooled: Float[Tensor, " C"]


class TextEncoder(nn.Module):
    """Encodes prompts on whatever device the module is on, without gradient.

    Args:
        folder: a diffusers folder with text_encoder/ and tokenizer/.
        keep_end_token: whether a prompt that is too long is cut before its end token; without it, it loses the end
            token, and its pooled state is that of some other token.
        remembered: recently used prompts whose encodings are kept in memory.
        offload: keep the network in the host's memory, and bring it to the device for new prompts only.
        cache_dir: where `precompute` writes and `encode` looks; None: no files.
    """

    _place: Tensor

    def __init__(
        self,
        folder: str | Path,
        *,
        keep_end_token: bool = True,
        remembered: int = 512,
        offload: bool = False,
        cache_dir: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer = _load_tokenizer(folder)
        self.model = load_model(CLIPTextModel, folder, "text_encoder").requires_grad_(False)
        self.max_length = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)
        self.keep_end_token = keep_end_token
        self.remembered = remembered
        self._host = HostCopy(self.model) if offload else None
        self._replays = {count: GraphReplay() for count in _SIDE_BY_SIDE}
        self.register_buffer("_place", torch.empty(0), persistent=False)  # says where the module is
        self._memory: OrderedDict[str, Encoding] = OrderedDict()
        self._told_of_long_prompts = False
        self._cache = (
            None
            if cache_dir is None
            else EncodingCache(cache_dir, fingerprint(folder, "kept" if keep_end_token else "lost"))
        )
        self.train(False)

    def train(self, mode: bool = True) -> "TextEncoder":
        """A frozen model stays in evaluation mode."""
        return super().train(False)

    def _apply(self, *args, **kwargs) -> "TextEncoder":
        self._memory.clear()  # encodings live on the module's device
        self._replays = {count: GraphReplay() for count in _SIDE_BY_SIDE}
        if self._host is None:
            return super()._apply(*args, **kwargs)
        self._place = args[0](self._place)
        return self

    def tokenize(self, prompts: Sequence[str]) -> Int[Tensor, "B L"]:
        """Token ids, padded to the length of the model; that a prompt is too long is said once."""
        self._look_for_long_prompts(prompts)
        ids = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.max_length,
            truncation=self.keep_end_token,
            return_tensors=None,
        ).input_ids
        return torch.tensor([row[: self.max_length] for row in ids])

    def _look_for_long_prompts(self, prompts: Sequence[str]) -> None:
        if self._told_of_long_prompts:
            return
        lengths = map(len, self.tokenizer(list(prompts), verbose=False).input_ids)
        too_long = [prompt for prompt, length in zip(prompts, lengths, strict=True) if length > self.max_length]
        if too_long:
            self._told_of_long_prompts = True
            log.warning(
                "%r is longer than the %d tokens of the text encoder: the end of such prompts has no influence",
                f"{too_long[0][:60]}...",
                self.max_length,
            )

    def encode(self, prompts: Sequence[str]) -> tuple[Float[Tensor, "B L C"], Float[Tensor, "B C"]]:
        """Last hidden states and pooled states of the prompts, float32."""
        found = {p: e for p in dict.fromkeys(prompts) if (e := self._recall(p)) is not None}
        missing = [p for p in dict.fromkeys(prompts) if p not in found]
        found |= zip(missing, self._run(missing), strict=True)
        for prompt, encoding in found.items():
            self._memory[prompt] = encoding
            self._memory.move_to_end(prompt)
        while len(self._memory) > self.remembered:
            self._memory.popitem(last=False)
        rows = [found[p] for p in prompts]
        return torch.stack([r.tokens for r in rows]), torch.stack([r.pooled for r in rows])

    def _recall(self, prompt: str) -> Encoding | None:
        if prompt in self._memory:
            return self._memory[prompt]
        stored = None if self._cache is None else self._cache.get(prompt)
        return None if stored is None else Encoding(*(x.to(self._place.device) for x in stored))

    @torch.no_grad()
    def _run(self, prompts: Sequence[str]) -> list[Encoding]:
        """Each on its own: beside others, a GPU may round its states differently, and which others there are depends on
        what is remembered, so that a resumed run would differ from one that was never stopped."""
        with nullcontext() if self._host is None else self._host.on(self._place.device):
            found = [states for part in self._parts(prompts) for states in self._states(part)]
        return [Encoding(states[:-1], states[-1]) for states in found]

    def _parts(self, prompts: Sequence[str]) -> Iterator[Sequence[str]]:
        """As many at a time as a recording encodes."""
        start = 0
        for count in _SIDE_BY_SIDE:
            while len(prompts) - start >= count:
                yield prompts[start : start + count]
                start += count

    def _states(self, prompts: Sequence[str]) -> Float[Tensor, "B M C"]:
        """The hidden states of each prompt's tokens, then the pooled one, float32. On CUDA recorded as a graph, with
        factors of 10 bits in its products, unless `performance` is reference."""

        def states(ids: Tensor) -> Tensor:
            output = self.model(ids)
            return torch.cat([output.last_hidden_state, output.pooler_output[:, None]], dim=1).float()

        device = self._place.device
        ids = self.tokenize(prompts).to(device)
        if not graphs_run_on(device) or self._host is not None:
            return torch.cat([states(row) for row in ids.split(1)])
        with short_factors():
            return self._replays[len(ids)](
                lambda ids: torch.cat(side_by_side(states, ids.split(1))), (ids,), key=self.model.dtype
            )

    def precompute(self, prompts: Sequence[str]) -> int:
        """Write the encodings of those prompts that are not in the cache yet; returns their number.

        Several processes may do this at once with different prompts.
        """
        if self._cache is None:
            return 0
        missing = [p for p in dict.fromkeys(prompts) if p not in self._cache]
        for start in range(0, len(missing), self._cache.shard_size):
            part = missing[start : start + self._cache.shard_size]
            self._cache.add(part, self._run(part))
        return len(missing)


def _load_tokenizer(folder: str | Path) -> CLIPTokenizer:
    part = require_part(folder, "tokenizer", "tokenizer_config.json")
    try:
        return CLIPTokenizer.from_pretrained(part, local_files_only=True)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise WeightsError(f"{part} cannot be loaded as a CLIP tokenizer: {error}") from error
