import csv
import json
import shutil

import pytest
import torch
import torch.nn.functional as F
import yaml
from tiny_student import training_options, write_pipeline

from custom.shapeworld import measure
from custom.shapeworld.models import IMAGE_SIZE, token_ids
from custom.shapeworld.render import render
from custom.shapeworld.scorer import Scorer
from custom.shapeworld.splits import load_splits, retrieval_bank
from custom.shapeworld.world import parse_caption
from triplaneturbo.evaluation import benchmark
from triplaneturbo.evaluation import judge as judges
from triplaneturbo.evaluation.benchmark import main, means, split_prompts, summarise_split
from triplaneturbo.evaluation.controls import captions_of_others, controls
from triplaneturbo.evaluation.judge import Judge
from triplaneturbo.evaluation.measures import MEASURES
from triplaneturbo.evaluation.sources import Exported, load_pipeline, untrained
from triplaneturbo.exporters.files import write_mesh
from triplaneturbo.exporters.mesh_exporter import MeshExporter
from triplaneturbo.naming import slug
from triplaneturbo.types import Mesh

PROMPTS = ("a green sphere", "a red cube", "a blue cone", "a yellow torus", "a red cone")


def exact_mesh(prompt: str, resolution: int = 48) -> Mesh:
    return measure.exact_mesh(parse_caption(prompt), resolution)


class ExactScorer(Scorer):
    """Prefers the caption whose exact picture, from the benchmark's cameras, is most like the given one."""

    def __init__(self):
        self.exact = {}  # no network

    def similarity(self, pictures, captions):
        cameras = Judge(self, "cpu", PROMPTS).cameras
        for caption in set(captions) - set(self.exact):
            self.exact[caption] = render([parse_caption(caption)], cameras, 64).rgb
        truth = torch.stack([self.exact[caption] for caption in captions]).permute(0, 1, 4, 2, 3)
        return -(pictures[None] - truth).square().mean((2, 3, 4)).T


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.setattr(judges, "retrieval_bank", lambda: PROMPTS)
    return Judge(ExactScorer(), "cpu")


def test_exact_meshes_are_nearly_perfect(judge):
    """Also says that meshes are rendered with the axes, cameras and background of the world's own pictures."""
    measured = [judge.measure(prompt, 0, exact_mesh(prompt)) for prompt in PROMPTS]
    numbers = summarise_split(judge, measured)
    assert numbers["r_at_1"] == 1
    assert numbers["iou"] > 0.95
    assert numbers["worst_shape_iou"] > 0.9
    assert 0 < numbers["chamfer"] < 0.02
    assert numbers["r_at_1_object"] == numbers["watertight"] == numbers["genus_right"] == numbers["faces_right"] == 1
    assert numbers["silhouette_iou"] > 0.96  # measured: 0.969
    assert numbers["psnr"] > 30
    assert numbers["normal_error"] < 4  # a grid of 48 points rounds edges
    assert numbers["color_error"] < 1
    assert numbers["janus"] == 0
    assert set(numbers["shape_iou"]) == {"sphere", "cube", "cone", "torus"}
    assert (numbers["n_prompts"], numbers["n_meshes"], numbers["n_without_mesh"]) == (5, 5, 0)


def test_a_missing_mesh_counts_as_nothing_right(judge):
    measured = [judge.measure("a red cube", 0, exact_mesh("a red cube")), judge.measure("a blue cone", 0, None)]
    numbers = summarise_split(judge, measured)
    alone = means(measured[:1])
    assert numbers["iou"] == pytest.approx(alone["iou"] / 2)
    assert numbers["r_at_1"] == 0.5
    assert (numbers["worst_shape"], numbers["worst_shape_iou"], numbers["n_without_mesh"]) == ("cone", 0.0, 1)
    nothing = means(measured[1:])
    for name in ("chamfer", "normal_error", "color_error", "faces_right", "janus"):
        assert nothing[name] is None
    for name in ("silhouette_iou", "r_at_1_object", "watertight", "genus_right", "faces"):
        assert nothing[name] == 0
    assert 0 < nothing["psnr"] < 30  # a picture of nothing is grey where the truth is


