"""Prompt libraries, and the order in which their prompts are seen."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from triplaneturbo.draws import keyed_generator
from triplaneturbo.errors import ConfigError, nearest
from triplaneturbo.naming import check_prompts
from triplaneturbo.places import PROJECT
from triplaneturbo.storage import read_json

DEFAULT_FOLDERS = (PROJECT / "load", PROJECT / "datasets")


@dataclass(frozen=True)
class PromptLibrary:
    """Captions to train on, to look at during training, and to test on."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    @classmethod
    def of(cls, prompts: Sequence[str]) -> "PromptLibrary":
        """The same prompts for everything."""
        checked = check_prompts(prompts, "the given prompts")
        if not checked:
            raise ConfigError("there is no prompt; give at least one")
        return cls(checked, checked, checked)

    @classmethod
    def read(cls, name: str, folder: str | None = None) -> "PromptLibrary":
        """Read `<folder>/<name>.json`, a mapping with the lists `train`, `val` and `test`.

        folder: None looks in `load`, then in `datasets` of the project.

        Raises:
            ConfigError: no such file, not JSON, not of this form, or without training prompts.
        """
        folders = DEFAULT_FOLDERS if folder is None else (folder,)
        paths = [Path(f) / f"{name}.json" for f in folders]
        path = next((p for p in paths if p.is_file()), None)
        if path is None:
            known = [p.stem for f in folders for p in Path(f).glob("*.json")]
            raise ConfigError(
                f"there is no prompt library {name!r}: looked for {' and '.join(map(str, paths))}; "
                f"{nearest(name, known)} Set data.prompt_library and data.prompt_library_dir, or give --prompt; "
                "scripts/prepare/download_full.py fetches the published ones"
            )
        content = read_json(path)
        if not isinstance(content, dict):
            raise ConfigError(
                f'the prompt library {path} must be a mapping {{"train": [...], "val": ..., "test": ...}}'
            )
        splits = {
            split: check_prompts(content.get(split, []), f"{split!r} of {path}") for split in ("train", "val", "test")
        }
        if not splits["train"]:
            raise ConfigError(
                f"the prompt library {path} has no training prompts: its list 'train' is missing or empty"
            )
        return cls(**splits)

    @property
    def fingerprint(self) -> str:
        """A text that changes with the training prompts or their order."""
        return hashlib.blake2b(json.dumps(self.train).encode(), digest_size=8).hexdigest()


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, n_prompts: int) -> tuple[int, ...]:
    """The order of the prompts in `epoch`: a permutation, so that each is seen once."""
    return tuple(torch.randperm(n_prompts, generator=keyed_generator(seed, "prompts", epoch)).tolist())


def prompt_index(seed: int, sample: int, n_prompts: int) -> int:
    """The prompt of global sample `sample`."""
    epoch, place = divmod(sample, n_prompts)
    return epoch_order(seed, epoch, n_prompts)[place]


@dataclass(frozen=True)
class Position:
    """How far training has come: micro-batches and prompts, all processes together."""

    batches: int = 0
    samples: int = 0


def micro_batches(start: Position, per_process: int, rank: int, processes: int) -> Iterator[tuple[int, range]]:
    """The endless stream of (micro-batch counter, global sample indices of process `rank`) from `start` on."""
    batch, sample = start.batches, start.samples + rank * per_process
    while True:
        yield batch, range(sample, sample + per_process)
        batch, sample = batch + 1, sample + per_process * processes
