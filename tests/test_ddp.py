"""Two processes do what one does with the same global batch, in one pass or accumulated; they stop together."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from miniature import write_configuration
from test_resume import FAST

from triplaneturbo.systems.checkpoint import numbered_checkpoints
from triplaneturbo.weights.files import read_checkpoint

ROOT = Path(__file__).parents[1]


def train(config, tag, *overrides):
    command = [sys.executable, str(ROOT / "launch.py"), "--config", str(config), "--train", f"tag={tag}"]
    # With a tiny eps first steps are signs of gradients, which magnifies the rounding of small ones.
    options = ["trainer.max_steps=2", "trainer.accelerator=cpu", "system.optimizer.args.eps=1e-3", *overrides]
    result = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    folder = config.parent / "tiny" / tag
    rows = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    return rows, read_checkpoint(folder / "ckpts/last.ckpt")["state_dict"]


@pytest.mark.slow
def test_two_processes_equal_one(tiny_world, tmp_path):
    config = write_configuration(tiny_world, tmp_path)
    one_log, one = train(config, "one", "data.batch_size=4")
    pair = ("trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=2")
    two_log, two = train(config, "two", *pair, "use_timestamp=true")
    halves = ("data.batch_size=2", "system.gradient_accumulation_steps=4")
    accumulated_log, accumulated = train(config, "accumulated", *halves)
    assert [(row["step"], row["prompts"]) for row in two_log] == [(1, 4), (2, 8)]
    for other_log, other in ((two_log, two), (accumulated_log, accumulated)):
        for first, second in zip(one_log, other_log, strict=True):
            for name in ("grad_norm", "loss_sparsity_2nd", "loss_eikonal_2nd", "mv_gap", "sd_gap_2nd"):
                assert second[name] == pytest.approx(first[name], rel=1e-4), name
        difference = torch.cat([(one[name] - other[name]).flatten() for name in one])
        size = torch.cat([one[name].flatten() for name in one])
        assert difference.norm() <= 1e-4 * size.norm()


@pytest.mark.slow
def test_both_processes_stop_after_the_same_update(tiny_world, tmp_path):
    """The signal goes to the first process alone; the other, which it has started, hears of it with the gradients."""
    config, folder = write_configuration(tiny_world, tmp_path), tmp_path / "tiny/pair"
    options = [*FAST, "trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=2", "trainer.max_steps=100000"]
    options += ["trainer.log_every_n_steps=1", "checkpoint.every_n_train_steps=100000", "tag=pair"]
    command = [sys.executable, str(ROOT / "launch.py"), "--config", str(config), "--train", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    log = folder / "losses.jsonl"
    while not (log.exists() and log.stat().st_size):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]  # ends when both have closed it, so the other process ends, too
    assert process.returncode == 143, said
    (saved,) = numbered_checkpoints(folder / "ckpts")
    assert len(log.read_text().splitlines()) == read_checkpoint(saved)["global_step"]
    assert said.count("stopped by SIGTERM after step") == 1
    assert "Traceback" not in said
