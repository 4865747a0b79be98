"""What the recipe of the miniature world owes to its parts: one command for each table, or for several.

    python -m custom.shapeworld.ablations TABLE... [--out DIR] [--jobs N] [--gpus G ...] [--minutes M] [-- K=V ...]

steps      1, 2 and 4 denoising rounds
adapters   plane-wise adapters, plain LoRA, full fine-tuning at two learning rates
teachers   all three, and without each
renderers  volume, mesh, and both
rules      SDS, CSD and ASD, the same for all teachers
bound      the teachers, and exact pictures in their place (configs/shapeworld/bound.yaml)
prompts    10, 100, 1000 and all captions
guidance   guidance scale of MVDream and its weight
recipe     from configs/shapeworld/prd.yaml towards published.yaml, one change each, and the published recipe

Each row is prd.yaml with the options that the row names, on 600 captions of its library, for --updates rounds: an
update of prd.yaml is one round, and a row that updates once for all rounds makes as many fewer updates, so that all
rows see equally many pictures. All schedules are compressed to that length. --jobs trainings go side by side, spread
over the GPUs, and what has ended is measured on the CPU meanwhile. After --minutes of this call everything stops; given
again, the command goes on with what is left. Meshes of the averaged weights, if there are any, are measured by
evaluation/shapeworld.py on `train` and `unseen_pairs`, --limit captions each, evenly spread; `train` is of the whole
library, and the table says how many of these captions a row has learned. DIR/TABLE/table.md, .csv, .json and .png hold
what is measured so far; the report of each training, with pictures, is in DIR/measures. Tables share the trainings of
prd.yaml itself, DIR/runs/base; controls are measured with the one of seed 0, for all tables.
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import yaml

from custom.shapeworld.charts import Dot, dot_chart
from custom.shapeworld.lengths import compressed
from custom.shapeworld.rows import BASE, CONFIGS, TABLES, Row, Training, Tree
from custom.shapeworld.runs import Runs, effort, parse_with_overrides, table_parser, with_interval
from triplaneturbo.base import as_tree
from triplaneturbo.config import ExperimentConfig, load_config
from triplaneturbo.data.library import PromptLibrary
from triplaneturbo.evaluation.benchmark import split_prompts
from triplaneturbo.evaluation.bootstrap import Interval, interval_over
from triplaneturbo.extensions import custom_folders, provide
from triplaneturbo.interruption import interruption, stoppable
from triplaneturbo.storage import replacing, write_text

LIBRARY = "shapeworld_prompt_library"
UPDATES = 600
SPLITS = ("train", "unseen_pairs")
SHOWN = {"iou": "IoU", "r_at_1": "R@1", "chamfer": "Chamfer", "color_error": "colour error"}
CONTROLS = ("exact_meshes", "best_constant_mesh", "random_student")


def library_captions(n: int | None) -> tuple[str, ...]:
    """n captions of those that the student is trained on, evenly spread; None, or more than there are: all."""
    captions = tuple(dict.fromkeys(PromptLibrary.read(LIBRARY).train))
    n = len(captions) if n is None else min(n, len(captions))
    return tuple(captions[i * len(captions) // n] for i in range(n))


class Ablations(Runs):
    """Trains and measures rows in a folder, until the time is over."""

    def __init__(self, flags: argparse.Namespace) -> None:
        super().__init__(flags.jobs, flags.measuring, flags.gpus)
        self.flags, self.out = flags, flags.out
        self.end = time.monotonic() + 60 * (flags.minutes or float("inf"))

    @property
    def minutes_left(self) -> float:
        return min((self.end - time.monotonic()) / 60, 1e6)

    def folder(self, row: Row) -> Path:
        return self.out / "runs" / row.key

    def trial(self, training: Training) -> Path:
        return self.folder(training.row) / f"seed{training.seed}"

    def is_done(self, training: Training) -> bool:
        return (self.trial(training) / "done").is_file()

    def write_recipe(self, row: Row) -> ExperimentConfig:
        """Write what a row trains, OUT/runs/ROW/options.yaml, and with all options and compressed, recipe.yaml.

        Raises:
            ValueError: there is another recipe, whose trainings these would be mixed with.
        """
        folder = self.folder(row)
        captions = library_captions(row.captions)
        library = {"train": captions, "val": captions[:1], "test": captions[:1]}
        write_text(folder / "captions.json", json.dumps(library))
        data = {"prompt_library": "captions", "prompt_library_dir": str(folder)}
        base = {"base": str(CONFIGS / f"{row.config}.yaml")}
        trial = {"name": folder.name, "exp_root_dir": str(folder.parent), "use_timestamp": False, "resume": "auto"}
        options = {**base, **trial, "data": data, **row.options}
        write_text(folder / "options.yaml", yaml.safe_dump(options, sort_keys=False))
        experiment = compressed(load_config([folder / "options.yaml"], self.flags.overrides), self.flags.updates)
        text = yaml.safe_dump(as_tree(experiment), sort_keys=False, default_flow_style=None, width=120)
        path = folder / "recipe.yaml"
        if path.is_file() and path.read_text() != text and any(folder.glob("seed*")):
            raise ValueError(f"{path} is another recipe than this call's; give another --out, or remove {folder}")
        write_text(path, text)
        return experiment

    def train(self, training: Training) -> str:
        """Train until all steps are done, or the time is over; returns what is to be said of it."""
        folder = self.trial(training)
        if self.is_done(training):
            return "done before"
        with self.place() as place:
            if self.minutes_left <= 0:
                return "not begun"
            own = [f"tag={folder.name}", f"seed={training.seed}"]
            recipe = str(self.folder(training.row) / "recipe.yaml")
            command = [sys.executable, "launch.py", "--config", recipe, "--train", *own]
            finished = self.train_in(folder, command, self.minutes_left, place)
        if not finished:
            return "stopped"
        (folder / "done").touch()
        return "done"

    def report(self, training: Training) -> Path:
        return self.out / "measures" / f"{training.row.key}-seed{training.seed}.json"

    def is_measured(self, training: Training) -> bool:
        """Whether the report is of this training and these captions."""
        path = self.report(training)
        settings = json.loads(path.read_text())["settings"] if path.is_file() else {}
        return settings.get("weights") == [str(self.weights(training))] and settings["limit"] == self.flags.limit

    def weights(self, training: Training) -> Path:
        return self.trial(training) / "ckpts" / "last.ckpt"

    def controls(self) -> Mapping[str, Tree]:
        """By split, what was measured of the controls beside prd.yaml; nothing yet: none."""
        path = self.out / "measures" / f"{BASE}-seed0.json"
        return json.loads(path.read_text())["controls"] if path.is_file() else {}

    def measure(self, training: Training) -> str:
        """Measure a training that is done; returns what is to be said of it."""
        if self.is_measured(training):
            return "measured before"
        if self.minutes_left <= 0:
            return "not measured yet"
        command = [sys.executable, "evaluation/shapeworld.py", "--weights", str(self.weights(training))]
        asked = ["--splits", *SPLITS, "--limit", str(self.flags.limit), "--seeds", "0"]
        asked += [] if training.row.key == BASE and training.seed == 0 else ["--no-controls"]
        report = self.report(training)
        limited = ["timeout", f"{self.minutes_left:.3f}m", "nice", *command, *asked, "--json", str(report)]
        code = self.call(report.with_suffix(".log"), limited, self.on_cpu)
        return "not measured yet" if code else "measured"

    def run(self, rows: Sequence[Row]) -> int:
        """Train and measure all rows, whose recipes are written; 1 if anything is left.

        One training of every row comes first, then those with the other seeds. What several rows have in common is
        done once.
        """
        trainings = {self.trial(t): t for row in rows for t in row.trainings}

        def ended(training: Training) -> None:
            if self.is_done(training):
                self.measure_later(f"measure of {training.name}", partial(self.measure, training))

        with self.measurers:
            ordered = sorted(trainings.values(), key=lambda t: t.seed)
            self.side_by_side(ordered, self.train, lambda t: t.name, ended)
            self.finish_measures()
        undone = [t.name for t in ordered if not (self.is_done(t) and self.is_measured(t))]
        if undone:
            sys.stdout.write(f"not done: {', '.join(undone)}; give the command again\n")
        return int(bool(undone))


@dataclass(frozen=True)
class Mesh:
    """What is kept of one that evaluation/shapeworld.py has measured; None: not defined for it."""

    training: int
    caption: str
    numbers: Mapping[str, float | None]


@dataclass(frozen=True)
class Result:
    """The measures of a row on a split, of all its trainings that are measured."""

    row: Row
    split: str
    meshes: Sequence[Mesh]

    @property
    def trainings(self) -> list[int]:
        """Their seeds."""
        return sorted({mesh.training for mesh in self.meshes})

    def values(self, measure: str, seed: int | None = None) -> list[tuple[float, Mesh]]:
        """Where it is defined; seed: of one training alone."""
        of = [mesh for mesh in self.meshes if seed in (None, mesh.training)]
        return [(value, mesh) for mesh in of if (value := mesh.numbers[measure]) is not None]

    def mean(self, measure: str, seed: int | None = None) -> float | None:
        values = [value for value, _ in self.values(measure, seed)]
        return sum(values) / len(values) if values else None

    def interval(self, measure: str) -> Interval | None:
        """95 %, over captions and trainings."""
        found = self.values(measure)
        captions, trainings = [mesh.caption for _, mesh in found], [mesh.training for _, mesh in found]
        return interval_over([value for value, _ in found], captions, trainings)

    def dot(self) -> Dot:
        """What is drawn of it."""
        each = [value for seed in self.trainings if (value := self.mean("iou", seed)) is not None]
        return Dot(self.row.name, self.split, self.mean("iou") or 0.0, self.interval("iou"), each)

    def flat(self) -> Tree:
        """One line of the CSV: means, and where there are several captions their 95 % intervals."""
        line: Tree = {"row": self.row.name, "split": self.split, "trainings": len(self.trainings)}
        for measure in SHOWN:
            low, high = self.interval(measure) or (None, None)
            line |= {measure: self.mean(measure), f"{measure}_low": low, f"{measure}_high": high}
        return line


def read_meshes(report: Path, training: int) -> Mapping[str, list[Mesh]]:
    """By split, the meshes in the CSV beside a report."""
    found: dict[str, list[Mesh]] = {split: [] for split in SPLITS}
    with report.with_suffix(".csv").open(newline="") as file:
        for row in csv.DictReader(file):
            numbers = {name: float(row[name]) if row[name] else None for name in SHOWN}
            found[row["split"]].append(Mesh(training, row["prompt"], numbers))
    return found


def write_results(runner: Ablations, table: str, rows: Sequence[Row]) -> str:
    """Write the table's files from the rows that are measured; returns the table as text."""
    results = []
    for row in rows:
        measured = [read_meshes(runner.report(t), t.seed) for t in row.trainings if runner.is_measured(t)]
        for split in SPLITS if measured else ():
            results.append(Result(row, split, [mesh for found in measured for mesh in found[split]]))
    folder = runner.out / table
    text = markdown(runner, table, rows, results, runner.controls())
    write_text(folder / "table.md", text)
    summary = {"table": table, "updates": runner.flags.updates, "limit": runner.flags.limit}
    rows_said = {row.name: {"config": row.config, "options": row.options, "captions": row.captions} for row in rows}
    lines = [result.flat() for result in results]
    write_text(folder / "table.json", json.dumps({**summary, "rows": rows_said, "results": lines}, indent=2) + "\n")
    if results:
        with replacing(folder / "table.csv") as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
        chart = dot_chart([result.dot() for result in results], f"{table}: IoU")
        with replacing(folder / "table.png") as path:
            chart.save(path, format="PNG")
    return text


