"""The published scripts: each starts a recipe with a library and weights that belong together."""

import subprocess
import sys
from pathlib import Path

import pytest

from triplaneturbo.config import load_config
from triplaneturbo.extensions import import_extensions
from triplaneturbo.weights.hub import LIBRARIES

ROOT = Path(__file__).parents[2]
FOLDERS = ("single-prompt-benchmark", "multi-prompt-benchmark", "multi_prompts_benchmark_evaluation")
SCRIPTS = sorted(script for folder in FOLDERS for script in (ROOT / "scripts" / folder).glob("*.sh"))


@pytest.fixture
def started(tmp_path):
    """Runs a script with a program in Python's place; gives the arguments of launch.py."""
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\nfor argument; do echo "$argument"; done\n')
    stub.chmod(0o755)

    def run(script, *more):
        command = ["sh", str(script), *more]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHON": str(stub)}, cwd="/")
        program, *arguments = done.stdout.splitlines()
        assert program == "launch.py"
        return arguments

    return run


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_script_starts_a_recipe_that_can_be_read(script, started):
    option, config, stage, *rest = started(script, "--gpu", "0", "seed=3")
    assert (option, rest[-3:]) == ("--config", ["--gpu", "0", "seed=3"])
    import_extensions(ROOT / "custom")
    overrides = [argument for argument in rest if "=" in argument and not argument.startswith("system.weights=")]
    experiment = load_config([ROOT / config], overrides)
    assert experiment.seed == 3
    if script.parent.name == "single-prompt-benchmark":
        assert (stage, rest[0]) == ("--train", "--prompt")
        return
    corpus = script.stem.rsplit("_", 1)[1]
    assert experiment.data.cfg.prompt_library in {asset.name for asset in LIBRARIES}
    weights = [argument for argument in rest if argument.startswith("system.weights=")]
    assert stage == ("--test" if weights else "--train")
    assert not weights or Path(weights[0]).name.startswith(f"{corpus}_")


def test_twelve_scripts_are_there():
    assert [len([s for s in SCRIPTS if s.parent.name == folder]) for folder in FOLDERS] == [2, 5, 5]


def test_training_and_evaluation_of_a_corpus_use_one_recipe(started):
    train, test = ([started(s)[1] for s in SCRIPTS if s.parent.name == folder] for folder in FOLDERS[1:])
    assert train == test


def test_what_is_downloaded_is_for_this_method(tmp_path):
    command = [sys.executable, "scripts/download_pretrained_models.py", "--list", "--root", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    names = [Path(line.split()[1].rstrip(":")).name for line in done.stdout.splitlines()]
    assert names[:2] == ["stable-diffusion-2-1-base", "sd-v2.1-base-4view.pt"]
    assert {name.split("_")[0] for name in names[2:]} == {"dreamfusion", "magic3d", "att3d", "instant3d", "cap3d"}
