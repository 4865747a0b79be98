"""scripts/test/full_size.py: its kills, comparisons and report, with a stand-in for the training."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from fake_training import FAKE_TRAINING

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def full_size():
    spec = importlib.util.spec_from_file_location("full_size", ROOT / "scripts/test/full_size.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake(full_size, tmp_path, monkeypatch):
    """fake(noise): put a training of four steps in the place of launch.py; after a kill, `noise` is in its log."""
    (tmp_path / "fake.py").write_text(FAKE_TRAINING)

    def replace(noise):
        def command(session, tag, *arguments):
            return [sys.executable, str(tmp_path / "fake.py"), str(session.trial(tag)), "4", str(noise)]

        monkeypatch.setattr(full_size.Session, "launch_command", command)

    return replace


def run(full_size, tmp_path, *options):
    code = full_size.main(["--out", str(tmp_path / "out"), "--steps", "4", *options])
    return code, json.loads((tmp_path / "out/report.json").read_text())


@pytest.mark.parametrize("noise", [0.0, 0.25])
def test_a_killed_run_is_compared_with_one_that_was_not(full_size, fake, tmp_path, noise):
    fake(noise)
    code, report = run(full_size, tmp_path, "--stages", "train", "resume")
    assert code == 0
    assert (report["train"]["steps"], report["train"]["peak_gib"]) == (4, 2.0)
    found = report["resume"]
    assert (found["killed_after"], found["compared_steps"]) == (2, 4)
    assert found["before_the_kill"] == {"equal": True, "largest_difference": 0.0, "place": ""}
    assert found["after_the_kill"]["equal"] == found["final_weights"]["equal"] == (noise == 0)
    assert found["after_the_kill"]["largest_difference"] == pytest.approx(0.25 / 0.5 if noise else 0)
    assert found["final_weights"]["relative_difference"] == pytest.approx(1.0 if noise else 0)
    text = (tmp_path / "out/report.md").read_text()
    assert "- resume.killed_after: 2\n" in text
    assert f"fake.py {tmp_path}/out/runs/full_size/resumed 4" in text


def test_a_run_that_is_out_of_time_is_killed_and_reported(full_size, fake, tmp_path):
    fake(0.0)
    code, report = run(full_size, tmp_path, "--stages", "train", "--minutes", "0")
    assert code == 1
    assert report["train"] == {
        "problem": "reference did not end in time and was killed",
        "steps": 0,
        "seconds_a_step": None,
    }


def test_a_run_that_fails_is_reported_with_its_last_lines(full_size, tmp_path, monkeypatch):
    failing = [sys.executable, "-c", "raise SystemExit('no such GPU')"]
    monkeypatch.setattr(full_size.Session, "launch_command", lambda *arguments: failing)
    code, report = run(full_size, tmp_path, "--stages", "train")
    assert code == 1
    assert report["train"]["problem"] == "reference failed with status 1:\nno such GPU\n"


def test_logs_are_compared_by_their_largest_relative_difference(full_size):
    a = [{"step": 1, "lr": 1.0, "x": 1.0, "y": 0.0}, {"step": 2, "lr": 1.0, "x": -4.0, "y": 0.0}]
    b = [{"step": 1, "lr": 9.0, "x": 1.1, "y": 0.0}, {"step": 2, "lr": 1.0, "x": -5.0, "y": 0.0}]
    assert full_size.compare_logs(a, b) == {"equal": False, "largest_difference": 0.2, "place": "x, step 2"}


def test_tensors_are_compared_together(full_size):
    a = {"u": torch.tensor([3.0, 0.0]), "v": torch.tensor([4.0])}
    b = {"u": torch.tensor([3.0, 0.3]), "v": torch.tensor([4.4])}
    assert full_size.relative_difference(a, b) == pytest.approx(0.1)


def test_teachers_gradient_norms_are_no_means_over_prompts(full_size):
    row = {"step": 1, "loss_sparsity_2nd": 0.1, "mv_gap_2nd": 0.2, "mv_grad_norm_2nd": 0.3, "grad_norm": 0.4, "lr": 0.5}
    (kept,) = full_size.means_over_prompts([row])
    assert kept == {"step": 1, "loss_sparsity_2nd": 0.1, "mv_gap_2nd": 0.2}


def test_commands_name_the_stand_ins_and_the_prompts(full_size, tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    flags = ["--out", str(tmp_path), "--width", "tiny", "--prompts", str(tmp_path / "prompts.txt"), "seed=3"]
    given = full_size.parse(flags)
    full_size.write_prompts(tmp_path, given.prompts)
    library = json.loads((tmp_path / f"{full_size.LIBRARY}.json").read_text())
    assert library == {"train": ["a cat", "a dog"], "val": ["a cat"], "test": ["a cat", "a dog"]}
    command = full_size.Session(given, 0.0).launch_command("t", "trainer.max_steps=3")
    assert f"system.guidance.rd_ckpt_path={tmp_path}/pretrained/nd_mv_ema.ckpt" in command
    assert command.index("data.width=32") < command.index("seed=3") < command.index("trainer.max_steps=3")
