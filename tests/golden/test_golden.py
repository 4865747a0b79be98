"""What the original computes, recorded, against what this project computes with compat=original (README.md)."""

from pathlib import Path

import pytest
import torch
from families import FAMILIES
from golden_case import Case
from workbench import Workbench


def test_recorded_case(
    case_path: Path, workbench: Workbench, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    with device:
        run_case(case_path, workbench, monkeypatch)


def run_case(case_path: Path, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> Case:
    """On the default device."""
    case = Case(case_path)
    if case.family not in FAMILIES:
        pytest.fail(f"{case_path.name}: no procedure for family {case.family!r}; known: {', '.join(sorted(FAMILIES))}")
    with monkeypatch.context() as patch:
        FAMILIES[case.family](case, workbench, patch)
    case.verdict()
    return case