def test_seeds_are_reported_alone_and_together(judge):
    mesh = exact_mesh("a red cube")
    measured = [judge.measure("a red cube", seed, m) for seed, m in ((0, mesh), (1, None), (2, mesh))]
    numbers = summarise_split(judge, measured)
    assert [s["seed"] for s in numbers["per_seed"]] == [0, 1, 2]
    assert [s["r_at_1"] for s in numbers["per_seed"]] == [1, 0, 1]
    assert numbers["iou"] == pytest.approx(sum(s["iou"] for s in numbers["per_seed"]) / 3)


def test_trainings_are_reported_alone_and_widen_the_interval(judge):
    good = [judge.measure(prompt, 0, exact_mesh(prompt), 0) for prompt in PROMPTS]
    both = [*good, *(judge.measure(prompt, 0, None, 1) for prompt in PROMPTS)]
    numbers = summarise_split(judge, both)
    assert [(t["training"], t["r_at_1"]) for t in numbers["per_training"]] == [(0, 1), (1, 0)]
    assert summarise_split(judge, good)["intervals"]["r_at_1"] == (1, 1)
    assert numbers["intervals"]["r_at_1"] == (0, 1)


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


def test_controls_know_nothing_of_the_caption(judge, folder):
    measured = [judge.measure(prompt, 0, exact_mesh(prompt)) for prompt in PROMPTS]
    own, others = means(measured), captions_of_others(judge, measured)
    blind = {
        name: means(found)
        for name, found in controls(judge, PROMPTS, load_pipeline(folder, torch.device("cpu"))).items()
    }
    assert set(blind) == {"exact_solids", "exact_meshes", "random_student", "best_constant_mesh"}
    assert others["r_at_1"] == others["r_at_1_object"] == 0
    assert others["iou"] < own["iou"] - 0.2
    assert others["psnr"] < own["psnr"] - 10
    assert 0.2 < blind["best_constant_mesh"]["iou"] < own["iou"] - 0.2
    assert blind["best_constant_mesh"]["r_at_1"] <= 0.25
    assert blind["random_student"]["iou"] < own["iou"] - 0.2
    assert blind["random_student"]["r_at_1"] <= 0.25


def test_the_exact_solids_are_as_good_as_can_be(judge, folder):
    """Measured as meshes are, but from exact pictures and exact surfaces: better than the finest mesh."""
    coarse = means([judge.measure(prompt, 0, exact_mesh(prompt)) for prompt in PROMPTS])
    found = controls(judge, PROMPTS, load_pipeline(folder, torch.device("cpu")))
    exact, fine = (means(found[name]) for name in ("exact_solids", "exact_meshes"))
    for name in ("iou", "r_at_1", "silhouette_iou", "watertight", "genus_right"):
        assert exact[name] == 1
    assert exact["normal_error"] == pytest.approx(0, abs=1e-3)
    assert exact["color_error"] == 0
    assert 0.01 < exact["chamfer"] < coarse["chamfer"] < 1.1 * exact["chamfer"]
    for name in ("normal_error", "color_error"):
        assert exact[name] < fine[name] < coarse[name]
    for name in ("iou", "silhouette_iou", "psnr"):
        assert exact[name] > fine[name] > coarse[name]


def test_a_student_of_random_weights_is_another_one_on_the_same_model(folder):
    trained = load_pipeline(folder, torch.device("cpu"))
    made = [untrained(trained) for _ in range(2)]
    planes = [pipeline.generate(["a red cube"]).tensors["planes"] for pipeline in (trained, *made)]
    assert not torch.allclose(planes[0], planes[1])
    assert torch.equal(planes[1], planes[2])


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
    assert set(some) < set(everything)
    assert some[0] == everything[0]


def test_exported_folders(judge, tmp_path):
    MeshExporter({"turntable_views": 0})([exact_mesh("a red cube")], ["a red cube"], tmp_path)
    found = list(Exported(tmp_path, "cpu").meshes(PROMPTS[:2]))
    assert [(prompt, seed, mesh is None) for prompt, seed, mesh in found] == [
        ("a green sphere", 0, True),
        ("a red cube", 0, False),
    ]
    own = means([judge.measure(*found[1])])
    assert own["iou"] > 0.95
    assert own["r_at_1"] == 1


