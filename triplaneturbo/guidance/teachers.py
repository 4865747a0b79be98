"""The teachers there are. They differ in what they look at, what they are told, and how many views they see at once."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from triplaneturbo.base import option
from triplaneturbo.bounds import Pixels, ProjectPath, Range
from triplaneturbo.diffusion import NoiseSchedule
from triplaneturbo.errors import ConfigError
from triplaneturbo.guidance.camera_conditions import CamMethod, mvdream_camera, richdreamer_camera
from triplaneturbo.guidance.diffusion import DiffusionTeacher
from triplaneturbo.guidance.multiview import install_cross_view_attention
from triplaneturbo.guidance.teacher import Question
from triplaneturbo.registry import register
from triplaneturbo.types import Cameras
from triplaneturbo.weights.files import load_tensors
from triplaneturbo.weights.folders import load_schedule, load_unet, load_vae
from triplaneturbo.weights.ldm import (
    EMA_PREFIX,
    LDM_SCHEDULE,
    UNET_PREFIX,
    VAE_PREFIX,
    build_unet,
    build_vae,
    log_unused,
)


@register("stable-diffusion")
class StableDiffusionTeacher(DiffusionTeacher):
    """Single views, as colour pictures: one of each prompt, or all."""

    @dataclass(kw_only=True)
    class Config(DiffusionTeacher.Config):
        unconditional: Literal["negative", "empty"] = "empty"
        """The text of the branch without the prompt: the encoder's negative prompt, or none."""
        all_views: bool = False
        """Look at all views of a prompt, each at a timestep of its own, and not at one of them."""

    @property
    def sees_all(self) -> bool:
        return self.cfg.all_views

    def configure(self) -> None:
        self.unet, self.vae = load_unet(self.cfg.path), load_vae(self.cfg.path)
        self.schedule = load_schedule(self.cfg.path)
        self._freeze()


class MultiViewTeacher(DiffusionTeacher):
    """Sees all views of a prompt at once, which know of each other."""

    @dataclass(kw_only=True)
    class Config(DiffusionTeacher.Config):
        n_view: Annotated[int, Range(1, 1024)] = 4
        """Views of a prompt."""

    multi_view = True

    def check(self, n_view: int, conditions: Collection[str]) -> None:
        super().check(n_view, conditions)
        if self.cfg.n_view != n_view:
            raise ConfigError(
                f"{type(self).__name__} looks at n_view={self.cfg.n_view} views; data.cameras.n_view is {n_view}"
            )


@register("mvdream")
class MVDreamTeacher(MultiViewTeacher):
    """All views of a prompt as colour pictures with their cameras (Shi et al. 2023)."""

    @dataclass(kw_only=True)
    class Config(MultiViewTeacher.Config):
        path: ProjectPath
        """A diffusers folder (unet, vae, scheduler), or the published checkpoint sd-v2.1-base-4view.pt."""
        vae_path: ProjectPath | None = None
        """A diffusers folder to take the autoencoder from, when it is not in `path`."""
        image_size: Pixels = 256
        """Side of the pictures it looks at."""

    def configure(self) -> None:
        if Path(self.cfg.path).is_dir():
            self.unet, self.schedule = load_unet(self.cfg.path), load_schedule(self.cfg.path)
            self.vae = load_vae(self.cfg.vae_path or self.cfg.path)
        else:
            state = load_tensors(self.cfg.path)
            self.unet = build_unet(state, self.cfg.path, head_width=64)
            self.vae = load_vae(self.cfg.vae_path) if self.cfg.vae_path else build_vae(state, self.cfg.path)
            self.schedule = NoiseSchedule.from_config(LDM_SCHEDULE)
            log_unused(state, self.cfg.path, (UNET_PREFIX, EMA_PREFIX, VAE_PREFIX))
        install_cross_view_attention(self.unet, self.cfg.n_view)
        self._freeze()

    def camera(self, cameras: Cameras) -> Float[Tensor, "M 16"]:
        return mvdream_camera(cameras)


@register("richdreamer")
class RichDreamerTeacher(MultiViewTeacher):
    """All views of a prompt as normals and disparity, in pixel space (Qiu et al. 2023)."""

    @dataclass(kw_only=True)
    class Config(MultiViewTeacher.Config):
        path: ProjectPath
        """A diffusers folder (unet, scheduler), or the published checkpoint nd_mv_ema.ckpt."""
        image_size: Pixels = 32
        """Side of the pictures it looks at."""
        cam_method: CamMethod = "rel_x2"
        """Camera distance as it is told: twice the relative one, the relative one, the absolute one."""
        quirks: list[Literal["unit-range"]] = option([])
        """unit-range: it is shown pictures in [0, 1], not in [-1, 1] as in its training."""

    def configure(self) -> None:
        self.vae = None
        if Path(self.cfg.path).is_dir():
            self.unet, self.schedule = load_unet(self.cfg.path), load_schedule(self.cfg.path)
        else:
            state = load_tensors(self.cfg.path)
            self.unet = build_unet(state, self.cfg.path, heads=8)
            self.schedule = NoiseSchedule.from_config(LDM_SCHEDULE)
            log_unused(state, self.cfg.path, (UNET_PREFIX, EMA_PREFIX))
        channels = self.unet.config["in_channels"]
        if channels != 4:
            raise ConfigError(f"{self.cfg.path} takes {channels} channels; a normal-disparity model takes 4")
        install_cross_view_attention(self.unet, self.cfg.n_view)
        self._freeze()

    def preprocess(self, question: Question) -> Float[Tensor, "N 4 S S"]:
        pictures = torch.cat([question.pictures("normal"), question.pictures("disparity")], dim=1)
        factor, rest = divmod(pictures.shape[-1], self.cfg.image_size)
        if rest or pictures.shape[-1] != pictures.shape[-2]:
            return F.adaptive_avg_pool2d(pictures, self.cfg.image_size)
        return F.avg_pool2d(pictures, factor)  # the same, with a gradient that CUDA repeats bit for bit

    def encode(self, pictures: Float[Tensor, "N 4 S S"], vae_noise: Tensor | None) -> Float[Tensor, "N 4 S S"]:
        return pictures if "unit-range" in self.cfg.quirks else 2 * pictures - 1

    def camera(self, cameras: Cameras) -> Float[Tensor, "M 16"]:
        return richdreamer_camera(cameras, self.cfg.cam_method)
