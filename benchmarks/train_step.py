"""Time and memory of a training step, stage by stage.

    python -m benchmarks.train_step --pretrained pretrained [--json FILE] [-- key=value ...]
    python -m benchmarks.train_step --world [--json FILE] [-- key=value ...]

The first measures the recipe --config at full size; with random weights (scripts/prepare/random_weights.py --out
pretrained) as well as with the published ones, since no time depends on them. The second measures the miniature
world's, on the CPU if there is no GPU. What is measured is a micro-batch: all rounds of denoising, rendering, judging
and going backward; the update after the last one is the stage `update`. Stages are timed between events on the device,
so that one that waits for the host takes the time that it waits; `rest` is what is in none of them. On CUDA the
profiler says of one more micro-batch how busy the device is and what runs on it.

    --levels reference fast   measures levels of `performance` one after the other
    --points "data.batch_size=4" "data.batch_size=8 data.height=256 data.width=256"
                              measures the recipe at each of these points, one after the other, and prints a table
                              (each in a process of its own: what one takes from the card is not counted for the next)
    --gradients 8             compares the gradients of trained weights over 8 draws with those of float32
"""

import argparse
import gc
import itertools
import logging
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from benchmarks.measuring import Timing, require_new, timing, write_json
from benchmarks.stopwatch import Stopwatch
from triplaneturbo.config import load_config
from triplaneturbo.evaluation.stand_in_recipe import stand_in_overrides, write_prompts
from triplaneturbo.extensions import import_extensions
from triplaneturbo.launcher import CUSTOM_FOLDER, build_trainer
from triplaneturbo.performance import Performance, use
from triplaneturbo.scenes import FieldScene
from triplaneturbo.types import Run

ROOT = Path(__file__).resolve().parents[1]
FULL = ROOT / "configs" / "TriplaneTurbo_v1_acc-2.yaml"
WORLD = ROOT / "configs" / "shapeworld" / "prd.yaml"


@dataclass(frozen=True)
class WatchedScene(FieldScene):
    """A scene that says how long its gradients are on their way back through the generator."""

    watch: Stopwatch = field(kw_only=True)

    def detached(self) -> tuple[FieldScene, Callable[[], None]]:
        leaf, send_back = super().detached()
        return leaf, self.watch.timed("generator backward", send_back)


@dataclass
class Times:
    """What was measured at one point. rows: seconds of the stages of each micro-batch. peak: bytes."""

    rows: list[dict[str, float]] = field(default_factory=list)
    peak: int = 0
    profiled: dict[str, Any] = field(default_factory=dict)


class Measured(pl.Callback):
    """Times micro-batches, and with `gradients` keeps the gradient of each instead of updating with it."""

    def __init__(self, system: Any, warmup: int, gradients: bool, profile: bool) -> None:
        self.warmup, self.keep, self.profile = warmup, gradients, profile
        self.times = Times()
        self.gradients: list[Tensor] = []
        cuda = torch.cuda.is_available()
        self.watch = Stopwatch(cuda)
        prd_round = self.watch.timed("generator forward", system.geometry.prd_round)

        def watched_round(*arguments: Tensor) -> tuple[Tensor, FieldScene]:
            clean, scene = prd_round(*arguments)
            return clean, WatchedScene(scene.field, scene.tensors, watch=self.watch)

        system.geometry.prd_round = watched_round
        self.watch.watch(system, "update", "update")
        for name, renderer in system.renderers.items():
            self.watch.watch(renderer, "forward", f"{name} forward")
        self._names: list[str] = []
        backward, names = system.manual_backward, list(system.renderers)

        def renderer_backward(loss: Tensor) -> None:
            self._names = self._names or list(names)
            self.watch.timed(f"{self._names.pop(0)} backward", backward)(loss)

        system.manual_backward = renderer_backward

    def on_train_start(self, trainer: pl.Trainer, system: Any) -> None:
        guidance = system.guidance
        ask = guidance._ask
        for name, teacher in guidance.teachers.items():
            self.watch.watch(teacher, "predict", f"{name} network")
            self.watch.watch(teacher, "judge", f"{name} judge")
            if getattr(teacher, "vae", None) is not None:
                self.watch.watch(teacher, "encode", f"{name} encode")
        names = {id(teacher): name for name, teacher in guidance.teachers.items()}
        guidance._ask = lambda teacher, *rest: self.watch.timed(f"{names[id(teacher)]} all", ask)(teacher, *rest)

    def on_train_batch_start(self, trainer: pl.Trainer, system: Any, batch: Any, batch_idx: int) -> None:
        if self.profile and batch_idx == trainer.limit_train_batches - 1:
            self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            self.profiler.start()
        self.watch.read()
        if torch.cuda.is_available() and batch_idx == self.warmup:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, system: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        total = time.perf_counter() - self.start
        if self.keep:
            trained = [p for p in system.geometry.parameters() if p.requires_grad]
            self.gradients.append(torch.cat([p.grad.flatten().cpu() for p in trained if p.grad is not None]))
            system.zero_grad()
        if self.profile and batch_idx == trainer.limit_train_batches - 1:
            self.profiler.stop()
            self.times.profiled = busy(self.profiler, total)
        elif batch_idx >= self.warmup:
            stages = split(self.watch.read())
            self.times.rows.append({**stages, "rest": total - sum(stages.values()), "total": total})
            if torch.cuda.is_available():
                # Of all that is taken from the card: what recordings work in counts as free for tensors.
                self.times.peak = max(self.times.peak, torch.cuda.max_memory_reserved())
        if trainer.is_global_zero:
            print(f"  micro-batch {batch_idx}: {total:.3f} s", flush=True)