def test_folders_of_strangers(judge, tmp_path):
    """A file of the caption's name, without colours, and a folder of any name that says its prompt."""
    bare = exact_mesh("a red cube")
    write_mesh(tmp_path / "a_red_cube.obj", Mesh(bare.vertices, bare.faces))
    (tmp_path / "0007").mkdir()
    write_mesh(tmp_path / "0007" / "result.glb", exact_mesh("a blue cone"))
    (tmp_path / "0007" / "prompt.txt").write_text("a blue cone\n")
    source = Exported(tmp_path, "cpu")
    found = {prompt: mesh for prompt, _, mesh in source.meshes(PROMPTS)}
    assert [prompt for prompt, mesh in found.items() if mesh is not None] == ["a red cube", "a blue cone"]
    numbers = [judge.measure(prompt, 0, found[prompt]).numbers for prompt in ("a red cube", "a blue cone")]
    assert min(n.iou for n in numbers) > 0.95
    assert [n.color_error > 20 for n in numbers] == [True, False]
    source.check(PROMPTS)
    with pytest.raises(ValueError, match=r"none of the 2 meshes .* name them like a_green_sphere/model.glb"):
        source.check(PROMPTS[:1])


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
    splits = ["train", "three_parts"]
    options = f"--weights {folder} {folder} --scorer {clip_folder} --limit 1 --seeds 0 5 --json {out} --splits"
    main([*options.split(), *splits])
    report = json.loads(out.read_text())
    assert list(report["splits"]) == list(report["controls"]) == splits
    for split in splits:
        numbers = report["splits"][split]
        assert numbers["n_captions_to_choose_from"] == 10_000
        assert {*MEASURES, "worst_shape_iou"} <= set(numbers)
        assert numbers["n_meshes"] == 2 * 2
        assert set(numbers["intervals"].values()) == {None}
        blind = report["controls"][split]
        assert set(blind) == {
            "exact_solids", "exact_meshes", "random_student", "best_constant_mesh", "captions_of_others"
        }  # fmt: skip
    with out.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2
    own = [float(row["r_at_1"]) for row in rows if row["split"] == "train"]
    assert report["splits"]["train"]["r_at_1"] == pytest.approx(sum(own) / len(own))
    assert {row["seen"] for row in rows} <= set(retrieval_bank())
    said = capsys.readouterr().out
    assert "three_parts" in said
    assert "random student" in said
    assert rows[0]["prompt"] in out.with_suffix(".html").read_text()


def test_a_folder_of_meshes_and_its_page(folder, clip_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "STUDENT", folder)
    prompts = load_splits()["train"][:2]
    good, bad = (exact_mesh(prompt) for prompt in prompts)
    write_mesh(tmp_path / f"{slug(prompts[0])}.glb", good)
    write_mesh(tmp_path / f"{slug(prompts[1])}.glb", Mesh(bad.vertices * 0.5, bad.faces, bad.colors))
    monkeypatch.setattr(benchmark, "split_prompts", lambda split, limit: prompts)
    page = tmp_path / "page.html"
    main(f"--meshes {tmp_path} --scorer {clip_folder} --splits train --html {page}".split())
    text = page.read_text()
    assert "http" not in text  # nothing is fetched from elsewhere
    assert text.count("data:image/png;base64,") == 2
    assert text.index(f"alt='{prompts[1]}'") < text.index(f"alt='{prompts[0]}'")  # the worst first
    for name in ("exact meshes", "random student", "best constant mesh", "captions of others"):
        assert f"<td>{name}</td>" in text
    monkeypatch.setattr(benchmark, "controls", None)  # is not called
    out = tmp_path / "r.json"
    main(f"--meshes {tmp_path} --scorer {clip_folder} --splits train --no-controls --json {out}".split())
    report = json.loads(out.read_text())
    assert report["controls"] == {}
    assert report["splits"]["train"]["n_meshes"] == 2
    assert "random student" not in out.with_suffix(".html").read_text()
    with out.with_suffix(".csv").open() as file:
        assert all(0 < float(row["chamfer_floor"]) < 0.05 for row in csv.DictReader(file))
