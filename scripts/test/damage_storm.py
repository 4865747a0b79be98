"""Damage files of every kind in every way, load each as the program does, and count what becomes of it.

    python scripts/test/damage_storm.py [--files 200] [--seed 0] [--only KIND ...]

--files is the number of damaged files of each kind. A row of the table counts

    refused    an error for people, or a line of the log, that names the file
    equal      loaded, and the content is what was written: the damage hit nothing that counts
    unchecked  loaded after a line that the file carries no checksum; only published files may do so
    wrong      loaded with another content, and nothing was said
    traceback  any other error

and the command fails if there is anything under the last two. A line of a loss log has no checksum: there, wrong is to
lose a line that the damage did not touch, or to keep one that cannot be read. The last column is the time of loading.
"""

import argparse
import json
import logging
import random
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers.utils.logging import disable_progress_bar

from triplaneturbo import TextToMeshPipeline
from triplaneturbo.errors import USER_ERRORS, WeightsError
from triplaneturbo.evaluation.world import Scorer
from triplaneturbo.prompts.cache import EncodingCache
from triplaneturbo.prompts.text_encoder import TextEncoder
from triplaneturbo.systems.checkpoint import AtomicCheckpointIO, newest_valid_checkpoint
from triplaneturbo.systems.losslog import LossLog
from triplaneturbo.weights.checksums import say_unverified
from triplaneturbo.weights.files import load_tensors
from triplaneturbo.weights.folders import load_unet

SHIPPED = Path(__file__).resolve().parents[2] / "load" / "shapeworld"
BLOCK = 4096
COLUMNS = ("refused", "equal", "unchecked", "wrong", "traceback")
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 12345\n"
)
PAGE = b"<!DOCTYPE html><html><title>503</title><body>Service unavailable</body></html>\n"
PICTURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(200))

Damage = Callable[[random.Random, bytes], bytes]


def _place(dice: random.Random, data: bytes) -> slice:
    start = dice.randrange(len(data))
    return slice(start, start + dice.randint(1, min(BLOCK, len(data) - start)))


def flip_bit(dice: random.Random, data: bytes, times: int = 1) -> bytes:
    result = bytearray(data)
    for place in dice.sample(range(len(data)), times):
        result[place] ^= 1 << dice.randrange(8)
    return bytes(result)


def other_byte(dice: random.Random, data: bytes) -> bytes:
    place = dice.randrange(len(data))
    return data[:place] + bytes([(data[place] + dice.randrange(1, 256)) % 256]) + data[place + 1 :]


def zero_block(dice: random.Random, data: bytes) -> bytes:
    place = _place(dice, data)
    return data[: place.start] + bytes(place.stop - place.start) + data[place.stop :]


def scramble_block(dice: random.Random, data: bytes) -> bytes:
    place = _place(dice, data)
    return data[: place.start] + dice.randbytes(place.stop - place.start) + data[place.stop :]


def repeat_block(dice: random.Random, data: bytes) -> bytes:
    place = _place(dice, data)
    return data[: place.stop] + data[place] + data[place.stop :]


