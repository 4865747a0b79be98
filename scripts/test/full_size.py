"""Run the full-size recipe with random stand-ins for the weights, and report what it takes and whether it resumes.

    python scripts/test/full_size.py --out outputs/full_size [--stages weights train resume export] [-- key=value ...]

weights   stand-ins for all published files (scripts/prepare/random_weights.py)
train     --steps optimizer steps with three teachers and both renderers
resume    the same, killed (SIGKILL) after the checkpoint of the middle step and resumed; both loss logs and the final
          weights are compared
export    meshes, pictures and scores of the prompts (scripts/eval/dreamfusion.sh)
two_gpus  one step in float32 of two processes is compared with the same step of a single one, which goes through the
          global batch prompt by prompt (gradient accumulation), and in one pass

On a GPU two runs are equal bit for bit with `-- trainer.deterministic=true`, which takes longer.

Everything goes to --out. Stages may be run one by one: what they find is kept in OUT/report.json, and OUT/report.md is
made from it anew each time. What does not end within --minutes is killed, and reported so far.
"""

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from triplaneturbo.evaluation.common import write_json
from triplaneturbo.evaluation.stand_in_recipe import LIBRARY, stand_in_overrides, write_prompts
from triplaneturbo.systems.checkpoint import numbered_checkpoints
from triplaneturbo.systems.losslog import read_losses
from triplaneturbo.weights.files import read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "configs" / "TriplaneTurbo_v1_acc-2.yaml"
DEFAULT_STAGES = ("weights", "train", "resume", "export")
# With the recipe's eps the first step is the sign of the gradient, which magnifies the rounding of small ones.
EXACT = (
    "system.geometry.space_generator_config.network_dtype=float32",
    "system.guidance.network_dtype=float32",
    "system.optimizer.args.eps=1e-3",
    "trainer.deterministic=true",
    "trainer.max_steps=1",
)
VIEWS = 4
# Three ways to a step of two prompts.
WAYS = {
    name: (f"trainer.devices={devices}", f"data.batch_size={batch}", f"system.gradient_accumulation_steps={micro}")
    for name, devices, batch, micro in (
        ("two", 2, VIEWS, 1),
        ("accumulated", 1, VIEWS, 2),
        ("one_pass", 1, 2 * VIEWS, 1),
    )
}
NOT_MEASURED = ("step", "prompts", "lr", "skipped")


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


class Unfinished(Exception):
    """A command was stopped or failed."""


@dataclass
class Session:
    """Where things are, what is asked for, and what was found so far."""

    flags: argparse.Namespace
    deadline: float
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return self.flags.out

    def trial(self, tag: str) -> Path:
        return self.out / "runs" / "full_size" / tag

    def launch_command(self, tag: str, *arguments: str) -> list[str]:
        """A training of the recipe with the stand-ins, in a folder of its own."""
        measured = [sys.executable, "scripts/test/measured_launch.py", str(self.out / f"{tag}.json")]
        folders = [f"exp_root_dir={self.out / 'runs'}", "name=full_size", f"tag={tag}", "use_timestamp=false"]
        quiet = ["trainer.log_every_n_steps=1", "trainer.limit_test_batches=0"]
        config = ["--config", str(self.flags.config), "--train"]
        return [*measured, *config, *self.overrides(), *folders, *quiet, *arguments]

    def overrides(self) -> list[str]:
        tiny = self.flags.width == "tiny"
        return [*stand_in_overrides(self.flags.pretrained, self.out, tiny=tiny), *self.flags.overrides]

    def run(self, command: Sequence[str], log: str, tick: Callable[[], bool] = lambda: False, **env: str) -> None:
        """Run a command until it ends, `tick` says so, or time is over; in the last two cases kill it.

        Raises:
            Unfinished: it failed or was out of time.
        """
        words = [*(f"{name}={value}" for name, value in env.items()), shlex.join(command)]
        self.report.setdefault("commands", {})[log] = " ".join(words)
        path = self.out / f"{log}.log"
        say(f"{log}: started, output in {path}")
        with path.open("w") as output:
            streams = {"stdout": output, "stderr": subprocess.STDOUT}
            child = subprocess.Popen(command, cwd=ROOT, env=os.environ | env, start_new_session=True, **streams)
        stopped = False
        while child.poll() is None and not stopped and time.monotonic() < self.deadline:
            time.sleep(0.05)
            stopped = tick()
        tick()
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            if not stopped:
                raise Unfinished(f"{log} did not end in time and was killed")
        elif child.returncode:
            tail = "".join(path.read_text().splitlines(keepends=True)[-20:])
            raise Unfinished(f"{log} failed with status {child.returncode}:\n{tail}")