def markdown(
    runner: Ablations, table: str, rows: Sequence[Row], results: Sequence[Result], controls: Mapping[str, Tree]
) -> str:
    """The table: a line for each row and split, the controls, and what the trainings took."""
    lines = [
        f"# {table}",
        "",
        f"{runner.flags.updates} rounds of training a row, {runner.flags.limit} captions a split.",
    ]
    lines += ["In brackets 95 % intervals over prompts and, of several, trainings."]
    if any(len(row.seeds) == 1 for row in rows):
        lines += ["Rows of one training: what another seed would change is not in the interval."]
    lines += ["", f"| split | | trainings | {' | '.join(SHOWN.values())} |", "|---" * (3 + len(SHOWN)) + "|"]
    for split in SPLITS:
        for result in results:
            if result.split == split:
                cells = (_cell(result.mean(m), result.interval(m)) for m in SHOWN)
                lines.append(f"| {split} | {result.row.name} | {len(result.trainings)} | {' | '.join(cells)} |")
        for name in CONTROLS:
            numbers = controls.get(split, {}).get(name, {})
            if numbers:
                cells = (_cell(numbers.get(m)) for m in SHOWN)
                lines.append(f"| {split} | {name.replace('_', ' ')} | | {' | '.join(cells)} |")
    lines += [
        "",
        "| training | captions | of the measured ones | updates | seconds, loading included | |",
        "|---" * 6 + "|",
    ]
    asked = set(split_prompts("train", runner.flags.limit))
    for training in (t for row in rows for t in row.trainings):
        took = effort(runner.trial(training)) or ("", "")
        state = "" if runner.is_done(training) else "not done"
        learned = library_captions(training.row.captions)
        captions = f"{len(learned)} | {len(asked.intersection(learned))}"
        lines.append(f"| {training.name} | {captions} | {took[0]} | {took[1]} | {state} |")
    return "\n".join([*lines, ""])


