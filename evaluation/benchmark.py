"""The miniature world's benchmark: see shapeworld.py.

Meshes are compared with the exact solids of their captions, without alignment: what they fill, how far their surfaces
are apart, what they look like from four sides (azimuth 45, 135, 225 and 315, elevation 25), whether the scorer finds
their captions among many, whether a front shows twice, and whether they are closed. docs/evaluation.md says what each
number is.

A method is given as weights of the student, or as a folder of meshes that anyone made: NAME/model.glb or NAME.obj,
where NAME is the caption with underscores, or a prompt.txt beside the mesh holds the caption; z is up in an .obj file.
Several weights or folders are several trainings of one method, and intervals then hold for other trainings, too.

Controls, by the same measures, beside every table: exact solids, and their meshes of the resolution's limit; a student
of random weights; the best mesh that is the same for every caption; and the method's meshes with all wrong captions.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from triplaneturbo.places import PROJECT

from .bootstrap import Interval, interval_over
from .common import PROMPT_FILE, add_device_option, write_csv, write_json
from .controls import captions_of_others, controls
from .judge import NO_MESH, Judge, Measured
from .measures import MEASURES
from .page import Case, write_page
from .sources import Exported, Source, Student, load_pipeline
from .table import TABLE_HEAD, table_rows
from .world import EVALUATION_SPLITS, Scorer, load_splits, parse_caption

SEEDS = (0, 1, 2)
STUDENT = PROJECT / "load" / "shapeworld"


def means(measured: Sequence[Measured]) -> dict[str, float | None]:
    """The mean of every measure over the meshes for which it is defined; None if there are none."""
    found = {name: [v for m in measured if (v := getattr(m.numbers, name)) is not None] for name in MEASURES}
    return {name: sum(values) / len(values) if values else None for name, values in found.items()}


def shape_ious(measured: Sequence[Measured]) -> dict[str, float]:
    """Mean IoU of every kind of solid (of several parts: of the first that the caption names)."""
    by_shape: dict[str, list[float]] = {}
    for m in measured:
        by_shape.setdefault(parse_caption(m.prompt).parts[0].shape, []).append(m.numbers.iou)
    return {shape: sum(values) / len(values) for shape, values in sorted(by_shape.items())}


def intervals(measured: Sequence[Measured]) -> dict[str, Interval | None]:
    """95 % intervals of the means by bootstrap over prompts and trainings; None where there are fewer than two
    prompts."""
    found: dict[str, Interval | None] = {}
    for name in MEASURES:
        there = [m for m in measured if getattr(m.numbers, name) is not None]
        values = [getattr(m.numbers, name) for m in there]
        found[name] = interval_over(values, [m.prompt for m in there], [m.training for m in there])
    return found


def summarise_split(judge: Judge, measured: Sequence[Measured]) -> dict[str, Any]:
    """The numbers of one split, all seeds and trainings together, with their intervals, and each of them alone."""
    of_shapes = shape_ious(measured)
    worst = min(of_shapes, key=of_shapes.__getitem__)
    return {
        **means(measured),
        "worst_shape": worst,
        "worst_shape_iou": of_shapes[worst],
        "shape_iou": of_shapes,
        "intervals": intervals(measured),
        "n_prompts": len({m.prompt for m in measured}),
        "n_captions_to_choose_from": len(judge.bank),
        "n_meshes": len(measured),
        "n_without_mesh": sum(m.numbers.faces == 0 for m in measured),
        "per_seed": _alone(measured, "seed"),
        "per_training": _alone(measured, "training"),
    }


def _alone(measured: Sequence[Measured], name: str) -> list[dict[str, Any]]:
    numbers = sorted({getattr(m, name) for m in measured})
    return [{name: i, **means([m for m in measured if getattr(m, name) == i])} for i in numbers]


def split_prompts(split: str, limit: int | None) -> tuple[str, ...]:
    """The captions of a split; with a limit, that many, evenly spread over it so that all shapes occur."""
    prompts = load_splits()[split]
    if limit is None or limit >= len(prompts):
        return prompts
    return tuple(prompts[i * len(prompts) // limit] for i in range(limit))


def rows_of(
    judge: Judge, split: str, measured: Sequence[Measured], exact: Sequence[Measured]
) -> Iterator[dict[str, Any]]:
    """One row for each mesh, with the caption that the scorer sees in each of its views and in all together.

    exact: what is measured of the solids themselves, whose Chamfer distance is the floor.
    """
    floor = {m.prompt: m.numbers.chamfer for m in exact}

    def caption(number: int) -> str:
        return "" if number == NO_MESH else judge.bank[number]

    for m in measured:
        yield {
            "split": split,
            "prompt": m.prompt,
            "training": m.training,
            "seed": m.seed,
            **asdict(m.numbers),
            "chamfer_floor": floor[m.prompt],
            "seen_in_views": "; ".join(map(caption, m.nearest)),
            "seen": caption(m.nearest_object),
        }


def run(given: argparse.Namespace) -> dict[str, Any]:
    """The report. Writes the CSV and the page that were asked for."""
    device = given.devices[0]
    scorer = Scorer.load(given.scorer, device)
    sources: list[Source]
    if given.meshes:
        sources = [Exported(folder, device) for folder in given.meshes]
        student = load_pipeline(STUDENT, device)
    else:
        pipelines = [load_pipeline(path, device) for path in given.weights]
        sources, student = [Student(pipeline, given.seeds) for pipeline in pipelines], pipelines[0]
    prompts = {split: split_prompts(split, given.limit) for split in given.splits}
    for source in sources:
        source.check([prompt for chosen in prompts.values() for prompt in chosen])
    report: dict[str, Any] = {"splits": {}, "controls": {}}
    judge = Judge(scorer, device)
    rows: list[dict[str, Any]] = []
    cases: list[Case] = []
    for split, chosen in prompts.items():
        measured = [
            judge.measure(prompt, seed, mesh, training)
            for training, source in enumerate(sources)
            for prompt, seed, mesh in source.meshes(chosen)
        ]
        report["splits"][split] = summarise_split(judge, measured)
        if given.controls:
            blind = controls(judge, chosen, student)
            report["controls"][split] = {name: means(found) for name, found in blind.items()}
            report["controls"][split]["captions_of_others"] = captions_of_others(judge, measured)
        rows += rows_of(judge, split, measured, [judge.exact(prompt) for prompt in chosen])
        cases += [(split, m, judge.truth(m.prompt).pictures) for m in measured]
        print("\n".join(table_rows(split, report)), flush=True)
    if csv_path := given.csv or (given.json and given.json.with_suffix(".csv")):
        write_csv(csv_path, rows)
    if page := given.html or (given.json and given.json.with_suffix(".html")):
        write_page(page, report, cases)
    return report


def main(arguments: list[str] | None = None, program: str | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--weights",
        type=Path,
        nargs="+",
        help="a pipeline folder, weights in one, or a checkpoint of a training run; several trainings of one method",
    )
    source.add_argument(
        "--meshes", type=Path, nargs="+", help=f"folders of meshes (and {PROMPT_FILE}), in place of --weights"
    )
    parser.add_argument("--limit", type=int, help="prompts a split; default: all")
    parser.add_argument("--splits", nargs="+", choices=EVALUATION_SPLITS, default=EVALUATION_SPLITS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="of the noise, with --weights")
    parser.add_argument("--scorer", type=Path, default=STUDENT / "scorer")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--csv", type=Path, help="write one line a mesh here; default: beside --json")
    parser.add_argument("--html", type=Path, help="write a page with pictures here; default: beside --json")
    parser.add_argument(
        "--controls",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also measure what stands below each split; they take longer than a student's own meshes",
    )
    add_device_option(parser)
    given = parser.parse_args(arguments)
    transformers_logging.disable_progress_bar()  # one for every small network that is loaded
    start = time.time()
    print(TABLE_HEAD)
    report = run(given)
    report["settings"] = {
        "weights" if given.weights else "meshes": [str(path) for path in given.weights or given.meshes],
        "seeds": [0] if given.meshes else list(given.seeds),
        "limit": given.limit,
        "seconds": round(time.time() - start, 1),
    }
    if given.json:
        write_json(given.json, report)
