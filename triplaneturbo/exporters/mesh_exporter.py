"""The exporters that configurations name."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from triplaneturbo.base import Component
from triplaneturbo.errors import ConfigError
from triplaneturbo.exporters.files import check_mesh, write_mesh
from triplaneturbo.exporters.render import render_turntable, save_picture
from triplaneturbo.naming import slug
from triplaneturbo.pictures import save_webp, to_bytes
from triplaneturbo.registry import register
from triplaneturbo.types import Mesh
from triplaneturbo.weights.files import replacing

_NO_ATLAS = "colours are written per vertex; there is no texture atlas"
VIDEO_VIEWS, VIDEO_SPEED = 60, 20  # views, and views a second


@register("multiprompt-mesh-exporter")
class MeshExporter(Component):
    """Each prompt to a folder of its own: the mesh, a turntable picture, and the prompt as it was given."""

    @dataclass(kw_only=True)
    class Config:
        REFUSED: ClassVar[dict[str, str]] = {
            "save_texture": _NO_ATLAS,
            "texture_size": _NO_ATLAS,
            "texture_format": _NO_ATLAS,
            "xatlas_chart_options": _NO_ATLAS,
            "xatlas_pack_options": _NO_ATLAS,
        }

        fmt: Literal["glb", "obj", "obj-mtl"] = "glb"
        """Kind of file: glb (y up, front on +z) or obj (z up, front on +x, as the original)."""
        save_name: str = "model"
        """Name of the mesh file, without suffix."""
        save_normal: bool = True
        """Write vertex normals, so that viewers shade smoothly."""
        save_uv: bool = False
        """Must be false: there is no texture atlas."""
        save_video: bool = False
        """Also write turntable.webp, an animation."""
        turntable_views: int = 8
        """Views in turntable.png, an even number; 0 writes no picture."""
        turntable_size: int = 256
        """Height and width of each of them, pixels."""
        context_type: Literal["cuda", "gl"] = "cuda"
        """Accepted for old configurations: pictures are rasterised where the mesh is."""

        def __post_init__(self) -> None:
            if self.fmt == "obj-mtl" or self.save_uv:
                raise ConfigError(f"obj-mtl and save_uv are not supported: {_NO_ATLAS}; use fmt=glb or fmt=obj")
            if self.turntable_views < 0 or self.turntable_views % 2:
                raise ConfigError(f"turntable_views must be an even number or 0, not {self.turntable_views}")
            if self.turntable_size < 1:
                raise ConfigError(f"turntable_size must be positive, not {self.turntable_size}")

    def __call__(self, meshes: list[Mesh], prompts: list[str], folder: str | Path) -> list[Path]:
        """Write every mesh into folder/<slug of its prompt>/ and return the paths of the mesh files.

        Raises:
            EmptyFieldError: a mesh has no faces or holds NaN; the message names the prompt. The meshes before it are
                written.
        """
        return [
            self._export(mesh, prompt, Path(folder) / slug(prompt))
            for mesh, prompt in zip(meshes, prompts, strict=True)
        ]

    def _export(self, mesh: Mesh, prompt: str, folder: Path) -> Path:
        check_mesh(mesh, prompt)
        path = folder / f"{self.cfg.save_name}.{self.cfg.fmt}"
        write_mesh(path, mesh, normals=self.cfg.save_normal)
        with replacing(folder / "prompt.txt") as temporary:
            temporary.write_text(prompt)
        if self.cfg.turntable_views:
            views = render_turntable(mesh, self.cfg.turntable_views, self.cfg.turntable_size)
            save_picture(folder / "turntable.png", views, columns=self.cfg.turntable_views // 2)
        if self.cfg.save_video:
            views = render_turntable(mesh, VIDEO_VIEWS, self.cfg.turntable_size)
            save_webp(folder / "turntable.webp", to_bytes(views), VIDEO_SPEED)
        return path


@register("dummy-exporter")
class DummyExporter(Component):
    """Writes nothing; for runs that only want their pictures."""

    def __call__(self, meshes: list[Mesh], prompts: list[str], folder: str | Path) -> list[Path]:
        """No paths."""
        return []
