"""What the commands share: the two protocols, devices, and files of results."""

import argparse
import csv
import json
from pathlib import Path
from typing import Any, Literal

import torch

from triplaneturbo.storage import replacing

Protocol = Literal["right", "original"]
PROMPT_FILE = "prompt.txt"


def add_protocol_option(parser: argparse.ArgumentParser) -> None:
    """`--protocol right|original`."""
    parser.add_argument(
        "--protocol",
        choices=("right", "original"),
        default="right",
        help="original: the published procedure with its quirks, docs/evaluation.md (default: %(default)s)",
    )


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """`--gpu N` as `devices`: the GPUs of a list, as the original takes it; without it the first GPU, or the CPU."""
    first = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--gpu",
        "--gpus",
        dest="devices",
        metavar="N[,N...]",
        type=_gpus,
        default=[first],
        help="number of the GPU; default: the first, or the CPU if there is none",
    )


def _gpus(numbers: str) -> list[torch.device]:
    present = torch.cuda.device_count()
    chosen = list(dict.fromkeys(int(number) for number in numbers.split(",")))
    missing = [number for number in chosen if not 0 <= number < present]
    if missing:
        raise argparse.ArgumentTypeError(f"there is no GPU {missing[0]}: this machine has {present}, counted from 0")
    return [torch.device("cuda", number) for number in chosen]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """One line a row, columns as in the first."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, content: dict) -> None:
    """Indented, with a new line at the end."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
