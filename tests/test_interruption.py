"""Signals: nothing that was completed is lost, nothing is left half written, one line says how to go on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from miniature import PROMPTS, write_configuration
from test_resume import FAST

import launch
from triplaneturbo.interruption import Wishes, interruption, interrupts_blocked, stoppable
from triplaneturbo.systems import checkpoint
from triplaneturbo.systems.prd import ProgressiveRenderingDistillation as System
from triplaneturbo.systems.scene import SceneSystem
from triplaneturbo.weights.files import read_checkpoint

ROOT = Path(__file__).parents[1]
GO_ON = "to go on, repeat the command with resume=auto"
ONE_BATCH = "system.gradient_accumulation_steps=1"  # an update; two without it
EVERY_UPDATE = ("trainer.log_every_n_steps=1", "checkpoint.every_n_train_steps=1000")


@pytest.fixture
def signals():
    """Signals as in a process of its own."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    interruption.__init__()
    yield
    interruption.__init__()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def train(tiny_world, tmp_path, signals):
    """train(tag, *overrides): a run of the fast miniature, as the whole of a program; its exit code and its folder."""
    config = write_configuration(tiny_world, tmp_path)

    def start(tag, *overrides):
        command = ["--config", str(config), "--train", f"tag={tag}", *FAST, *EVERY_UPDATE, *overrides]
        interruption.__init__()
        with pytest.raises(SystemExit) as end, stoppable():
            sys.exit(launch.main(command))
        return end.value.code, tmp_path / "tiny" / tag

    return start


@pytest.fixture(scope="module")
def whole(tiny_world, tmp_path_factory):
    """The folder of an uninterrupted run of four updates."""
    folder = tmp_path_factory.mktemp("whole")
    config = write_configuration(tiny_world, folder)
    assert launch.main(["--config", str(config), "--train", *FAST, *EVERY_UPDATE, "trainer.max_steps=4"]) == 0
    return folder / "tiny/trial"


@pytest.fixture
def at(monkeypatch):
    """at(cls, name, call, number): the signal comes in the `call`-th call of that function, before it does its work."""

    def install(owner, name, call, number):
        original, calls = getattr(owner, name), []

        def wrapper(*args, **kwargs):
            calls.append(None)
            if len(calls) == call:
                signal.raise_signal(number)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapper)

    return install


def steps(folder):
    """Of the checkpoints, and of the last line of the loss log."""
    saved = [int(path.stem.rpartition("=")[2]) for path in checkpoint.numbered_checkpoints(folder / "ckpts")]
    return saved, len((folder / "losses.jsonl").read_text().splitlines())


def assert_same_end(one, other):
    assert (one / "losses.jsonl").read_bytes() == (other / "losses.jsonl").read_bytes()
    states = [read_checkpoint(folder / "ckpts/last.ckpt") for folder in (one, other)]
    for part in ("state_dict", "ema"):
        assert all(torch.equal(states[0][part][name], value) for name, value in states[1][part].items())


def test_a_training_finishes_its_accumulated_update_and_loses_nothing(train, at, whole, capfd):
    at(System, "distil_round", 3, signal.SIGTERM)  # in the first of the two batches of the second update
    code, part = train("part", "trainer.max_steps=4")
    said = capfd.readouterr().err
    assert (code, steps(part)) == (143, ([2], 2))
    closing = f"stopped by SIGTERM after step 2, saved as {part}/ckpts/epoch=0-step=2.ckpt; {GO_ON}"
    assert said.count("stopped by") == said.count(closing) == 1
    assert "Traceback" not in said
    at(System, "distil_round", 4, signal.SIGINT)  # in the second batch, past the numbers of this process
    assert train("part", "trainer.max_steps=4", "resume=auto")[0] == 130
    assert steps(part) == ([2, 4], 4)
    assert train("part", "trainer.max_steps=4", "resume=auto")[0] == 0
    assert_same_end(part, whole)


def test_updates_of_all_parts_of_a_batch_belong_together(train, at):
    parts = ("data.n_steps=2", "system.num_parts_training=2")
    options = (*parts, "system.step_every_part=true", ONE_BATCH, "trainer.max_steps=4")
    _, whole = train("whole", *options)
    at(System, "distil_round", 1, signal.SIGTERM)
    code, part = train("part", *options)
    assert (code, steps(part)) == (143, ([2], 2))
    assert train("part", *options, "resume=auto")[0] == 0
    assert_same_end(part, whole)


def test_a_validation_is_left_and_the_weights_are_not_their_averages(train, at, whole):
    options = ("trainer.max_steps=4", "trainer.val_check_interval=4")  # batches: two updates
    at(SceneSystem, "validation_step", 1, signal.SIGTERM)
    code, part = train("part", *options)
    assert (code, steps(part)) == (143, ([3], 3))
    assert not list((part / "save").rglob("*.png"))
    assert train("part", *options, "resume=auto")[0] == 0
    assert_same_end(part, whole)


