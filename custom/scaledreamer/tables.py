"""ScaleDreamer in the miniature world: train, export and measure the rows of a table.

    python -m custom.scaledreamer.tables TABLE [--out DIR] [--jobs N] [--minutes M] [--limit L] [-- K=V ...]

generators  Triplane-Transformer, Hyper-iNGP and 3DConv-net, with 15 and with all captions, with MVDream and with Stable
            Diffusion alone
corpus      ASD and SDS over the number of training captions: 15, 150, 1500 (3DConv-net)
rules       SDS, CSD and ASD on one generator, three seeds (Hyper-iNGP)
level       the single solids of the validation, one training each, exported at several levels of the density
single      all single solids of the other splits, or --limit of each, one training each

--jobs trainings go side by side, spread over the GPUs, and rows are measured on the CPU meanwhile. A training is
stopped after --minutes of this call and measured as it is; given again, the command goes on with those that have steps
left, and measures them again. Meshes are those of `launch.py --export`, for three noise seeds where noise matters, and
measures those of `evaluation/shapeworld.py`, on --limit captions of each split, evenly spread. OUT/TABLE/table.md is
made anew whenever a row is measured, of the rows that are there, whichever call made them; PRD's is that of
load/shapeworld, whose controls are those of all rows.
"""

import argparse
import csv
import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from custom.shapeworld.runs import ROOT, Runs, effort, on_gpu, parse_with_overrides, table_parser, with_interval
from triplaneturbo.evaluation.benchmark import split_prompts
from triplaneturbo.evaluation.bootstrap import interval_over
from triplaneturbo.evaluation.world import EVALUATION_SPLITS, load_splits, parse_caption
from triplaneturbo.interruption import interruption, stoppable
from triplaneturbo.naming import slug
from triplaneturbo.storage import write_text

CONFIGS = ROOT / "custom" / "scaledreamer" / "configs" / "shapeworld"
STUDENT = ROOT / "load" / "shapeworld"
VALIDATION = "validation"
FEW = 15
LEVELS = (2, 5, 10)
NOISES = (0, 1, 2)
_RULES = {
    name: f"system.guidance.teachers.mvdream.rule={{type: {name}, weighting: dmd, eps: 0.1}}"
    for name in ("sds", "csd", "asd")
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """Trainings that are measured together: of several seeds, or of a prompt each.

    captions: what each training learns. asked: by split, the captions of which meshes are made. limit: that of the
    evaluation which gives these captions; None: they are taken from all of these splits. exports: by name, options of
    different exports of the same trainings.
    """

    name: str
    config: str
    captions: tuple[tuple[str, ...], ...]
    asked: Mapping[str, tuple[str, ...]]
    limit: int | None = None
    seeds: tuple[int, ...] = (0,)
    options: tuple[str, ...] = ()
    exports: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"meshes": ()})

    @property
    def noises(self) -> tuple[int, ...]:
        """Seeds of the noise; one where a text is one scene."""
        return NOISES if self.config.startswith("conv3d_net") else NOISES[:1]

    @property
    def trainings(self) -> list["Training"]:
        return [Training(self, captions, seed) for seed in self.seeds for captions in self.captions]


@dataclass(frozen=True)
class Training:
    """One of a row's."""

    row: Row
    captions: tuple[str, ...]
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        one = f"{slug(self.captions[0])}-" if len(self.captions) == 1 else ""
        return f"{one}seed{self.seed}"

    @property
    def asked(self) -> list[str]:
        """Of which meshes are made: a training with one caption knows no other."""
        wanted = [caption for captions in self.row.asked.values() for caption in captions]
        return list(dict.fromkeys(wanted if len(self.captions) > 1 else self.captions))


def first_captions(n: int | None) -> tuple[str, ...]:
    """n captions to learn: of the split `train`, evenly spread; if it has fewer, all of it and more of the library,
    as far as that goes. None: the library, as it is."""
    library = json.loads((STUDENT.parent / "shapeworld_prompt_library.json").read_text())["train"]
    return tuple(dict.fromkeys([*split_prompts("train", n), *library]))[:n] if n else tuple(library)


