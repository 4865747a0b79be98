"""Every test runs with the shapes of annotated tensors checked, and on one thread, so that runs are equal."""

import os
import sys
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook(["triplaneturbo", "custom"], "beartype.beartype")
torch.set_num_threads(1)
# Programs that tests start take the code of this checkout, too, whatever is installed.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.getenv("PYTHONPATH")]))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU where there is none; the closing line counts it as deselected."""
    if not torch.cuda.is_available():
        needing = [item for item in items if item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=needing)
        items[:] = [item for item in items if item not in needing]


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of tiny networks and a prompt library, see tests/miniature.py."""
    from miniature import write_world

    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration of a plain Lightning module that an extension registers, see tests/toy.py."""
    from toy import write_toy

    path = write_toy(tmp_path)
    monkeypatch.setattr("triplaneturbo.launcher.CUSTOM_FOLDER", tmp_path / "toy_extensions")
    for name in [name for name in sys.modules if name.startswith("toy_extensions")]:
        monkeypatch.delitem(sys.modules, name)
    return path


@pytest.fixture(scope="session")
def tiny_stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random stand-ins for all published weights, small and in float32."""
    from triplaneturbo.evaluation.random_weights import main

    folder = tmp_path_factory.mktemp("stand_ins")
    assert main("", ["--out", str(folder), "--width", "tiny", "--dtype", "float32"]) == 0
    return folder
