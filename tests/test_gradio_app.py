"""The web page: its API with the shipped student, and whom and what it serves."""

import contextlib
import http.client
import importlib.util
import json
import runpy
import socket
import sys
import tempfile
import threading
import time
import tomllib
import urllib.error
import urllib.parse
import urllib.request
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import trimesh
from gradio_client import Client
from gradio_client.exceptions import AppError
from gradio_client.utils import QueueError

from triplaneturbo.exporters import mesh_exporter
from triplaneturbo.naming import slug
from triplaneturbo.pages import app
from triplaneturbo.pages.guard import BODY_LIMIT, Refusal, Visitors
from triplaneturbo.pipelines import students
from triplaneturbo.weights.hub import STABLE_DIFFUSION_2, STUDENT

ROOT = Path(__file__).resolve().parents[1]
MINIATURE = ROOT / "load" / "shapeworld"
RESOLUTION = 32
OUTSIDE = "../../../../../../etc/passwd"
PATIENCE = 120  # seconds, on a machine that is busy
JSON = {"Content-Type": "application/json"}
CALL = "gradio_api/call/generate"
FORM_TYPE = {"Content-Type": "multipart/form-data; boundary=edge"}
FORM = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\ntext\r\n--edge--\r\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def generator(folder):
    return app.Generator(app.find_student(MINIATURE), "cpu", folder)


@contextlib.contextmanager
def serve(generate, folder):
    """The address of a page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        patch.setenv("no_proxy", "127.0.0.1")
        patch.setenv("GRADIO_ALLOWED_PATHS", str(ROOT))  # gradio would serve these, too
        page = app.build_page(generate)
        flags = app.parse(["--port", str(free_port()), "--allowed-host", "meshes.example"])
        app.launch(page, flags, folder, wait=False)
        try:
            yield page.local_url
        finally:
            generate.closing.set()
            page.close(verbose=False)


@pytest.fixture(scope="module")
def address(generator, folder):
    with serve(generator, folder) as address:
        yield address


@pytest.fixture(scope="module")
def client(address, tmp_path_factory):
    return Client(address, verbose=False, analytics_enabled=False, download_files=tmp_path_factory.mktemp("downloads"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fetch(url: str) -> str:
    return urllib.request.urlopen(url, timeout=PATIENCE).read().decode()


def request(address: str, method: str, path: str, body=None, headers=None) -> tuple[int, str]:
    """Status and text of the answer, with exactly these headers."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request(method, f"/{path}", body, headers or {})
        response = connection.getresponse()
        return response.status, response.read().decode()


def call(address: str, prompt, seed=0) -> tuple[int, str]:
    return request(address, "POST", CALL, json.dumps({"data": [prompt, seed, RESOLUTION]}), JSON)


def endpoint(address: str) -> dict:
    """What a page says of /generate."""
    events = json.loads(fetch(f"{address}config"))["dependencies"]
    return next(event for event in events if event["api_name"] == "generate")


def wait_for(condition) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class Stub(app.Generator):
    """In place of a generator: `work(seed, progress)`, then empty files."""

    def __init__(self, folder: Path, work=lambda seed, progress: None):
        self.folder, self.work, self.closing = folder, work, threading.Event()
        self.student = app.Student(folder, "a stub")
        self.pipe = SimpleNamespace(config=SimpleNamespace(resolution=RESOLUTION))

    def __call__(self, prompt, seed, resolution, progress):
        self.work(seed, progress)
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        mesh, picture = folder / f"{slug(prompt)}.glb", folder / "turntable.png"
        mesh.write_bytes(b"glTF")
        picture.write_bytes(b"")
        return mesh, picture, f"0 faces, seed {seed}"


class MixedUp(Stub):
    """Answers with the mesh of another request."""

    def __call__(self, prompt, seed, *arguments):
        return super().__call__(prompt, seed + 1, *arguments)


def generate(client: Client, prompt: str, seed: int = 0, resolution: int = RESOLUTION) -> tuple[Path, Path, str]:
    mesh, download, picture, report = client.predict(prompt, seed, resolution, api_name="/generate")
    assert Path(mesh).read_bytes() == Path(download).read_bytes()
    return Path(mesh), Path(picture), report


