"""Videos are .mp4 where an encoder is installed, else animated .webp, and never half-written."""

import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from triplaneturbo import pictures
from triplaneturbo.pictures import save_png, save_video, save_webp, sheet, to_bytes
from triplaneturbo.types import Views


@pytest.fixture
def videos():
    return torch.arange(5 * 9 * 15 * 3).remainder(251).to(torch.uint8).view(5, 9, 15, 3)


@pytest.fixture(autouse=True)
def fresh_choice():
    """The installed encoder is looked for once in a process."""
    pictures._has_encoder.cache_clear()
    yield
    pictures._has_encoder.cache_clear()


class StandIn:
    """Takes the place of imageio_ffmpeg: records the call and writes the raw pictures."""

    def __init__(self, fail_at=None):
        self.fail_at, self.call, self.received = fail_at, None, []

    def write_frames(self, path, size, **options):
        self.call = SimpleNamespace(path=Path(path), size=size, **options)
        while True:
            try:
                frame = yield
            except GeneratorExit:
                self.call.path.write_bytes(b"".join(f.tobytes() for f in self.received))
                raise
            if len(self.received) == self.fail_at:
                raise OSError("the encoder broke")
            self.received.append(np.array(frame))


def test_without_an_encoder_films_are_animations(tmp_path, videos, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)  # importing it fails
    caplog.set_level(logging.INFO, pictures.__name__)
    paths = [save_video(tmp_path / name, videos, 10) for name in ("a", "b.c")]
    assert [path.name for path in paths] == ["a.webp", "b.c.webp"]
    video = Image.open(paths[0])
    video.load()
    assert (video.n_frames, video.size, video.info["duration"], video.info["loop"]) == (5, (15, 9), 100, 0)
    assert len(caplog.messages) == 1
    assert "pip install imageio-ffmpeg" in caplog.text


def test_with_an_encoder_films_are_mp4(tmp_path, videos, monkeypatch, caplog):
    encoder = StandIn()
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", encoder)
    caplog.set_level(logging.INFO, pictures.__name__)
    path = save_video(tmp_path / "a", videos, 10)
    assert path == tmp_path / "a.mp4"
    assert (encoder.call.size, encoder.call.fps, encoder.call.output_params) == ((14, 8), 10, ["-f", "mp4"])
    np.testing.assert_array_equal(np.stack(encoder.received), videos[:, :8, :14].numpy())
    assert path.read_bytes() == videos[:, :8, :14].numpy().tobytes()
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert caplog.messages == ["videos are written as .mp4 files"]


def test_a_failing_encoder_leaves_the_old_film(tmp_path, videos, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", StandIn(fail_at=3))
    (tmp_path / "a.mp4").write_bytes(b"old")
    with pytest.raises(OSError, match="the encoder broke"):
        save_video(tmp_path / "a", videos, 10)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.mp4", b"old")]


def test_a_failing_animation_leaves_the_old_one(tmp_path, videos, monkeypatch):
    def fail(image, path, **options):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    (tmp_path / "a.webp").write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"):
        save_webp(tmp_path / "a.webp", videos, 10)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.webp", b"old")]


def test_sheet_and_png(tmp_path):
    def flat(value, channels):
        return torch.full((2, 4, 4, channels), value)

    views = Views(
        rgb=flat(0.2, 3),
        normal=flat(0.4, 3),
        normal_white=flat(0.6, 3),
        opacity=flat(0.0, 1),
        disparity=flat(1.5, 1),
        depth=flat(3.0, 1),
    )
    found = sheet(views)
    save_png(tmp_path / "a.png", found[1])
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    np.testing.assert_array_equal(pixels[2, :, 1], np.repeat([51, 153, 0, 255], 4))
    assert to_bytes(torch.tensor([[-1.0, 0.5, 2.0]])).tolist() == [[0, 128, 255]]
