"""Noise and text to feature planes: an adapted Stable Diffusion U-Net and VAE decoder."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor

from triplaneturbo.base import Module
from triplaneturbo.bounds import ProjectPath, Range
from triplaneturbo.diffusion import NoiseSchedule, few_step_timesteps
from triplaneturbo.errors import ConfigError, WeightsError
from triplaneturbo.geometry import sd_configs
from triplaneturbo.geometry.adapters import (
    N_PLANES,
    Ranks,
    SelfAdapters,
    adapt_decoder,
    adapt_unet,
    merge_adapters,
)
from triplaneturbo.nn.fused import store_channels_last, streamline
from triplaneturbo.performance import kernels_run_on
from triplaneturbo.precision import DtypeName, cast_frozen, resolve_dtype
from triplaneturbo.storage import read_json
from triplaneturbo.weights.folders import check_weights

Rank = Annotated[int, Range(0, 4096)]


class TriplaneGenerator(Module):
    """The trained part is small: adapters in both networks and a new last convolution of the decoder.

    Only trained parameters are in the state dict; the frozen ones always come from the pretrained folder.
    """

    @dataclass(kw_only=True)
    class Config(Module.Config):
        pretrained_model_name_or_path: ProjectPath = "pretrained/stable-diffusion-2-1-base"
        """Folder in diffusers layout with unet/, vae/ and scheduler/."""
        prediction_type: Literal["epsilon", "v_prediction"] | None = None
        """What the model in the folder must predict; None: whatever it does."""
        full: bool = False
        """Train all of U-Net and decoder, without adapters."""
        self_rank: Rank = 16
        """Rank of the adapters on self-attention, of U-Net and decoder; 0: none."""
        cross_rank: Rank = 16
        """Rank of the adapters on cross-attention to the text; 0: none."""
        convolution_rank: Rank = 16
        """Rank of the adapters on convolutions; 0: none."""
        adapter_bias: bool = False
        """Adapters have biases."""
        output_dim: Annotated[int, Range(2, 4096, even=True)] = 32
        """Channels of the decoded planes, before they are split into shape and colour."""
        gradient_checkpoint: bool = False
        """Recompute activations in the backward pass: slower, less memory."""
        self_attention: SelfAdapters = "plane_lora"
        """plane_lora: one adapter a plane; shared_lora: one for all; in both, planes see each other. separate_planes:
        one for all, planes do not; none: neither."""
        cross_attention: Literal["plane_lora", "shared_lora", "none"] = "plane_lora"
        """Adapters of the attention to the text."""
        convolutions: Literal["plane_lora", "shared_lora"] = "plane_lora"
        """Adapters of the U-Net's convolutions; the decoder's are shared."""
        decoder_attention: SelfAdapters = "shared_lora"
        """Adapters of the decoder's attention, with the words of self_attention."""
        prompt_bias: bool = False
        """Learn an offset of the text states for each plane."""
        network_dtype: DtypeName = "auto"
        """Type of frozen weights and activations; auto: bfloat16 on CUDA. Trained parameters stay float32."""

    def configure(self) -> None:
        cfg = self.cfg
        unet, vae, scheduler = _load(Path(cfg.pretrained_model_name_or_path))
        if vae.post_quant_conv is None:
            raise ConfigError(f"the autoencoder in {cfg.pretrained_model_name_or_path} has no post_quant_conv")
        self.unet, self.decoder, self.post_quant_conv = unet, vae.decoder, vae.post_quant_conv
        self.schedule = NoiseSchedule.from_config(scheduler)
        if cfg.prediction_type not in (None, self.schedule.prediction_type):
            raise ConfigError(
                f"prediction_type is {cfg.prediction_type!r}, but the model in {cfg.pretrained_model_name_or_path} "
                f"predicts {self.schedule.prediction_type!r}"
            )
        if not cfg.full:
            self.requires_grad_(False)
            ranks = Ranks(cfg.self_rank, cfg.cross_rank, cfg.convolution_rank, cfg.adapter_bias)
            adapt_unet(self.unet, ranks, cfg.self_attention, cfg.cross_attention, cfg.convolutions)
            adapt_decoder(self.decoder, ranks, cfg.decoder_attention)
        streamline(self.unet)
        streamline(self.decoder)
        self.decoder.conv_out = PlaneHead(self.decoder.conv_out.in_channels, self.cfg.output_dim)
        if self.cfg.prompt_bias:
            self.prompt_bias = nn.Parameter(torch.zeros(N_PLANES, 77, unet.config["cross_attention_dim"]))
        if self.cfg.gradient_checkpoint:
            self.unet.enable_gradient_checkpointing()
            vae.enable_gradient_checkpointing()
        self._stored_on: torch.device | None = None
        self.unet.conv_out.register_forward_pre_hook(_widen)
        self.register_state_dict_post_hook(_drop_frozen)
        self.register_load_state_dict_pre_hook(_keep_frozen)

    @property
    def latent_channels(self) -> int:
        return self.unet.config["in_channels"]

    def denoise(
        self,
        noisy: Float[Tensor, "N c h w"],
        t: Int[Tensor, " N"],
        text: Float[Tensor, "B L E"] | Float[Tensor, "B 6 L E"],
    ) -> Float[Tensor, "N c h w"]:
        """The network's output (eps or v, as the scheduler's configuration says) in float32.

        N = 6B, planes of prompt b in rows 6b to 6b + 5. text: shared by the planes, or one for each.
        """
        dtype = self._prepare(noisy.device)
        if text.dim() == 3:
            text = text.unsqueeze(1).expand(-1, N_PLANES, -1, -1)
        if self.cfg.prompt_bias:
            text = text + self.prompt_bias
        states = text.flatten(0, 1).to(dtype)
        return self.unet(noisy.to(dtype), t, encoder_hidden_states=states).sample.float()

    def predict_clean(
        self,
        noisy: Float[Tensor, "N c h w"],
        t: Int[Tensor, " N"],
        text: Float[Tensor, "B L E"] | Float[Tensor, "B 6 L E"],
    ) -> Float[Tensor, "N c h w"]:
        """The estimate of the clean latents at x_t = `noisy`."""
        return self.schedule.to_clean(self.denoise(noisy, t, text), noisy, t)

    def prd_step(
        self,
        previous_clean: Float[Tensor, "N c h w"],
        noise: Float[Tensor, "N c h w"],
        t: Int[Tensor, " N"],
        text: Float[Tensor, "B L E"] | Float[Tensor, "B 6 L E"],
    ) -> Float[Tensor, "N c h w"]:
        """One step of progressive rendering distillation: noise the last estimate to level t, estimate again."""
        self._prepare(noise.device)
        return self.predict_clean(self.schedule.add_noise(previous_clean, noise, t), t, text)

    def decode(self, latents: Float[Tensor, "N c h w"], split: bool) -> Float[Tensor, "B 6 D H W"]:
        """Feature planes in float32. The latents are not divided by the VAE's scaling factor: neither were those
        of the published weights.

        split: planes 0-2 are the first half of the output channels, planes 3-5 the second (the other halves are
        never computed).
        """
        dtype = self._prepare(latents.device)
        assert isinstance(self.decoder.conv_out, PlaneHead)
        self.decoder.conv_out.split = split
        hidden = self.post_quant_conv(latents.to(dtype))
        return self.decoder(hidden).unflatten(0, (-1, N_PLANES))

    @torch.no_grad()
    def sample(
        self,
        text: Float[Tensor, "B L E"] | Float[Tensor, "B 6 L E"],
        noise: Float[Tensor, "N c h w"],
        n_steps: int = 4,
    ) -> Float[Tensor, "N c h w"]:
        """Clean latents after `n_steps` of DDIM (eta 0, no classifier-free guidance), without gradients."""
        self._prepare(noise.device)
        times = few_step_timesteps(n_steps, len(self.schedule.alphas_cumprod))
        state = noise
        for i, time in enumerate(times):
            t = torch.full((len(noise),), time, device=noise.device)
            output = self.denoise(state, t, text)
            clean = self.schedule.to_clean(output, state, t)
            if i + 1 < len(times):
                eps = self.schedule.to_noise(output, state, t)
                state = self.schedule.add_noise(clean, eps, torch.full_like(t, times[i + 1]))
        return clean

    def merge(self) -> None:
        """Fold the adapters into the weights, for faster inference. Not to be undone, trained or saved."""
        merge_adapters(self.unet)
        merge_adapters(self.decoder)
        store_channels_last(self.unet)

    def _prepare(self, device: torch.device) -> torch.dtype:
        """Bring frozen weights to the type asked for, and the schedule to the device, when either changed."""
        if self.schedule.alphas_cumprod.device != device:
            self.schedule = replace(self.schedule, alphas_cumprod=self.schedule.alphas_cumprod.to(device))
        if self.cfg.full:
            return self.unet.dtype
        dtype = resolve_dtype(self.cfg.network_dtype, device)
        if self.post_quant_conv.weight.dtype != dtype:
            cast_frozen(self, dtype)
            self.unet.conv_out.float()
        if kernels_run_on(device) and self._stored_on != device:
            store_channels_last(self.unet)
            store_channels_last(self.decoder)
            self._stored_on = device
        return dtype