class StepWatch:
    """Follows a loss log: says each step when it is written, and remembers when that was."""

    def __init__(self, path: Path, tag: str) -> None:
        self.path, self.tag = path, tag
        self.start = time.monotonic()
        self.seen = len(read_log(path))
        self.times: list[float] = []

    def __call__(self) -> bool:
        rows = read_log(self.path)
        for row in rows[self.seen :]:
            self.times.append(time.monotonic() - self.start)
            took = self.times[-1] - (self.times[-2] if len(self.times) > 1 else 0)
            say(f"{self.tag}: step {row['step']}  {took:.2f} s  gradient {row['grad_norm']:.4g}")
        self.seen = max(self.seen, len(rows))
        return False

    @property
    def seconds_a_step(self) -> float | None:
        """Median, without the first two steps, in which kernels are compiled and chosen."""
        steps = [b - a for a, b in zip(self.times[1:], self.times[2:], strict=False)]
        return statistics.median(steps) if steps else None


def read_log(path: Path) -> list[dict[str, float]]:
    """The complete lines of a loss log, which may still be growing."""
    return [row for row, _ in read_losses(path)[0]] if path.is_file() else []


def compare_logs(a: list[dict[str, float]], b: list[dict[str, float]]) -> dict[str, Any]:
    """Whether rows of the same steps are equal, and the largest |a - b| / max(|a|, |b|) of their measured values."""
    worst, place = 0.0, ""
    for first, second in zip(a, b, strict=True):
        for name in first.keys() - set(NOT_MEASURED):
            difference, size = abs(first[name] - second[name]), max(abs(first[name]), abs(second[name]))
            if difference > worst * size:
                worst, place = difference / size, f"{name}, step {first['step']}"
    return {"equal": a == b, "largest_difference": worst, "place": place}


