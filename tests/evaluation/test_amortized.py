"""Similarity and recall of sheets of pictures, by a model that knows colours alone."""

import pytest
from PIL import Image
from test_clip_score import colour_model

from triplaneturbo.evaluation import amortized
from triplaneturbo.evaluation.amortized import evaluate, main, read_sheets

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def write_sheets(folder, name, *colours, prompt=None):
    """Squares of a colour with another one on the right, which does not count."""
    (folder / name).mkdir(parents=True)
    for number, colour in enumerate(colours):
        sheet = Image.new("RGB", (48, 12), (90, 90, 90))
        sheet.paste(Image.new("RGB", (12, 12), COLOURS[colour]))
        sheet.save(folder / name / f"{number}.png")
    if prompt:
        (folder / name / "prompt.txt").write_text(prompt)


def test_means_are_over_views_then_prompts_and_see_the_square_on_the_left(tmp_path):
    write_sheets(tmp_path, "red", "red", "red", "blue", "blue")
    write_sheets(tmp_path, "a", "green", prompt="green")
    found = evaluate(read_sheets(tmp_path), colour_model(""))
    assert (found.n_prompts, found.n_views) == (2, 5)
    assert found.similarity == pytest.approx((0.5 + 1) / 2)
    # A blue view is as far from both prompts; the first of them, in the order of folders, is taken.
    assert found.recall == pytest.approx((0.5 + 1) / 2)


def test_two_folders_of_one_prompt_are_an_error(tmp_path):
    write_sheets(tmp_path, "red", "red")
    write_sheets(tmp_path, "b", "red", prompt="red")
    with pytest.raises(ValueError, match="same prompt, 'red'; keep one"):
        read_sheets(tmp_path)


def test_the_command_writes_both_numbers_beside_the_pictures(tmp_path, monkeypatch, capsys):
    write_sheets(tmp_path, "red", "red", "green")
    write_sheets(tmp_path, "blue", "blue", "blue")
    monkeypatch.setattr(amortized, "load_clip", lambda name, device: colour_model(""))
    main(["--result_dir", str(tmp_path)])
    assert float((tmp_path / "similarity.txt").read_text()) == pytest.approx(0.75)
    assert "2 prompts, 4 views" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--result_dir", str(tmp_path / "red" / "none")])
    assert "there are no pictures" in capsys.readouterr().err
