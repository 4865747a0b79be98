"""Frozen diffusion models that look at rendered pictures.

A teacher turns pictures into latents (with gradient), and noisy latents into a prediction (without). What differs
between teachers is what they look at, which text and camera they are told, and how many views they see at once.
"""

from abc import abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor

from triplaneturbo.base import Module
from triplaneturbo.bounds import Pixels, ProjectPath, Range
from triplaneturbo.diffusion import NoiseSchedule
from triplaneturbo.errors import ConfigError
from triplaneturbo.guidance.camera_conditions import CamMethod, mvdream_camera, richdreamer_camera
from triplaneturbo.guidance.multiview import install_cross_view_attention
from triplaneturbo.precision import DtypeName, autocast, cast_frozen, resolve_dtype
from triplaneturbo.registry import register
from triplaneturbo.types import Cameras, TextStates, Views
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


class Teacher(Module):
    """A frozen U-Net, perhaps an autoencoder, and the noise schedule they were trained with.

    `configure` of a subclass sets `unet`, `vae` (or None) and `schedule`. Weights never get a gradient; the modules
    stay in evaluation mode.
    """

    @dataclass(kw_only=True)
    class Config(Module.Config):
        path: ProjectPath
        """A diffusers folder."""
        image_size: Pixels = 512
        """Side of the pictures the teacher looks at."""
        gradient_checkpoint: bool = False
        """Recompute the encoder in the backward pass: less memory, more time."""
        network_dtype: DtypeName = "auto"
        """Floating-point type of the networks; auto is bfloat16 on CUDA."""

    multi_view: ClassVar[bool] = False
    """Whether it sees all views of a prompt at once, or one."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL | None
    schedule: NoiseSchedule

    def _freeze(self) -> None:
        self.requires_grad_(False)
        self.eval()
        if self.vae is not None and self.cfg.gradient_checkpoint:
            self.vae.enable_gradient_checkpointing()

    def train(self, mode: bool = True) -> "Teacher":
        """Teachers stay in evaluation mode, whatever the system around them does."""
        return super().train(False)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        factor = 1 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)
        return self.unet.config.in_channels, self.cfg.image_size // factor, self.cfg.image_size // factor

    def preprocess(self, views: Views, rows: Int[Tensor, " N"] | slice) -> Float[Tensor, "N C S S"]:
        """The pictures of `rows` at the teacher's size, in [0, 1]; differentiable."""
        size = (self.cfg.image_size, self.cfg.image_size)
        rgb = views.rgb[rows].movedim(-1, 1)
        return F.interpolate(rgb, size, mode="bilinear", align_corners=False)

    def encode(
        self, pictures: Float[Tensor, "N C S S"], vae_noise: Float[Tensor, "N c s s"] | None
    ) -> Float[Tensor, "N c s s"]:
        """Latents of pictures in [0, 1]; differentiable. vae_noise: of the posterior sample."""
        dtype = self._settle(pictures.device)
        with autocast(pictures.device, dtype):
            posterior = self.vae.encode(2 * pictures - 1).latent_dist
        latents = posterior.mean.float() + posterior.std.float() * vae_noise
        return latents * self.vae.config.scaling_factor

    @torch.no_grad()
    def predict(
        self,
        noisy: Float[Tensor, "N c s s"],
        t: Int[Tensor, " N"],
        text: Float[Tensor, "N L D"],
        camera: Float[Tensor, "N 16"] | None,
    ) -> Float[Tensor, "N c s s"]:
        """The network's output, float32, without gradient."""
        dtype = self._settle(noisy.device)
        camera = None if camera is None else camera.to(dtype)
        with autocast(noisy.device, dtype):
            return self.unet(noisy.to(dtype), t, text.to(dtype), class_labels=camera).sample.float()

    def _settle(self, device: torch.device) -> torch.dtype:
        """Networks are stored in the type they run in, which is known once they are on their device."""
        dtype = resolve_dtype(self.cfg.network_dtype, device)
        if self.unet.dtype != dtype:
            cast_frozen(self, dtype)
        return dtype

    def schedule_on(self, device: torch.device) -> NoiseSchedule:
        """The noise schedule, with its table on `device`."""
        if self.schedule.alphas_cumprod.device != device:
            self.schedule = replace(self.schedule, alphas_cumprod=self.schedule.alphas_cumprod.to(device))
        return self.schedule

    def camera(self, cameras: Cameras) -> Float[Tensor, "M 16"] | None:
        """The camera condition of each view, or None."""
        return None

    @abstractmethod
    def text(self, texts: tuple[TextStates, TextStates]) -> tuple[Tensor, Tensor]:
        """Tokens [B, L, C] of the prompts and [1, L, C] of the unconditional branch.

        texts: of the first (RichDreamer) and second (Stable Diffusion, MVDream) text encoder.
        """