def swap_blocks(dice: random.Random, data: bytes) -> bytes:
    size = dice.randint(1, min(BLOCK, len(data) // 3))
    first = dice.randrange(len(data) - 2 * size)
    second = dice.randrange(first + size, len(data) - size)
    middle = data[first + size : second]
    return data[:first] + data[second : second + size] + middle + data[first : first + size] + data[second + size :]


def drop_block(dice: random.Random, data: bytes) -> bytes:
    place = _place(dice, data)
    return data[: place.start] + data[place.stop :]


BYTES: dict[str, Damage] = {
    "one bit": flip_bit,
    "ten bits": lambda dice, data: flip_bit(dice, data, 10),
    "one byte": other_byte,
    # Most of a file is its numbers; names, places and checksums are at its ends.
    "a byte at the beginning": lambda dice, data: other_byte(dice, data[:1024]) + data[1024:],
    "a byte at the end": lambda dice, data: data[:-1024] + other_byte(dice, data[-1024:]),
}
CUTS: dict[str, Damage] = {
    "cut short": lambda dice, data: data[: dice.randrange(1, len(data))],
    "last bytes missing": lambda dice, data: data[: -dice.randint(1, 64)],
    "first bytes missing": lambda dice, data: data[dice.randint(1, 64) :],
    "zeros": zero_block,
    "garbage inside": scramble_block,
    "garbage before": lambda dice, data: dice.randbytes(dice.randint(1, BLOCK)) + data,
    "garbage after": lambda dice, data: data + dice.randbytes(dice.randint(1, BLOCK)),
}
MOVES: dict[str, Damage] = {
    "a block twice": repeat_block,
    "two blocks swapped": swap_blocks,
    "a block missing": drop_block,
}
WHOLES: dict[str, Damage] = {
    "empty": lambda dice, data: b"",
    "all zeros": lambda dice, data: bytes(len(data)),
    "all garbage": lambda dice, data: dice.randbytes(len(data)),
    "Git LFS pointer": lambda dice, data: POINTER,
    "web page": lambda dice, data: PAGE,
    "picture": lambda dice, data: PICTURE,
    "list in JSON": lambda dice, data: b"[1, 2]",
    "deep JSON": lambda dice, data: b"[" * 200_000,
}


@dataclass(frozen=True)
class Kind:
    """One kind of file: how a good one is made in an empty folder, how it is loaded, and in which ways it is damaged.

    make returns the file that is damaged; load what it holds. checked: it carries a checksum.
    """

    make: Callable[[Path], Path]
    load: Callable[[Path], object]
    damages: dict[str, Damage]
    checked: bool = True


def some_tensors(seed: int) -> dict[str, torch.Tensor]:
    """A little of every kind of number."""
    generator = torch.Generator().manual_seed(seed)
    weights = {f"layer.{i}.weight": torch.randn(64, 64, generator=generator) for i in range(8)}
    return weights | {"half": torch.randn(99, generator=generator).half(), "count": torch.tensor(7)}


def training_state(step: int) -> dict[str, object]:
    """What Lightning saves, in small."""
    moments = {i: {"exp_avg": torch.full((64, 64), i / 7.0), "step": torch.tensor(step)} for i in range(4)}
    optimizer = {"state": moments, "param_groups": [{"lr": 1e-3, "params": [0, 1, 2, 3]}]}
    return {
        "state_dict": some_tensors(step),
        "global_step": step,
        "pytorch-lightning_version": "2.6.0",
        "loops": {"fit_loop": {"state_dict": {}}},
        "optimizer_states": [optimizer],
    }


def make_checkpoint(folder: Path) -> Path:
    path = folder / "epoch=0-step=2.ckpt"
    AtomicCheckpointIO().save_checkpoint(training_state(2), path)
    return path


def make_checkpoints(folder: Path) -> Path:
    AtomicCheckpointIO().save_checkpoint(training_state(1), folder / "epoch=0-step=1.ckpt")
    return make_checkpoint(folder)


def load_newest(path: Path) -> object:
    """What `resume=auto` goes on from; that the damaged file is passed over counts as its refusal."""
    chosen, passed_over = newest_valid_checkpoint([path.parent])
    content = AtomicCheckpointIO().load_checkpoint(chosen)
    if path in passed_over and content["global_step"] == 1:
        raise WeightsError(passed_over[path])
    return content


def make_shipped(part: str, file: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        shutil.copytree(SHIPPED / part, folder, dirs_exist_ok=True)
        return folder / file

    return make


def load_pipeline(path: Path) -> object:
    pipe = TextToMeshPipeline.from_pretrained(path.parent, "cpu")
    return [repr(pipe.config), pipe.geometry.state_dict()]


def make_shard(folder: Path) -> Path:
    states = [(torch.full((77, 32), i / 3), torch.full((32,), -i / 3)) for i in range(12)]
    EncodingCache(folder, "encoder").add([f"prompt {i}" for i in range(12)], states)
    return next(folder.rglob("*.safetensors"))


def load_shard(path: Path) -> object:
    cache = EncodingCache(path.parents[1], "encoder")
    return [cache.get(f"prompt {i}") for i in range(12)]


def make_log(folder: Path) -> Path:
    log = LossLog(folder / "losses.jsonl")
    for step in range(200):
        log.log_metrics({"loss": 1 / (step + 1), "prompts": 8 * step}, step)
    (folder / "written").write_bytes(log.path.read_bytes())
    return log.path


def load_log(path: Path) -> object:
    """The written lines, if none is lost that is still in the damaged file; a damaged one may have been left out."""
    written = (path.parent / "written").read_bytes().split(b"\n")
    present = set(path.read_bytes().split(b"\n"))
    LossLog(path).truncate(10**9)
    kept = path.read_bytes().split(b"\n")
    for line in filter(None, kept):
        json.loads(line)
    if not {line for line in written if line in present} <= set(kept):
        return "a line is lost"
    if kept != written:
        raise WeightsError(f"{path}: damaged lines are left out")
    return written


def make_published(folder: Path) -> Path:
    save_file(some_tensors(0), folder / "model.safetensors", {"format": "pt"})
    return folder / "model.safetensors"


def make_old(folder: Path) -> Path:
    torch.save(some_tensors(0), folder / "old.pt", _use_new_zipfile_serialization=False)
    return folder / "old.pt"


ALL = BYTES | CUTS | MOVES | WHOLES
KINDS: dict[str, Kind] = {
    "checkpoint, resume=FILE": Kind(make_checkpoint, AtomicCheckpointIO().load_checkpoint, ALL),
    "checkpoint, resume=auto": Kind(make_checkpoints, load_newest, ALL),
    "student.safetensors": Kind(make_shipped(".", "student.safetensors"), load_pipeline, ALL),
    # Settings, which people edit: another digit, or a line less, is another setting and no damage that can be seen.
    "pipeline.json": Kind(make_shipped(".", "pipeline.json"), load_pipeline, CUTS | WHOLES),
    "unet of a teacher": Kind(
        make_shipped("mvdream", "unet/diffusion_pytorch_model.safetensors"),
        lambda path: load_unet(path.parents[1]).state_dict(),
        ALL,
    ),
    "text encoder": Kind(
        make_shipped("stable_diffusion", "text_encoder/model.safetensors"),
        lambda path: TextEncoder(path.parents[1]).model.state_dict(),
        ALL,
    ),
    "scorer": Kind(
        make_shipped("scorer", "model.safetensors"), lambda path: Scorer.load(path.parent).model.state_dict(), ALL
    ),
    "shard of encoded prompts": Kind(make_shard, load_shard, ALL),
    "losses.jsonl": Kind(make_log, load_log, ALL),
    "published safetensors": Kind(make_published, load_tensors, ALL, checked=False),
    "published pickle": Kind(make_old, load_tensors, ALL, checked=False),
}


def imprint(content: object) -> object:
    """Nested containers with their tensors as kind, shape and bytes: equal only if all of it is."""
    if isinstance(content, torch.Tensor):
        numbers = content.contiguous().flatten().view(torch.uint8).numpy()
        return str(content.dtype), tuple(content.shape), numbers.tobytes()
    if isinstance(content, dict):
        return {key: imprint(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [imprint(value) for value in content]
    return content


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def fate(kind: Kind, path: Path, expected: object, lines: Lines) -> str:
    """The column that loading the damaged `path` counts in."""
    say_unverified.cache_clear()
    lines.texts.clear()
    try:
        content = imprint(kind.load(path))
    except USER_ERRORS as error:
        return "refused" if path.name in str(error) else "traceback"
    except Exception:
        traceback.print_exc()
        return "traceback"
    if content == expected:
        return "equal"
    said = any(str(path) in text and "no checksum" in text for text in lines.texts)
    return "unchecked" if said and not kind.checked else "wrong"


def storm(name: str, kind: Kind, n_files: int, seed: int, lines: Lines) -> tuple[Counter, float]:
    """Damage and load `n_files` files of a kind; returns the table's row and the seconds it took."""
    dice, counts = random.Random(f"{seed} {name}"), Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = kind.make(Path(folder))
        good = path.read_bytes()
        expected = imprint(kind.load(path))
        ways = dice.sample(list(kind.damages), len(kind.damages))
        start = time.perf_counter()
        for i in range(n_files):
            damage = ways[i % len(ways)]
            path.write_bytes(kind.damages[damage](dice, good))
            result = fate(kind, path, expected, lines)
            counts[result] += 1
            if result in ("wrong", "traceback"):
                print(f"{name}, file {i}, {damage}: {result}", flush=True)
        return counts, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    flags = parser.parse_args()
    disable_progress_bar()
    lines = Lines()
    logging.getLogger("triplaneturbo").addHandler(lines)
    logging.getLogger("triplaneturbo").propagate = False
    total: Counter = Counter()
    print("| file | tried | " + " | ".join(COLUMNS) + " | seconds |\n|" + "---|" * (len(COLUMNS) + 3), flush=True)
    for name in flags.only:
        counts, seconds = storm(name, KINDS[name], flags.files, flags.seed, lines)
        total += counts
        row = [name, flags.files, *(counts[column] for column in COLUMNS), f"{seconds:.0f}"]
        print("| " + " | ".join(map(str, row)) + " |", flush=True)
    raise SystemExit(bool(total["wrong"] or total["traceback"]))


if __name__ == "__main__":
    main()