@pytest.fixture(scope="module")
def storm():
    spec = importlib.util.spec_from_file_location("page_storm", ROOT / "scripts/test/page_storm.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def red_cube(client):
    return generate(client, "a red cube")


def test_a_prompt_gives_a_mesh_a_picture_and_a_report(red_cube):
    mesh, picture, report = red_cube
    assert mesh.name == "a_red_cube.glb"
    loaded = trimesh.load(mesh, force="mesh")
    assert loaded.is_watertight
    red, green, blue = loaded.visual.vertex_colors[:, :3].mean(0)
    assert red > 3 * max(green, blue)
    assert picture.stat().st_size > 1000
    assert f"{len(loaded.faces):,} faces" in report
    assert "\n" not in report  # nothing to doubt


def test_the_seed_decides(client, red_cube):
    same, other = (generate(client, "a red cube", seed)[0].read_bytes() for seed in (0, 1))
    assert same == red_cube[0].read_bytes()
    assert other != same


def test_a_prompt_is_no_path(client, folder):
    mesh, _, report = generate(client, OUTSIDE)
    assert mesh.name == f"{slug(OUTSIDE)}.glb"
    assert len(trimesh.load(mesh, force="mesh").faces) > 0
    assert "reads 24 tokens" in report
    assert "not trained on such prompts" in report
    (written,) = folder.rglob(mesh.name)
    assert written.parent.name == slug(OUTSIDE)
    assert (written.parent / "prompt.txt").read_text() == OUTSIDE


@pytest.mark.parametrize(
    ("prompt", "seed", "resolution", "message"),
    [
        ("  ", 0, RESOLUTION, "The prompt is empty"),
        ("a" * 1001, 0, RESOLUTION, "1001 characters"),
        ("a red cube", None, RESOLUTION, "There is no seed"),
        ("a red cube", -1, RESOLUTION, "less than minimum value 0"),
        ("a red cube", 0, 4096, "greater than maximum value 256"),
    ],
)
def test_what_cannot_be_used_is_said(client, prompt, seed, resolution, message):
    with pytest.raises(AppError, match=message):
        generate(client, prompt, seed, resolution)


def test_a_field_without_surface_is_said(client, monkeypatch):
    monkeypatch.setattr("triplaneturbo.scenes.FieldScene.grid", lambda *_, **__: torch.ones(1, 2, 2, 2))
    with pytest.raises(AppError, match="the field of 'a red cube' has no surface"):
        generate(client, "a red cube")


def test_progress_follows_the_computation(generator):
    seen = []
    generator("a red cube", 0, RESOLUTION, lambda share, desc: seen.append((share, desc)))
    assert [desc for _, desc in seen[1:5]] == [f"Denoising step {step} of 4" for step in (1, 2, 3, 4)]
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert shares[-1] < 1
    assert not generator.pipe.geometry.space_generator.unet._forward_hooks


@pytest.mark.parametrize("path", [ROOT / "README.md", Path("/etc/passwd"), MINIATURE / "pipeline.json"])
def test_only_results_are_served(address, path):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        fetch(f"{address}gradio_api/file={path}")


def test_results_are_served(address, red_cube, folder):
    (path,) = [path for path in folder.rglob("*.glb") if path.read_bytes() == red_cube[0].read_bytes()][:1]
    with urllib.request.urlopen(f"{address}gradio_api/file={path}", timeout=PATIENCE) as file:
        assert file.read() == red_cube[0].read_bytes()


@pytest.mark.parametrize(
    ("method", "path", "body", "headers"),
    [
        ("POST", "gradio_api/upload", FORM, FORM_TYPE),
        ("POST", "gradio_api/upload/", FORM, FORM_TYPE),
        ("POST", "gradio_api/process_recording", FORM, FORM_TYPE),
        ("POST", "gradio_api/component_server", FORM, FORM_TYPE),
        ("POST", "gradio_api/run/generate", json.dumps({"data": ["a red cube", 0, RESOLUTION]}), JSON),
        ("POST", "login", "username=a&password=b", {"Content-Type": "application/x-www-form-urlencoded"}),
        ("GET", "gradio_api/deep_link?session_hash=a", None, {}),
        ("GET", "gradio_api/proxy=http://127.0.0.1:1/a", None, {}),
        ("GET", "gradio_api/file=http://127.0.0.1:1/a", None, {}),
        ("GET", "gradio_api/file/etc/passwd", None, {}),
        ("GET", "gradio_api/file=%00", None, {}),
        ("GET", "monitoring", None, {}),
        ("DELETE", "config", None, {}),
    ],
)
def test_what_is_no_part_of_the_page_is_refused_and_writes_nothing(address, folder, method, path, body, headers):
    before = sorted(folder.rglob("*"))
    status, text = request(address, method, path, body, headers)
    assert status == 403
    assert "is not part of this page" in json.loads(text)["detail"]
    assert sorted(folder.rglob("*")) == before


def test_an_input_cannot_name_a_file_to_be_fetched(address, folder):
    with socket.create_server(("127.0.0.1", 0)) as outside:
        url = f"http://127.0.0.1:{outside.getsockname()[1]}/large"
        file = {"path": url, "url": url, "meta": {"_type": "gradio.FileData"}}
        before = sorted(folder.rglob("*"))
        for prompt in (file, [file]):
            status, text = call(address, prompt)
            assert status == 400
            assert "texts and numbers" in text
        by_name = json.dumps({"data": [], "prompt": file, "seed": 0, "resolution": RESOLUTION})
        assert request(address, "POST", "gradio_api/call/v2/generate", by_name, JSON)[0] == 400
        assert sorted(folder.rglob("*")) == before
        outside.settimeout(0.5)
        with pytest.raises(TimeoutError):
            outside.accept()


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (json.dumps({"data": ["a" * BODY_LIMIT, 0, RESOLUTION]}), 413, "too large"),
        (iter([b"a" * (BODY_LIMIT // 2)] * 3), 413, "too large"),
        ("[" * 50_000, 400, "no JSON"),
        ("{", 400, "no JSON"),
        ("[]", 400, "must be a JSON object"),
    ],
    ids=["large", "large, of unknown size", "deep", "torn", "list"],
)
def test_bodies_are_bounded(address, body, status, reason):
    found, text = request(address, "POST", CALL, body, JSON)
    assert (found, reason in text) == (status, True)


@pytest.mark.parametrize("path", ["", "config", "gradio_api/info"])
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("LOCALHOST:{port}", 200),
        ("localhost:8000", 200),  # forwarded by ssh
        ("[::1]:{port}", 200),
        ("meshes.example", 200),
        ("evil.example:{port}", 403),
        ("127.0.0.1.evil.example", 403),
        ("192.168.0.7:{port}", 403),
        ("[", 403),
        ("", 403),
    ],
)
def test_other_host_names_are_refused(address, path, host, status):
    host = host.format(port=urllib.parse.urlsplit(address).port)
    assert request(address, "GET", path, None, {"Host": host})[0] == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:{port}", 200),
        ("https://meshes.example", 200),
        ("https://evil.example", 403),
        ("http://127.0.0.1:1", 403),  # another server of this machine
        ("http://127.0.0.1:{port}.evil.example", 403),
        ("http://[", 403),
        ("null", 403),
    ],
)
def test_pages_of_other_sites_are_refused(address, origin, status):
    origin = origin.format(port=urllib.parse.urlsplit(address).port)
    body = json.dumps({"session_hash": "nobody", "fn_index": 0, "event_id": "none"})
    found, text = request(address, "POST", "gradio_api/cancel", body, {**JSON, "Origin": origin})
    assert found == status
    assert status == 200 or origin in text


