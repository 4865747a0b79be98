import re

import pytest
from miniature import write_configuration
from PIL import Image
from tiny_student import write_pipeline

from custom.shapeworld.splits import load_splits
from triplaneturbo.evaluation import demo
from triplaneturbo.naming import slug


@pytest.fixture
def student(tmp_path, tiny_world):
    return write_pipeline(tmp_path / "student", tiny_world / "sd")


def test_meshes_and_a_training(student, tiny_world, tmp_path, monkeypatch, capsys):
    """All of it, with one prompt instead of three, networks that know nothing, and one training step."""
    monkeypatch.setattr(demo, "TRAINING", write_configuration(tiny_world, tmp_path))
    monkeypatch.setattr(demo, "PROMPTS", demo.PROMPTS[:1])
    out = tmp_path / "out"
    small = ["trainer.max_steps=1", "system.exporter.turntable_size=16"]
    demo.main(["--student", str(student), "--out", str(out), "--minutes", "0.5", *small])
    assert (out / slug(demo.PROMPTS[0]) / "model.glb").is_file()
    assert Image.open(out / slug(demo.PROMPTS[0]) / "turntable.png").size == (1024, 512)
    printed = capsys.readouterr().out
    for when in ("before", "after"):
        assert (out / when / "a_yellow_torus" / "model.glb").is_file()
        assert re.search(rf"{when} training +0\.\d{{3}} ", printed)
    constant = float(re.search(r"ignores the prompt +(\d\.\d+)", printed).group(1))
    assert 0.2 < constant < 0.8


def test_prompts_are_known_and_unknown_to_the_student():
    lists = load_splits()
    seen, pair, stack = demo.PROMPTS
    assert seen in lists["student"]
    assert pair in lists["unseen_pairs"]
    assert stack in lists["unseen_orders"]
    assert demo.TRAINED_PROMPT in lists["student"]


def test_without_weights_it_says_where_they_come_from(tmp_path):
    with pytest.raises(SystemExit, match=r"demo: .*has no pipeline\.json: scripts/train/shapeworld\.sh"):
        demo.main(["--student", str(tmp_path)])