@register("stable-diffusion-teacher")
class StableDiffusionTeacher(Teacher):
    """One view of each prompt, as a colour picture. Unconditional branch: the empty prompt."""

    def configure(self) -> None:
        self.unet, self.vae = load_unet(self.cfg.path), load_vae(self.cfg.path)
        self.schedule = load_schedule(self.cfg.path)
        self._freeze()

    def text(self, texts: tuple[TextStates, TextStates]) -> tuple[Tensor, Tensor]:
        return texts[1].tokens, texts[1].empty


@register("mvdream-teacher")
class MVDreamTeacher(Teacher):
    """All views of a prompt as colour pictures with their cameras. Unconditional branch: the negative prompt."""

    @dataclass(kw_only=True)
    class Config(Teacher.Config):
        path: ProjectPath
        """A diffusers folder (unet, vae, scheduler), or the published checkpoint sd-v2.1-base-4view.pt."""
        vae_path: ProjectPath | None = None
        """A diffusers folder to take the autoencoder from, when it is not in `path`."""
        n_view: Annotated[int, Range(1, 1024)] = 4
        image_size: Pixels = 256
        camera_condition_type: Literal["rotation"] = "rotation"

    multi_view = True

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

    def text(self, texts: tuple[TextStates, TextStates]) -> tuple[Tensor, Tensor]:
        return texts[1].tokens, texts[1].negative


@register("richdreamer-teacher")
class RichDreamerTeacher(Teacher):
    """All views of a prompt as normals and disparity, in pixel space. Unconditional branch: the negative prompt."""

    @dataclass(kw_only=True)
    class Config(Teacher.Config):
        path: ProjectPath
        """A diffusers folder (unet, scheduler), or the published checkpoint nd_mv_ema.ckpt."""
        n_view: Annotated[int, Range(1, 1024)] = 4
        image_size: Pixels = 32
        cam_method: CamMethod = "rel_x2"
        """Camera distance as the teacher is told it: twice the relative one, the relative one, the absolute one."""
        compat: Literal["right", "original"] = "right"
        """right: pictures in [-1, 1], as in the teacher's training. original: in [0, 1] (docs/compat.md row 2)."""

    multi_view = True

    @classmethod
    def differences(cls, cfg: Any) -> dict[int, str]:
        return {2: "RichDreamer looks at normals and disparity in [-1, 1], as in its training, not in [0, 1]"}

    def configure(self) -> None:
        self.vae = None
        if Path(self.cfg.path).is_dir():
            self.unet, self.schedule = load_unet(self.cfg.path), load_schedule(self.cfg.path)
        else:
            state = load_tensors(self.cfg.path)
            self.unet = build_unet(state, self.cfg.path, heads=8)
            self.schedule = NoiseSchedule.from_config(LDM_SCHEDULE)
            log_unused(state, self.cfg.path, (UNET_PREFIX, EMA_PREFIX))
        if self.unet.config.in_channels != 4:
            raise ConfigError(
                f"{self.cfg.path} takes {self.unet.config.in_channels} channels; a normal-disparity model takes 4"
            )
        install_cross_view_attention(self.unet, self.cfg.n_view)
        self._freeze()

    def preprocess(self, views: Views, rows: Int[Tensor, " N"] | slice) -> Float[Tensor, "N 4 S S"]:
        pictures = torch.cat([views.normal[rows], views.disparity[rows]], dim=-1).movedim(-1, 1)
        factor, rest = divmod(pictures.shape[-1], self.cfg.image_size)
        if rest or pictures.shape[-1] != pictures.shape[-2]:
            return F.adaptive_avg_pool2d(pictures, self.cfg.image_size)
        return F.avg_pool2d(pictures, factor)  # the same, with a gradient that CUDA repeats bit for bit

    def encode(self, pictures: Float[Tensor, "N 4 S S"], vae_noise: None) -> Float[Tensor, "N 4 S S"]:
        return pictures if self.cfg.compat == "original" else 2 * pictures - 1

    def camera(self, cameras: Cameras) -> Float[Tensor, "M 16"]:
        return richdreamer_camera(cameras, self.cfg.cam_method)

    def text(self, texts: tuple[TextStates, TextStates]) -> tuple[Tensor, Tensor]:
        return texts[0].tokens, texts[0].negative
