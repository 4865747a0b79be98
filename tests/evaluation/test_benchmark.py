import csv
import json
import shutil

import pytest
import torch
import torch.nn.functional as F
import yaml
from tiny_student import training_options, write_pipeline

from custom.shapeworld.models import IMAGE_SIZE, token_ids
from custom.shapeworld.render import render, surface_color, surface_normal
from custom.shapeworld.scorer import Scorer
from custom.shapeworld.splits import load_splits
from custom.shapeworld.world import parse_caption, sdf
from triplaneturbo.evaluation import benchmark
from triplaneturbo.evaluation.benchmark import (
    Judge,
    controls,
    exported_meshes,
    load_pipeline,
    main,
    split_prompts,
    summarise,
    summarise_split,
)
from triplaneturbo.exporters.mesh_exporter import MeshExporter
from triplaneturbo.ops.marching_cubes import marching_cubes
from triplaneturbo.types import Mesh

PROMPTS = ("a green sphere", "a red cube", "a blue cone", "a yellow torus", "a red cone")


def exact_mesh(prompt: str, resolution: int = 48) -> Mesh:
    """The solid of a caption as a mesh with exact colours."""
    solid = parse_caption(prompt)
    axis = torch.linspace(-1, 1, resolution)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    vertices, faces = marching_cubes(sdf([solid], grid.reshape(1, -1, 3))[0].view(grid.shape[:3]))
    vertices = vertices * (2 / (resolution - 1)) - 1
    normals = surface_normal([solid], vertices[None])
    return Mesh(vertices, faces, surface_color([solid], vertices[None], normals)[0])


class ExactScorer(Scorer):
    """Prefers the caption whose exact picture, from the benchmark's cameras, is most like the given one."""

    def __init__(self):
        pass  # no network

    def similarity(self, pictures, captions):
        cameras = Judge("train", self, "cpu").cameras
        truth = torch.stack([render([parse_caption(c)], cameras, 64).rgb for c in captions]).permute(0, 1, 4, 2, 3)
        return -(pictures[None] - truth).square().mean((2, 3, 4)).T


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.setattr(benchmark, "retrieval_bank", lambda split: PROMPTS)
    return Judge("train", ExactScorer(), "cpu")


def test_exact_meshes_are_nearly_perfect(judge):
    """Also says that meshes are rendered with the axes, cameras and background of the world's own pictures."""
    measured = [judge.measure(prompt, 0, exact_mesh(prompt)) for prompt in PROMPTS]
    numbers = summarise_split(judge, measured)
    assert numbers["r_at_1"] == 1
    assert numbers["iou"] > 0.95
    assert numbers["worst_shape_iou"] > 0.9
    assert 0 < numbers["chamfer"] < 0.02
    assert set(numbers["shape_iou"]) == {"sphere", "cube", "cone", "torus"}
    assert (numbers["n_prompts"], numbers["n_meshes"], numbers["n_without_mesh"]) == (5, 5, 0)


def test_a_missing_mesh_counts_as_nothing_right(judge):
    measured = [judge.measure("a red cube", 0, exact_mesh("a red cube")), judge.measure("a blue cone", 0, None)]
    numbers = summarise_split(judge, measured)
    alone = summarise(judge, measured[:1])
    assert numbers["iou"] == pytest.approx(alone["iou"] / 2)
    assert numbers["r_at_1"] == 0.5
    assert (numbers["worst_shape"], numbers["worst_shape_iou"], numbers["n_without_mesh"]) == ("cone", 0.0, 1)
    assert summarise_split(judge, measured[1:])["chamfer"] is None


def test_seeds_are_reported_alone_and_together(judge):
    mesh = exact_mesh("a red cube")
    measured = [judge.measure("a red cube", seed, m) for seed, m in ((0, mesh), (1, None), (2, mesh))]
    numbers = summarise_split(judge, measured)
    assert [s["seed"] for s in numbers["per_seed"]] == [0, 1, 2]
    assert [s["r_at_1"] for s in numbers["per_seed"]] == [1, 0, 1]
    assert numbers["iou"] == pytest.approx(sum(s["iou"] for s in numbers["per_seed"]) / 3)


def test_intervals_take_prompts_as_units(judge):
    """One prompt found at every seed and one at none: 0, 1/2 or 1 in a resample, so the interval is all there is."""
    mesh = exact_mesh("a red cube")
    measured = [judge.measure("a red cube", seed, mesh) for seed in range(3)]
    wrong = [judge.measure("a blue cone", seed, None) for seed in range(3)]
    numbers = summarise_split(judge, measured + wrong)
    assert numbers["r_at_1"] == 0.5
    assert numbers["intervals"]["r_at_1"] == (0, 1)
    assert numbers["intervals"]["iou"] == pytest.approx((0, 2 * numbers["iou"]))
    assert numbers["intervals"]["chamfer"] is None  # of one prompt only