def test_a_signal_inside_a_save_lets_it_end(train, at):
    at(torch, "save", 1, signal.SIGINT)
    code, folder = train("t", ONE_BATCH, "trainer.max_steps=9", "checkpoint.every_n_train_steps=2")
    assert (code, steps(folder)) == (130, ([2, 3], 3))
    assert not list(folder.rglob("*.tmp"))
    for path in (folder / "ckpts").glob("*.ckpt"):
        read_checkpoint(path)


def test_before_the_first_update_there_is_nothing_to_save(train, at, capfd):
    at(System, "on_fit_start", 1, signal.SIGTERM)
    code, folder = train("t", "trainer.max_steps=9")
    assert code == 143
    assert not (folder / "ckpts").exists()
    assert "stopped by SIGTERM before its first step: there is nothing new to save\n" in capfd.readouterr().err


def test_a_signal_while_training_ends_stops_before_the_test(train, at, capfd):
    at(System, "on_train_end", 1, signal.SIGTERM)
    code, folder = train("t", ONE_BATCH, "trainer.max_steps=1", "trainer.limit_test_batches=1.0")
    assert (code, steps(folder)) == (143, ([1], 1))
    assert f"stopped by SIGTERM after step 1, saved as {folder}/ckpts/epoch=1-step=1.ckpt" in capfd.readouterr().err
    assert not (folder / "save").exists()


def test_without_checkpoints_it_says_that_nothing_is_saved(train, at, capfd):
    at(System, "distil_round", 1, signal.SIGTERM)
    code, folder = train("t", ONE_BATCH, "trainer.max_steps=9", "checkpoint.save_top_k=0", "checkpoint.save_last=false")
    assert code == 143
    assert not (folder / "ckpts").exists()
    assert "after step 1, not saved: checkpoint.save_last and checkpoint.save_top_k are off" in capfd.readouterr().err


def test_sigusr1_saves_and_goes_on(train, at):
    at(System, "distil_round", 1, signal.SIGUSR1)
    code, folder = train("t", ONE_BATCH, "trainer.max_steps=3", "checkpoint.save_top_k=-1")
    assert (code, steps(folder)) == (0, ([1, 3], 3))


def test_a_wish_lasts_until_it_is_acted_upon(signals):
    """Though a batch may have further updates, in which nobody wishes anything."""
    interruption._on_save(signal.SIGUSR1, None)
    taken = [interruption.take_wishes(), interruption.take_wishes()]
    assert taken == [Wishes(save=True), Wishes()]
    for wishes in taken:
        interruption.agree(wishes)
    assert [interruption.take_agreed(), interruption.take_agreed()] == taken


def test_a_plain_lightning_module_stops_after_an_update(signals, tmp_path):
    """Of which Lightning makes the updates, here of two batches each."""
    import pytorch_lightning as pl

    from triplaneturbo.config import CheckpointConfig

    class Toy(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                interruption._on_stop(signal.SIGTERM, None)
            return self.layer(batch).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    options = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}
    saver = checkpoint.Checkpointer(tmp_path, CheckpointConfig())
    trainer = pl.Trainer(**options, callbacks=[saver], max_steps=9, accumulate_grad_batches=2)
    with pytest.raises(BaseException, match="after step 2, saved"):
        trainer.fit(Toy(), torch.utils.data.DataLoader(torch.ones(20, 1)))
    assert [path.name for path in checkpoint.numbered_checkpoints(tmp_path)] == ["epoch=0-step=2.ckpt"]


# Programs, as processes

PROGRAM = """
import os, signal, time
from triplaneturbo.interruption import SAME_REQUEST_S, interruption, stoppable

def wait():
    print("ready", flush=True)
    time.sleep(60)

with stoppable():
    {body}
"""