def of_many(name: str, config: str, n: int | None, limit: int | None, **others: Any) -> Row:
    """A row of trainings with n captions; with few of them, these are asked for, else some of every split."""
    captions = first_captions(n)
    if n == FEW:
        return Row(name=name, config=config, captions=(captions,), asked={"train": captions}, limit=n, **others)
    asked = {split: split_prompts(split, limit) for split in EVALUATION_SPLITS}
    return Row(name=name, config=config, captions=(captions,), asked=asked, limit=limit, **others)


def generators(limit: int | None) -> list[Row]:
    rows = [of_many("triplane_transformer-all", "triplane_transformer", None, limit)]
    for config in ("hyper_ingp", "conv3d_net", "hyper_ingp_sd", "conv3d_net_sd"):
        rows += [of_many(f"{config}-{n or 'all'}", config, n, limit) for n in (FEW, None)]
    return rows


def corpus(limit: int | None) -> list[Row]:
    return [
        of_many(f"{rule}-{len(first_captions(n))}", "conv3d_net", n, limit, options=(_RULES[rule],))
        for n in (FEW, 150, 1500)
        for rule in ("asd", "sds")
    ]


def rules(limit: int | None) -> list[Row]:
    seeds = {"seeds": (0, 1, 2)}
    return [of_many(rule, "hyper_ingp", None, limit, options=(option,), **seeds) for rule, option in _RULES.items()]


