"""A run's folder: what its lives were given, what may change between them, and one decision for all processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import launch
from triplaneturbo.config import read_config
from triplaneturbo.launcher import build_trainer
from triplaneturbo.lock import FILE, FolderLock
from triplaneturbo.systems.checkpoint import newest_checkpoint
from triplaneturbo.trial import differences, enter_trial

ROOT = Path(__file__).parents[1]
PATH = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


@pytest.fixture
def train(toy, tmp_path):
    """train(*overrides): the exit code of a run of the toy in tmp_path / "out/toy/t"."""
    return lambda *overrides: launch.main(["--config", str(toy), "--train", *overrides])


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "out/toy/t"


def test_every_life_keeps_what_it_was_given(train, folder, monkeypatch):
    for life in (1, 2, 3):
        monkeypatch.setattr("sys.argv", ["launch.py", f"life {life}"])
        assert train(f"trainer.max_steps={4 * life}", "resume=auto") == 0
    lives = sorted(path.name for path in (folder / "configs").glob("life-*"))
    assert lives == ["life-001", "life-002", "life-003"]
    for life, name in enumerate(lives, 1):
        kept = folder / "configs" / name
        assert yaml.safe_load((kept / "parsed.yaml").read_text())["trainer"]["max_steps"] == 4 * life
        assert (kept / "cmd.txt").read_text() == f"launch.py 'life {life}'\n"
        assert yaml.safe_load((kept / "raw.yaml").read_text())["name"] == "toy"
    for name, newest in (("configs/parsed.yaml", "parsed.yaml"), ("configs/raw.yaml", "raw.yaml"), ("cmd.txt",) * 2):
        assert (folder / name).read_bytes() == (folder / "configs/life-003" / newest).read_bytes()


def test_a_folder_of_an_older_version_keeps_its_first_life(train, folder):
    (folder / "configs").mkdir(parents=True)
    (folder / "configs/parsed.yaml").write_text("old: 1")
    (folder / "cmd.txt").write_text("old")
    assert train() == 0
    first = folder / "configs/life-001"
    assert {path.name: path.read_text() for path in first.iterdir()} == {"parsed.yaml": "old: 1", "cmd.txt": "old"}
    assert (folder / "configs/life-002/parsed.yaml").read_bytes() == (folder / "configs/parsed.yaml").read_bytes()


def test_what_differs_is_said_in_a_table(train, caplog):
    assert train() == 0
    assert train("resume=auto") == 0
    assert "not that of" not in caplog.text
    assert train("resume=auto", "trainer.max_steps=8", "data.size=2", "trainer.precision=bf16-mixed") == 0
    (said,) = [record.getMessage() for record in caplog.records if "not that of" in record.getMessage()]
    assert [line.split() for line in said.splitlines()[1:]] == [
        ["key", "then", "now"],
        ["data.size", "4", "2"],
        ["trainer.max_steps", "6", "8"],
        ["trainer.precision", "not", "given", "bf16-mixed"],
    ]
    assert len({line.rindex("  ") for line in said.splitlines()[1:]}) == 1


@pytest.mark.parametrize("override", ["seed=1", "data.seed=1", "system.type=toy-system-2"])
def test_what_would_change_the_past_is_refused_and_nothing_written(train, toy, tmp_path, folder, capsys, override):
    if "system" in override:
        module = tmp_path / "toy_extensions/toy.py"
        text = module.read_text()
        again = text[text.index('@register("toy-system")') :].replace("toy-system", "toy-system-2")
        module.write_text(text + again.replace("ToySystem", "ToySystem2"))
    assert train("trainer.max_steps=2") == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    last = folder / "ckpts/last.ckpt"
    for resume, place in (("auto", "tag=t"), (last, "tag=elsewhere")):
        assert train(f"resume={resume}", place, override) == 2
        said = capsys.readouterr().err
        key, _, value = override.partition("=")
        was = {"seed": 0, "data.seed": -1, "system.type": "toy-system"}[key]
        assert f"resume: {key} was {was} in the run of" in said
        assert f"is {value} now" in said
        assert f"start a new one from its weights with system.weights={folder}" in said
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert not (folder.parent / "elsewhere").exists()


def test_a_seed_that_is_given_again_is_no_other(train):
    assert train("trainer.max_steps=2") == 0
    assert train("resume=auto", "seed=0", "data.seed=-1") == 0


def test_evaluation_may_have_another_seed_and_a_folder_that_is_trained_in(train, toy, folder, caplog):
    """It writes no log and no checkpoint that this could make untrue."""
    assert train("trainer.max_steps=2") == 0
    reading = read_config([toy], ["resume=auto", "seed=1"])
    experiment = reading.experiment()
    entered = enter_trial(reading, experiment, build_trainer(experiment), training=False)
    with FolderLock(folder), entered as trial:
        assert trial.checkpoint == folder / "ckpts/epoch=0-step=2.ckpt"
        assert (trial.experiment.trial_dir, trial.lock) == (folder, None)
    assert "not that of" not in caplog.text


def test_a_folder_that_is_trained_in_cannot_be_trained_in(train, folder, capsys):
    with FolderLock(folder):
        assert train() == 2
        assert [path.name for path in folder.iterdir()] == [FILE]
    assert f"{folder} is being written by process {os.getpid()} on" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"{", b"\0\xff", b"only text"])
def test_a_past_that_cannot_be_read_is_said(train, folder, caplog, content):
    assert train("trainer.max_steps=2") == 0
    path = folder / "configs/parsed.yaml"
    path.unlink() if content is None else path.write_bytes(content)
    assert train("resume=auto") == 0
    assert "cannot be compared with what the run was before" in caplog.text


def test_differences_of_nested_options():
    then = {"a": {"b": 1, "c": [1, 2]}, "d": {}, "tag": "x"}
    now = {"a": {"b": 1, "c": [1, 3]}, "d": {"e": None}, "tag": "y"}
    assert differences(then, now) == [
        ("a.c", "[1, 2]", "[1, 3]"),
        ("d.e", "not given", "None"),
    ]


def test_a_run_that_is_overtaken_stops_before_it_saves(train, toy, tmp_path, folder, capsys):
    module = tmp_path / "toy_extensions/toy.py"
    other = {"host": "elsewhere", "process": 7, "since": "now", "kernel": "its own", "token": "t"}
    steal = f"""        if batch_idx == 3:
            open({str(folder / FILE)!r}, "w").write({json.dumps(other)!r})
        return loss
