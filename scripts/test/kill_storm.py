"""Kill a training run again and again, resume it each time, and compare the result with an uninterrupted run.

    python scripts/test/kill_storm.py CONFIG.yaml --out DIR --kills 20 --inside-save 3 [key=value ...]

Kills (SIGKILL) fall at random moments between two checkpoints; the last ones, as many as --inside-save asks for, fall
while one is being written. Succeeds if the loss logs of the two runs are equal to the byte and the final checkpoints
to the bit. Runs on the CPU with one thread. Every life saves one checkpoint or two, so max_steps must allow for as
many.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from triplaneturbo.launcher import Launch, launch, read_experiment
from triplaneturbo.systems.checkpoint import newest_checkpoint
from triplaneturbo.weights.files import read_checkpoint


def start(request: Launch, output: Path) -> int:
    """Launch in a child process; forking spares it the imports."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with open(output, "a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        launch(request)
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


def finished(child: int) -> bool:
    """Whether the child has ended; an error of its own ends the storm."""
    done, status = os.waitpid(child, os.WNOHANG)
    if done and status:
        raise SystemExit(f"the run failed by itself with status {status}")
    return bool(done)


def writing(folder: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any(name.endswith(".tmp") for name in os.listdir(folder)) if folder.is_dir() else False


def wait_and_kill(child: int, folder: Path, delay: float, inside_save: bool) -> bool | None:
    """Kill the child after its first new checkpoint and `delay` seconds, or inside the save that follows.

    Returns:
        Whether a save was cut off; None if the run ended first.
    """
    before = newest_checkpoint(folder)
    while newest_checkpoint(folder) == before:
        if finished(child):
            return None
        time.sleep(0.002)
    deadline = time.monotonic() + delay
    while not (writing(folder) if inside_save else time.monotonic() > deadline):
        if finished(child):
            return None
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return writing(folder)


def equal(a: object, b: object) -> bool:
    """Equality of nested containers of tensors and plain values."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return a == b


def run_undisturbed(request: Launch, output: Path, folder: Path) -> float:
    """Let a run end; returns the mean time between two of its checkpoints."""
    child = start(request, output)
    times: dict[Path | None, float] = {}
    while not finished(child):
        times.setdefault(newest_checkpoint(folder), time.monotonic())
        time.sleep(0.005)
    times.pop(None, None)
    return (max(times.values()) - min(times.values())) / max(len(times) - 1, 1)


def storm(flags: argparse.Namespace, request: Launch, folder: Path, interval: float) -> None:
    """Kill and resume until there were enough kills, then let the run end."""
    dice = random.Random(flags.seed)
    kills = cut = 0
    while True:
        child = start(request, flags.out / "storm.log")
        enough = kills >= flags.kills and cut >= flags.inside_save
        aim = flags.kills - kills <= flags.inside_save - cut
        delay = dice.uniform(0, interval)
        result = wait_and_kill(child, folder, 1e9 if enough else delay, aim and not enough)
        if result is None:
            break
        kills, cut = kills + 1, cut + result
        print(f"kill {kills} after {newest_checkpoint(folder).name}{', inside a save' if result else ''}", flush=True)
    if kills < flags.kills or cut < flags.inside_save:
        raise SystemExit(f"the run ended after {kills} kills, {cut} inside a save: give it more steps")
    print(f"{kills} kills, {cut} of them inside a save")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--inside-save", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    flags, overrides = parser.parse_known_args()
    torch.set_num_threads(1)
    shutil.rmtree(flags.out, ignore_errors=True)
    flags.out.mkdir(parents=True)
    common = [*overrides, f"exp_root_dir={flags.out}", "use_timestamp=false", "trainer.accelerator=cpu"]
    requests = {
        tag: Launch(mode="train", configs=[flags.config], overrides=[*common, f"tag={tag}", "resume=auto"])
        for tag in ("reference", "storm")
    }
    folders = {tag: read_experiment(request)[0].trial_dir for tag, request in requests.items()}
    interval = run_undisturbed(requests["reference"], flags.out / "reference.log", folders["reference"] / "ckpts")
    storm(flags, requests["storm"], folders["storm"] / "ckpts", interval)
    logs = [(folder / "losses.jsonl").read_bytes() for folder in folders.values()]
    states = [read_checkpoint(newest_checkpoint(folder / "ckpts")) for folder in folders.values()]
    same_log, same_state = logs[0] == logs[1], equal(*({**state, "loops": None} for state in states))
    print(f"loss log of {len(logs[0])} bytes {'equal' if same_log else 'DIFFERS'}; ", end="")
    print(f"final weights, averages and optimiser {'equal' if same_state else 'DIFFER'}")
    raise SystemExit(not (same_log and same_state))


if __name__ == "__main__":
    main()