def _of_single_prompts(name: str, splits: Sequence[str], limit: int | None, **others: Any) -> Row:
    """A training for each single solid of the splits; with a limit for as many of each split, evenly spread."""
    asked = {}
    for split in splits:
        single = [caption for caption in load_splits()[split] if len(parse_caption(caption).parts) == 1]
        n = len(single) if limit is None else min(limit, len(single))
        if single:
            asked[split] = tuple(single[i * len(single) // n] for i in range(n))
    captions = tuple((caption,) for chosen in asked.values() for caption in chosen)
    same = all(chosen == split_prompts(split, limit) for split, chosen in asked.items())
    limit = limit if same else None
    return Row(name=name, config="single_prompt", captions=captions, asked=asked, limit=limit, **others)


def single(limit: int | None) -> list[Row]:
    return [_of_single_prompts("single", [split for split in EVALUATION_SPLITS if split != VALIDATION], limit)]


def level(limit: int | None) -> list[Row]:
    exports = {f"level_{height}": (f"system.geometry.field.level={height}",) for height in LEVELS}
    return [_of_single_prompts("level", [VALIDATION], limit, exports=exports)]


TABLES: dict[str, Callable[[int | None], list[Row]]] = {
    "generators": generators,
    "corpus": corpus,
    "rules": rules,
    "level": level,
    "single": single,
}


class Runner(Runs):
    """Trains, exports and measures in a folder."""

    def __init__(self, flags: argparse.Namespace) -> None:
        super().__init__(flags.jobs, flags.measuring)
        self.flags, self.out = flags, flags.out / flags.table

    def folder(self, training: Training) -> Path:
        return self.out / "runs" / training.row.name / training.name

    def meshes(self, training: Training, export: str, noise: int) -> Path:
        """Those of trainings with one caption go together."""
        return self.out / "meshes" / training.row.name / export / f"seed{training.seed}-noise{noise}"

    def train(self, training: Training) -> str:
        """Train and export; returns what is to be said of it."""
        folder, row = self.folder(training), training.row
        if (folder / "done").is_file():
            return "done before"
        library = {"train": training.captions, "val": training.captions[:1], "test": training.asked}
        write_text(folder / "captions.json", json.dumps(library))
        with self.place() as place:
            given = ["--train", "trainer.limit_test_batches=0", f"seed={training.seed}"]
            finished = self.train_in(folder, [*self._launch(training), *given], self.flags.minutes, place)
            for export, options in row.exports.items():
                for noise in row.noises:
                    where = ["--out", str(self.meshes(training, export, noise)), "system.exporter.overwrite=true"]
                    command = [*self._launch(training), "--export", *where, f"seed={noise}", *options]
                    self.call(folder / "export.log", command, on_gpu(place), allowed="gave no mesh")
        if finished:
            (folder / "done").touch()
        return "done" if finished else f"stopped after {self.flags.minutes:g} minutes"

    def _launch(self, training: Training) -> list[str]:
        row = training.row
        own = [f"exp_root_dir={self.out / 'runs'}", f"name={row.name}", f"tag={training.name}", "use_timestamp=false"]
        own += ["resume=auto", f"data.prompt_library_dir={self.folder(training)}", "data.prompt_library=captions"]
        config = str(CONFIGS / f"{row.config}.yaml")
        return [sys.executable, "launch.py", "--config", config, *own, *row.options, *self.flags.overrides]

    def measure(self, row: Row) -> str:
        """Measure what there is of a row, all trainings together; returns what is to be said of it."""
        found = (self.meshes(t, export, noise) for export in row.exports for t in row.trainings for noise in row.noises)
        folders = [str(folder) for folder in dict.fromkeys(found) if folder.is_dir()]
        limit = [] if row.limit is None else ["--limit", str(row.limit)]
        report = self.out / "measures" / f"{row.name}.json"
        command = ["nice", sys.executable, "evaluation/shapeworld.py", "--meshes", *folders, "--splits", *row.asked]
        asked = [*limit, "--no-controls", "--json", str(report)]
        self.call(report.with_suffix(".log"), [*command, *asked], self.on_cpu)
        return "measured"

    @property
    def is_prd_measured(self) -> bool:
        """Whether there is the row that all tables have, and the controls."""
        return (self.out / "measures" / "PRD.json").is_file()

    def measure_prd(self, rows: Sequence[Row]) -> str:
        """The measures of PRD's student, with the controls; returns what is to be said of it."""
        report = self.out / "measures" / "PRD.json"
        if not self.is_prd_measured:
            splits = dict.fromkeys(split for row in rows for split in row.asked)
            limit = [] if self.flags.limit is None else ["--limit", str(self.flags.limit)]
            command = ["nice", sys.executable, "evaluation/shapeworld.py", "--weights", str(STUDENT), *limit]
            self.call(report.with_suffix(".log"), [*command, "--splits", *splits, "--json", str(report)], self.on_cpu)
        return "measured"


@dataclass(frozen=True)
class Mesh:
    """What is kept of the measures of one. export: what the row calls it. seed: of the training."""

    split: str
    caption: str
    export: str
    seed: int
    iou: float
    r_at_1: float


def read_meshes(report: Path, asked: Mapping[str, Collection[str]]) -> list[Mesh]:
    """The rows of a report's CSV, of the captions that were asked for."""
    folders = [Path(folder) for folder in json.loads(report.read_text())["settings"].get("meshes", ())]
    with report.with_suffix(".csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["prompt"] in asked.get(row["split"], ())]
    found = []
    for row in rows:
        folder = folders[int(row["training"])] if folders else Path("meshes/seed0-noise0")
        seed = int(folder.name.partition("-")[0].removeprefix("seed"))
        measured = float(row["iou"]), float(row["r_at_1"])
        found.append(Mesh(row["split"], row["prompt"], folder.parent.name, seed, *measured))
    return found


def cells(meshes: Sequence[Mesh]) -> list[str]:
    """Numbers of prompts and trainings, mean IoU and R@1 with their intervals over both."""
    captions, trainings = [mesh.caption for mesh in meshes], [mesh.seed for mesh in meshes]
    found = []
    for values in ([mesh.iou for mesh in meshes], [mesh.r_at_1 for mesh in meshes]):
        found.append(with_interval(sum(values) / len(values), interval_over(values, captions, trainings)))
    return [str(len(set(captions))), str(len(set(trainings))), *found]


def markdown(runner: Runner, rows: Sequence[Row]) -> str:
    """What is measured so far, by split, with PRD's row, of the same captions, and the controls."""
    found: dict[tuple[str, str], list[Mesh]] = {}
    measures = runner.out / "measures"
    asked = {split: {caption for row in rows for caption in row.asked.get(split, ())} for split in EVALUATION_SPLITS}
    for mesh in read_meshes(measures / "PRD.json", asked):
        found.setdefault((mesh.split, "PRD"), []).append(mesh)
    for row in rows:
        report = measures / f"{row.name}.json"
        for mesh in read_meshes(report, row.asked) if report.is_file() else ():
            name = row.name if len(row.exports) == 1 else mesh.export
            found.setdefault((mesh.split, name), []).append(mesh)
    controls = json.loads((runner.out / "measures" / "PRD.json").read_text())["controls"]
    lines = [f"# {runner.flags.table}", "", "In brackets 95 % intervals over prompts and trainings.", ""]
    lines += ["| split | | prompts | trainings | IoU | R@1 |", "|---|---|---|---|---|---|"]
    for split in filter(asked.__getitem__, EVALUATION_SPLITS):
        lines += [f"| {split} | {name} | {' | '.join(cells(m))} |" for (of, name), m in found.items() if of == split]
        for control, numbers in controls.get(split, {}).items():
            said = ("-" if numbers.get(key) is None else f"{numbers[key]:.3f}" for key in ("iou", "r_at_1"))
            lines.append(f"| {split} | {control.replace('_', ' ')} | | | {' | '.join(said)} |")
    lines += ["", "| training | steps | seconds, loading included | |", "|---|---|---|---|"]
    lines += [_effort(runner.folder(training), training) for row in rows for training in row.trainings]
    return "\n".join([*lines, ""])


def _effort(folder: Path, training: Training) -> str:
    """What a training took; one that was stopped is marked."""
    name, took = f"{training.row.name}, {training.name}", effort(folder)
    if took is None:
        return f"| {name} | | | not yet |"
    return f"| {name} | {took[0]} | {took[1]} | {'' if (folder / 'done').is_file() else 'stopped'} |"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = table_parser("custom.scaledreamer.tables", __doc__, Path("outputs/scaledreamer"), limit=None)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--minutes", type=float, default=5.0, help="of each training in this call")
    flags = parse_with_overrides(parser, arguments)
    flags.out = flags.out.resolve()
    return flags


def main(arguments: list[str] | None = None) -> int:
    """Run a table; 1 if a training failed."""
    flags = parse(arguments)
    runner = Runner(flags)
    interruption.signal_children = runner.tell
    table = TABLES[flags.table](flags.limit)
    rows = [row for row in table if row.name.startswith(tuple(flags.only))]
    left = {row.name: len(row.trainings) for row in rows}

    def ended(training: Training) -> None:
        """Measure a row when all of its trainings have ended."""
        left[training.row.name] -= 1
        if not left[training.row.name]:
            measure = partial(runner.measure, training.row)
            runner.measure_later(f"measure of {training.row.name}", partial(tabled, measure))

    def tabled(measure: Callable[[], str]) -> str:
        """Measure, and write the table of what there is."""
        said = measure()
        if runner.is_prd_measured:
            write_text(runner.out / "table.md", markdown(runner, table))
        return said

    with runner.measurers:
        runner.measure_later("measure of PRD", partial(tabled, partial(runner.measure_prd, table)))
        trainings = [training for row in rows for training in row.trainings]
        failed = runner.side_by_side(trainings, runner.train, lambda t: f"{t.row.name} {t.name}", ended)
        failed_measures = runner.finish_measures()
    if runner.is_prd_measured:
        sys.stdout.write((runner.out / "table.md").read_text())
    return int(bool(failed or failed_measures))


if __name__ == "__main__":
    with stoppable():
        sys.exit(main())
