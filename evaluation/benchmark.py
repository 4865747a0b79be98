"""The miniature world's benchmark: see shapeworld.py.

Meshes are compared with the exact solids of their captions: IoU of the occupancy of a 64^3 grid over [-1, 1]^3, without
alignment; Chamfer distance; and R@1, whether the scorer finds the caption of a rendered view among all 96 single
prompts, or for stacks of solids among 128 of the 9120 (--bank all: among all of them). Four views, azimuth 0, 90, 180
and 270, elevation 15, every one counted. Three noise seeds.

Controls, by the same measures: the exact solids themselves, since the scorer can be wrong about exact pictures, and two
samples of one surface are not at distance 0; the best mesh that is the same for every caption; and the method's own
meshes with the captions of others: that half the split further on. A prompt without a mesh counts as IoU 0 and as four
wrong views. Intervals are by bootstrap over prompts, all seeds of a prompt together.
"""

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers.utils import logging as transformers_logging

from triplaneturbo.cameras import turntable
from triplaneturbo.draws import keyed_generator
from triplaneturbo.errors import EmptyFieldError
from triplaneturbo.exporters.files import SUFFIXES, read_mesh
from triplaneturbo.exporters.render import render_mesh
from triplaneturbo.naming import slug
from triplaneturbo.ops.marching_cubes import marching_cubes
from triplaneturbo.pipelines.text_to_mesh import TextToMeshPipeline
from triplaneturbo.places import PROJECT
from triplaneturbo.scenes import FieldScene
from triplaneturbo.types import Mesh

from .bootstrap import Interval, format_interval, mean_interval
from .common import add_device_option, write_csv, write_json
from .world import (
    EVALUATION_SPLITS,
    GRID,
    Scorer,
    best_constant,
    chamfer,
    chamfer_floor,
    iou,
    load_splits,
    mesh_occupancy,
    palette_rows,
    parse_caption,
    render,
    retrieval_bank,
    solid_occupancy,
    whole_bank,
)

SEEDS = (0, 1, 2)
AZIMUTHS = (0, 90, 180, 270)
DISTANCE, FOVY_DEG, ELEVATION_DEG, BACKGROUND, VIEW_SIZE = 1.55, 60.0, 15.0, 0.5, 64
BATCH = 8
NO_MESH = -1


@dataclass(frozen=True)
class Measured:
    """One mesh, or the lack of one.

    inside: occupancy of the grid cells. nearest: number of the caption in the bank that the scorer sees in each view.
    """

    prompt: str
    seed: int
    inside: Bool[Tensor, " P"]
    nearest: tuple[int, ...]
    chamfer: float | None


class Judge:
    """Measures meshes against the captions of one split.

    bank: the captions that R@1 chooses from; None: `retrieval_bank` of the split.
    """

    def __init__(
        self, split: str, scorer: Scorer, device: str | torch.device, bank: Sequence[str] | None = None
    ) -> None:
        self.scorer = scorer
        self.device = device
        self.bank = retrieval_bank(split) if bank is None else bank
        self.position = {caption: i for i, caption in enumerate(self.bank)}
        self.cameras = turntable(len(AZIMUTHS), elevation_deg=ELEVATION_DEG, distance=DISTANCE, fovy_deg=FOVY_DEG)
        self._solids: dict[str, Tensor] = {}

    def nearest(self, mesh: Mesh) -> tuple[int, ...]:
        """The caption of the bank that each view looks like."""
        return self._nearest(render_mesh(mesh, self.cameras, VIEW_SIZE, BACKGROUND))

    def _nearest(self, views: Float[Tensor, "M H W 3"]) -> tuple[int, ...]:
        return tuple(self.scorer.similarity(views.permute(0, 3, 1, 2), self.bank).argmax(dim=1).tolist())

    def solid(self, prompt: str) -> Bool[Tensor, " P"]:
        """Occupancy of the exact solid."""
        if prompt not in self._solids:
            self._solids[prompt] = solid_occupancy([parse_caption(prompt)], device=self.device)[0]
        return self._solids[prompt]

    def measure(self, prompt: str, seed: int, mesh: Mesh | None) -> Measured:
        """All that is needed to compare `mesh` with any caption; None: there is no mesh."""
        if mesh is None:
            nothing = torch.zeros(GRID**3, dtype=torch.bool, device=self.device)
            return Measured(prompt, seed, nothing, (NO_MESH,) * len(AZIMUTHS), None)
        generator = keyed_generator(seed, "chamfer", prompt, device=self.device)
        distance = chamfer(mesh, parse_caption(prompt), generator)
        return Measured(prompt, seed, mesh_occupancy(mesh), self.nearest(mesh), distance)

    def exact(self, prompt: str) -> Measured:
        """The solid of `prompt` itself: its cells, its exact pictures, and two samples of its surface."""
        solid = parse_caption(prompt)
        views = render([solid], self.cameras.to(self.device), VIEW_SIZE, background=BACKGROUND).rgb
        floor = chamfer_floor(solid, keyed_generator("chamfer floor", prompt, device=self.device))
        return Measured(prompt, 0, self.solid(prompt), self._nearest(views), floor)

    def iou(self, measured: Measured, prompt: str) -> float:
        """Of a mesh with the solid of any caption."""
        return iou(measured.inside, self.solid(prompt)).item()

    def recall(self, measured: Measured, prompt: str) -> float:
        """Share of the views that look like `prompt`."""
        return sum(n == self.position[prompt] for n in measured.nearest) / len(measured.nearest)


