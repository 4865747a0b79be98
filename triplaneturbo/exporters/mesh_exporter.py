"""The exporters that configurations name."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from triplaneturbo.bounds import Pixels, Range, file_name
from triplaneturbo.errors import ConfigError, WriteError
from triplaneturbo.exporters.base import Exporter
from triplaneturbo.exporters.files import check_mesh, write_mesh
from triplaneturbo.exporters.origin import Origin, clear, occupant, read_origin, write_origin
from triplaneturbo.exporters.render import render_turntable, save_picture
from triplaneturbo.exporters.texture import add_texture
from triplaneturbo.exporters.unwrap import check_available
from triplaneturbo.naming import folder_names
from triplaneturbo.pictures import PictureKind, save_webp, to_bytes
from triplaneturbo.registry import register
from triplaneturbo.storage import write_text
from triplaneturbo.types import Mesh

VIDEO_VIEWS, VIDEO_SPEED = 60, 20  # views, and views a second


@register("mesh-files")
class MeshExporter(Exporter):
    """Each prompt to a folder of its own: the mesh, a turntable picture, the prompt as it was given, and the mesh's
    origin."""

    @dataclass(kw_only=True)
    class Config(Exporter.Config):
        fmt: Literal["glb", "obj", "obj-mtl"] = "glb"
        """Kind of file: glb (y up, front on +z), obj (z up, front on +x, as the original, colours per vertex), or
        obj-mtl (the same with a texture)."""
        save_name: Annotated[str, file_name] = "model"
        """Name of the mesh file, without suffix."""
        save_normal: bool = True
        """Write vertex normals, so that viewers shade smoothly."""
        save_uv: bool = False
        """Write fewer faces and a texture in place of colours per vertex; obj-mtl always does, obj cannot."""
        texture_size: Annotated[int, Range(16, 8192)] = 1024
        """Height and width of the texture, texels."""
        texture_format: PictureKind = "png"
        """Kind of picture; jpg is smaller and blurs edges."""
        max_faces: Annotated[int, Range(0)] = 5000
        """Faces of a mesh with a texture, 0: all. Doubling them more than doubles the time of unwrapping."""
        xatlas_chart_options: dict = field(default_factory=dict)
        """How xatlas cuts the surface into charts."""
        xatlas_pack_options: dict = field(default_factory=dict)
        """How xatlas lays them out; padding and resolution follow the texture unless given here."""
        save_video: bool = False
        """Also write turntable.webp, an animation."""
        turntable_views: Annotated[int, Range(0, 1024, even=True)] = 8
        """Views in turntable.png, an even number; 0 writes no picture."""
        turntable_size: Pixels = 256
        """Height and width of each of them, pixels."""
        overwrite: bool = False
        """Replace meshes of another prompt, seed or training; launch.py --overwrite sets it. Without it they are an
        error."""

        def __post_init__(self) -> None:
            if self.fmt == "obj" and self.save_uv:
                raise ConfigError("fmt=obj has colours per vertex; for a texture use fmt=obj-mtl or fmt=glb")

        @property
        def textured(self) -> bool:
            """Whether colours are written as a texture."""
            return self.save_uv or self.fmt == "obj-mtl"

    def configure(self) -> None:
        if self.cfg.textured:
            check_available(self.cfg.xatlas_chart_options, self.cfg.xatlas_pack_options)

    def __call__(
        self,
        meshes: Sequence[Mesh],
        prompts: Sequence[str],
        folder: str | Path,
        origins: Sequence[Origin] | None = None,
    ) -> list[Path]:
        """Write every mesh into folder/<slug of its prompt>/ and return the paths of the mesh files.

        A prompt that is there more than once, such as with several seeds, has further folders: a_cube, a_cube.2, ...
        origins: of the meshes, to be written beside them; a mesh in its place is replaced if it has the same.

        Raises:
            WriteError: another mesh is in the place of one, see `check`. Nothing is written.
            EmptyFieldError: a mesh has no faces or holds NaN; the message names the prompt. The meshes before it are
                written.
        """
        self.check(prompts, folder, origins)
        return [
            self._export(mesh, prompt, Path(folder) / name, origin)
            for mesh, prompt, name, origin in zip(
                meshes, prompts, folder_names(prompts), _of_each(prompts, origins), strict=True
            )
        ]

    def check(self, prompts: Sequence[str], folder: str | Path, origins: Sequence[Origin] | None = None) -> None:
        """See that an export of these prompts would replace nothing but earlier versions of the same meshes.

        Raises:
            WriteError: it would, and `overwrite` is not set.
        """
        if self.cfg.overwrite:
            return
        taken = [
            (place, origin, there)
            for name, origin in zip(folder_names(prompts), _of_each(prompts, origins), strict=True)
            if (there := occupant(place := Path(folder) / name)) and (origin is None or read_origin(place) != origin)
        ]
        if taken:
            place, origin, there = taken[0]
            new = f", not of {origin}" if origin else ""
            raise WriteError(
                f"{len(taken)} of {len(prompts)} meshes would replace others: {place} holds one of {there}{new}. "
                "Choose another folder, or replace them with overwrite=True (launch.py --overwrite)"
            )

    def is_finished(self, folder: Path, origin: Origin) -> bool:
        """Whether all that a call writes of the mesh of `origin` is in its folder: the mesh is written last."""
        return read_origin(folder) == origin and (folder / self._mesh_file).is_file()

    @property
    def _mesh_file(self) -> str:
        return f"{self.cfg.save_name}.{self.cfg.fmt.removesuffix('-mtl')}"

    def _export(self, mesh: Mesh, prompt: str, folder: Path, origin: Origin | None) -> Path:
        check_mesh(mesh, prompt)
        cfg = self.cfg
        if cfg.textured:
            mesh = add_texture(
                mesh,
                size=cfg.texture_size,
                max_faces=cfg.max_faces,
                chart_options=cfg.xatlas_chart_options,
                pack_options=cfg.xatlas_pack_options,
            )
        if origin is None or read_origin(folder) != origin:
            clear(folder)
        if origin:
            write_origin(folder, origin)
        write_text(folder / "prompt.txt", prompt)
        if cfg.turntable_views:
            views = render_turntable(mesh, cfg.turntable_views, cfg.turntable_size)
            save_picture(folder / "turntable.png", views, columns=cfg.turntable_views // 2)
        if cfg.save_video:
            views = render_turntable(mesh, VIDEO_VIEWS, cfg.turntable_size)
            save_webp(folder / "turntable.webp", to_bytes(views), VIDEO_SPEED)
        path = folder / self._mesh_file
        write_mesh(path, mesh, normals=cfg.save_normal, texture_format=cfg.texture_format)
        return path


def _of_each(prompts: Sequence[str], origins: Sequence[Origin] | None) -> Sequence[Origin | None]:
    """The origin of each prompt's mesh, if they are known."""
    return origins or [None] * len(prompts)


@register("no-files")
class NoFiles(Exporter):
    """Writes nothing; for runs that only want their pictures."""

    def __call__(
        self, meshes: Sequence[Mesh], prompts: Sequence[str], folder: str | Path, origins: object = None
    ) -> list[Path]:
        """No paths."""
        return []

    def check(self, prompts: Sequence[str], folder: str | Path, origins: object = None) -> None:
        """Nothing is replaced."""
