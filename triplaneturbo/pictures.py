"""Pictures and videos as files. Every file is written beside its place and then moved there."""

import importlib
import io
import logging
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from triplaneturbo.storage import replacing
from triplaneturbo.types import Views

log = logging.getLogger(__name__)

PictureKind = Literal["png", "jpg"]


def to_bytes(picture: Float[Tensor, "*N 3"]) -> UInt8[Tensor, "*N 3"]:
    """Values in [0, 1] as 8-bit integers, rounded, on the CPU; others are clipped."""
    return picture.clamp(0, 1).mul(255).round().byte().cpu()


def sheet(views: Views) -> UInt8[Tensor, "M H W4 3"]:
    """Colour, normal on white, opacity and disparity side by side, as bytes on the CPU."""
    normal = views.normal if views.normal_white is None else views.normal_white
    grey = (picture.expand(-1, -1, -1, 3) for picture in (views.opacity, views.disparity))
    return to_bytes(torch.cat([views.rgb, normal, *grey], dim=2))


def save_png(path: str | Path, picture: UInt8[Tensor, "H W 3"]) -> None:
    """Write one picture."""
    with replacing(path) as temporary:
        Image.fromarray(picture.numpy()).save(temporary, format="PNG")


def from_image(image: Image.Image) -> Float[Tensor, "H W 3"]:
    """Its colours in [0, 1]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).float() / 255


def encode(picture: UInt8[Tensor, "H W 3"], kind: PictureKind) -> bytes:
    """The content of a picture file."""
    content = io.BytesIO()
    Image.fromarray(picture.numpy()).save(content, format={"png": "PNG", "jpg": "JPEG"}[kind], quality=95)
    return content.getvalue()


def save_video(stem: str | Path, pictures: UInt8[Tensor, "T H W 3"], frames_per_second: int) -> Path:
    """Write `stem`.mp4 if imageio-ffmpeg is installed, else `stem`.webp; the path that was written."""
    suffix, write = (".mp4", save_mp4) if _has_encoder() else (".webp", save_webp)
    path = Path(f"{stem}{suffix}")
    write(path, pictures, frames_per_second)
    return path


def save_webp(path: str | Path, pictures: UInt8[Tensor, "T H W 3"], frames_per_second: int) -> None:
    """Write an endless animation."""
    first, *others = (Image.fromarray(picture.numpy()) for picture in pictures)
    duration = round(1000 / frames_per_second)
    with replacing(path) as temporary:
        first.save(temporary, format="WEBP", save_all=True, append_images=others, duration=duration, loop=0)


def save_mp4(path: str | Path, pictures: UInt8[Tensor, "T H W 3"], frames_per_second: int) -> None:
    """Write a video (H.264); odd heights and widths lose their last row or column, as the codec demands.

    Raises:
        ModuleNotFoundError: imageio-ffmpeg is not installed.
        OSError: the encoder failed.
    """
    import imageio_ffmpeg

    height, width = (length // 2 * 2 for length in pictures.shape[1:3])
    with replacing(path) as temporary:
        writer = imageio_ffmpeg.write_frames(
            str(temporary),
            (width, height),
            fps=frames_per_second,
            quality=8,
            macro_block_size=2,
            ffmpeg_log_level="error",
            output_params=["-f", "mp4"],  # the temporary name does not say so
        )
        writer.send(None)
        for picture in pictures[:, :height, :width].contiguous():
            writer.send(picture.numpy())
        writer.close()


@cache
def _has_encoder() -> bool:
    """Whether the package is installed that writes .mp4 files; it carries a program of 30 MB and is not required."""
    try:
        importlib.import_module("imageio_ffmpeg")
    except ModuleNotFoundError:
        log.info("videos are written as animated .webp files; for .mp4 run: pip install imageio-ffmpeg")
        return False
    log.info("videos are written as .mp4 files")
    return True
