"""Stop a training run again and again, resume it each time, and compare the result with an uninterrupted run.

    python scripts/test/kill_storm.py CONFIG.yaml --out DIR --kills 50 [key=value ...]

The signals are SIGKILL, SIGTERM and SIGINT, as often as each other and in random order. A third of them falls while a
checkpoint is being written, a sixth while the run starts, the others at random moments between two checkpoints.

Succeeds if no signal cost more than it may (SIGTERM and SIGINT: no completed update, SIGKILL: nothing before the last
complete checkpoint), every run that SIGTERM or SIGINT ended left with its exit code and one line, nothing wrote a
traceback, the loss logs of the two runs are equal to the byte and their final checkpoints to the bit. Runs on the CPU
with one thread. Every life saves one checkpoint or two, so max_steps must allow for as many.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from triplaneturbo.interruption import stoppable
from triplaneturbo.launcher import Launch, launch, read_experiment
from triplaneturbo.systems.checkpoint import newest_checkpoint
from triplaneturbo.weights.files import read_checkpoint

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MOMENTS = ("save", "save", "start", "between", "between", "between")


@dataclass(frozen=True)
class Kill:
    """What became of one life.

    inside: a checkpoint was being written. lost: completed updates that no checkpoint has; undone: those that this
    signal may not cost.
    """

    signal: signal.Signals
    moment: str
    inside: bool
    lost: int
    undone: int


class Run:
    """A training that is started again and again in the same folder."""

    def __init__(self, request: Launch, folder: Path, output: Path) -> None:
        self.request, self.folder, self.output = request, folder, output
        self.checkpoints = folder / "ckpts"

    def start(self) -> int:
        """Launch in a child process; forking spares it the imports."""
        self.said = self.output.stat().st_size if self.output.exists() else 0
        child = os.fork()
        if child:
            return child
        with open(self.output, "a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        try:
            with stoppable():
                launch(self.request)
        except SystemExit as end:
            os._exit(end.code)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)

    def step(self) -> int:
        """Of the newest complete checkpoint."""
        newest = newest_checkpoint(self.checkpoints)
        return int(newest.stem.rpartition("=")[2]) if newest else 0

    def logged_step(self) -> int:
        """The last that the loss log has."""
        log = self.folder / "losses.jsonl"
        lines = log.read_text().splitlines(keepends=True) if log.exists() else []
        return max([json.loads(line)["step"] for line in lines if line.endswith("\n")], default=0)

    def writing(self) -> bool:
        """Whether a checkpoint is being written."""
        folder = self.checkpoints
        return any(name.endswith(".tmp") for name in os.listdir(folder)) if folder.is_dir() else False

    def lines(self) -> list[str]:
        """What the latest life has said."""
        return self.output.read_bytes()[self.said :].decode().splitlines()


def finished(child: int) -> bool:
    """Whether the child has ended; an error of its own ends the storm."""
    done, status = os.waitpid(child, os.WNOHANG)
    if done and status:
        raise SystemExit(f"the run failed by itself with status {status}")
    return bool(done)


def wait(child: int, until: Callable[[], bool]) -> bool:
    """Wait for a moment; False if the child has ended before."""
    while not until():
        if finished(child):
            return False
        time.sleep(0.001)
    return True


def kill(run: Run, number: signal.Signals, moment: str, delay: float, starting: float) -> Kill | None:
    """One life: start, wait for the moment, send the signal. None if the run ended first.

    delay: share of the time between two checkpoints, in seconds, or of `starting`, the seconds until the first update.
    """
    before, logged = run.step(), run.logged_step()
    child = run.start()
    if moment == "start":
        deadline = time.monotonic() + starting * delay
    elif not wait(child, lambda: run.step() > before):
        return None
    else:
        deadline = time.monotonic() + delay
    if not wait(child, run.writing if moment == "save" else lambda: time.monotonic() > deadline):
        return None
    kept = run.step()
    os.kill(child, number)
    inside = run.writing()
    _, status = os.waitpid(child, 0)
    expected = -number if number == signal.SIGKILL else 128 + number
    code, lines = os.waitstatus_to_exitcode(status), run.lines()
    closing = [line for line in lines if f"stopped by {number.name}" in line]
    if code != expected or len(closing) != (number != signal.SIGKILL):
        raise SystemExit(f"after {number.name} ({moment}) the run ended with {code}:\n" + "\n".join(lines[-30:]))
    after = run.step()
    # A life that did not get to its first update has not touched the log of the one before.
    lost = max(run.logged_step() - after, 0) if after > before or run.logged_step() != logged else 0
    undone = max(kept - after, 0) if number == signal.SIGKILL else lost
    return Kill(number, moment, inside, lost, undone)


def equal(a: object, b: object) -> bool:
    """Equality of nested containers of tensors and plain values."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return a == b