def _cell(value: float | None, interval: Interval | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if interval is None else with_interval(value, interval)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = table_parser("custom.shapeworld.ablations", __doc__, Path("outputs/ablations"), limit=48)
    parser.add_argument("tables", choices=TABLES, nargs="+", metavar="TABLE")
    parser.add_argument("--gpus", nargs="+", help="their numbers; default: all")
    parser.add_argument("--minutes", type=float, help="of this call; default: until all is done")
    parser.add_argument("--updates", type=int, default=UPDATES, help="rounds of a training")
    parser.add_argument("--seeds", type=int, nargs="+", help="of the trainings; default: as the table says")
    flags = parse_with_overrides(parser, arguments)
    flags.out = flags.out.resolve()
    return flags


def rows_to_train(table: str, flags: argparse.Namespace) -> list[Row]:
    """The rows of a table that were asked for, with the seeds that were asked for."""
    rows = [row for row in TABLES[table]() if row.name.startswith(tuple(flags.only))]
    return [replace(row, seeds=tuple(flags.seeds)) if flags.seeds else row for row in rows]


def rows_to_show(table: str, flags: argparse.Namespace) -> list[Row]:
    """All rows of a table, with all seeds that this call or another may have trained."""
    return [replace(row, seeds=tuple(sorted({*row.seeds, *(flags.seeds or ())}))) for row in TABLES[table]()]


def main(arguments: list[str] | None = None) -> int:
    """Run tables; 1 if a training failed, or something is left to do."""
    flags = parse(arguments)
    provide(*custom_folders())
    runner = Ablations(flags)
    interruption.signal_children = runner.tell
    shown = {table: rows_to_show(table, flags) for table in flags.tables}
    for row in (row for rows in shown.values() for row in rows):
        runner.write_recipe(row)
    code = runner.run([row for table in shown for row in rows_to_train(table, flags)])
    for table, rows in shown.items():
        sys.stdout.write(write_results(runner, table, rows))
    return code


if __name__ == "__main__":
    with stoppable():
        sys.exit(main())
