"""What a process asks of the C library and of OpenMP, for the sake of computations on a CPU. Light to import."""

import ctypes
import gc
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# Numbers of mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
# Free memory at the end of the heap that is kept, bytes: as much as the C library's int can say.
_KEPT = 2**31 - 1
# Turns of an idle thread before it sleeps: about the pause between two operations of a network.
_TURNS = "10000"


def keep_freed_memory() -> bool:
    """Keep memory that tensors free, up to 2 GiB at the end of the heap, for the next tensors of this process.

    The C library gives a tensor of many megabytes back to the system as soon as it is freed, and the next one costs a
    page fault every 4 KiB. Only glibc can be told; returns whether it was.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(_MMAP_MAX, 0) and library.mallopt(_TRIM_THRESHOLD, _KEPT))


def let_idle_threads_sleep() -> None:
    """Threads of GNU OpenMP that wait for each other soon sleep, so that they do not take the core of the one that
    they wait for; by default they turn for milliseconds. Holds if it is called before torch is imported; what the
    user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _TURNS)


@contextmanager
def importing() -> Iterator[None]:
    """A block that imports large libraries: nothing looks for garbage in it, of which imports leave next to none, nor
    afterwards among what they have made, which stays until the process ends.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
