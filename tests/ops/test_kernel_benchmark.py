"""The benchmark of operations runs everywhere, and notices what is wrong."""

import json
import sys
from pathlib import Path

import pytest
import torch
from packages import DiffMC, stand_in

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks import kernels
from benchmarks.measuring import measure, require_new, write_json
from triplaneturbo.errors import WriteError


def test_executions_are_measured_after_a_warm_up():
    calls = []
    timing = measure(lambda: calls.append(1), warmup=2, repeats=5)
    assert len(calls) == 7
    assert 0 <= timing.min_s <= timing.median_s <= timing.max_s


def test_results_are_written_once(tmp_path):
    path = tmp_path / "results.json"
    timing = measure(lambda: None, repeats=1)
    write_json(path, {"size": 3}, {"part/one": timing}, timing)
    content = json.loads(path.read_text())
    assert content["config"] == {"size": 3}
    assert content["stages"] == {"part/one": timing.seconds()}
    assert content["total"] == timing.seconds()
    assert content["peak_bytes"] == 0 or torch.cuda.is_available()
    assert content["machine"]["torch"] == torch.__version__
    with pytest.raises(WriteError, match="there already"):
        require_new(path)
    with pytest.raises(WriteError, match="there already"):
        write_json(path, {}, {})


def benchmark(path, *arguments):
    assert kernels.main(["--tiny", "--repeats", "1", "--json", str(path), *arguments]) == 0
    return json.loads(path.read_text())


def test_every_implementation_that_runs_has_a_column(tmp_path, capsys):
    with stand_in("diso"):
        content = benchmark(tmp_path / "1.json", "--only", "marching_cubes")
    found = content["errors"]
    assert "marching_cubes/forward/torch" in content["stages"]
    assert "marching_cubes/forward+backward/diso" in content["stages"]
    assert max(found.values()) < 1e-6
    assert "diso" in capsys.readouterr().out.splitlines()[1]
    left = benchmark(tmp_path / "2.json", "--only", "marching_cubes", "--without", "diso")
    assert not any(name.endswith("diso") for name in left["stages"])


def test_a_wrong_implementation_is_seen(tmp_path, monkeypatch):
    right = DiffMC.forward
    monkeypatch.setattr(
        DiffMC, "forward", lambda *a, **b: tuple(x * 2 if x.is_floating_point() else x for x in right(*a, **b))
    )
    with stand_in("diso"):
        found = benchmark(tmp_path / "results.json", "--only", "marching_cubes")["errors"]
    assert found["marching_cubes/forward/diso"] > 0.5
    assert found["marching_cubes/forward/torch"] == 0


def test_a_case_that_does_not_exist_is_an_error(capsys):
    assert kernels.main(["--only", "nonsense"]) == 1
    assert "marching_cubes/forward" in capsys.readouterr().err


@pytest.mark.parametrize("case", kernels.CASES, ids=lambda case: case.name)
def test_every_case_runs_small(case):
    setting = kernels.Setting(torch.device("cpu"), tiny=True)
    (result,) = kernels.run(case, ["torch"], setting, repeats=1).values()
    assert result.error == 0