def program(body, **environment):
    """A process that runs `body`, in which it is waiting now."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_program_stops_at_once_and_cleans_up(number, code):
    process = program("""
    try:
        wait()
    finally:
        print("cleaned up", flush=True)
    """)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "cleaned up\n")
    assert err == f"-c: stopped by {number.name}; the files that it wrote are complete\n"


def test_a_second_signal_ends_a_program_that_is_not_to_be_stopped_yet():
    process = program("""
    interruption.hold()
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)  # as from a launcher, the same request once more
    time.sleep(SAME_REQUEST_S)
    wait()
    """)
    process.terminate()
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    finishing = "-c: SIGINT: finishing the update under way; a second signal stops at once\n"
    assert said == finishing + "-c: stopped at once by SIGTERM\n"


def test_a_compiled_module_may_turn_a_stop_into_an_import_error():
    process = program("""
    try:
        wait()
    except BaseException as error:
        raise ImportError("initialization failed") from error
    """)
    process.terminate()
    assert "Traceback" not in process.communicate(timeout=30)[1]
    assert process.returncode == 143


def test_an_error_is_still_an_error():
    process = program("""
    try:
        wait()
    finally:
        raise RuntimeError("the disk is gone")
    """)
    process.terminate()
    assert "RuntimeError: the disk is gone" in process.communicate(timeout=30)[1]
    assert process.returncode == 1


@pytest.mark.parametrize("rank", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_of_several_processes_the_first_one_speaks(rank):
    process = program("wait()", **{rank: "1"})
    process.terminate()
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 0


def test_children_hear_of_a_stop():
    process = program("""
    interruption.signal_children = lambda number: os.write(1, b"%d" % number)
    wait()
    """)
    process.terminate()
    assert process.communicate(timeout=30)[0] == "15"


def test_ctrl_c_is_left_to_the_process_that_started_others():
    with interrupts_blocked():
        child = subprocess.Popen(["sleep", "60"])
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    child.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.5)
    child.terminate()
    assert child.wait() == -signal.SIGTERM


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def launch_process(config, *arguments, **environment):
    """launch.py in the configuration's folder."""
    command = [sys.executable, str(ROOT / "launch.py"), "--config", str(config), *arguments]
    return subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.PIPE, text=True, cwd=config.parent)


@pytest.mark.slow
def test_under_slurm_signals_mean_the_same_and_nothing_is_requeued(tiny_world, tmp_path):
    config, folder = write_configuration(tiny_world, tmp_path), tmp_path / "tiny/t"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/scontrol").write_text(f"#!/bin/sh\necho $@ >>{tmp_path}/requeued\n")
    (tmp_path / "bin/scontrol").chmod(0o755)
    job = {"JOB_ID": "7", "JOB_NAME": "train", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    slurm = {f"SLURM_{name}": value for name, value in job.items()}
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    options = [*FAST, *EVERY_UPDATE, "trainer.max_steps=100000"]
    (tmp_path / "hpc_ckpt_1.ckpt").write_text("of another program, which Lightning would take for this one's")
    process = launch_process(config, "--train", "tag=t", *options, PATH=path, **slurm)
    log = folder / "losses.jsonl"
    wait_for(lambda: log.exists() and log.stat().st_size, process)
    process.send_signal(signal.SIGUSR1)
    wait_for(lambda: (folder / "ckpts/last.ckpt").exists(), process)
    process.terminate()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143, said
    saved, logged = steps(folder)
    assert len(saved) == 2
    assert saved[-1] == logged
    assert said.count("stopped by SIGTERM after step") == 1
    assert "Traceback" not in said
    assert not (tmp_path / "requeued").exists()
    assert [path.name for path in tmp_path.rglob("hpc_ckpt*")] == ["hpc_ckpt_1.ckpt"]


@pytest.mark.slow
def test_an_export_stops_and_leaves_complete_files(tiny_world, tmp_path):
    config = write_configuration(tiny_world, tmp_path)
    prompts = [word for i in range(40) for word in ("--prompt", f"{PROMPTS[0]} {i}")]
    process = launch_process(config, "--export", "--out", str(tmp_path / "out"), *prompts, "trainer.accelerator=cpu")
    wait_for(lambda: list(tmp_path.glob("out/*/model.glb")), process)
    process.terminate()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143, said
    assert said.endswith("launch.py: stopped by SIGTERM; the files that it wrote are complete\n")
    assert "Traceback" not in said
    assert len(list(tmp_path.glob("out/*/model.glb"))) < 40
    assert not list(tmp_path.rglob("*.tmp"))


PROGRAMS = ("launch.py", "gradio_app.py", "evaluation", "scripts")
# Of developers: they write what can be written again.
OTHERS = {"options_table.py", "rooms_table.py", "readme_picture.py", "measured_launch.py"}
OTHERS |= {"full_size.py", "full_size_scaledreamer.py"}
OTHERS |= {f"{what}_storm.py" for what in ("config", "damage", "kill", "page")}


def test_every_program_can_be_stopped():
    found = [ROOT / name for name in PROGRAMS if name.endswith(".py")]
    found += [path for name in PROGRAMS if not name.endswith(".py") for path in (ROOT / name).rglob("*.py")]
    programs = [path for path in found if 'if __name__ == "__main__"' in path.read_text() and path.name not in OTHERS]
    assert len(programs) > 8
    assert [path.name for path in programs if "with stoppable()" not in path.read_text()] == []