class PlaneHead(nn.Conv2d):
    """The last convolution of the decoder, in float32: rounding its output would show as a rough surface."""

    bias: nn.Parameter

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)
        self.split = False

    def forward(self, hidden: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D H W"]:
        hidden = hidden.to(self.weight.dtype)
        if not self.split:
            return super().forward(hidden)
        half = self.out_channels // 2
        shape, colour = hidden.unflatten(0, (-1, 2, N_PLANES // 2)).unbind(1)
        shape = F.conv2d(shape.flatten(0, 1), self.weight[:half], self.bias[:half], padding=1)
        colour = F.conv2d(colour.flatten(0, 1), self.weight[half:], self.bias[half:], padding=1)
        halves = (x.unflatten(0, (-1, N_PLANES // 2)) for x in (shape, colour))
        return torch.cat(tuple(halves), dim=1).flatten(0, 1)


def _widen(module: nn.Conv2d, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The estimate of x_0 at t = 999 magnifies errors of the last layer 15 times: keep it in float32."""
    return (inputs[0].to(module.weight.dtype),)


def _drop_frozen(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            state.pop(prefix + name, None)


def _keep_frozen(module: nn.Module, state: dict[str, Tensor], prefix: str, *unused: object) -> None:
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            state.setdefault(prefix + name, parameter)


def _load(folder: Path) -> tuple[UNet2DConditionModel, AutoencoderKL, dict[str, Any]]:
    """U-Net, VAE without its encoder, and scheduler configuration.

    On the meta device only shapes are built, from the folder's configurations, or without the folder from those of
    Stable Diffusion 2.1 base.

    Raises:
        WeightsError: the folder or one of its parts is missing or unreadable.
    """
    if torch.get_default_device().type == "meta":
        unet = UNet2DConditionModel.from_config(_config(folder / "unet" / "config.json", sd_configs.UNET))
        vae = AutoencoderKL.from_config(_config(folder / "vae" / "config.json", sd_configs.VAE))
        scheduler = _config(folder / "scheduler" / "scheduler_config.json", sd_configs.SCHEDULER)
    else:
        options = {"use_safetensors": True, "local_files_only": True}
        try:
            for part in ("unet", "vae"):
                check_weights(folder / part)
            unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **options)
            vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", **options)
            scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
        except (OSError, RuntimeError, ValueError) as error:
            raise WeightsError(
                f"cannot load Stable Diffusion from {folder} (unet/, vae/ and scheduler/ in diffusers layout, "
                f"safetensors): {error}. Run scripts/prepare/download_full.py, or set "
                "pretrained_model_name_or_path to a folder that has them."
            ) from error
    del vae.encoder, vae.quant_conv
    return unet, vae, scheduler


def _config(path: Path, default: dict[str, Any]) -> dict[str, Any]:
    return read_json(path) if path.is_file() else default
