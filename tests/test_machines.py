"""torchrun: processes on one machine or several, of which one dies in the middle; a SLURM job that runs out of time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from miniature import write_configuration
from test_resume import FAST

from triplaneturbo.systems.checkpoint import numbered_checkpoints
from triplaneturbo.weights.files import read_checkpoint

ROOT = Path(__file__).parents[1]
UPDATES = ("trainer.log_every_n_steps=1", "data.batch_size=2", "system.gradient_accumulation_steps=1")
SHARES_NO_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
# launch.py, in which process 1 of the first start dies in the fifth update, with the newest checkpoint cut off.
DYING = """
import os, signal, sys
from pathlib import Path
import launch
from triplaneturbo.systems.checkpoint import newest_checkpoint
from triplaneturbo.systems.prd import ProgressiveRenderingDistillation as System

original, folder, calls = System.distil_round, Path(sys.argv[1]), []

def distil_round(*arguments, **options):
    calls.append(None)
    if len(calls) == 5 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        newest = newest_checkpoint(folder / "ckpts")
        newest.write_bytes(newest.read_bytes()[:-1000])
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)

System.distil_round = distil_round
with launch.stoppable():
    sys.exit(launch.main(sys.argv[2:]))
"""


@pytest.fixture
def config(tiny_world, tmp_path):
    (tmp_path / "dying.py").write_text(DYING)
    return write_configuration(tiny_world, tmp_path)


def training(config, tag, *overrides):
    """Arguments of launch.py."""
    return ["--config", str(config), "--train", *FAST, *UPDATES, f"tag={tag}", *overrides]


def finish(*processes):
    """What they say, when all have ended well."""
    said = [process.communicate(timeout=400)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(said)
    return said


def start(*command, **environment):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def assert_same(one, other):
    """Two runs have one log, and end with the same weights and averages, to the bit."""
    assert (one / "losses.jsonl").read_bytes() == (other / "losses.jsonl").read_bytes()
    states = [read_checkpoint(folder / "ckpts/last.ckpt") for folder in (one, other)]
    for part in ("state_dict", "ema"):
        assert all(torch.equal(states[0][part][name], value) for name, value in states[1][part].items())


@pytest.mark.slow
def test_when_a_process_dies_all_go_on_from_the_newest_valid_checkpoint(config, tmp_path):
    """Which is not the newest, as that is cut off here; the end is that of two processes that Lightning has started."""
    options = ("trainer.max_steps=8", "checkpoint.every_n_train_steps=2")
    whole = training(config, "whole", *options, "trainer.devices=2", "trainer.strategy=ddp")
    finish(start(sys.executable, "launch.py", *whole))
    program = [str(tmp_path / "dying.py"), str(tmp_path / "tiny/broken"), *training(config, "broken", *options)]
    torchrun = (*TORCHRUN, "--standalone", "--nproc-per-node=2", "--max-restarts=1")
    (said,) = finish(start(*torchrun, *program, "resume=auto", **SHARES_NO_STORE))
    assert "resume=auto passes over a file: " in said
    assert f"resume=auto: {tmp_path}/tiny/broken/ckpts/epoch=0-step=2.ckpt" in said
    lives = sorted(path.name for path in (tmp_path / "tiny/broken/configs").glob("life-*"))
    assert lives == ["life-001", "life-002"]
    assert_same(tmp_path / "tiny/whole", tmp_path / "tiny/broken")


def test_what_torchrun_has_not_started_cannot_be_asked_for(config):
    one = [*TORCHRUN, "--standalone", "--nproc-per-node=1", "launch.py"]
    process = start(*one, *training(config, "t", "trainer.devices=2", "trainer.strategy=ddp"))
    said = process.communicate(timeout=200)[1]
    assert process.returncode != 0
    assert "trainer.devices=2 and trainer.num_nodes=1 are 2 processes, but torchrun has started 1" in said


def test_restarts_that_cannot_work_are_refused(config):
    two = [*TORCHRUN, "--standalone", "--nproc-per-node=2", "--max-restarts=1", "launch.py"]
    process = start(*two, *training(config, "t"))
    said = process.communicate(timeout=300)[1]
    assert process.returncode != 0
    assert "Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun" in said


# Two machines


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)


@pytest.fixture
def networks():
    """Two network namespaces with a cable between them: names, and the addresses 10.213.7.1 and 2 at their ends."""
    names = [f"machine{number}-{os.getpid()}" for number in (1, 2)]
    cables = [f"cable{number}" for number in (1, 2)]
    made = [ip("netns", "add", name) for name in names]
    if any(result.returncode for result in made):
        pytest.skip(f"network namespaces cannot be made here: {made[0].stderr.strip()}")
    ends = ["netns", names[0], "type", "veth", "peer", "name", cables[1], "netns", names[1]]
    assert ip("link", "add", cables[0], *ends).returncode == 0
    for number, (name, cable) in enumerate(zip(names, cables, strict=True), 1):
        ip("-n", name, "address", "add", f"10.213.7.{number}/24", "dev", cable)
        ip("-n", name, "link", "set", cable, "up")
        ip("-n", name, "link", "set", "lo", "up")
    yield list(zip(names, cables, (f"10.213.7.{number}" for number in (1, 2)), strict=True))
    for name in names:
        ip("netns", "delete", name)


@pytest.mark.slow
def test_two_machines_train_as_one_and_go_on_when_a_process_of_one_dies(config, tmp_path, networks):
    options = ("trainer.max_steps=8", "checkpoint.every_n_train_steps=2")

    def torchrun(network, *program):
        name, cable, address = network
        machine = ["ip", "netns", "exec", name, *TORCHRUN, "--nnodes=2", "--nproc-per-node=1", "--max-restarts=1"]
        meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint={networks[0][2]}:29400", f"--local-addr={address}"]
        meeting.append(f"--rdzv-conf=is_host={int(network is networks[0])}")  # it knows itself by its name otherwise
        return start(*machine, *meeting, *program, GLOO_SOCKET_IFNAME=cable, **SHARES_NO_STORE)

    whole = training(config, "whole", *options)
    finish(*(torchrun(network, "launch.py", *whole) for network in networks))
    broken = training(config, "broken", *options, "resume=auto")
    program = [str(tmp_path / "dying.py"), str(tmp_path / "tiny/broken"), *broken]
    said = "".join(finish(*(torchrun(network, *program) for network in networks)))
    assert f"resume=auto: {tmp_path}/tiny/broken/ckpts/epoch=0-step=2.ckpt" in said
    assert_same(tmp_path / "tiny/whole", tmp_path / "tiny/broken")


# SLURM

# Stand-ins for the programs of SLURM. srun starts its command on two machines, both of them this one.
SLURM = {
    "srun": 'while [[ $1 == --* ]]; do shift; done\n"$@" & one=$!\n"$@" & echo $one $! >"$HERE/tasks"\n'
    "code=0; wait $one || code=$?; wait $! || code=$?; exit $code",
    "scontrol": 'case $1 in show) printf "127.0.0.1\\nother\\n" ;; *) echo "$@" >>"$HERE/requeued" ;; esac',
    "scancel": '[ "$*" = "--signal=TERM 4711" ] && kill -TERM $(cat "$HERE/tasks")',
}


@pytest.fixture
def job(config, tmp_path):
    """job(*overrides): the script as SLURM starts it on two machines of one process each."""
    for name, body in SLURM.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    def submit(*overrides, number="4711"):
        words = [word for word in training(config, "job", *overrides)[3:] if not word.startswith("tag=")]
        environment = {"JOB_ID": number, "JOB_NODELIST": "nodes[1-2]", "JOB_NUM_NODES": "2"}
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        own = {"HERE": str(tmp_path), "PYTHON": sys.executable, "PROCESSES": "1", "RESTARTS": "0", "PATH": path}
        slurm = {f"SLURM_{name}": value for name, value in environment.items()}
        script = [str(ROOT / "scripts/train/slurm.sh"), str(config), "job"]
        return start("bash", *script, *words, **slurm, **own)

    return submit


@pytest.mark.slow
def test_a_job_whose_time_is_over_is_queued_again_and_goes_on(job, tmp_path):
    folder = tmp_path / "tiny/job"
    process = job("trainer.max_steps=100000", "checkpoint.every_n_train_steps=100000")
    deadline = time.monotonic() + 300
    while not ((folder / "losses.jsonl").exists() and (folder / "losses.jsonl").stat().st_size):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)  # to the script alone, as SLURM does
    said = process.communicate(timeout=200)[1]
    assert process.returncode != 0
    (saved,) = numbered_checkpoints(folder / "ckpts")
    step = read_checkpoint(saved)["global_step"]
    assert said.count(f"stopped by SIGTERM after step {step}, saved as {saved}") == 1
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"
    (said,) = finish(job(f"trainer.max_steps={step + 2}"))
    assert f"resume=auto: {saved}" in said
    assert len((folder / "losses.jsonl").read_text().splitlines()) == step + 2
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"


def test_a_job_that_fails_is_not_queued_again(job, tmp_path):
    process = job("trainer.max_stepz=1", number="4712")  # its port, too, is made from it: both tests may run at once
    said = process.communicate(timeout=200)[1]
    assert process.returncode != 0
    assert "trainer has no option 'max_stepz'" in said
    assert not (tmp_path / "requeued").exists()