"""
    module.write_text(module.read_text().replace("        return loss\n", steal))
    assert train() == 2
    assert "process 7 on elsewhere since now has taken it over" in capsys.readouterr().err
    assert newest_checkpoint(folder / "ckpts").name == "epoch=0-step=2.ckpt"
    assert json.loads((folder / FILE).read_text()) == other


# Several processes

PROCESS = """
import os, sys
import triplaneturbo.launcher, triplaneturbo.trial
from pathlib import Path
triplaneturbo.launcher.CUSTOM_FOLDER = Path(sys.argv[1]) / "toy_extensions"
rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", os.environ.get("NODE_RANK", 0))))
def refuse(*arguments):
    raise AssertionError(f"rank {rank} chooses")
if rank and "MAY_CHOOSE" not in os.environ:
    triplaneturbo.trial.resolve_resume = refuse
import launch
sys.exit(launch.main(sys.argv[2:]))
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def pair(toy, tmp_path):
    """pair(kind, *overrides): a run of two processes, which Lightning or torchrun starts; the finished process."""
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    starters = {
        "lightning": [sys.executable],
        "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port"],
    }

    def start(kind, *overrides):
        starter = [*starters[kind], str(free_port())] if kind == "torchrun" else starters[kind]
        command = [*starter, str(script), str(tmp_path), "--config", str(toy), "--train"]
        options = ["trainer.devices=2", "trainer.strategy=ddp", "use_timestamp=true", *overrides]
        environment = {**os.environ, "PYTHONPATH": PATH, "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.run(
            [*command, *options], capture_output=True, text=True, check=False, timeout=300, env=environment
        )

    return start


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lightning", "torchrun"])
def test_process_0_chooses_for_all(pair, train, tmp_path, kind):
    assert train("trainer.max_steps=2", "timestamp='@1'") == 0
    folder = tmp_path / "out/toy/t@1"
    result = pair(kind, "resume=auto", "trainer.max_steps=4")
    assert result.returncode == 0, result.stderr
    assert newest_checkpoint(folder / "ckpts").name == "epoch=0-step=4.ckpt"
    assert "2 done, 4 to reach" in result.stderr
    assert result.stderr.count("this configuration is not that of") == 1
    assert sorted(path.name for path in (folder / "configs").glob("life-*")) == ["life-001", "life-002"]
    assert not (folder / FILE).exists()


@pytest.mark.slow
def test_what_process_0_may_not_do_stops_all(pair, folder):
    with FolderLock(folder):
        result = pair("torchrun")
    assert result.returncode != 0
    assert result.stderr.count(f"is being written by process {os.getpid()} on") == 2
    assert not (folder / "ckpts").exists()


@pytest.mark.slow
def test_machines_that_see_other_files_stop(train, toy, tmp_path):
    """Started by hand on two machines, the processes meet only when training begins."""
    (tmp_path / "process.py").write_text(PROCESS)
    assert train("trainer.max_steps=2", "tag=a") == 0
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "MAY_CHOOSE": "1", "PYTHONPATH": PATH}
    options = ["trainer.devices=1", "trainer.num_nodes=2", "trainer.strategy=ddp", "tag=b", "trainer.max_steps=4"]
    resumes = ["resume=auto", f"resume={tmp_path / 'out/toy/a/ckpts/last.ckpt'}"]
    command = [sys.executable, str(tmp_path / "process.py"), str(tmp_path), "--config", str(toy), "--train", *options]
    processes = [
        subprocess.Popen(
            [*command, resume], env={**os.environ, **common, "NODE_RANK": str(node)}, stderr=subprocess.PIPE, text=True
        )
        for node, resume in enumerate(resumes)
    ]
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 2, said
        assert "process 0 starts from None, others from" in said
    assert not (tmp_path / "out/toy/b/ckpts").exists()
