import re

import pytest
from miniature import write_configuration
from PIL import Image
from tiny_student import write_pipeline

from evaluation import demo


@pytest.fixture
def student(tmp_path, tiny_world):
    return write_pipeline(tmp_path / "student", tiny_world / "sd")


def test_three_prompts_and_a_training(student, tiny_world, tmp_path, monkeypatch, capsys):
    """All of it, with networks that know nothing, a few pixels and one training step."""
    monkeypatch.setattr(demo, "TRAINING", write_configuration(tiny_world, tmp_path))
    out = tmp_path / "out"
    demo.main(["--student", str(student), "--out", str(out), "--minutes", "0.5", "trainer.max_steps=1"])
    for name in ("a_red_cube", "a_blue_pyramid", "a_yellow_torus_on_a_green_sphere"):
        assert (out / name / "model.glb").is_file()
        assert Image.open(out / name / "turntable.png").size == (1024, 512)
    printed = capsys.readouterr().out
    for when in ("before", "after"):
        assert (out / when / "a_yellow_torus" / "model.glb").is_file()
        assert re.search(rf"{when} training +0\.\d{{3}} ", printed)
    constant = float(re.search(r"ignores the prompt +(\d\.\d+)", printed).group(1))
    assert 0.2 < constant < 0.8


def test_without_weights_it_says_where_they_come_from(tmp_path):
    with pytest.raises(SystemExit, match=r"demo: .*has no pipeline\.json: scripts/train/shapeworld\.sh"):
        demo.main(["--student", str(tmp_path)])