def split(sums: dict[str, float]) -> dict[str, float]:
    """Stages that are part of others, as differences: each second counts once."""
    stages = dict(sums)
    for name in [n.removesuffix(" all") for n in sums if n.endswith(" all")]:
        everything, judge = stages.pop(f"{name} all"), stages.pop(f"{name} judge")
        known = stages.get(f"{name} encode", 0.0) + stages[f"{name} network"]
        stages[f"{name} rule"] = judge - known
        stages[f"{name} backward to pixels"] = everything - judge
    return stages


def busy(profiler: torch.profiler.profile, seconds: float) -> dict[str, Any]:
    """How long kernels ran, how many, and which took longest; seconds: of the same micro-batch on the wall."""
    kernels = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    by_name: dict[str, float] = defaultdict(float)
    for kernel in kernels:
        by_name[kernel.name[:100]] += kernel.device_time / 1e6
    largest = sorted(by_name.items(), key=lambda item: -item[1])[:40]
    total = sum(by_name.values())
    return {"busy_s": total, "share": total / seconds, "kernels": len(kernels), "largest_s": dict(largest)}


def run(flags: argparse.Namespace, level: str, precision: str, *, point: str = "", gradients: bool = False) -> Measured:
    """Train for the micro-batches that are wanted; nothing is written. point: overrides beside those of all."""
    flags.out.mkdir(parents=True, exist_ok=True)
    n = flags.gradients if gradients else flags.warmup + flags.repeats + int(flags.profile)
    options = [f"trainer.limit_train_batches={n}", "trainer.max_epochs=1", "trainer.limit_val_batches=0"]
    options += ["trainer.max_steps=-1", f"trainer.devices={flags.devices}", "tag=benchmark"]
    if not flags.world:
        write_prompts(flags.out)
        options += stand_in_overrides(flags.pretrained, flags.out, tiny=flags.tiny)
    if gradients:
        options += ["system.gradient_accumulation_steps=100000"]
        options += [] if flags.world else [f"system.weights={flags.pretrained / 'triplane_turbo_sd_v1.pth'}"]
    options += [*flags.overrides, *point.split(), f"performance={level}", f"precision={precision}"]
    experiment = load_config([flags.config], options)
    use(Performance(experiment.performance, experiment.precision))
    pl.seed_everything(experiment.seed, workers=True, verbose=False)
    trainer = build_trainer(experiment)
    data, system = experiment.data.build(), experiment.system.build()
    for part in (data, system):
        part.enter(Run(experiment.seed, flags.out, None))
    measured = Measured(system, flags.warmup, gradients, flags.profile and not gradients)
    trainer.callbacks.append(measured)
    trainer.fit(system, datamodule=data)
    del trainer, system, data
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return measured


def compare(found: list[Tensor], true: list[Tensor]) -> dict[str, list[float]]:
    """Of each draw: cosine to the true gradient, ratio of norms, and the largest difference over the largest entry."""
    rows = [(a.double(), b.double()) for a, b in zip(found, true, strict=True)]
    return {
        "cosine": [float(a @ b / (a.norm() * b.norm())) for a, b in rows],
        "norm": [float(a.norm() / b.norm()) for a, b in rows],
        "largest": [float((a - b).abs().max() / b.abs().max()) for a, b in rows],
    }


