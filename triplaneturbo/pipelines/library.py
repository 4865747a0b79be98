"""The meshes of a whole prompt library: the command `triplaneturbo generate --library`.

What is there is not made again, so a call that was stopped, or in which prompts failed, is repeated to go on.
"""

import json
import math
import time
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from triplaneturbo.base import convert
from triplaneturbo.bounds import Count, GridPoints, Seed
from triplaneturbo.errors import ConfigError, WriteError
from triplaneturbo.exporters.mesh_exporter import MeshExporter
from triplaneturbo.lock import FolderLock
from triplaneturbo.pipelines.engines import Batches, in_processes, on_ray, own_devices
from triplaneturbo.pipelines.making import RECORD, Answer, Order
from triplaneturbo.pipelines.students import find_student
from triplaneturbo.pipelines.text_to_mesh import read_pipeline, student_id
from triplaneturbo.storage import read_json, require_writable, write_text

Split = Literal["train", "val", "test"]
Say = Callable[[str], None]
# What the names of the published libraries end with.
_SUFFIX = "_prompt_library"
_PROGRESS_S = 10.0


@dataclass(frozen=True, kw_only=True)
class LibraryRequest:
    """One call of the command.

    library: a name, as in data.prompt_library, with or without its ending _prompt_library; or a .json file.
    weights: a pipeline folder, None: see `find_student`. resolution: grid points along an edge, None: as trained.
    device: of the only process, None: one on every GPU. batch_size: prompts that are made together.
    ray_address: see `on_ray`. overwrite: replace meshes of another prompt, seed or training.
    """

    library: str
    out: Path
    split: Split = "test"
    weights: Path | None = None
    seed: int = 0
    resolution: int | None = None
    device: str | None = None
    batch_size: int = 1
    engine: Literal["processes", "ray"] = "processes"
    ray_address: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        convert(Seed, self.seed, "--seed")
        convert(Count, self.batch_size, "--batch-size")
        if self.resolution is not None:
            convert(GridPoints, self.resolution, "--resolution")
        if self.ray_address is not None and self.engine != "ray":
            raise ConfigError("--ray-address goes with --engine ray")
        if self.device is not None and self.engine == "ray":
            raise ConfigError("--device goes with --engine processes; Ray's actors take a GPU each where there are any")


@dataclass(frozen=True)
class Summary:
    """What a call did: prompts whose mesh it made, or found; why there is none of the others; seconds of all."""

    made: Collection[str]
    found: Collection[str]
    failed: dict[str, str]
    seconds: float

    def __str__(self) -> str:
        total = len(self.made) + len(self.found) + len(self.failed)
        line = f"{total} prompts: {len(self.made)} made, {len(self.found)} were there, {len(self.failed)} failed"
        reasons = [f"  {prompt!r}: {reason}" for prompt, reason in self.failed.items()]
        return "\n".join([f"{line}; {_clock(self.seconds)}", *reasons])


def read_prompts(library: str, split: Split) -> list[str]:
    """The prompts of a split, each once.

    Raises:
        ConfigError: there is no such library, or its split is empty.
    """
    from triplaneturbo.data.library import DEFAULT_FOLDERS, PromptLibrary  # workers do without it

    file = Path(library)
    name, folder = (file.stem, str(file.parent)) if file.suffix == ".json" else (library, None)
    if folder is None and any((place / f"{name}{_SUFFIX}.json").is_file() for place in DEFAULT_FOLDERS):
        name += _SUFFIX
    prompts = getattr(PromptLibrary.read(name, folder), split)
    if not prompts:
        raise ConfigError(f"the list {split!r} of the prompt library {library} is empty; give another --split")
    return list(dict.fromkeys(prompts))


