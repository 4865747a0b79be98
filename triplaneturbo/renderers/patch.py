"""Full-size pictures for the price of small ones: a coarse picture of everything, a sharp patch pasted into it."""

from dataclasses import dataclass, fields
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.base import Chosen, Part
from triplaneturbo.bounds import Pixels, Range
from triplaneturbo.cameras import ray_directions
from triplaneturbo.draws import Draws, keyed_generator
from triplaneturbo.errors import ConfigError
from triplaneturbo.registry import register
from triplaneturbo.renderers.base import START, Background, MakesScenes, Material, Renderer
from triplaneturbo.renderers.sampling import Jitter
from triplaneturbo.scenes import FieldScene
from triplaneturbo.schedule import Progress
from triplaneturbo.types import Cameras, Views


@dataclass(frozen=True)
class PatchDraws:
    """Random numbers of one call. corners: (top, left) of each prompt's patch, the same for all its views; jitter: of
    the two passes."""

    corners: tuple[tuple[int, int], ...]
    coarse: Jitter | None = None
    patch: Jitter | None = None


@register("patch")
class PatchRenderer(Renderer[FieldScene]):
    """Wraps a renderer that can follow arbitrary rays (the volume renderer).

    In training two passes are made: rays of the whole picture averaged down by `global_downsample`, and the rays of
    one patch. Pictures are the first, enlarged bilinearly, with the second pasted in; both receive gradients. What
    is not a picture (`extras` by sample) is that of the first pass. In evaluation mode the whole picture is rendered.
    """

    @dataclass(kw_only=True)
    class Config(Renderer.Config):
        base_renderer: Annotated[Chosen, Part("renderer")]
        """The renderer that is wrapped."""
        patch_size: Pixels = 128
        """Side of the patch in pixels."""
        global_downsample: Annotated[int, Range(1, 1024)] = 4
        """Factor by which the whole picture is smaller."""
        global_detach: bool = False
        """Whether only the patch passes gradients on."""

        def __post_init__(self) -> None:
            if self.radius is not None:
                raise ConfigError("the renderer that is wrapped has the radius: set base_renderer.radius")

    def configure(self, *, material: Material, background: Background) -> None:
        super().configure(material=material, background=background)
        self.base_renderer = self.cfg.base_renderer.build(material=material, background=background)
        if not hasattr(self.base_renderer, "render_rays"):
            raise ConfigError(
                f"base_renderer.type is {self.cfg.base_renderer.type!r}, which cannot render single rays; use 'volume'"
            )

    def check_geometry(self, geometry: MakesScenes) -> None:
        """See `Renderer.check_geometry`."""
        self.base_renderer.check_geometry(geometry)

    def forward(
        self,
        scene: FieldScene,
        cameras: Cameras,
        pooled_text: Float[Tensor, "B T"],
        *,
        size: tuple[int, int],
        draws: Draws | None = None,
        progress: Progress = START,
    ) -> Views:
        """See `Renderer.forward`. Training needs `draws`."""
        if not self.training:
            return self.base_renderer(scene, cameras, pooled_text, size=size, draws=draws, progress=progress)
        if draws is None:
            raise ValueError("the patch renderer places its patch at random in training: give draws")
        self.base_renderer.follow(scene, draws, progress)
        directions, drawn = ray_directions(cameras, *size), self.draw(draws, cameras.n_view, size)
        background = self.background_in(draws, cameras.n_view)
        return self.render(scene, cameras, pooled_text, directions, drawn, background=background, progress=progress)

    def draw(self, draws: Draws, n_view: int, size: tuple[int, int]) -> PatchDraws:
        """The random numbers of a call."""
        height, width = self._check(size)
        coarse_rays = n_view * (height // self.cfg.global_downsample) * (width // self.cfg.global_downsample)
        return PatchDraws(
            corners=tuple(self._corner(draws, sample, size) for sample in draws.samples),
            coarse=self.base_renderer.draw_jitter(draws.within("coarse"), coarse_rays),
            patch=self.base_renderer.draw_jitter(draws.within("patch"), n_view * self.cfg.patch_size**2),
        )

    def _corner(self, draws: Draws, sample: int, size: tuple[int, int]) -> tuple[int, int]:
        """Drawn on the CPU: slices need numbers, and to read them from a GPU is to wait."""
        generator = keyed_generator(draws.seed, draws.scope + "corner", sample)
        top, left = (torch.randint(max(n - self.cfg.patch_size, 1), (), generator=generator) for n in size)
        return int(top), int(left)

    def render(
        self,
        scene: FieldScene,
        cameras: Cameras,
        pooled_text: Float[Tensor, "B T"],
        directions: Float[Tensor, "M H W 3"],
        draws: PatchDraws,
        *,
        background: Background | None = None,
        progress: Progress = START,
    ) -> Views:
        """Coarse pictures with a sharp patch: a pure function of the rays and of recorded draws.

        Coarse rays are averages of unit directions and are used as they are, slightly shorter than 1. background: None:
        the sibling.
        """
        height, width = self._check((directions.shape[1], directions.shape[2]))
        factor, side = self.cfg.global_downsample, self.cfg.patch_size
        n_view = cameras.n_view
        patches = [
            (slice(b * n_view, (b + 1) * n_view), slice(top, top + side), slice(left, left + side))
            for b, (top, left) in enumerate(draws.corners)
        ]
        coarse = self.base_renderer.render_rays(
            scene,
            cameras,
            pooled_text,
            _resize(directions, (height // factor, width // factor)),
            jitter=draws.coarse,
            background=background,
            progress=progress,
        )
        rays = torch.cat([directions[place] for place in patches])
        patch = self.base_renderer.render_rays(
            scene, cameras, pooled_text, rays, jitter=draws.patch, background=background, progress=progress
        )

        def paste(large: Tensor, small: Tensor) -> Tensor:
            picture = _resize(large.detach() if self.cfg.global_detach else large, (height, width))
            for place, part in zip(patches, small.split(n_view), strict=True):
                picture[place] = part
            return picture

        pictures = {f.name: getattr(coarse, f.name) for f in fields(coarse) if f.name != "extras"}
        pictures = {name: paste(value, getattr(patch, name)) for name, value in pictures.items()}
        shape = coarse.rgb.shape[:3]
        extras = {
            name: paste(value, patch.extras[name]) if value.dim() == 4 and value.shape[:3] == shape else value
            for name, value in coarse.extras.items()
        }
        return Views(**pictures, extras=extras)

    def _check(self, size: tuple[int, int]) -> tuple[int, int]:
        if min(size) < max(self.cfg.patch_size, self.cfg.global_downsample):
            raise ValueError(
                f"pictures of {size[0]} x {size[1]} are smaller than patch_size ({self.cfg.patch_size}) or "
                f"global_downsample ({self.cfg.global_downsample}); render larger ones or lower these options"
            )
        return size


def _resize(picture: Float[Tensor, "M h w C"], size: tuple[int, int]) -> Float[Tensor, "M H W C"]:
    channels_first = picture.permute(0, 3, 1, 2)
    return F.interpolate(channels_first, size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