def check_gradients(flags: argparse.Namespace) -> dict[str, Any]:
    """Each level in the machine's own precision, and reference in it, against reference in float32."""
    true = run(flags, "reference", "32", gradients=True).gradients
    found = {}
    for level in dict.fromkeys(["reference", *flags.levels]):
        found[level] = compare(run(flags, level, "auto", gradients=True).gradients, true)
        means = {name: sum(values) / len(values) for name, values in found[level].items()}
        print(f"gradient of {level}: " + ", ".join(f"{name} {value:.4f}" for name, value in means.items()))
    return found


def numbered(path: Path | None, number: int) -> Path | None:
    """FILE-NUMBER.json."""
    return path and path.with_stem(f"{path.stem}-{number}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help=f"default: {FULL.name}; with --world: {WORLD.name}")
    parser.add_argument("--world", action="store_true", help="the miniature world in place of full size")
    parser.add_argument("--pretrained", type=Path, default=Path("pretrained"), help="folder of the full-size weights")
    parser.add_argument("--tiny", action="store_true", help="the weights are those of random_weights.py --width tiny")
    parser.add_argument("--levels", nargs="+", default=["fast"], choices=("reference", "fast", "max"))
    parser.add_argument("--points", nargs="+", default=[""], metavar="'key=value ...'", help="overrides of each point")
    parser.add_argument("--gradients", type=int, default=0, metavar="N", help="compare gradients over N draws first")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="GPUs, each with its own prompts")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--profile", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available())
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    parser.add_argument("--json", type=Path, help="results; of several levels and points each has its own, numbered")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    flags = parser.parse_args(arguments)
    flags.config = flags.config or (WORLD if flags.world else FULL)
    if flags.devices > 1 and (len(flags.levels) > 1 or len(flags.points) > 1 or flags.gradients):
        parser.error("--devices above 1 measures one level at one point, and compares no gradients")
    flags.pretrained, flags.out = flags.pretrained.resolve(), flags.out.resolve()
    return flags


def report(
    flags: argparse.Namespace, path: Path | None, level: str, point: str, measured: Times, gradients: dict[str, Any]
) -> Timing:
    """Print the stages, and write them if that is wanted; returns the time of a micro-batch."""
    names = list(dict.fromkeys(name for row in measured.rows for name in row))
    stages = {name: timing([row.get(name, 0.0) for row in measured.rows], measured.peak) for name in names}
    total: Timing = stages.pop("total")
    print(f"\n{flags.config.name}, performance={level} {point}: one micro-batch")
    for name, stage in [*stages.items(), ("total", total)]:
        print(f"  {name:32} {1000 * stage.median_s:9.1f} ms  ({1000 * stage.min_s:.1f} to {1000 * stage.max_s:.1f})")
    print(f"  memory taken from the card       {measured.peak / 2**30:9.2f} GiB")
    if measured.profiled:
        print(
            "  device busy {busy_s:.3f} s, {share:.0%} of that micro-batch, {kernels} kernels".format(
                **measured.profiled
            )
        )
        for name, seconds in measured.profiled["largest_s"].items():
            print(f"    {1000 * seconds:8.2f} ms  {name}")
    if path:
        overrides = [*flags.overrides, *point.split()]
        config = {"recipe": flags.config.name, "performance": level, "overrides": overrides}
        write_json(path, config, stages, total, profile=measured.profiled, gradients=gradients)
    return total


def prepare() -> None:
    """What a process needs before it can measure."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    import_extensions(CUSTOM_FOLDER)


def times(flags: argparse.Namespace, level: str, point: str) -> Times:
    """Measure a level at a point."""
    return run(flags, level, "auto", point=point).times


def main(arguments: list[str] | None = None) -> int:
    """Measure each level, and print what was found."""
    flags = parse(arguments)
    cases = list(itertools.product(flags.levels, flags.points))
    paths = [numbered(flags.json, number) if len(cases) > 1 else flags.json for number in range(len(cases))]
    for path in paths:
        require_new(path)
    prepare()
    gradients = check_gradients(flags) if flags.gradients else {}
    rows = []
    for path, (level, point) in zip(paths, cases, strict=True):
        if len(cases) > 1 or gradients:
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=spawn, initializer=prepare) as alone:
                measured = alone.submit(times, flags, level, point).result()
        else:
            measured = times(flags, level, point)
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            total = report(flags, path, level, point, measured, gradients)
            rows.append(f"| {level} {point} | {1000 * total.median_s:.0f} | {measured.peak / 2**30:.1f} |")
    if len(rows) > 1:
        print("\n| one micro-batch | median, ms | memory, GiB |\n|---|--:|--:|", *rows, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
