"""Two runs never write into one folder: locks between real processes, and what another host's lock is worth."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from triplaneturbo import lock
from triplaneturbo.errors import WriteError
from triplaneturbo.lock import FILE, FolderLock, Holder

ROOT = Path(__file__).parents[1]
HOLD = """
import os, sys, time
from pathlib import Path
from triplaneturbo.lock import FolderLock
with FolderLock(Path(sys.argv[1])):
    if "fork" in sys.argv:
        if not os.fork():
            time.sleep(600)
    print("locked", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def hold(tmp_path):
    """hold(*options): another process that has the lock of tmp_path / "trial" until it is told to let go."""
    started = []

    def start(*options):
        command = [sys.executable, "-c", HOLD, str(tmp_path / "trial"), *options]
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        assert process.stdout.readline() == "locked\n"
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):  # it has ended, and has no forks
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def fake(folder, silent_for, **changes):
    """A lock file as another host would have left it; returns its path."""
    folder.mkdir(exist_ok=True)
    content = {"host": "elsewhere", "process": 7, "since": "yesterday", "kernel": "its own", "token": "t"} | changes
    path = folder / FILE
    path.write_text(json.dumps({**content, "heartbeat": "some time"}))
    os.utime(path, (time.time() - silent_for,) * 2)
    return path


def test_a_second_process_is_refused_with_the_first_ones_name(hold, tmp_path):
    first = hold()
    with pytest.raises(WriteError, match=rf"trial is being written by process {first.pid} on .*still running.*tag="):
        FolderLock(tmp_path / "trial").__enter__()
    assert Holder.read((tmp_path / "trial" / FILE).read_text()).process == first.pid
    first.communicate("\n")
    with FolderLock(tmp_path / "trial"):
        assert Holder.read((tmp_path / "trial" / FILE).read_text()).process == os.getpid()


def test_another_folder_is_another_lock(hold, tmp_path):
    hold()
    with FolderLock(tmp_path / "other"):
        pass


@pytest.mark.parametrize("options", [(), ("fork",)])
def test_a_killed_process_holds_nothing_not_even_by_its_forks(hold, tmp_path, options):
    first = hold(*options)
    first.kill()
    first.wait()
    assert (tmp_path / "trial" / FILE).exists()
    with FolderLock(tmp_path / "trial") as held:
        held.check()


def test_nothing_is_left_after_the_end(tmp_path):
    with FolderLock(tmp_path / "trial"):
        (tmp_path / "trial" / "a file").touch()
    assert [path.name for path in (tmp_path / "trial").iterdir()] == ["a file"]
    with FolderLock(tmp_path / "empty"):
        pass
    assert not (tmp_path / "empty").exists()


def test_the_lock_of_another_host_is_respected_for_five_minutes(tmp_path):
    path = fake(tmp_path, silent_for=290)
    message = rf"process 7 on elsewhere since yesterday, whose last sign of life is 29\d s old.*300 s.*remove .*{FILE}"
    with pytest.raises(WriteError, match=message):
        FolderLock(tmp_path).__enter__()
    assert Holder.read(path.read_text()).token == "t"


def test_the_lock_of_a_silent_host_is_taken_over_with_a_word(tmp_path, caplog):
    path = fake(tmp_path, silent_for=310)
    with FolderLock(tmp_path):
        assert Holder.read(path.read_text()).process == os.getpid()
    assert "taken over from process 7 on elsewhere since yesterday, silent for 31" in caplog.text


def test_a_kernel_that_keeps_the_lock_of_a_silent_host_is_overruled(hold, tmp_path, caplog):
    first = hold()
    fake(tmp_path / "trial", silent_for=310)
    with FolderLock(tmp_path / "trial") as held:
        assert "taken over" in caplog.text
        for end_of_first in (lambda: first.communicate("\n"), lambda: None):
            held.check()
            with pytest.raises(WriteError, match=f"process {os.getpid()} on .*still running"):
                FolderLock(tmp_path / "trial").__enter__()
            end_of_first()


def test_clocks_of_hosts_do_not_matter(tmp_path, monkeypatch):
    fake(tmp_path, silent_for=10)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    with pytest.raises(WriteError, match=r"sign of life is 1. s old"):
        FolderLock(tmp_path).__enter__()


@pytest.mark.parametrize("text", ["{", '{"host": 1}', "[]", "\0\0"])
def test_a_file_that_names_nobody_is_respected_like_another_hosts(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(WriteError, match="an unknown run, whose last sign of life is 0 s"):
        FolderLock(tmp_path).__enter__()


def test_who_was_overtaken_stops_and_leaves_the_other_alone(tmp_path):
    with FolderLock(tmp_path) as held:
        held.check()
        path = fake(tmp_path, silent_for=0)
        with pytest.raises(WriteError, match=r"no longer has the folder .*process 7 on elsewhere .* has taken it over"):
            held.check()
    assert Holder.read(path.read_text()).token == "t"


def test_a_lock_that_was_removed_is_noticed(tmp_path):
    with FolderLock(tmp_path) as held:
        (tmp_path / FILE).unlink()
        with pytest.raises(WriteError, match=f"{FILE} was removed"):
            held.check()


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_file_is_renewed_until_another_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    path = tmp_path / FILE
    with FolderLock(tmp_path):
        for _ in range(2):
            os.utime(path, (0, 0))
            wait_until(lambda: path.stat().st_mtime > 0)
        fake(tmp_path, silent_for=1000)
        time.sleep(0.2)
        assert json.loads(path.read_text())["token"] == "t"
        assert time.time() - path.stat().st_mtime > 900


def test_a_renewal_that_fails_is_said_and_tried_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    write, failures = os.pwrite, []

    def fail_once(*arguments):
        if failures:
            return write(*arguments)
        failures.append(arguments)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with FolderLock(tmp_path) as held:
        monkeypatch.setattr(os, "pwrite", fail_once)
        wait_until(lambda: failures)
        os.utime(tmp_path / FILE, (0, 0))
        wait_until(lambda: (tmp_path / FILE).stat().st_mtime > 0)
        held.check()
    assert "cannot renew" in caplog.text
    assert "Input/output error; after 300 s" in caplog.text


def test_where_there_are_no_locks_a_sentence_says_so(tmp_path, monkeypatch, caplog):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with FolderLock(tmp_path / "disk") as held:
        held.check()
        assert list((tmp_path / "disk").iterdir()) == []
    monkeypatch.setattr(lock, "fcntl", None)
    with FolderLock(tmp_path / "system") as held:
        held.check()
    said = [record.getMessage() for record in caplog.records]
    assert [line.partition(": ")[2][:28] for line in said] == ["there are no file locks here"] * 2


def test_other_failures_of_the_disk_are_errors(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(lock.fcntl, "flock", fail)
    with pytest.raises(WriteError, match="Input/output error"):
        FolderLock(tmp_path).__enter__()


def test_a_holder_that_leaves_between_opening_and_locking_is_no_obstacle(tmp_path, monkeypatch):
    """The file that was locked then has no name any more: it would lock nothing."""
    flock, names = lock.fcntl.flock, []

    def lose_the_name(*arguments):
        flock(*arguments)
        if not names:
            names.append((tmp_path / FILE).stat().st_ino)
            (tmp_path / FILE).unlink()

    monkeypatch.setattr(lock.fcntl, "flock", lose_the_name)
    with FolderLock(tmp_path) as held:
        held.check()
        with pytest.raises(WriteError, match="still running"):
            FolderLock(tmp_path).__enter__()
