"""The doctor says what there is, on any machine, however broken."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import test_requirements
from packaging.utils import canonicalize_name

from triplaneturbo import doctor
from triplaneturbo.weights.hub import EVERYTHING

ROOT = Path(__file__).parents[1]
TITLES = (
    "Machine",
    "Devices",
    "Required packages",
    "Optional packages",
    "Backends",
    "The miniature world",
    "Weights and",
)


def run(*path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT])), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "triplaneturbo.doctor"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_cpu_machine():
    done = run()
    assert done.returncode == 0
    assert "Traceback" not in done.stdout + done.stderr
    for title in TITLES:
        assert f"\n{title}" in "\n" + done.stdout
    assert "everything runs on the CPU" in done.stdout
    assert "cannot be found out" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 160


def test_a_broken_torch_is_reported_and_the_rest_is_said(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')\n")
    done = run(tmp_path)
    assert done.returncode == 0
    assert "Traceback" not in done.stdout + done.stderr
    assert "Devices\n  cannot be found out: OSError: libcudart.so.12: cannot open" in done.stdout
    assert "nd_mv_ema.ckpt" in done.stdout


def test_missing_and_present_files_and_what_to_do(tmp_path):
    lines = list(doctor.weights(tmp_path))
    assert sum(line.startswith("MISSING") for line in lines) == len(EVERYTHING)
    assert lines[-2:] == [
        "for meshes and their evaluation: python scripts/prepare/download_eval_only.py",
        "for training: python scripts/prepare/download_full.py (--list says from where, --only NAME takes one)",
    ]
    (tmp_path / "load").mkdir()
    (tmp_path / "load" / "magic3d_15_prompt_library.json").write_text("{}")
    assert "there    load/magic3d_15_prompt_library.json: 15 prompts" in list(doctor.weights(tmp_path))


def test_what_each_operation_takes_and_why(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    lines = list(doctor.backends())
    assert "planes             torch          all others run on CUDA" in lines
    assert "                   or             backends.hashgrid=tinycudann" in lines
    licensed = [line for line in lines if "backends.allow_noncommercial=true" in line]
    assert [re.findall(r"backends\.(\w+=\w+)", line)[0] for line in licensed] == [
        "isosurface=diso",
        "rasterizer=nvdiffrast",
    ]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    lines = list(doctor.backends())
    assert any(line.startswith("planes             triton") for line in lines)
    assert any("attention          torch          xformers: not measured" in line for line in lines)
    assert max(map(len, lines)) < 158


def test_every_package_that_is_required_is_asked_for(monkeypatch):
    program = test_requirements.required()
    assert {canonicalize_name(name) for name in doctor.required()} == program
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "tqdm" else "1.0")
    lines = list(doctor.required_packages())
    assert len(lines) == len(program)
    assert [line for line in lines if "MISSING" in line] == [
        "tqdm               MISSING: ./setup.sh, or pip install -e ."
    ]


@pytest.mark.parametrize(
    ("gib", "words"),
    [(80, "v1_acc-2"), (23.6, "24g"), (11.8, "12g"), (6, "generates; training needs"), (4, "too little")],
)
def test_a_card_is_told_the_recipe_that_it_is_enough_for(gib, words):
    assert words in doctor.recipe_for(int(gib * 2**30))