def generate_library(request: LibraryRequest, say: Say) -> Summary:
    """Make the meshes that are not there yet, a folder a prompt in `request.out`, each written once.

    say: gets a line about what there is to do, and one now and then about what is done.

    Raises:
        ConfigError: an option cannot be used, or the folder holds meshes of another resolution.
        WeightsError: there are no weights, or they are damaged.
        WriteError: another mesh is in the place of one, another call is writing there, or the disk is full.
    """
    began = time.monotonic()
    prompts = read_prompts(request.library, request.split)
    weights = (request.weights or find_student()).resolve()
    resolution = request.resolution or read_pipeline(weights).resolution
    order = Order(
        weights=weights,
        weights_id=student_id(weights),
        out=request.out.resolve(),
        seed=request.seed,
        resolution=resolution,
        overwrite=request.overwrite,
    )
    require_writable(order.out)
    with FolderLock(order.out) as lock:
        _agree(order)
        MeshExporter({"overwrite": order.overwrite}).check(prompts, order.out, [order.origin(p) for p in prompts])
        left = [prompt for prompt in prompts if not order.is_made(prompt)]
        _remove_leftovers(order, prompts)
        say(f"{len(left)} of {len(prompts)} meshes to make in {order.out}, with the weights of {weights}")
        try:
            reasons = _make(order, left, request, say, lock)
        finally:
            _remove_leftovers(order, prompts)
        missing = [prompt for prompt in left if not order.is_made(prompt)]
    failed = {prompt: reasons.get(prompt) or "no worker was left that could make it" for prompt in missing}
    made = [prompt for prompt in left if prompt not in failed]
    return Summary(made, [prompt for prompt in prompts if prompt not in set(left)], failed, time.monotonic() - began)


def _agree(order: Order) -> None:
    """Record what the meshes of the folder have in common besides their origins, or see that it is this.

    Raises:
        ConfigError: it is not.
    """
    path, common = order.out / RECORD, {"resolution": order.resolution}
    if not path.exists():
        write_text(path, json.dumps(common) + "\n")
    elif (there := read_json(path)) != common:
        raise ConfigError(
            f"the meshes in {order.out} are of {there}, not of {common}: go on with theirs, or give another folder"
        )


def _make(order: Order, prompts: Sequence[str], request: LibraryRequest, say: Say, lock: FolderLock) -> dict[str, str]:
    """Let an engine make the meshes; returns why there is none of a prompt, as far as a worker said."""
    reasons, progress = {}, _Progress(len(prompts), say)
    size = request.batch_size
    batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    with closing(_answers(order, batches, request)) as answers:
        for answer in answers:
            if answer.final:
                raise WriteError(answer.reason)
            lock.check()
            if answer.reason:
                reasons[answer.prompt] = answer.reason
            progress.count(failed=bool(answer.reason))
    return reasons


def _answers(order: Order, batches: Batches, request: LibraryRequest) -> Generator[Answer, None, None]:
    if batches and request.engine == "ray":
        yield from on_ray(order, batches, request.ray_address)
    elif batches:
        yield from in_processes(order, batches, [request.device] if request.device else own_devices())


def _remove_leftovers(order: Order, prompts: Sequence[str]) -> None:
    """Remove what workers left that were killed, and their tries; none of a living one is there."""
    for prompt in prompts:
        folder = order.folder(prompt)
        for path in folder.glob(".*.tmp"):
            path.unlink()
        with suppress(OSError):  # as a rule it is not empty
            folder.rmdir()


class _Progress:
    """Counts answers and says every ten seconds how far it is."""

    def __init__(self, total: int, say: Say) -> None:
        self._total, self._say = total, say
        self._done = self._failed = 0
        # Of the first answer: what workers need to begin is no part of the speed.
        self._first = self._said = 0.0

    def count(self, *, failed: bool) -> None:
        """One more prompt is done."""
        now = time.monotonic()
        self._done += 1
        self._failed += failed
        if self._done == 1:
            self._first = self._said = now
        elif now - self._said >= _PROGRESS_S:
            self._said = now
            self._say(progress_line(self._done, self._total, self._failed, (now - self._first) / (self._done - 1)))


def progress_line(done: int, total: int, failed: int, seconds_a_mesh: float) -> str:
    """`120 of 415, 0 failed, 0.82 s a mesh, 0:04:02 left`."""
    left = _clock((total - done) * seconds_a_mesh)
    return f"{done} of {total}, {failed} failed, {seconds_a_mesh:.3g} s a mesh, {left} left"


def _clock(seconds: float) -> str:
    whole = math.ceil(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
