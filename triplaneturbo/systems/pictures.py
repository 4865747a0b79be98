"""Pictures and films of generated objects."""

from pathlib import Path

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from triplaneturbo.types import Views
from triplaneturbo.weights.files import replacing


def sheet(views: Views) -> UInt8[Tensor, "M H W4 3"]:
    """Colour, normal on white, opacity and disparity side by side, as bytes on the CPU."""
    normal = views.normal if views.normal_white is None else views.normal_white
    grey = (picture.expand(-1, -1, -1, 3) for picture in (views.opacity, views.disparity))
    row = torch.cat([views.rgb, normal, *grey], dim=2)
    return (row.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def save_png(path: Path, picture: UInt8[Tensor, "H W 3"]) -> None:
    """Write one picture."""
    with replacing(path) as temporary:
        Image.fromarray(picture.numpy()).save(temporary, format="PNG")


def save_film(path: Path, pictures: UInt8[Tensor, "T H W 3"], frames_per_second: int) -> None:
    """Write an .mp4 file (H.264); odd heights and widths lose their last row or column, as the codec demands."""
    import imageio_ffmpeg  # carries an encoder of 30 MB: only who writes films needs it

    height, width = (length // 2 * 2 for length in pictures.shape[1:3])
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = imageio_ffmpeg.write_frames(
        str(path), (width, height), fps=frames_per_second, macro_block_size=2, quality=8, ffmpeg_log_level="error"
    )
    writer.send(None)
    for picture in pictures[:, :height, :width].contiguous():
        writer.send(picture.numpy())
    writer.close()
