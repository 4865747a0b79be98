"""scripts/test/full_size_scaledreamer.py: its commands, turns and report, with a stand-in for the trainings."""

import fcntl
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_training import FAKE_TRAINING

from triplaneturbo.systems.distillation import SceneDistillation

SCRIPTS = Path(__file__).parents[2] / "scripts/test"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("full_size_scaledreamer", SCRIPTS / "full_size_scaledreamer.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.delenv(module.TURN, raising=False)
    return module


@pytest.mark.parametrize("noise", [0.0, 0.25])
def test_recipes_are_killed_resumed_and_compared(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: float
) -> None:
    (tmp_path / "fake.py").write_text(FAKE_TRAINING)
    (tmp_path / "out/pretrained").mkdir(parents=True)

    def command(session: Any, tag: str, *arguments: str) -> list[str]:
        return [sys.executable, str(tmp_path / "fake.py"), str(session.trial(tag)), "4", str(noise)]

    monkeypatch.setattr(script.Recipe, "launch_command", command)
    names = ["asd_sd_nerf", "asd_mv_nerf"]
    monkeypatch.setenv(script.TURN, "")  # set by the script, and taken back here
    code = script.main(["--out", str(tmp_path / "out"), "--steps", "4", "--recipes", *names])
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert code == int(noise > 0)
    assert report["recipes"].keys() == set(names)
    for found in report["recipes"].values():
        assert (found["train"]["peak_gib"], found["resume"]["killed_after"]) == (2.0, 2)
        assert found["resume"]["final_weights"]["equal"] == (noise == 0)
    text = (tmp_path / "out/report.md").read_text()
    assert text.count("equal bit for bit") == (2 if noise == 0 else 0)


def test_every_recipe_is_told_where_its_stand_ins_are(script: Any, tmp_path: Path) -> None:
    for name in script.RECIPES:
        flags = script.parse(["--out", str(tmp_path), "--width", "tiny", "--", "seed=3"])
        words = script.session(flags, name, 0.0).overrides()
        teacher, asset = ("mvdream", 1) if "_mv_" in name else ("stable_diffusion", 0)
        assert f"system.guidance.teachers.{teacher}.path={tmp_path / 'pretrained' / script.ASSETS[asset]}" in words
        assert sum(word.startswith("--prompt=") for word in words) == (1 if "nerf" in name else 8)
        assert words[-1] == "seed=3"


def test_trainings_wait_for_their_turn(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from measured_launch import in_turn

    monkeypatch.setattr(SceneDistillation, "on_fit_start", lambda system: None)
    with in_turn(str(tmp_path / "turn")):
        SceneDistillation.on_fit_start(None)
        with open(tmp_path / "turn") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(tmp_path / "turn") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
