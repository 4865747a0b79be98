"""Many trainings and evaluations, a process each: side by side, spread over the GPUs, stopped together."""

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

import torch

from triplaneturbo.evaluation.bootstrap import Interval, format_interval
from triplaneturbo.interruption import interruption
from triplaneturbo.systems.losslog import read_losses

ROOT = Path(__file__).resolve().parents[2]
OUT_OF_TIME = 124  # the exit status of `timeout`

Task = TypeVar("Task")


class Runs:
    """Starts commands in the repository: trainings, `jobs` at a time, each on one GPU, which several may share, and
    evaluations, `measuring` at a time, on the CPU, so that no training waits for them.

    gpus: their numbers; None: all that are visible.
    """

    def __init__(self, jobs: int, measuring: int, gpus: Sequence[str] | None = None) -> None:
        self.jobs = jobs
        self.measurers = ThreadPoolExecutor(measuring)
        self.measures: dict[Future[str], str] = {}
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // (2 * measuring)))
        self.on_cpu = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": threads}
        self.children: set[subprocess.Popen[bytes]] = set()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        gpus = gpus or visible.split(",")  # [""] without any
        self.places: SimpleQueue[str] = SimpleQueue()
        for i in range(jobs):
            self.places.put(gpus[i % len(gpus)])

    @contextmanager
    def place(self) -> Iterator[str]:
        """A GPU, for one command at a time."""
        place = self.places.get()
        try:
            yield place
        finally:
            self.places.put(place)

    def train_in(self, folder: Path, command: Sequence[str], minutes: float, place: str) -> bool:
        """Train for so many minutes at most; returns whether all steps are done. How long it took is added to
        FOLDER/seconds, what it said to FOLDER/train.log."""
        start = time.monotonic()
        code = self.call(folder / "train.log", ["timeout", f"{minutes:.3f}m", *command], on_gpu(place))
        with (folder / "seconds").open("a") as file:
            file.write(f"{time.monotonic() - start:.0f}\n")
        return code == 0

    def call(
        self, log: Path, command: Sequence[str], environment: Mapping[str, str], allowed: str | None = None
    ) -> int:
        """Run a command, with these variables set; returns its exit status, which is 0, or OUT_OF_TIME.

        Raises:
            RuntimeError: it failed, and did not say what is allowed.
        """
        interruption.check()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as output:
            output.write(f"$ {shlex.join(command)}\n")
            output.flush()
            # In a session of its own a terminal's SIGINT reaches it through `tell` alone.
            with subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as child:
                self.children.add(child)
                code = child.wait()
                self.children.discard(child)
        if code not in (0, OUT_OF_TIME) and not (allowed and allowed in log.read_text()):
            raise RuntimeError(f"exit status {code}, see {log}")
        return code

    def tell(self, number: int) -> None:
        """Pass a signal on to all that runs; trainings save before they stop."""
        for child in tuple(self.children):
            with suppress(ProcessLookupError):
                os.killpg(child.pid, number)

    def side_by_side(
        self,
        tasks: Sequence[Task],
        do: Callable[[Task], str],
        name: Callable[[Task], str],
        ended: Callable[[Task], object] = lambda task: None,
    ) -> list[Task]:
        """Do all tasks, and say how each ended, with how long the rest may take; returns those that failed.

        do: returns what is to be said of a task. ended: called after each, whether it failed or not.
        """
        started = time.monotonic()
        took: list[float] = []
        failed: list[Task] = []

        def timed(task: Task) -> str:
            begin = time.monotonic()
            try:
                return do(task)
            finally:
                took.append(time.monotonic() - begin)

        with ThreadPoolExecutor(self.jobs) as pool:
            todo = {pool.submit(timed, task): task for task in tasks}
            try:
                for number, done in enumerate(as_completed(todo), 1):
                    task, left = todo[done], len(todo) - number
                    if done.exception():
                        failed.append(task)
                    real = [seconds for seconds in took if seconds > 1] or [0.0]  # what was done before takes none
                    rest = sum(real) / len(real) * left / min(self.jobs, max(left, 1)) / 60
                    passed = (time.monotonic() - started) / 60
                    said = f"{name(task)}: {done.exception() or done.result()}"
                    sys.stdout.write(f"[{number}/{len(todo)}] {passed:.1f} min, about {rest:.1f} left  {said}\n")
                    sys.stdout.flush()
                    ended(task)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return failed

    def measure_later(self, name: str, measure: Callable[[], str]) -> None:
        """Call `measure`, which says what came of it, when the CPU is free."""
        self.measures[self.measurers.submit(measure)] = name

    def finish_measures(self) -> list[str]:
        """Wait for all measures, and say how each ended; returns the names of those that failed."""
        failed = []
        for done in as_completed(self.measures):
            if done.exception():
                failed.append(self.measures[done])
            sys.stdout.write(f"{self.measures[done]}: {done.exception() or done.result()}\n")
            sys.stdout.flush()
        return failed


def on_gpu(place: str) -> dict[str, str]:
    """The environment of a command on the GPU of this number."""
    return {"CUDA_VISIBLE_DEVICES": place}


def effort(folder: Path) -> tuple[int, int] | None:
    """Steps and seconds, loading included, that the training in a folder has taken; None: it has not begun."""
    log, seconds = folder / "losses.jsonl", folder / "seconds"
    if not (log.is_file() and seconds.is_file()):
        return None
    rows = [row for row, _ in read_losses(log)[0]]
    return (int(rows[-1]["step"]) if rows else 0), sum(map(int, seconds.read_text().split()))


def with_interval(mean: float, interval: Interval | None) -> str:
    """A mean and its interval, for a table."""
    return f"{mean:.3f} ({format_interval(interval, digits=3)})"


def table_parser(program: str, description: str | None, out: Path, limit: int | None) -> argparse.ArgumentParser:
    """The flags that the programs which make tables have in common. out, limit: their defaults."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(f"python -m {program}", description=description, formatter_class=raw)
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--jobs", type=int, default=4, help="trainings at a time; several share a GPU")
    cores = os.cpu_count() or 1
    parser.add_argument(
        "--measuring",
        type=int,
        default=max(1, cores // 8),
        help=f"evaluations at a time, on the CPU; default: one for eight cores, here {max(1, cores // 8)}",
    )
    parser.add_argument("--limit", type=int, default=limit, help="captions measured of each split")
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose names begin so")
    return parser


def parse_with_overrides(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Flags, and behind ` -- ` options for all trainings, as `overrides`."""
    own = sys.argv[1:] if arguments is None else arguments
    end = own.index("--") if "--" in own else len(own)
    flags = parser.parse_args(own[:end])
    flags.overrides = own[end + 1 :]
    return flags
