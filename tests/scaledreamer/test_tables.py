"""custom/scaledreamer/tables.py: which trainings its tables have, and what it makes of their measures."""

import csv
import json
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from custom.scaledreamer import tables
from custom.shapeworld.runs import OUT_OF_TIME, on_gpu


def test_tables_have_the_trainings_that_they_name() -> None:
    sizes = {name: [(row.name, len(row.trainings)) for row in make(3)] for name, make in tables.TABLES.items()}
    assert sizes["rules"] == [("sds", 3), ("csd", 3), ("asd", 3)]
    assert len(sizes["generators"]) == 9
    assert len(sizes["corpus"]) == 6
    for name in ("level", "single"):
        (row,) = tables.TABLES[name](3)
        assert [training.captions for training in row.trainings] == [(c,) for cs in row.asked.values() for c in cs]
        assert not any(" on " in caption for caption, *_ in row.captions)
    for name in tables.TABLES:
        trainings = [training for row in tables.TABLES[name](3) for training in row.trainings]
        assert len({(training.row.name, training.name) for training in trainings}) == len(trainings)


def test_few_captions_are_those_that_the_evaluation_asks_for() -> None:
    few = tables.first_captions(tables.FEW)
    assert few == tables.split_prompts("train", tables.FEW)
    assert len(set(few)) == tables.FEW
    more = tables.first_captions(150)
    assert len(set(more)) == len(more) == 150


def meshes_of(row: Any, noises: int, trainings: int, iou: Callable[[int], float]) -> list[dict[str, Any]]:
    return [
        {"split": split, "prompt": prompt, "training": folder, "iou": iou(folder), "r_at_1": 1.0}
        for split, prompts in row.asked.items()
        for prompt in (*prompts, "a caption that nobody asked for")
        for folder in range(noises * trainings)
    ]


def write_report(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would be run; evaluations write reports."""
    seen: list[list[str]] = []
    (single,) = tables.single(2)

    def call(self: Any, log: Path, command: list[str], environment: dict[str, str], allowed: str | None = None) -> int:
        seen.append(command)
        if "--out" in command:
            Path(command[command.index("--out") + 1]).mkdir(parents=True, exist_ok=True)
        if "--json" in command:
            report = Path(command[command.index("--json") + 1])
            rows = meshes_of(single, 1, 1, lambda folder: 0.25 if "--weights" in command else 0.75)
            write_report(report.with_suffix(".csv"), rows)
            exact = {"iou": 1.0, "r_at_1": 0.9}
            folders = [word for word in command if "-noise" in word]
            controls = {split: {"exact_solids": exact} for split in (*single.asked, "validation")}
            report.write_text(json.dumps({"controls": controls, "settings": {"meshes": folders} if folders else {}}))
        return OUT_OF_TIME if log.name == "train.log" and "sphere" in log.parent.name else 0

    monkeypatch.setattr(tables.Runner, "call", call)
    return seen


def test_trainings_are_exported_and_measured_together(calls: list[list[str]], tmp_path: Path) -> None:
    arguments = ["single", "--out", str(tmp_path), "--jobs", "1", "--limit", "2", "--", "trainer.max_steps=7"]
    assert tables.main(arguments) == 0
    (row,) = tables.single(2)
    launched = [command for command in calls if "launch.py" in command]
    assert sum("--train" in command for command in launched) == len(row.trainings)
    assert all("trainer.max_steps=7" in command for command in launched)
    exported = {command[command.index("--out") + 1] for command in launched if "--export" in command}
    (measured,) = (command for command in calls if "--meshes" in command)
    assert exported == {measured[measured.index("--meshes") + 1]}
    written = (tmp_path / "single/table.md").read_text()
    assert f"| train | single | {len(row.asked['train'])} | 1 | 0.750 (0.750 .. 0.750) | 1.000" in written
    assert f"| train | PRD | {len(row.asked['train'])} | 1 | 0.250" in written
    assert "| train | exact solids | | | 1.000 | 0.900 |" in written
    assert "| validation |" not in written  # nothing of this table is asked for there
    before = len(calls)
    assert tables.main(arguments) == 0
    again = [command for command in calls[before:] if "--train" in command]
    stopped = [training for training in row.trainings if "sphere" in training.name]
    assert 0 < len(again) == len(stopped) < len(row.trainings)


def test_rows_that_were_made_by_another_call_stay_in_the_table(calls: list[list[str]], tmp_path: Path) -> None:
    for rule in ("sds", "asd"):
        assert tables.main(["rules", "--out", str(tmp_path), "--jobs", "1", "--limit", "2", "--only", rule]) == 0
    assert len([command for command in calls if "--train" in command]) == 6
    written = (tmp_path / "rules/table.md").read_text()
    assert all(f"| unseen_pairs | {name} | 2 |" in written for name in ("PRD", "sds", "asd"))
    assert "| csd, seed0 | | | not yet |" in written


def test_folders_say_which_training_and_export_meshes_are_of(tmp_path: Path) -> None:
    (row, *_) = tables.rules(2)
    write_report(tmp_path / "r.csv", meshes_of(row, 3, 2, float))
    folders = [f"out/{export}/seed{seed}-noise{k}" for export, seed in (("x", 4), ("y", 7)) for k in range(3)]
    (tmp_path / "r.json").write_text(json.dumps({"settings": {"meshes": folders}}))
    found = tables.read_meshes(tmp_path / "r.json", row.asked)
    assert [(mesh.export, mesh.seed) for mesh in found][:6] == [("x", 4)] * 3 + [("y", 7)] * 3
    assert [mesh.iou for mesh in found][:6] == [0, 1, 2, 3, 4, 5]
    assert tables.cells(found)[:2] == [str(len({c for cs in row.asked.values() for c in cs})), "2"]


def make_runner(out: Path, *options: str) -> Any:
    return tables.Runner(tables.parse(["single", "--out", str(out), *options]))


def test_trainings_are_spread_over_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    runner = make_runner(tmp_path, "--jobs", "3")
    places = [runner.places.get() for _ in range(3)]
    assert places == ["3", "5", "3"]
    for place in places[:2]:
        runner.call(tmp_path / "log", ["sh", "-c", "echo on $CUDA_VISIBLE_DEVICES"], on_gpu(place))
    runner.call(tmp_path / "log", ["sh", "-c", "echo on $CUDA_VISIBLE_DEVICES"], {})
    runner.call(tmp_path / "log", ["sh", "-c", "echo on $CUDA_VISIBLE_DEVICES"], runner.on_cpu)
    said = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("on")]
    assert said == ["on 3", "on 5", "on 3,5", "on"]


def test_a_signal_reaches_what_runs(tmp_path: Path) -> None:
    runner = make_runner(tmp_path)
    log = tmp_path / "log"
    saving = "trap 'echo saved; exit 143' TERM; echo on; sleep 60 & wait"
    with ThreadPoolExecutor(1) as pool:
        # As trainings run: behind `timeout`, which is not what has to be told.
        running = pool.submit(runner.call, log, ["timeout", "1m", "sh", "-c", saving], {})
        while "\non\n" not in (log.read_text() if log.exists() else ""):
            time.sleep(0.01)
        runner.tell(signal.SIGTERM)
        with pytest.raises(RuntimeError, match=r"exit status 143, see .*log"):
            running.result(timeout=20)
    assert log.read_text().endswith("saved\n")
    assert not runner.children
