import gc
import os
import subprocess
import sys

import pytest

from triplaneturbo.host import importing, let_idle_threads_sleep


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_freed_memory_is_used_again_without_page_faults():
    code = """
import platform, resource, torch
from triplaneturbo.host import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(1 << 24)  # 64 MiB: more than any threshold lets glibc take from the heap by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
usual = faults()
assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
faults()
print(usual, faults())
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    usual, kept = map(int, out.split())
    assert usual > 10_000
    assert kept < 1_000


def test_what_the_user_says_about_threads_stays(monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    let_idle_threads_sleep()
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    let_idle_threads_sleep()
    assert os.environ["GOMP_SPINCOUNT"] == "7"


def test_garbage_is_collected_again_after_imports_that_fail():
    def fail():
        with importing():
            assert not gc.isenabled()
            raise ImportError

    with pytest.raises(ImportError):
        fail()
    assert gc.isenabled()
    gc.unfreeze()


def test_generating_does_not_import_what_only_reading_and_training_need():
    code = "import sys, triplaneturbo.pipelines.generate as _; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"trimesh", "networkx", "pytorch_lightning"} & set(loaded)
