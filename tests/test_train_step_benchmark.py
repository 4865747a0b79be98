"""The benchmark of a training's micro-batches: what it prints and writes, at the smallest size."""

import json
import sys
from pathlib import Path

import pytest
from miniature import write_configuration

sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import train_step

STAGES = {"generator forward", "generator backward", "mesh forward", "volume backward", "mvdream network", "rest"}


@pytest.mark.slow
def test_every_point_is_measured_in_a_process_of_its_own(tiny_world, tmp_path, capsys):
    config = write_configuration(tiny_world, tmp_path)
    points = ["data.batch_size=2", "data.batch_size=4 system.gradient_accumulation_steps=1"]
    command = ["--config", str(config), "--world", "--warmup", "0", "--repeats", "2", "--points", *points]
    written = ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "times.json")]
    assert train_step.main([*command, *written]) == 0
    printed = capsys.readouterr().out
    assert "micro-batch 0:" not in printed  # others say that, and not through this process
    for number, point in enumerate(points):
        found = json.loads((tmp_path / f"times-{number}.json").read_text())
        assert found["config"]["overrides"] == point.split()
        assert found["stages"].keys() >= STAGES
        assert all(0 < stage["min_s"] <= stage["median_s"] for name, stage in found["stages"].items() if name in STAGES)
        assert sum(stage["min_s"] for stage in found["stages"].values()) <= found["total"]["max_s"]
        assert f"| fast {point} |" in printed


@pytest.mark.parametrize("more", [["--levels", "fast", "max"], ["--points", "a=1", "a=2"], ["--gradients", "2"]])
def test_processes_that_train_together_measure_one_thing(more, capsys):
    with pytest.raises(SystemExit):
        train_step.parse(["--world", "--devices", "2", *more])
    assert "--devices above 1 measures one level at one point" in capsys.readouterr().err


def test_a_second_counts_once():
    """A teacher's whole time holds its judgement, which holds its encoder and its network."""
    sums = {"sd all": 10.0, "sd judge": 6.0, "sd encode": 2.0, "sd network": 3.0, "update": 1.0}
    stages = train_step.split(sums)
    parts = {"sd encode": 2.0, "sd network": 3.0, "sd rule": 1.0, "sd backward to pixels": 4.0, "update": 1.0}
    assert stages == parts
    assert sum(stages.values()) == sums["sd all"] + sums["update"]
