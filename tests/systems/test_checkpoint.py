"""Files that are complete or not there, and which of them a run continues from."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from triplaneturbo.errors import ConfigError, WeightsError
from triplaneturbo.storage import link_file
from triplaneturbo.systems.checkpoint import (
    AtomicCheckpointIO,
    newest_checkpoint,
    newest_valid_checkpoint,
    numbered_checkpoints,
    resolve_resume,
)
from triplaneturbo.weights.files import read_checkpoint

SAVE_UNTIL_KILLED = """
import sys, torch
from triplaneturbo.systems.checkpoint import AtomicCheckpointIO
for number in range(10**6):
    AtomicCheckpointIO().save_checkpoint({"value": torch.full((200_000,), number)}, sys.argv[1])
    print(number, flush=True)
"""


def test_a_kill_leaves_a_complete_file(tmp_path):
    path = tmp_path / "a.ckpt"
    command = [sys.executable, "-c", SAVE_UNTIL_KILLED, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    for _ in range(3):
        process.stdout.readline()
    while not list(tmp_path.glob(".*.tmp")):
        pass
    process.kill()
    process.wait()
    value = read_checkpoint(path)["value"]
    assert value.unique().numel() == 1
    assert value[0] >= 2


def test_a_failed_save_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    with pytest.raises(AttributeError):
        AtomicCheckpointIO().save_checkpoint({"step": lambda: 2}, path)
    assert read_checkpoint(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_reading_executes_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(WeightsError, match=r"evil\.ckpt"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt", weights_only=False)
    assert not (tmp_path / "executed").exists()


def test_damaged_and_missing_files_are_named(tmp_path):
    torch.save({"a": torch.ones(1000)}, tmp_path / "cut.ckpt")
    content = (tmp_path / "cut.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(content[: len(content) // 2])
    for name in ("cut.ckpt", "none.ckpt"):
        with pytest.raises(WeightsError, match=name):
            read_checkpoint(tmp_path / name)


def fill(folder, *names):
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()


def test_the_newest_is_that_of_the_largest_step(tmp_path):
    fill(tmp_path / "a", "epoch=0-step=9.ckpt", "epoch=0-step=10.ckpt", "last.ckpt", ".epoch=0-step=11.ckpt.7.tmp")
    assert newest_checkpoint(tmp_path / "a").name == "epoch=0-step=10.ckpt"
    assert [p.name for p in numbered_checkpoints(tmp_path / "a")] == ["epoch=0-step=9.ckpt", "epoch=0-step=10.ckpt"]
    fill(tmp_path / "b", "last.ckpt")
    assert newest_checkpoint(tmp_path / "b").name == "last.ckpt"
    fill(tmp_path / "c", ".last.ckpt.7.tmp")
    assert newest_checkpoint(tmp_path / "c") is None


def test_auto_looks_at_the_trials_of_its_tag_only(tmp_path):
    assert resolve_resume("auto", tmp_path, "tag") is None
    fill(tmp_path / "tagged" / "ckpts", "epoch=0-step=9.ckpt")
    assert resolve_resume("auto", tmp_path, "tag") is None
    path = save_state(tmp_path / "tag@2" / "ckpts", 1)
    assert resolve_resume("auto", tmp_path, "tag") == path


def save_state(folder, step, name=None):
    """A training's state as Lightning saves it, in small."""
    path = folder / (name or f"epoch=0-step={step}.ckpt")
    state = {"state_dict": {"w": torch.full((1000,), float(step))}, "global_step": step, "loops": {}}
    AtomicCheckpointIO().save_checkpoint({**state, "pytorch-lightning_version": "2.6.0"}, path)
    return path


def test_the_largest_step_of_all_trials_counts_not_the_time(tmp_path):
    newest = save_state(tmp_path / "tag@1" / "ckpts", 20)
    older = save_state(tmp_path / "tag@2" / "ckpts", 9)
    os.utime(newest, (1, 1))
    assert resolve_resume("auto", tmp_path, "tag") == newest
    assert newest_valid_checkpoint([older.parent]) == (older, {})


def _flip(path):
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((1000,), float(9)).numpy().tobytes()) + 2001] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_flip, "Bad CRC"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "damaged or cut short"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"<html>"), "web page"),
        (lambda path: torch.save({"w": torch.ones(1)}, path), "not the state of a training"),
        (lambda path: torch.save([1], path), "holds a list"),
        (lambda path: save_state(path.parent, 5, path.name), "holds step 5"),
        (lambda path: (path.unlink(), path.mkdir()), "is a folder"),
    ],
)
def test_auto_passes_over_what_cannot_be_gone_on_from_and_says_why(tmp_path, caplog, damage, reason):
    good = save_state(tmp_path / "tag@1/ckpts", 8)
    save_state(tmp_path / "tag@1/ckpts", 7)
    bad = save_state(tmp_path / "tag@2/ckpts", 9)
    (bad.parent / ".epoch=0-step=10.ckpt.7.tmp").write_bytes(b"PK")
    damage(bad)
    assert resolve_resume("auto", tmp_path, "tag") == good
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2, lines
    assert not any("\n" in line for line in lines)
    assert "step=10.ckpt.7.tmp is what a save left" in lines[0]
    assert str(bad) in lines[1]
    assert reason in lines[1]


def test_last_is_read_for_its_step_unless_it_is_the_numbered_file(tmp_path):
    numbered = save_state(tmp_path, 9)
    link_file(numbered, tmp_path / "last.ckpt")
    assert newest_valid_checkpoint([tmp_path]) == (numbered, {})
    last = save_state(tmp_path, 12, "last.ckpt")
    assert newest_valid_checkpoint([tmp_path]).path == last
    last.write_bytes(b"")
    chosen, passed_over = newest_valid_checkpoint([tmp_path])
    assert chosen == numbered
    assert list(passed_over) == [last]


def test_a_copy_of_the_last_one_stands_in_for_a_damaged_one(tmp_path):
    numbered, last = save_state(tmp_path, 9), save_state(tmp_path, 9, "last.ckpt")
    _flip(numbered)
    assert newest_valid_checkpoint([tmp_path]).path == last


def test_auto_does_not_start_anew_beside_checkpoints_that_are_all_damaged(tmp_path):
    folder = tmp_path / "tag@1/ckpts"
    folder.mkdir(parents=True)
    (folder / ".epoch=0-step=1.ckpt.7.tmp").write_bytes(b"PK")
    assert resolve_resume("auto", tmp_path, "tag") is None
    (folder / "epoch=0-step=1.ckpt").write_bytes(b"PK")
    with pytest.raises(WeightsError, match=r"none of the 1 checkpoints of tag.*move them away"):
        resolve_resume("auto", tmp_path, "tag")


def test_last_stands_for_the_last_name(tmp_path):
    for stamp in ("@20250101", "@20250301", "@20250201"):
        fill(tmp_path / f"tag{stamp}" / "ckpts", "last.ckpt")
    found = resolve_resume(f"{tmp_path}/tag@LAST/ckpts/last.ckpt", tmp_path, "tag")
    assert found == tmp_path / "tag@20250301/ckpts/last.ckpt"
    with pytest.raises(ConfigError, match="nothing"):
        resolve_resume(f"{tmp_path}/other@LAST/ckpts/last.ckpt", tmp_path, "tag")


def test_a_path_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="auto"):
        resolve_resume(str(tmp_path / "none.ckpt"), tmp_path, "tag")