def summarise(judge: Judge, measured: Sequence[Measured], prompts: Sequence[str] | None = None) -> dict[str, Any]:
    """Means over meshes; `prompts` are the captions they are compared with, their own if None.

    worst_shape_iou: the lowest mean IoU among the kinds of solid (of stacks: of the upper part).
    """
    prompts = prompts or [m.prompt for m in measured]
    ious = [judge.iou(m, prompt) for m, prompt in zip(measured, prompts, strict=True)]
    recalls = [judge.recall(m, prompt) for m, prompt in zip(measured, prompts, strict=True)]
    by_shape: dict[str, list[float]] = {}
    for prompt, value in zip(prompts, ious, strict=True):
        by_shape.setdefault(parse_caption(prompt).parts[0].shape, []).append(value)
    shape_iou = {shape: _mean(values) for shape, values in sorted(by_shape.items())}
    worst = min(shape_iou, key=shape_iou.__getitem__)
    return {
        "r_at_1": _mean(recalls),
        "iou": _mean(ious),
        "worst_shape_iou": shape_iou[worst],
        "worst_shape": worst,
        "shape_iou": shape_iou,
    }


def summarise_split(judge: Judge, measured: Sequence[Measured]) -> dict[str, Any]:
    """The numbers of one split, all seeds together, with their intervals, and each seed alone."""
    distances = [m.chamfer for m in measured if m.chamfer is not None]
    per_seed = []
    for seed in sorted({m.seed for m in measured}):
        own = summarise(judge, [m for m in measured if m.seed == seed])
        per_seed.append({"seed": seed, **{name: own[name] for name in ("r_at_1", "iou", "worst_shape_iou")}})
    return {
        **summarise(judge, measured),
        "chamfer": _mean(distances) if distances else None,
        "intervals": intervals(judge, measured),
        "n_prompts": len({m.prompt for m in measured}),
        "n_captions_to_choose_from": len(judge.bank),
        "n_meshes": len(measured),
        "n_without_mesh": len(measured) - len(distances),
        "per_seed": per_seed,
    }


def intervals(judge: Judge, measured: Sequence[Measured]) -> dict[str, Interval | None]:
    """95 % intervals of the means by bootstrap over prompts; None where there are fewer than two prompts."""

    def interval(values: Sequence[float], of: Sequence[Measured]) -> Interval | None:
        number = {prompt: i for i, prompt in enumerate(sorted({m.prompt for m in of}))}
        return mean_interval(torch.tensor(values), torch.tensor([number[m.prompt] for m in of], dtype=torch.long))

    there = [m for m in measured if m.chamfer is not None]
    return {
        "r_at_1": interval([judge.recall(m, m.prompt) for m in measured], measured),
        "iou": interval([judge.iou(m, m.prompt) for m in measured], measured),
        "chamfer": interval([m.chamfer for m in there], there),
    }


