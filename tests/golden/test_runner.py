"""The runner notices what is wrong with a case, and does not care what it is called."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_golden import test_recorded_case as run_case
from workbench import Workbench

ADAN = Path(__file__).parent / "data" / "i2_adan.npz"


def changed(folder: Path, arrays: dict[str, Any] | None = None, **meta: Any) -> Path:
    """A copy of a case under another name, with other arrays and hyper-parameters."""
    with np.load(ADAN) as stored:
        content = {name: stored[name] for name in stored.files}
    values = json.loads(bytes(content["meta_json"]).decode()) | meta
    content["meta_json"] = np.frombuffer(json.dumps(values).encode(), dtype=np.uint8)
    np.savez(folder / "another.npz", **(content | (arrays or {})))
    return folder / "another.npz"


def test_names_do_not_matter(tmp_path: Path, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    run_case(changed(tmp_path, case="another"), workbench, monkeypatch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "telepathy"}, "no procedure for family 'telepathy'; known: adan, "),
        ({"arrays": {"surprise": np.zeros(2)}}, "not compared: surprise"),
        ({"arrays": {"traj0": np.zeros((6, 5, 7))}}, "traj0: error .*, tolerance 1e-06"),
        ({"lr": 4e-4}, "traj1: error"),
        ({"warmth": 3}, "warmth"),
    ],
)
def test_what_does_not_fit_fails(
    changes: dict[str, Any], message: str, tmp_path: Path, workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises((AssertionError, TypeError, RuntimeError, pytest.fail.Exception), match=message):
        run_case(changed(tmp_path, **changes), workbench, monkeypatch)
