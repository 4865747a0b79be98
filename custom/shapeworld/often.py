"""A prompt library in which the student's dotted captions come more often: `python -m custom.shapeworld.often FILE`.

Dots are what the student learns last (docs/benchmark.md), and dotted single solids are 5 % of its prompts.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from custom.shapeworld.splits import load_splits, student_captions
from custom.shapeworld.world import parse_caption
from triplaneturbo.storage import write_text


def times(caption: str) -> int:
    """How often a caption is in the library: dotted single solids 8 times, other captions with dots twice."""
    if "dotted" not in caption:
        return 1
    return 8 if len(parse_caption(caption).parts) == 1 else 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="where to write it, such as outputs/dots_prompt_library.json")
    given = parser.parse_args(arguments)
    train = [caption for caption in student_captions() for _ in range(times(caption))]
    shown = list(load_splits()["validation"][:8])
    write_text(given.file, json.dumps({"train": train, "val": shown, "test": shown}, indent=0) + "\n")
    sys.stdout.write(f"wrote {len(train)} captions to {given.file}\n")


if __name__ == "__main__":
    main()
