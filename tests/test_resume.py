"""A run that is killed and resumed ends where an uninterrupted one does, to the bit."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from miniature import write_configuration

import launch
from triplaneturbo.systems.checkpoint import newest_checkpoint, numbered_checkpoints
from triplaneturbo.weights.files import read_checkpoint

ROOT = Path(__file__).parents[1]
# One renderer, one teacher, one part: fast, and all that a checkpoint has to keep is there. The same to the bit is, by
# default, the CPU alone.
FAST = (
    "trainer.accelerator=cpu",
    "system.renderer_type=''",
    "system.guidance.rd_weight=0",
    "system.guidance.sd_weight=0",
    "data.n_steps=1",
    "system.num_parts_training=1",
)


@pytest.mark.slow
def test_kills_leave_no_trace(tiny_world, tmp_path):
    config = write_configuration(tiny_world, tmp_path)
    command = [sys.executable, str(ROOT / "scripts/test/kill_storm.py"), str(config), "--out", str(tmp_path / "storm")]
    options = ["--kills", "10", "trainer.max_steps=25", "checkpoint.every_n_train_steps=1"]
    result = subprocess.run([*command, *options, *FAST], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "10 signals; updates lost that may not be: 0; tracebacks: 0" in result.stdout


@pytest.fixture
def train(tiny_world, tmp_path):
    """train(tag, *overrides): a run of the fast miniature; returns its folder."""
    config = write_configuration(tiny_world, tmp_path)

    def start(tag, *overrides):
        assert launch.main(["--config", str(config), "--train", f"tag={tag}", *FAST, *overrides]) == 0
        return tmp_path / "tiny" / tag

    return start


def test_stopping_between_accumulated_batches_repeats_them(train):
    whole = train("whole", "trainer.max_steps=3")
    # 5 batches are 2.5 optimizer steps of 2 batches.
    part = train("part", "trainer.max_steps=3", "trainer.limit_train_batches=5", "trainer.max_epochs=1")
    assert read_checkpoint(newest_checkpoint(part / "ckpts"))["global_step"] == 2
    train("part", "trainer.max_steps=3", "resume=auto")
    assert (part / "losses.jsonl").read_bytes() == (whole / "losses.jsonl").read_bytes()


def test_another_folder_can_continue_a_run(train):
    first = train("first", "trainer.max_steps=2")
    every = "checkpoint.every_n_train_steps=3"
    second = train("second", "trainer.max_steps=4", every, f"resume={first / 'ckpts/last.ckpt'}")
    whole = train("whole", "trainer.max_steps=4")
    expected = (whole / "losses.jsonl").read_text().splitlines()
    assert (first / "losses.jsonl").read_text().splitlines() == expected[:2]
    assert (second / "losses.jsonl").read_text().splitlines() == expected[2:]
    assert [path.stem.split("=")[-1] for path in numbered_checkpoints(second / "ckpts")] == ["3", "4"]
    states = [read_checkpoint(folder / "ckpts/last.ckpt") for folder in (second, whole)]
    for part in ("state_dict", "ema"):
        assert all(torch.equal(states[0][part][name], value) for name, value in states[1][part].items())


def test_what_a_killed_save_left_is_removed(train):
    folder = train("t", "trainer.max_steps=1")
    (folder / "ckpts/.epoch=0-step=9.ckpt.1.tmp").write_bytes(b"half a checkpoint")
    train("t", "trainer.max_steps=2", "resume=auto")
    assert sorted(p.name.split("-")[-1] for p in (folder / "ckpts").iterdir()) == [
        "last.ckpt",
        "step=1.ckpt",
        "step=2.ckpt",
    ]


def test_other_prompts_cannot_continue_a_run(train, tiny_world, tmp_path, capsys):
    folder = train("t", "trainer.max_steps=1")
    config = str(tmp_path / "tiny.yaml")
    resume = f"resume={folder / 'ckpts/last.ckpt'}"
    assert launch.main(["--config", config, "--train", "--prompt", "a red cube", "tag=u", *FAST, resume]) == 2
    assert "other prompts" in capsys.readouterr().err
