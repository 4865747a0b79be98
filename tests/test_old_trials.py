"""Trials that earlier versions of this project began can be continued: the same numbers come next.

`trials/first` was trained at commit f62616c: four steps of `miniature.py` (both renderers, three teachers,
accumulated batches, averaged weights) on networks with formula weights, and the losses of nine steps.
"""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import miniature
import pytest
from golden.formula_weights import filled
from miniature import write_world
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from custom.shapeworld.models import build_tokenizer

ROOT = Path(__file__).parents[1]
FIRST = ROOT / "tests/trials/first"
# Sums are made in another order with other instructions, or by the matrix products for another maker's processors. This
# makes most of the difference go away; what is left grows from step to step and was 2.9e-5 of a value at most.
ONE_INSTRUCTION_SET = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}


# What the tokenizer of its world had a token for, in this order, in texts of 16 tokens.
FIRST_WORDS = (
    *("blue", "capsule", "cone", "cross", "cube", "cyan", "cylinder", "diamond", "disk", "dome", "green", "purple"),
    *("pyramid", "red", "sphere", "torus", "wedge", "white", "yellow", "orange", "on", "an", "a"),
)


@pytest.fixture
def trial(tmp_path, monkeypatch):
    """A copy of the old trial beside the networks it was trained with."""
    monkeypatch.setattr(miniature, "build_tokenizer", partial(build_tokenizer, FIRST_WORDS, 16))
    world = write_world(tmp_path / "world")
    for path in world.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        save_file(filled(load_file(path), f"{path.parents[1].name}.{path.parent.name}."), path, metadata)
    folder = shutil.copytree(FIRST, tmp_path / "tiny" / "trial")
    config = folder / "configs/parsed.yaml"
    config.write_text(config.read_text().replace("@WORLD@", str(world)).replace("@OUT@", str(tmp_path)))
    (folder / "losses.jsonl").write_text("".join(_lines(FIRST)[:4]))
    return folder


def _lines(folder):
    return (folder / "losses.jsonl").read_text().splitlines(keepends=True)


@pytest.mark.slow
def test_a_trial_of_the_first_version_continues_with_the_same_losses(trial):
    command = [sys.executable, str(ROOT / "launch.py"), "--config", str(trial / "configs/parsed.yaml"), "--train"]
    options = ["resume=auto", "trainer.accelerator=cpu", "trainer.max_steps=9"]
    result = subprocess.run(
        [*command, *options], capture_output=True, text=True, check=False, env=os.environ | ONE_INSTRUCTION_SET
    )
    assert result.returncode == 0, result.stderr
    expected = [json.loads(line) for line in _lines(FIRST)]
    continued = [json.loads(line) for line in _lines(trial)]
    assert [row["step"] for row in continued] == list(range(1, 10))
    assert continued[:4] == expected[:4]
    assert continued[4] == pytest.approx(expected[4], rel=1e-5, abs=1e-7)
    for wanted, given in zip(expected[5:], continued[5:], strict=True):
        assert given == pytest.approx(wanted, rel=1e-4, abs=1e-7), f"step {wanted['step']}"
