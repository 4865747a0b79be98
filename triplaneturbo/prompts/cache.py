"""Encoded prompts on disk: a few large safetensors shards, each naming the prompts it holds.

A shard is written once, atomically, under a name made from its content; nothing is ever rewritten, so that any number
of processes may read and write at the same time.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from triplaneturbo.errors import WeightsError
from triplaneturbo.weights.files import read_safetensors, save_tensors


def fingerprint(folder: str | Path, *settings: str) -> str:
    """A name for a text encoder that changes with the content of its files and with `settings`, not with its path."""
    digest = hashlib.blake2b("/".join(settings).encode(), digest_size=16)
    for part in ("tokenizer", "text_encoder"):
        for path in sorted(p for p in (Path(folder) / part).iterdir() if p.is_file()):
            digest.update(f"{part}/{path.name}".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()


class EncodingCache:
    """Encodings of one text encoder, looked up by prompt.

    Args:
        folder: of all caches; this one uses the subfolder `encoder`.
        encoder: the `fingerprint` of the text encoder.
        shard_size: most prompts in a file.
    """

    def __init__(self, folder: str | Path, encoder: str, shard_size: int = 1024) -> None:
        self.folder = Path(folder) / encoder
        self.shard_size = shard_size
        self._places: dict[str, tuple[Path, int]] = {}
        self._checked: set[Path] = set()
        for path in sorted(self.folder.glob("*.safetensors")):
            self._register(path)

    def __contains__(self, prompt: str) -> bool:
        return prompt in self._places

    def __len__(self) -> int:
        return len(self._places)

    def get(self, prompt: str) -> tuple[Tensor, Tensor] | None:
        """Tokens [L, C] and pooled state [C] of a prompt, or None when it is not there.

        Raises:
            WeightsError: the shard that should hold it is damaged.
        """
        if prompt not in self._places:
            return None
        path, row = self._places[prompt]
        try:
            if path not in self._checked:
                read_safetensors(path)
                self._checked.add(path)
            with safe_open(path, "pt") as shard:
                return shard.get_slice("tokens")[row], shard.get_slice("pooled")[row]
        except (SafetensorError, OSError, WeightsError) as error:
            raise _damaged(path, error) from error

    def add(self, prompts: Sequence[str], encodings: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Write one shard."""
        names = json.dumps(list(prompts))
        path = self.folder / f"{hashlib.blake2b(names.encode(), digest_size=16).hexdigest()}.safetensors"
        tokens, pooled = (torch.stack(parts) for parts in zip(*encodings, strict=True))
        save_tensors(path, {"tokens": tokens, "pooled": pooled}, metadata={"prompts": names})
        self._register(path)

    def _register(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as shard:
                prompts = json.loads((shard.metadata() or {})["prompts"])
                rows = shard.get_slice("tokens").get_shape()[0]
        except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
            raise _damaged(path, error) from error
        if rows != len(prompts):
            raise _damaged(path, f"{rows} rows for {len(prompts)} prompts")
        self._places |= {prompt: (path, row) for row, prompt in enumerate(prompts)}


def _damaged(path: Path, reason: object) -> WeightsError:
    return WeightsError(f"{path} is not a usable shard of encoded prompts ({reason}); delete it, it will be made again")