def test_a_server_for_all_addresses_answers_under_each_of_them_but_under_no_foreign_name():
    for host in ("192.168.0.7:7860", "[fe80::1]", "localhost", socket.gethostname()):
        Visitors("0.0.0.0").check(host, None)
    Visitors("192.168.0.7").check("192.168.0.7", "http://192.168.0.7")
    for listen, host in (("0.0.0.0", "evil.example"), ("::", "evil.example"), ("192.168.0.7", "192.168.0.8")):
        with pytest.raises(Refusal, match="start it with --allowed-host"):
            Visitors(listen).check(host, None)


def test_a_full_queue_is_said(folder, monkeypatch):
    monkeypatch.setattr(app, "MAX_WAITING", 2)
    begun, go_on = threading.Event(), threading.Event()

    def work(seed, progress):
        begun.set()
        assert go_on.wait(PATIENCE)

    with serve(Stub(folder, work), folder) as address:
        assert call(address, "a")[0] == 200
        assert begun.wait(PATIENCE)
        assert [call(address, "a")[0] for _ in range(3)] == [200, 200, 503]
        assert "Queue is full" in call(address, "a")[1]
        with pytest.raises(QueueError, match="Queue is full"):
            Client(address, verbose=False, analytics_enabled=False).predict("a", 0, RESOLUTION, api_name="/generate")
        go_on.set()


def test_no_request_of_many_is_lost(folder, monkeypatch, storm):
    monkeypatch.setattr(app, "MAX_WAITING", 3)
    with serve(Stub(folder, lambda seed, progress: time.sleep(0.05)), folder) as address:
        answers = storm.storm(address, 8)
    assert [answer.error for answer in answers] == [""] * 8


def test_the_storm_notices_what_is_lost_or_mixed_up(folder, storm):
    def fail(seed, progress):
        raise ValueError("no surface")

    with serve(Stub(folder, fail), folder) as address:
        assert "error" in storm.ask(address, "a red cube", 0, RESOLUTION).error
    with serve(MixedUp(folder), folder) as address:
        assert "another request" in storm.ask(address, "a red cube", 0, RESOLUTION).error


