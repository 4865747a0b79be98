"""What is left on a disk that is full, and what is said about it."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest
import torch
from full_disk import files_end_at
from published_layout import published_unet, published_vae, tiny_unet, tiny_vae
from tiny_student import write_pipeline

from triplaneturbo import TextToMeshPipeline
from triplaneturbo.errors import WriteError
from triplaneturbo.evaluation.convert import main as convert
from triplaneturbo.exporters.mesh_exporter import MeshExporter
from triplaneturbo.pictures import save_png
from triplaneturbo.storage import copy_file, link_file, replacing, require_writable, write_text
from triplaneturbo.systems.checkpoint import AtomicCheckpointIO
from triplaneturbo.systems.losslog import EventLog, LossLog
from triplaneturbo.types import Mesh
from triplaneturbo.weights.files import read_checkpoint, save_tensors

NOISE = torch.rand(50_000, generator=torch.Generator().manual_seed(0))
PICTURE = (NOISE[:43200] * 255).byte().view(120, 120, 3)


def save_noise(path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({"noise": NOISE}, path)


@pytest.mark.parametrize(
    "write",
    [
        save_noise,
        lambda path: save_tensors(path, {"noise": NOISE}),
        lambda path: write_text(path, "line\n" * 30_000),
        lambda path: save_png(path, PICTURE),
    ],
    ids=["checkpoint", "safetensors", "text", "picture"],
)
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, write):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with files_end_at(20_000), pytest.raises(WriteError, match=r"file\b.*too large.*MiB are free.*still the old one"):
        write(path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    write(path)
    assert path.stat().st_size > 20_000


def test_a_checkpoint_that_does_not_fit_is_not_there(tmp_path):
    save_noise(tmp_path / "1.ckpt")
    with files_end_at(100_000), pytest.raises(WriteError, match=r"2\.ckpt: File too large after 0\.1 MiB"):
        save_noise(tmp_path / "2.ckpt")
    assert torch.equal(read_checkpoint(tmp_path / "1.ckpt")["noise"], NOISE)
    assert [p.name for p in tmp_path.iterdir()] == ["1.ckpt"]


def test_a_size_that_is_known_is_said(tmp_path):
    with files_end_at(20_000), pytest.raises(WriteError, match=r"a\.safetensors \(it has 0\.2 MiB\): File too"):
        save_tensors(tmp_path / "a.safetensors", {"noise": NOISE})


def test_the_loss_log_is_named_and_can_be_continued(tmp_path):
    log = LossLog(tmp_path / "losses.jsonl")

    def fill() -> None:
        for step in range(1, 1000):
            log.log_metrics({"loss": 0.5}, step)

    with files_end_at(1000), pytest.raises(WriteError, match=r"losses\.jsonl: File too large"):
        fill()
    log.truncate(20)
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [*range(1, 21)]


def test_events_that_cannot_be_written_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda failure: None)  # the writing thread's own report
    log = EventLog(tmp_path, name="tb_logs", version="")
    log.log_metrics({"loss": 0.5}, 1)
    with files_end_at(0), pytest.raises(WriteError, match=r"tb_logs: File too large"):
        log.finalize("success")


def test_an_exported_mesh_is_complete_or_not_there(tmp_path):
    n = 100
    faces = torch.stack([torch.arange(n - 2), torch.arange(1, n - 1), torch.arange(2, n)], dim=1)
    mesh = Mesh(NOISE[: 3 * n].view(n, 3), faces, NOISE[: 3 * n].view(n, 3))
    with files_end_at(5_000), pytest.raises(WriteError, match=r"a_cube/turntable\.png"):
        MeshExporter()([mesh], ["a cube"], tmp_path)
    assert [path.name for path in (tmp_path / "a_cube").iterdir()] == ["prompt.txt"]  # the mesh is written last


@pytest.mark.parametrize("limit", [50_000, 300_000])
def test_a_conversion_that_does_not_fit_leaves_no_part_of_a_file(tmp_path, capsys, limit):
    state = published_unet(tiny_unet(True, widths=(64, 128), heads=(1, 2))) | published_vae(tiny_vae())
    torch.save({"state_dict": state}, tmp_path / "teacher.ckpt")
    with files_end_at(limit):
        assert convert("", [str(tmp_path / "teacher.ckpt"), str(tmp_path / "out")]) == 1
    assert "unet/diffusion_pytorch_model.safetensors (it has" in capsys.readouterr().err
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == []


def test_a_pipeline_that_does_not_fit_leaves_no_part_of_a_file(tmp_path, tiny_world):
    pipe = TextToMeshPipeline.from_pretrained(write_pipeline(tmp_path, tiny_world / "sd"), "cpu")
    with files_end_at(30_000), pytest.raises(WriteError, match="File too large"):
        pipe.save_pretrained(tmp_path / "saved")
    written = {p.relative_to(tmp_path / "saved/base") for p in (tmp_path / "saved").rglob("*") if p.is_file()}
    for file in written:
        assert (tmp_path / "saved/base" / file).read_bytes() == (tiny_world / "sd" / file).read_bytes()


def test_a_full_disk_says_how_much_did_not_fit(tmp_path, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"a\.bin: No space left on device after 3\.0 MiB of it; [0-9.]+ MiB"):
        copy_file(_file(tmp_path / "source", 3 * 2**20), tmp_path / "a.bin")


def _file(path: Path, size: int) -> Path:
    path.write_bytes(bytes(size))
    return path


def test_errors_that_have_nothing_to_do_with_the_disk_stay_what_they_are(tmp_path):
    with pytest.raises(KeyError), replacing(tmp_path / "a"):
        raise KeyError("b")


def test_places_that_cannot_be_written_to(tmp_path):
    _file(tmp_path / "file", 1)
    for act in (require_writable, lambda folder: write_text(folder / "a", "text")):
        with pytest.raises(WriteError, match=r"cannot create the folder .*file/folder"):
            act(tmp_path / "file/folder")
    (tmp_path / "a").mkdir()
    with pytest.raises(WriteError, match=r"cannot write .*Is a directory"):
        write_text(tmp_path / "a", "text")


def test_a_disk_without_links_has_copies(tmp_path, monkeypatch):
    def refuse(*names: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    save_noise(tmp_path / "1.ckpt")
    link_file(tmp_path / "1.ckpt", tmp_path / "linked.ckpt")
    monkeypatch.setattr(os, "link", refuse)
    link_file(tmp_path / "1.ckpt", tmp_path / "copied.ckpt")
    links = {p.name: p.stat().st_nlink for p in tmp_path.iterdir()}
    assert links == {"1.ckpt": 2, "linked.ckpt": 2, "copied.ckpt": 1}
    assert (tmp_path / "copied.ckpt").read_bytes() == (tmp_path / "1.ckpt").read_bytes()


def test_text_is_written_as_it_is(tmp_path):
    write_text(tmp_path / "a", "a\r\nb\u732b")
    assert (tmp_path / "a").read_bytes() == "a\r\nb\u732b".encode()