def controls(judge: Judge, measured: Sequence[Measured]) -> dict[str, Any]:
    """What the same measures say of the truth, and of meshes made without knowledge of the caption."""
    prompts = [m.prompt for m in measured]
    distinct = list(dict.fromkeys(prompts))
    shift = max(len(distinct) // 2, 1)
    other = {prompt: distinct[(i + shift) % len(distinct)] for i, prompt in enumerate(distinct)}
    inside, _ = best_constant(torch.stack([judge.solid(prompt) for prompt in distinct]))
    nearest = judge.nearest(_constant_mesh(inside, distinct))
    constant = [Measured(prompt, 0, inside, nearest, None) for prompt in distinct]
    exact = [judge.exact(prompt) for prompt in distinct]
    return {
        "exact_solids": {**summarise(judge, exact), "chamfer": _mean([m.chamfer for m in exact])},
        "best_constant_mesh": summarise(judge, constant),
        "captions_of_others": summarise(judge, measured, [other[prompt] for prompt in prompts]),
    }


def _constant_mesh(inside: Bool[Tensor, " P"], prompts: Sequence[str]) -> Mesh:
    """The surface of a set of grid cells, in the mean colour of the prompts."""
    grid = inside.view(GRID, GRID, GRID)
    vertices, faces = marching_cubes(0.5 - grid.float())
    vertices = (vertices + 0.5) * (2 / GRID) - 1
    color = palette_rows([parse_caption(prompt) for prompt in prompts], vertices).mean(dim=(0, 1))
    return Mesh(vertices, faces, color.expand_as(vertices))


def generated_meshes(
    pipeline: TextToMeshPipeline, prompts: Sequence[str], seeds: Sequence[int]
) -> Iterator[tuple[str, int, Mesh | None]]:
    """Meshes of all prompts for each seed, None where a field has no surface."""
    for seed in seeds:
        for start in range(0, len(prompts), BATCH):
            batch = prompts[start : start + BATCH]
            scene = pipeline.generate(batch, seed=seed)
            for number, prompt in enumerate(batch):
                yield prompt, seed, _mesh_or_none(pipeline, prompt, scene.prompt(number))


def _mesh_or_none(pipeline: TextToMeshPipeline, prompt: str, scene: FieldScene) -> Mesh | None:
    try:
        return pipeline.extract([prompt], scene)[0]
    except EmptyFieldError:
        return None


def exported_meshes(
    folder: Path, prompts: Sequence[str], device: str | torch.device
) -> Iterator[tuple[str, int, Mesh | None]]:
    """Meshes that launch.py --export wrote, None where there is none; one each, as seed 0."""
    for prompt in prompts:
        paths = [p for p in sorted((folder / slug(prompt)).glob("*")) if p.suffix in SUFFIXES]
        if not paths:
            yield prompt, 0, None
            continue
        mesh = read_mesh(paths[0])
        if mesh.colors is None and mesh.texture is None:
            raise ValueError(f"{paths[0]} has no colours; export it with the multiprompt-mesh-exporter")
        yield prompt, 0, mesh.to(device)


def split_prompts(split: str, limit: int | None) -> tuple[str, ...]:
    """The captions of a split; with a limit, that many, evenly spread over it so that all shapes occur."""
    prompts = load_splits()[split]
    if limit is None or limit >= len(prompts):
        return prompts
    return tuple(prompts[i * len(prompts) // limit] for i in range(limit))


def rows_of(judge: Judge, split: str, measured: Iterable[Measured]) -> list[dict[str, Any]]:
    """One row for each view."""
    return [
        {
            "split": split,
            "prompt": m.prompt,
            "seed": m.seed,
            "azimuth": azimuth,
            "nearest": "" if nearest == NO_MESH else judge.bank[nearest],
            "correct": int(nearest == judge.position[m.prompt]),
            "iou": judge.iou(m, m.prompt),
            "chamfer": m.chamfer,
        }
        for m in measured
        for azimuth, nearest in zip(AZIMUTHS, m.nearest, strict=True)
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def load_pipeline(weights: Path, device: torch.device) -> TextToMeshPipeline:
    """From a pipeline folder, from the weights in one, or from a checkpoint in a trial's ckpts folder."""
    if weights.is_dir():
        return TextToMeshPipeline.from_pretrained(weights, device)
    trial = weights.resolve().parent.parent / "configs" / "parsed.yaml"
    if trial.is_file():
        return TextToMeshPipeline.from_training(trial, weights, device)
    return TextToMeshPipeline.from_pretrained(weights.parent, device, weights=weights)


def run(given: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report, and one row for each view."""
    device = given.devices[0]
    scorer = Scorer.load(given.scorer, device)
    pipeline = None if given.meshes else load_pipeline(given.weights, device)
    report: dict[str, Any] = {"splits": {}, "controls": {}}
    rows = []
    for split in given.splits:
        judge = Judge(split, scorer, device, whole_bank(split) if given.bank == "all" else None)
        prompts = split_prompts(split, given.limit)
        if pipeline is None:
            meshes = exported_meshes(given.meshes, prompts, device)
        else:
            meshes = generated_meshes(pipeline, prompts, given.seeds)
        measured = [judge.measure(*found) for found in meshes]
        report["splits"][split] = summarise_split(judge, measured)
        report["controls"][split] = controls(judge, measured)
        rows += rows_of(judge, split, measured)
        print(table_row(split, report), flush=True)
    return report, rows


TABLE_HEAD = (
    f"{'split':20}{'IoU':>7}{'95 % interval':>17}{'R@1':>7}{'95 % interval':>17}{'chamfer':>9}{'worst shape':>16}"
    "   exact R@1, chamfer   best constant IoU, R@1   captions of others IoU, R@1"
)


def table_row(split: str, report: dict[str, Any]) -> str:
    """A line under TABLE_HEAD."""
    own, control = report["splits"][split], report["controls"][split]
    distance = "-" if own["chamfer"] is None else f"{own['chamfer']:.4f}"
    worst = f"{own['worst_shape']} {own['worst_shape_iou']:.3f}"
    means = "".join(
        f"{own[name]:7.3f}{format_interval(own['intervals'][name], digits=3):>17}" for name in ("iou", "r_at_1")
    )
    exact = f"{control['exact_solids']['r_at_1']:.3f}, {control['exact_solids']['chamfer']:.4f}"
    constant, others = (
        f"{control[name]['iou']:.3f}, {control[name]['r_at_1']:.3f}"
        for name in ("best_constant_mesh", "captions_of_others")
    )
    return f"{split:20}{means}{distance:>9}{worst:>16}   {exact:20} {constant:24} {others}"


def main(arguments: list[str] | None = None, program: str | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--weights", type=Path, help="a pipeline folder, weights in one, or a checkpoint of a training run"
    )
    source.add_argument("--meshes", type=Path, help="folder that launch.py --export wrote, in place of --weights")
    parser.add_argument("--limit", type=int, help="prompts a split; default: all")
    parser.add_argument("--splits", nargs="+", choices=EVALUATION_SPLITS, default=EVALUATION_SPLITS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--bank", choices=("frozen", "all"), default="frozen", help="all: every stack, 9120, for R@1")
    parser.add_argument("--scorer", type=Path, default=PROJECT / "load" / "shapeworld" / "scorer")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--csv", type=Path, help="write one line a view here; default: beside --json")
    add_device_option(parser)
    given = parser.parse_args(arguments)
    transformers_logging.disable_progress_bar()  # one for every small network that is loaded
    start = time.time()
    print(TABLE_HEAD)
    report, rows = run(given)
    report["settings"] = {
        "weights": str(given.weights or given.meshes),
        "seeds": [0] if given.meshes else list(given.seeds),
        "limit": given.limit,
        "bank": given.bank,
        "seconds": round(time.time() - start, 1),
    }
    if given.json:
        write_json(given.json, report)
    csv_path = given.csv or (given.json and given.json.with_suffix(".csv"))
    if csv_path:
        write_csv(csv_path, rows)