def test_a_stopped_generation_ends_before_the_next_begins(folder):
    """As the Stop button of the page does it, while the next request waits."""
    log = []

    def work(seed, progress):
        log.append(f"{seed} begins")
        try:
            while seed == 0 and len(log) < 2:
                time.sleep(0.3)
                progress(0.5, desc="endless")
        finally:
            log.append(f"{seed} ends")

    with serve(Stub(folder, work), folder) as address:
        mine = {"session_hash": "mine", "fn_index": endpoint(address)["id"]}
        body = json.dumps({"data": ["a", 0, RESOLUTION], **mine})
        event = json.loads(request(address, "POST", "gradio_api/queue/join", body, JSON)[1])
        wait_for(lambda: log)
        assert call(address, "b", 1)[0] == 200
        assert request(address, "POST", "gradio_api/cancel", json.dumps({**mine, **event}), JSON)[0] == 200
        wait_for(lambda: len(log) == 4)
    assert log == ["0 begins", "0 ends", "1 begins", "1 ends"]


def test_the_page_has_a_button_that_stops(address):
    config = json.loads(fetch(f"{address}config"))
    (stop,) = [part["id"] for part in config["components"] if part["props"].get("value") == "Stop"]
    clicked = [event["cancels"] for event in config["dependencies"] if [stop, "click"] in event["targets"]]
    assert [endpoint(address)["id"]] in clicked


@pytest.mark.parametrize("last", ["Denoising step 2 of 4", "Extracting the surface", "Drawing the turntable"])
def test_a_generation_can_be_stopped_at_every_step(generator, folder, last):
    before, seen = sorted(folder.rglob("*")), []

    def progress(share, desc):
        seen.append(desc)
        if desc == last and share != 0.7:
            raise app.Stopped

    with pytest.raises(app.Stopped):
        generator("a red cube", 0, RESOLUTION, progress)
    assert seen[-1] == last
    assert sorted(folder.rglob("*")) == before
    geometry = generator.pipe.geometry
    assert not any(m._forward_hooks for m in (geometry.space_generator.unet, *geometry.field.sdf_network.modules()))


def test_memory_is_given_back_after_a_failure_too(generator, monkeypatch):
    tensors, alive = [], []

    def fail(prompts, planes, **_):
        tensors.append(weakref.ref(planes))
        raise ValueError("no surface")

    monkeypatch.setattr(generator.pipe, "extract", fail)
    monkeypatch.setattr(app, "give_memory_back", lambda: alive.append(tensors[0]()))
    with pytest.raises(ValueError, match="no surface"):
        generator("a red cube", 0, RESOLUTION, lambda share, desc: None)
    assert alive == [None]


def test_old_results_make_room(generator, tmp_path, monkeypatch):
    monkeypatch.setattr(app, "KEPT_RESULTS", 2)
    monkeypatch.setattr(mesh_exporter.MeshExporter.Config, "turntable_views", 0)
    monkeypatch.setattr(generator, "folder", tmp_path)
    monkeypatch.setattr(generator, "results", type(generator.results)())
    made = [generator("a red cube", seed, RESOLUTION, lambda share, desc: None)[0] for seed in (0, 1, 2)]
    assert [path.is_file() for path in made] == [False, True, True]
    assert len(list(tmp_path.iterdir())) == 2


def test_nothing_outside_is_asked_for(address):
    assert "fonts.googleapis" not in fetch(address)
    assert json.loads(fetch(f"{address}config"))["analytics_enabled"] is False


def test_other_interfaces_are_not_listened_on(address):
    port = urllib.parse.urlsplit(address).port
    socket.create_connection(("127.0.0.1", port), timeout=1).close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", port), timeout=1)


def test_the_published_student_is_used_once_it_is_in_place(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert app.find_student(None, tmp_path).folder == MINIATURE
    for asset in (STABLE_DIFFUSION_2, STUDENT):
        for file in asset.files or ("",):
            path = tmp_path / asset.target / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((2).to_bytes(8, "little") + b"{}" if path.suffix == ".safetensors" else b"{}")
    conversions = []
    monkeypatch.setattr(students, "convert", lambda *arguments: conversions.append((Path.cwd(), *arguments)))
    folder = tmp_path / "pretrained" / "triplane_turbo_sd_v1"
    assert app.find_student(None, tmp_path).folder == folder
    assert conversions == [(tmp_path, STUDENT.target, folder, students.RECIPE)]
    folder.mkdir()
    (folder / "pipeline.json").write_text("{}")
    assert app.find_student(None, tmp_path).folder == folder
    assert len(conversions) == 1
    assert app.find_student(Path("mine"), tmp_path).folder == Path("mine")


def test_without_gradio_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "triplaneturbo.pages.app")
    monkeypatch.setattr(sys, "argv", ["gradio_app.py"])
    with pytest.raises(SystemExit, match="1"):
        runpy.run_path(str(ROOT / "gradio_app.py"), run_name="__main__")
    wanted, _ = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["page"]
    assert capsys.readouterr().err == f'gradio_app.py: gradio is not installed; run: pip install "{wanted}"\n'
