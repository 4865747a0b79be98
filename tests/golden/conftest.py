"""Recorded cases: one test for each file of a folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from workbench import Workbench

from triplaneturbo.performance import Performance, using

HERE = Path(__file__).parent
_group_norm = F.group_norm


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden-dir", metavar="DIR", help="a folder of recorded cases (**/*.npz); default: those beside")
    parser.addoption("--golden-device", metavar="DEVICE", default="cpu", help="where they are computed, in float32")
    levels = ("reference", "fast", "max")
    parser.addoption("--golden-performance", choices=levels, default="reference", help="see triplaneturbo.performance")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case_path" not in metafunc.fixturenames:
        return
    folder = Path(metafunc.config.getoption("golden_dir", None) or HERE / "data")
    paths = sorted(folder.rglob("*.npz"))
    if not paths:
        raise pytest.UsageError(f"--golden-dir: {folder} holds no *.npz files")
    metafunc.parametrize("case_path", paths, ids=[str(path.relative_to(folder).with_suffix("")) for path in paths])


def _group_norm_as_recorded(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Torch's on the CPU, where the cases were recorded: of pictures of 512 pixels its rounding is the largest error of
    all, and in the recordings (README.md)."""
    made = _group_norm(x.cpu(), groups, *(None if t is None else t.cpu() for t in (weight, bias)), eps)
    return made.to(x.device)


@pytest.fixture
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # on by default: ten bits are not float32
    level = request.config.getoption("golden_performance", None) or "reference"
    chosen = torch.device(request.config.getoption("golden_device", None) or "cpu")
    if chosen.type != "cpu":
        monkeypatch.setattr(F, "group_norm", _group_norm_as_recorded)
    with using(Performance(level, 32)):
        yield chosen


@pytest.fixture(scope="session")
def workbench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return Workbench(tmp_path_factory.mktemp("models"))