def test_controls_know_nothing_of_the_caption(judge):
    measured = [judge.measure(prompt, 0, exact_mesh(prompt)) for prompt in PROMPTS]
    own, blind = summarise(judge, measured), controls(judge, measured)
    assert blind["captions_of_others"]["r_at_1"] == 0
    assert blind["captions_of_others"]["iou"] < own["iou"] - 0.2
    assert 0.2 < blind["best_constant_mesh"]["iou"] < own["iou"] - 0.2
    assert blind["best_constant_mesh"]["r_at_1"] <= 0.25


def test_the_exact_solids_are_as_good_as_can_be(judge):
    """Measured as meshes are, but from exact pictures and exact surfaces: better than the finest mesh."""
    fine = [judge.measure(prompt, 0, exact_mesh(prompt)) for prompt in PROMPTS]
    exact, mesh = controls(judge, fine)["exact_solids"], summarise_split(judge, fine)
    assert (exact["iou"], exact["r_at_1"]) == (1, 1)
    assert 0.01 < exact["chamfer"] < mesh["chamfer"] < 1.1 * exact["chamfer"]


def test_the_scorer_remembers_captions_and_not_the_wrong_ones(clip_folder):
    scorer, pictures = Scorer.load(clip_folder), torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    small = F.interpolate(pictures, size=IMAGE_SIZE, mode="bilinear", antialias=True) * 2 - 1
    for bank in (PROMPTS, PROMPTS[:2], PROMPTS):
        with torch.no_grad():
            expected = scorer.model(input_ids=token_ids(scorer.tokenizer, list(bank)), pixel_values=small)
        torch.testing.assert_close(
            scorer.similarity(pictures, bank), expected.image_embeds @ expected.text_embeds.T, rtol=0, atol=1e-6
        )


def test_a_limit_takes_prompts_from_the_whole_split():
    everything = load_splits()["train"]
    assert split_prompts("train", None) == split_prompts("train", 10_000) == everything
    some = split_prompts("train", 6)
    assert len(set(some)) == 6
    assert len({parse_caption(prompt).parts[0].shape for prompt in some}) == 6


def test_exported_folders(judge, tmp_path):
    MeshExporter({"turntable_views": 0})([exact_mesh("a red cube")], ["a red cube"], tmp_path)
    found = list(exported_meshes(tmp_path, PROMPTS[:2], "cpu"))
    assert [(prompt, seed, mesh is None) for prompt, seed, mesh in found] == [
        ("a green sphere", 0, True),
        ("a red cube", 0, False),
    ]
    own = summarise(judge, [judge.measure(*found[1])])
    assert own["iou"] > 0.95
    assert own["r_at_1"] == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_world):
    return write_pipeline(tmp_path_factory.mktemp("pipeline"), tiny_world / "sd")


def test_weights_in_three_forms(folder, tiny_world, tmp_path):
    """A pipeline folder, its weights, and a checkpoint beside the configuration of its run."""
    trial = tmp_path / "trial"
    (trial / "configs").mkdir(parents=True)
    (trial / "configs" / "parsed.yaml").write_text(yaml.safe_dump(training_options(tiny_world / "sd")))
    shutil.copytree(folder, trial / "ckpts")
    (trial / "ckpts" / "pipeline.json").unlink()
    forms = folder, folder / "student.safetensors", trial / "ckpts" / "student.safetensors"
    planes = [load_pipeline(path, torch.device("cpu")).generate(["a red cube"]).tensors["planes"] for path in forms]
    assert torch.equal(planes[0], planes[1])
    assert torch.equal(planes[0], planes[2])


def test_command(folder, clip_folder, tmp_path, capsys):
    out = tmp_path / "report.json"
    splits = ["train", "unseen_compositions"]
    options = f"--weights {folder} --scorer {clip_folder} --limit 1 --seeds 0 5 --json {out} --splits"
    main([*options.split(), *splits])
    small = json.loads(out.read_text())["splits"]
    assert [small[split]["n_captions_to_choose_from"] for split in splits] == [96, 128]
    main([*options.split(), *splits, "--bank", "all"])
    report = json.loads(out.read_text())
    assert list(report["splits"]) == list(report["controls"]) == splits
    for split, captions in zip(splits, (96, 9120), strict=True):
        numbers = report["splits"][split]
        assert numbers["n_captions_to_choose_from"] == captions
        assert {"r_at_1", "iou", "chamfer", "worst_shape_iou"} <= set(numbers)
        assert numbers["n_meshes"] == 2
        assert numbers["intervals"] == {"r_at_1": None, "iou": None, "chamfer": None}
        assert set(report["controls"][split]) == {"exact_solids", "best_constant_mesh", "captions_of_others"}
    with out.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 4
    own = [int(row["correct"]) for row in rows if row["split"] == "train"]
    assert report["splits"]["train"]["r_at_1"] == pytest.approx(sum(own) / len(own))
    assert "unseen_compositions" in capsys.readouterr().out
