"""The README's module, added as a stranger would: a file in a folder of extensions, two options on the command line."""

import json

import pytest
from miniature import write_configuration
from readme import python_blocks

import launch
from triplaneturbo import launcher, registry


@pytest.fixture
def extensions(tmp_path, monkeypatch):
    folder = tmp_path / "extensions"
    folder.mkdir()
    monkeypatch.setattr(launcher, "CUSTOM_FOLDER", folder)
    (source,) = [block for block in python_blocks() if "custom/unit_score.py" in block]
    (folder / "unit_score.py").write_text(source)
    return folder


def test_a_new_rule_trains(extensions, tiny_world, tmp_path, capsys):
    config = str(write_configuration(tiny_world, tmp_path))
    options = ["system.guidance_type=unit-score-guidance", "system.guidance.floor=0.01", "trainer.max_steps=2"]
    assert launch.main(["--config", config, "--train", *options, "trainer.log_every_n_steps=1"]) == 0
    assert registry.find("unit-score-guidance").__module__ == "extensions.unit_score"
    losses = (tmp_path / "tiny" / "trial" / "losses.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in losses]
    assert len(steps) == 2
    assert all(step["grad_norm"] > 0 for step in steps)
    options[1] = "system.guidance.flor=0.01"
    assert launch.main(["--config", config, "--train", *options]) == 2
    assert "did you mean 'floor'" in capsys.readouterr().err
