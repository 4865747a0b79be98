"""launch.py, and a JSON file of the seconds and the GPU memory it took: measured_launch.py FILE --config YAML ...

Trainings that have the same file in the environment as ONE_TRAINS_AT_A_TIME load together, but train one by one.
"""

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from triplaneturbo.cli import launch

TURN = "ONE_TRAINS_AT_A_TIME"


@contextmanager
def in_turn(path: str | None) -> Iterator[None]:
    """A training holds the file from its first step to the end of the process, however that comes."""
    if path is None:
        yield
        return
    from triplaneturbo.systems.distillation import SceneDistillation

    load = SceneDistillation.on_fit_start
    with open(path, "w") as turn:

        def load_and_wait(system: SceneDistillation) -> None:
            load(system)
            fcntl.flock(turn, fcntl.LOCK_EX)

        with mock.patch.object(SceneDistillation, "on_fit_start", load_and_wait):
            yield


def main() -> int:
    """Launch as the arguments after the first say; the first process of several writes the file."""
    file, *arguments = sys.argv[1:]
    start = time.perf_counter()
    with in_turn(os.environ.get(TURN)):
        code = launch(arguments)
    if code or os.environ.get("LOCAL_RANK", "0") != "0":
        return code
    import torch

    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    measured = {"seconds": time.perf_counter() - start, "peak_gib": peak / 2**30}
    Path(file).write_text(json.dumps(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