def means_over_prompts(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """What does not depend on how prompts are divided among processes: the teachers' gradient norms do."""
    return [{n: v for n, v in row.items() if n.startswith(("step", "loss_")) or "_gap" in n} for row in rows]


def relative_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """|a - b| / |a| over all tensors together."""
    difference = torch.stack([(a[name].double() - b[name].double()).norm() for name in a]).norm()
    return (difference / torch.stack([tensor.double().norm() for tensor in a.values()]).norm()).item()


def gradients(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The gradient of the last step, which Adan keeps."""
    states = checkpoint["optimizer_states"][0]["state"]
    return {str(number): state["previous"] for number, state in states.items()}


# Stages


def weights(session: Session) -> dict[str, Any]:
    flags = session.flags
    command = [sys.executable, "scripts/prepare/random_weights.py", "--out", str(flags.pretrained)]
    start = time.monotonic()
    session.run([*command, "--width", flags.width], "weights")
    size = sum(path.stat().st_size for path in flags.pretrained.rglob("*") if path.is_file())
    return {"seconds": time.monotonic() - start, "gib": size / 2**30}


def train(session: Session) -> dict[str, Any]:
    return _train(session, "reference")


def _train(session: Session, tag: str, *arguments: str, **env: str) -> dict[str, Any]:
    """A run from its start to its end."""
    (session.trial(tag) / "losses.jsonl").unlink(missing_ok=True)
    watch = StepWatch(session.trial(tag) / "losses.jsonl", tag)
    steps = session.flags.steps
    schedule = [f"trainer.max_steps={steps}", f"checkpoint.every_n_train_steps={steps // 2}"]
    found: dict[str, Any] = {}
    try:
        session.run(session.launch_command(tag, *schedule, *arguments), tag, watch, **env)
        found |= json.loads((session.out / f"{tag}.json").read_text())
    except Unfinished as problem:
        found["problem"] = str(problem)
    found |= {"steps": len(watch.times), "seconds_a_step": watch.seconds_a_step}
    return found | ({"first_step_after": watch.times[0]} if watch.times else {})


def resume(session: Session) -> dict[str, Any]:
    half, tag = session.flags.steps // 2, "resumed"
    folder = session.trial(tag)
    for path in [folder / "losses.jsonl", *folder.glob("ckpts/*.ckpt")]:
        path.unlink(missing_ok=True)
    schedule = [f"trainer.max_steps={session.flags.steps}", f"checkpoint.every_n_train_steps={half}", "resume=auto"]
    command = session.launch_command(tag, *schedule)
    watch = StepWatch(folder / "losses.jsonl", tag)
    session.run(command, "resumed-1", lambda: watch() or bool(numbered_checkpoints(folder / "ckpts")))
    if len(read_log(watch.path)) >= session.flags.steps:
        raise Unfinished("the run ended before it could be killed: give it more --steps")
    killed_after = len(read_log(watch.path))
    say(f"{tag}: killed after step {killed_after}; resuming")
    found: dict[str, Any] = {"killed_after": killed_after}
    try:
        session.run(command, "resumed-2", StepWatch(watch.path, tag))
    except Unfinished as problem:
        found["problem"] = str(problem)
    return found | _compare_runs(session, half)


def _compare_runs(session: Session, half: int) -> dict[str, Any]:
    """The resumed run against the reference: before the kill, which shows what two equal runs differ by, and after."""
    folders = [session.trial(tag) for tag in ("reference", "resumed")]
    logs = [read_log(folder / "losses.jsonl") for folder in folders]
    common = min(map(len, logs))
    found: dict[str, Any] = {"compared_steps": common}
    for name, some in (("before_the_kill", slice(0, half)), ("after_the_kill", slice(half, common))):
        found[name] = compare_logs(*(log[:common][some] for log in logs))
    last = [folder / "ckpts" / "last.ckpt" for folder in folders]
    states = [read_checkpoint(path) for path in last if path.is_file()]
    if [state["global_step"] for state in states] == [session.flags.steps] * 2:
        a, b = (state["state_dict"] for state in states)
        found["final_weights"] = {
            "equal": all(torch.equal(a[name], b[name]) for name in a),
            "relative_difference": relative_difference(a, b),
        }
    return found


def export(session: Session) -> dict[str, Any]:
    pretrained, out = session.flags.pretrained, session.out / "evaluation"
    command = ["bash", "scripts/eval/dreamfusion.sh", "--config", str(session.flags.config), "--out", str(out)]
    command += ["--weights", str(pretrained / "triplane_turbo_sd_v1.pth")]
    command += ["--clip", str(pretrained / "clip-vit-base-patch32"), "--library", LIBRARY, "--"]
    before, written, start = time.time(), [], time.monotonic()

    def tick() -> bool:
        """Note when each mesh is complete: its prompt is written last but for the picture."""
        ready = [p for p in out.glob("meshes/*/turntable.png") if p.stat().st_mtime > before]
        if len(ready) > len(written):
            written.extend([time.monotonic() - start] * (len(ready) - len(written)))
            say(f"export: {len(written)} meshes")
        return False

    session.run([*command, *session.overrides()], "export", tick, PYTHON=sys.executable)
    found = {"prompts": len(written), "first_after": written[0], "seconds": time.monotonic() - start}
    if len(written) > 1:
        found["seconds_a_prompt"] = (written[-1] - written[0]) / (len(written) - 1)
    return found | {"scores": json.loads((out / "clip_scores.json").read_text())}


def two_gpus(session: Session) -> dict[str, Any]:
    kind = () if torch.cuda.device_count() > 1 else ("trainer.accelerator=cpu",)
    found: dict[str, Any] = {}
    for way, arguments in WAYS.items():
        found[way] = _train(session, way, *EXACT, *kind, *arguments, NVIDIA_TF32_OVERRIDE="0", OMP_NUM_THREADS="1")
        if "problem" in found[way]:
            raise Unfinished(found[way]["problem"])
    folders = {way: session.trial(way) for way in WAYS}
    logs = {way: means_over_prompts(read_log(folder / "losses.jsonl")) for way, folder in folders.items()}
    states = {way: read_checkpoint(folder / "ckpts" / "last.ckpt") for way, folder in folders.items()}
    two, *others = WAYS
    for way in others:
        found[f"{way}_from_{two}"] = {
            "losses": compare_logs(logs[two], logs[way]),
            "gradients": relative_difference(gradients(states[two]), gradients(states[way])),
            "weights": relative_difference(states[two]["state_dict"], states[way]["state_dict"]),
        }
    return found


# Report


def markdown(report: dict[str, Any]) -> str:
    """The report for people: what was measured, then the exact commands."""
    lines = ["# Full-size run with random stand-ins for the weights", ""]
    for name, value in _flat({key: value for key, value in report.items() if key != "commands"}):
        lines.append(f"- {name}: {value:.6g}" if isinstance(value, float) else f"- {name}: {value}")
    lines += ["", "## Commands", ""]
    for name, command in report.get("commands", {}).items():
        lines += [f"{name}:", "", f"    {command}", ""]
    return "\n".join(lines)


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows = []
    for name, value in values.items():
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return rows


def parse_session(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The command line: what the parser has, among it --out, and what every session needs."""
    parser.add_argument("--pretrained", type=Path, help="folder of the stand-ins; default: OUT/pretrained")
    parser.add_argument("--width", choices=("full", "tiny"), default="full", help="tiny: to try this script")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for all runs; after --")
    flags = parser.parse_args(arguments)
    flags.out = flags.out.resolve()
    flags.pretrained = (flags.pretrained or flags.out / "pretrained").resolve()
    return flags


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/full_size"))
    parser.add_argument("--config", type=Path, default=RECIPE)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=DEFAULT_STAGES)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--minutes", type=float, default=9.5, help="of all stages together")
    parser.add_argument("--prompts", type=Path, help="a text file, a prompt a line; default: eight of ours")
    return parse_session(parser, arguments)


STAGES = {
    "weights": weights,
    "train": train,
    "resume": resume,
    "export": export,
    "two_gpus": two_gpus,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the stages; 1 if one of them did not end well."""
    flags = parse(arguments)
    flags.out.mkdir(parents=True, exist_ok=True)
    write_prompts(flags.out, flags.prompts)
    kept = flags.out / "report.json"
    report = json.loads(kept.read_text()) if kept.is_file() else {}
    report |= {"torch": torch.__version__, "width": flags.width}
    session = Session(flags, time.monotonic() + 60 * flags.minutes, report)
    for stage in flags.stages:
        try:
            report[stage] = STAGES[stage](session)
        except Unfinished as problem:
            report[stage] = {"problem": str(problem)}
        if "problem" in report[stage]:
            say(f"{stage}: {report[stage]['problem']}")
        write_json(kept, report)
        (flags.out / "report.md").write_text(markdown(report))
    print((flags.out / "report.md").read_text())
    return int(any("problem" in report[stage] for stage in flags.stages))


if __name__ == "__main__":
    sys.exit(main())
