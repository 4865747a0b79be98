"""Tests of an operation, once with torch and once, in a process of its own, with its Triton kernels."""

import os
import subprocess
import sys

import torch

BACKEND = os.environ.get("OPS_TEST_BACKEND", "torch")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def run_with_triton(file: str, selection: str) -> str:
    """What pytest prints for the tests of `file`; fails if they do.

    Kernels are compiled where there is a GPU, else interpreted on the CPU. Triton decides at its import which.
    """
    environment = {**os.environ, "OPS_TEST_BACKEND": "triton"}
    if DEVICE == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    options = ["-p", "no:cacheprovider", "--noconftest", "--jaxtyping-packages=triplaneturbo,beartype.beartype"]
    command = [sys.executable, "-m", "pytest", *options, "-k", selection, file]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    return run.stdout
