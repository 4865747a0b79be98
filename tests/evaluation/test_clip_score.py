import csv
import json

import pytest
import torch

from evaluation.clip_score import caption_of, judge, main, mean_and_error
from triplaneturbo.exporters.render import save_picture


def test_scores_and_retrieval_by_hand():
    captions = torch.eye(3)
    pictures = torch.tensor([[0.6, 0.8, 0], [0.8, 0.6, 0], [-1, 0, 0], [0, 0, 1]])
    found = judge(pictures, captions, torch.tensor([0, 0, 0, 2]))
    torch.testing.assert_close(found.score, torch.tensor([150.0, 200, 0, 250]))
    assert found.correct.tolist() == [False, True, False, True]
    assert found.nearest.tolist() == [1, 0, 1, 2]


def test_error_takes_prompts_as_units():
    """Four equal pictures of a prompt are one observation: deviation of (1, 0, 0.5) over the root of 3."""
    values = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0])
    owner = torch.arange(3).repeat_interleave(4)
    mean, error = mean_and_error(values, owner)
    assert mean == pytest.approx(0.5)
    assert error == pytest.approx(0.5 / 3**0.5)
    assert mean_and_error(values[:4], owner[:4]) == (1.0, 0.0)


def test_captions():
    assert caption_of("a cat, asleep.", "A photo depicts ", "right") == "A photo depicts a cat, asleep."
    assert caption_of("a cat, asleep.", "A photo depicts ", "original") == "A photo depictsa cat asleep"


@pytest.fixture
def views(tmp_path):
    for prompt in ("a red cube", "a blue sphere"):
        folder = tmp_path / prompt.replace(" ", "_")
        for k in range(2):
            save_picture(folder / f"rgb_{k}.png", torch.full((1, 16, 16, 3), 0.1 * k), columns=1)
        (folder / "prompt.txt").write_text(prompt)
    return tmp_path


def test_command(views, clip_folder, capsys):
    main(["--result_dir", str(views), "--model", str(clip_folder), "--prefix", "", "--json", str(views / "out.json")])
    summary = json.loads((views / "out.json").read_text())
    with (views / "clip_scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert (summary["n_prompts"], summary["n_pictures"], len(rows)) == (2, 4, 4)
    assert summary["clip_score"] == pytest.approx(sum(float(row["clip_score"]) for row in rows) / 4)
    assert summary["r_at_1"] == pytest.approx(sum(int(row["correct"]) for row in rows) / 4)
    assert [int(row["correct"]) for row in rows] == [int(row["prompt"] == row["nearest"]) for row in rows]
    assert f"CLIP score {summary['clip_score']:.2f}" in capsys.readouterr().out


def test_folders_without_pictures_or_prompts(views, clip_folder, tmp_path_factory, capsys):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(SystemExit):
        main(["--result_dir", str(empty), "--model", str(clip_folder)])
    assert "mesh_visualize" in capsys.readouterr().err.split("there are no pictures")[1]
    (views / "a_red_cube" / "prompt.txt").unlink()
    with pytest.raises(SystemExit):
        main(["--result_dir", str(views), "--model", str(clip_folder)])
    assert "a_red_cube has no prompt.txt" in capsys.readouterr().err