def run_undisturbed(run: Run) -> tuple[float, float]:
    """Let a run end; returns the seconds to its first checkpoint and the mean between two."""
    begun, child = time.monotonic(), run.start()
    times: dict[int, float] = {}
    while not finished(child):
        times.setdefault(run.step(), time.monotonic())
        time.sleep(0.005)
    times.pop(0, None)
    return min(times.values()) - begun, (max(times.values()) - min(times.values())) / max(len(times) - 1, 1)


def storm(run: Run, kills: int, dice: random.Random, starting: float, interval: float) -> list[Kill]:
    """Stop and resume as often as asked for, then let the run end."""
    numbers, moments = (dice.sample((kinds * kills)[:kills], kills) for kinds in (SIGNALS, MOMENTS))
    done = []
    for number, moment in zip(numbers, moments, strict=True):
        result = kill(run, number, moment, dice.random() * (1 if moment == "start" else interval), starting)
        if result is None:
            raise SystemExit(f"the run ended after {len(done)} signals: give it more steps")
        done.append(result)
        where = "inside a save" if result.inside else f"at {moment}"
        print(f"{len(done)}: {number.name} {where}, step {run.step()}, {result.lost} updates to repeat", flush=True)
    child = run.start()
    while not finished(child):
        time.sleep(0.05)
    return done


def report(kills: Sequence[Kill]) -> None:
    """A line for each signal."""
    for number in SIGNALS:
        own = [kill for kill in kills if kill.signal == number]
        inside, early = sum(kill.inside for kill in own), sum(kill.moment == "start" for kill in own)
        lost = sum(kill.lost for kill in own)
        print(f"{number.name}: {len(own)}, {inside} inside a save, {early} while starting; updates to repeat: {lost}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    flags, overrides = parser.parse_known_args()
    torch.set_num_threads(1)
    shutil.rmtree(flags.out, ignore_errors=True)
    flags.out.mkdir(parents=True)
    common = [f"exp_root_dir={flags.out}", "use_timestamp=false", "trainer.accelerator=cpu"]
    common = [*overrides, *common, "trainer.log_every_n_steps=1"]  # the log says which updates were completed
    runs = {}
    for tag in ("reference", "storm"):
        request = Launch(mode="train", configs=[flags.config], overrides=[*common, f"tag={tag}", "resume=auto"])
        runs[tag] = Run(request, read_experiment(request)[0].trial_dir, flags.out / f"{tag}.log")
    starting, interval = run_undisturbed(runs["reference"])
    kills = storm(runs["storm"], flags.kills, random.Random(flags.seed), starting, interval)
    report(kills)
    undone = sum(kill.undone for kill in kills)
    tracebacks = sum(run.output.read_text().count("Traceback") for run in runs.values())
    logs = [(run.folder / "losses.jsonl").read_bytes() for run in runs.values()]
    states = [read_checkpoint(newest_checkpoint(run.checkpoints)) for run in runs.values()]
    same_log, same_state = logs[0] == logs[1], equal(*({**state, "loops": None} for state in states))
    print(f"{len(kills)} signals; updates lost that may not be: {undone}; tracebacks: {tracebacks}")
    print(f"loss log of {len(logs[0])} bytes {'equal' if same_log else 'DIFFERS'}; ", end="")
    print(f"final weights, averages and optimiser {'equal' if same_state else 'DIFFER'}")
    raise SystemExit(bool(undone or tracebacks or not same_log or not same_state))


if __name__ == "__main__":
    main()
