"""scripts/train/pack_student.py puts the student of a training into the miniature world's folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny_student import training_options, write_pipeline

from triplaneturbo import TextToMeshPipeline
from triplaneturbo.weights.files import load_tensors

SCRIPT = Path(__file__).parents[2] / "scripts/train/pack_student.py"


@pytest.fixture
def trial(tmp_path, tiny_world):
    """A run of 3 of 4 steps whose weights are those of a student times 1.5, and that student's."""
    folder = write_pipeline(tmp_path / "student", tiny_world / "sd")
    before = load_tensors(folder / "student.safetensors")
    options = training_options(TextToMeshPipeline.from_pretrained(folder, "cpu").base)
    options["trainer"] = {**options.get("trainer", {}), "max_steps": 4}
    run = tmp_path / "student_dots"
    (run / "configs").mkdir(parents=True)
    (run / "configs/parsed.yaml").write_text(yaml.safe_dump(options))
    (run / "ckpts").mkdir()
    torch.save({"state_dict": {name: 1.5 * value for name, value in before.items()}}, run / "ckpts/last.ckpt")
    (run / "losses.jsonl").write_text('{"step": 3, "prompts": 12}\n')
    (run / "seconds").write_text("7\n5\n")
    return run, folder / "student.safetensors"


def pack(run, out, *options):
    done = subprocess.run([sys.executable, SCRIPT, run, out, *options], capture_output=True, text=True, check=True)
    return done.stdout


def test_a_training_that_is_not_done_is_packed_on_request_only(trial, tmp_path):
    run, _ = trial
    assert "3 of 4 steps are done after 12 s" in pack(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    pack(run, tmp_path / "out", "--early")
    record = json.loads((tmp_path / "out/training/student_dots.json").read_text())
    assert (record["stage"], record["seconds"], record["steps"], record["prompts"]) == ("student_dots", 12, 3, 12)


def test_what_is_packed_are_the_weights_of_the_training(trial, tmp_path):
    run, earlier = trial
    pack(run, tmp_path / "out", "--early")
    before, found = load_tensors(earlier), load_tensors(tmp_path / "out/student.safetensors")
    assert found.keys() == before.keys()
    for name, value in before.items():
        torch.testing.assert_close(found[name].float(), 1.5 * value.float(), rtol=2e-3, atol=1e-6)
