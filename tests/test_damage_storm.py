"""The storm of damaged files, with few of them: what scripts/test/damage_storm.py counts as wrong does not happen."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_no_damaged_file_is_loaded_in_silence() -> None:
    command = [sys.executable, str(ROOT / "scripts/test/damage_storm.py"), "--files", "3"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [line.split("|")[1:-1] for line in result.stdout.splitlines()[2:]]
    assert len(rows) == 11
    for name, tried, *counts, _ in rows:
        assert int(tried) == 3 == sum(map(int, counts)), name
        assert counts[-2:] == [" 0 ", " 0 "], name
