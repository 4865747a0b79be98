"""launch.py, and a JSON file of the seconds and the GPU memory it took: measured_launch.py FILE --config YAML ..."""

import json
import os
import sys
import time
from pathlib import Path

from triplaneturbo.cli import launch


def main() -> int:
    """Launch as the arguments after the first say; the first process of several writes the file."""
    file, *arguments = sys.argv[1:]
    start = time.perf_counter()
    code = launch(arguments)
    if code or os.environ.get("LOCAL_RANK", "0") != "0":
        return code
    import torch

    measured = {"seconds": time.perf_counter() - start, "peak_gib": torch.cuda.max_memory_allocated() / 2**30}
    Path(file).write_text(json.dumps(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
