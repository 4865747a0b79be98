"""The web page: its API with the shipped student, and whom and what it serves."""

import json
import runpy
import socket
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import torch
import trimesh
from gradio_client import Client
from gradio_client.exceptions import AppError

import gradio_app
from triplaneturbo.naming import slug
from triplaneturbo.weights.hub import STABLE_DIFFUSION_2, STUDENT

ROOT = Path(__file__).resolve().parents[1]
RESOLUTION = 32
OUTSIDE = "../../etc/passwd"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def generator(folder):
    return gradio_app.Generator(gradio_app.find_student(gradio_app.MINIATURE), "cpu", folder)


@pytest.fixture(scope="module")
def address(generator, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        patch.setenv("no_proxy", "127.0.0.1")
        page = gradio_app.build_page(generator)
        flags = gradio_app.parse(["--port", str(free_port()), "--allowed-host", "meshes.example"])
        gradio_app.launch(page, flags, folder, wait=False)
        yield page.local_url
        page.close(verbose=False)


@pytest.fixture(scope="module")
def client(address, tmp_path_factory):
    return Client(address, verbose=False, analytics_enabled=False, download_files=tmp_path_factory.mktemp("downloads"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fetch(url: str) -> str:
    return urllib.request.urlopen(url, timeout=10).read().decode()


def generate(client: Client, prompt: str, seed: int = 0, resolution: int = RESOLUTION) -> tuple[Path, Path, str]:
    mesh, download, picture, report = client.predict(prompt, seed, resolution, api_name="/generate")
    assert Path(mesh).read_bytes() == Path(download).read_bytes()
    return Path(mesh), Path(picture), report


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
    assert "reads 16 tokens" in report
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
    monkeypatch.setattr("triplaneturbo.geometry.isosurface.field_grid", lambda *_, **__: (torch.ones(1, 2, 2, 2), None))
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


@pytest.mark.parametrize("path", [ROOT / "README.md", Path("/etc/passwd"), gradio_app.MINIATURE / "pipeline.json"])
def test_only_results_are_served(address, path):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        fetch(f"{address}gradio_api/file={path}")


def test_nothing_outside_is_asked_for(address):
    assert "fonts.googleapis" not in fetch(address)
    assert json.loads(fetch(f"{address}config"))["analytics_enabled"] is False


def test_other_interfaces_are_not_listened_on(address):
    port = urllib.parse.urlsplit(address).port
    socket.create_connection(("127.0.0.1", port), timeout=1).close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", port), timeout=1)


def test_the_published_student_is_used_once_it_is_in_place(tmp_path, monkeypatch):
    assert gradio_app.find_student(None, tmp_path).folder == gradio_app.MINIATURE
    for asset in (STABLE_DIFFUSION_2, STUDENT):
        for file in asset.files or ("",):
            path = tmp_path / asset.target / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((2).to_bytes(8, "little") + b"{}" if path.suffix == ".safetensors" else b"{}")
    conversions = []
    monkeypatch.setattr(gradio_app, "convert", lambda *arguments: conversions.append((Path.cwd(), *arguments)))
    folder = tmp_path / "pretrained" / "triplane_turbo_sd_v1"
    assert gradio_app.find_student(None, tmp_path).folder == folder
    assert conversions == [(tmp_path, STUDENT.target, folder, gradio_app.RECIPE)]
    folder.mkdir()
    (folder / "pipeline.json").write_text("{}")
    assert gradio_app.find_student(None, tmp_path).folder == folder
    assert len(conversions) == 1
    assert gradio_app.find_student(Path("mine"), tmp_path).folder == Path("mine")


def test_without_gradio_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match=r'^gradio_app.py: gradio is not installed; run: pip install "gradio>='):
        runpy.run_path(str(ROOT / "gradio_app.py"))
