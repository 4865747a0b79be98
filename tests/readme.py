"""The code blocks of README.md."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def blocks(language: str) -> list[str]:
    """Contents of the fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)


def python_blocks() -> list[str]:
    return blocks("python")


def commands() -> list[str]:
    """Lines of the bash blocks, without comments."""
    lines = (line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines())
    return [line for line in lines if line]
