"""The command line of scripts/prepare/random_weights.py."""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from triplaneturbo.draws import keyed_generator
from triplaneturbo.errors import WeightsError
from triplaneturbo.storage import replacing
from triplaneturbo.weights.hub import (
    CLIP,
    MVDREAM,
    RICHDREAMER,
    STABLE_DIFFUSION_1,
    STABLE_DIFFUSION_2,
    STUDENT,
    select,
)
from triplaneturbo.weights.stand_ins import StandInNote

from .published_layouts import WIDTHS, Shapes, contents

ASSETS = (STABLE_DIFFUSION_2, STABLE_DIFFUSION_1, MVDREAM, RICHDREAMER, STUDENT, CLIP)
GIB = 2**30


def write_file(note: StandInNote, path: Path, content: str | Shapes, seed: int, dtype: torch.dtype) -> None:
    """Write a text, or tensors of the given shapes in the container that the suffix of `path` stands for.

    The note names the file before it is there, so that an interrupted run can be repeated.
    """
    with replacing(path) as temporary:
        if isinstance(content, str):
            temporary.write_text(content, encoding="utf-8")
        else:
            _CONTAINERS[path.suffix](draw_tensors(content, seed, dtype), temporary)
        with replacing(note.path) as updated:
            updated.write_text(note.text_with(path, temporary), encoding="utf-8")


def draw_tensors(shapes: Shapes, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors as torch initialises layers: uniform within 1 / sqrt(fan in), biases 0, weights of norms 1.

    Each is keyed by its name, so that it depends neither on the others nor on the number of cores. Last layers are
    not zero: what they feed would get no gradient. bbox is that of the published student, [-1, 1]^3.
    """

    def draw(name: str) -> Tensor:
        shape = shapes[name]
        if name.endswith(".bbox"):
            return torch.tensor([[-1.0] * 3, [1.0] * 3])
        if len(shape) < 2:
            return torch.full(tuple(shape), float(name.endswith(".weight")), dtype=dtype)
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        return torch.empty(*shape).uniform_(-bound, bound, generator=keyed_generator(seed, "stand-in", name)).to(dtype)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(shapes, pool.map(draw, shapes), strict=True))


def _save_safetensors(tensors: dict[str, Tensor], path: Path) -> None:
    save_file(tensors, path, metadata={"format": "pt", "random_stand_in": "yes"})


def _save_lightning(tensors: dict[str, Tensor], path: Path) -> None:
    torch.save({"epoch": 0, "global_step": 0, "pytorch-lightning_version": "2.0.0", "state_dict": tensors}, path)


def _save_wrapped(tensors: dict[str, Tensor], path: Path) -> None:
    torch.save({"state_dict": tensors}, path)


_CONTAINERS: dict[str, Callable[[dict[str, Tensor], Path], None]] = {
    ".safetensors": _save_safetensors,
    ".pt": torch.save,
    ".ckpt": _save_wrapped,
    ".pth": _save_lightning,
}


def write_stand_ins(out: Path, only: Sequence[str], width: str, dtype: torch.dtype, seed: int) -> None:
    """Write the chosen assets into `out`, by their names there; says what it does.

    Raises:
        WeightsError: a name matches nothing, or a real file is in the way; nothing is written then.
    """
    files = {
        out / asset.name / file: content
        for asset in select(ASSETS, only)
        for file, content in contents(asset, WIDTHS[width]).items()
    }
    note = StandInNote(out)
    note.refuse_others(files)
    start = time.perf_counter()
    for path, content in files.items():
        write_file(note, path, content, seed, dtype)
        if not isinstance(content, str):
            gib, seconds = path.stat().st_size / GIB, time.perf_counter() - start
            print(f"{seconds:6.1f} s  {gib:6.3f} GiB  {len(content):5} tensors  {path}", flush=True)
    total = sum(path.stat().st_size for path in files) / GIB
    print(f"{total:.2f} GiB of random stand-ins in {time.perf_counter() - start:.0f} s; see {note.path}")


def main(description: str, arguments: list[str] | None = None) -> int:
    """Write as the command line says; 1 and a message if that is not possible."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("pretrained"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=", ".join(a.name for a in ASSETS))
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    parser.add_argument("--width", choices=tuple(WIDTHS), default="full", help="tiny: the same structure, for tests")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        write_stand_ins(given.out, given.only, given.width, getattr(torch, given.dtype), given.seed)
    except WeightsError as error:
        print(f"random_weights.py: {error}", file=sys.stderr)
        return 1
    return 0
