"""scripts/train/shapeworld.sh trains every student with the networks of the folder that it was told."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from triplaneturbo.base import as_tree
from triplaneturbo.config import load_config

ROOT = Path(__file__).parents[2]
WORLD = ROOT / "load/shapeworld"
EARLIER = {
    "student": None,
    "student_longer": "student",
    "student_finer": "student_longer",
    "student_dots": "student_finer",
}


def arguments_of(stage: str, out: Path, folder: Path) -> list[str]:
    """What launch.py is given by the script, which is given a Python that writes that down and does nothing."""
    python, said = folder / "python", folder / "said"
    python.write_text(f'#!/bin/sh\n[ "$1" != launch.py ] || printf "%s\\n" "$@" >{shlex.quote(str(said))}\n')
    python.chmod(0o755)
    command = [ROOT / "scripts/train/shapeworld.sh", "--out", out, stage]
    subprocess.run(command, env=os.environ | {"PYTHON": str(python)}, check=True)
    return said.read_text().splitlines()


@pytest.mark.parametrize("stage", EARLIER)
def test_a_student_is_trained_with_the_networks_of_its_folder(stage, tmp_path):
    out = tmp_path / "world"
    out.mkdir()
    for network in ("stable_diffusion", "mvdream", "richdreamer"):
        (out / network).symlink_to(WORLD / network)
    if EARLIER[stage]:
        weights = out / "outputs/shapeworld-student" / EARLIER[stage] / "ckpts/last.ckpt"
        weights.parent.mkdir(parents=True)
        weights.symlink_to(WORLD / "student.safetensors")
    arguments = arguments_of(stage, out, tmp_path)
    config = arguments[arguments.index("--config") + 1]
    tree = as_tree(load_config([ROOT / config], [a for a in arguments if "=" in a]))
    paths = [line for line in json.dumps(tree, indent=0, default=str).splitlines() if "shapeworld/" in line]
    assert not paths
    assert tree["system"]["weights"] is None if EARLIER[stage] is None else str(weights) in tree["system"]["weights"]
