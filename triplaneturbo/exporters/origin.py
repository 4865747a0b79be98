"""What a mesh was made from, kept beside it, so that no other mesh takes its place unnoticed."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from triplaneturbo.exporters.files import SUFFIXES
from triplaneturbo.storage import write_text

FILE = "origin.json"
# All that exporters write into the folder of a prompt.
_WRITTEN = (*(f"*{suffix}" for suffix in SUFFIXES), "*.mtl", "texture_kd.*", "turntable.*", "prompt.txt", FILE)


@dataclass(frozen=True)
class Origin:
    """Prompt, seed and trained weights of a mesh. Made from the same with other options, it is a version of it.

    weights: see `weights_id`.
    """

    prompt: str
    seed: int
    weights: str

    def __str__(self) -> str:
        return f"{self.prompt!r} by seed {self.seed} and weights {self.weights[:8]}"


def weights_id(tensors: Mapping[str, Tensor]) -> str:
    """32 digits that tell trained tensors from others: a hash of names, shapes and values.

    The same for float16 and for what is computed with after loading it.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu()
        values = values.float() if values.is_floating_point() else values
        digest.update(json.dumps([name, list(values.shape)]).encode())
        digest.update(values.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def occupant(folder: Path) -> str | None:
    """What the mesh in `folder` was made from, for people; None if no exporter has written there."""
    if not _written(folder):
        return None
    return str(read_origin(folder) or "something that it does not say")


def read_origin(folder: Path) -> Origin | None:
    """What the mesh in `folder` was made from; None if that is not recorded, as before origins were."""
    try:
        return Origin(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def write_origin(folder: Path, origin: Origin) -> None:
    """Record `origin`; before the mesh is written, so that a cut off export can be repeated."""
    write_text(folder / FILE, json.dumps(asdict(origin), indent=2) + "\n")


def clear(folder: Path) -> None:
    """Remove what exporters have written into `folder`, and nothing else."""
    for path in _written(folder):
        path.unlink()


def _written(folder: Path) -> list[Path]:
    return [path for pattern in _WRITTEN for path in folder.glob(pattern) if path.is_file()]
