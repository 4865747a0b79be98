"""The teachers' networks.

A wrong epsilon of a normalisation changes the outputs less than the recorded numbers can tell: epsilons are asserted.
"""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from golden_case import Case
from torch import Tensor, nn
from workbench import Workbench, cameras, ldm_unet, ldm_vae, sd_networks

from triplaneturbo.diffusion import NoiseSchedule
from triplaneturbo.guidance.camera_conditions import mvdream_camera, richdreamer_camera
from triplaneturbo.guidance.multiview import install_cross_view_attention
from triplaneturbo.weights.ldm import LDM_SCHEDULE


def mvdream_unet(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = case.meta
    unet = ldm_unet(meta["model"], linear=meta["use_linear_in_transformer"], camera_dim=meta["camera_dim"])
    case.require("epsilons of the U-Net", unet_epsilons(unet))
    camera = mvdream_camera(cameras(case["c2w"]))
    case.close("camera", camera, 1e-6)
    case.close("eps", _multi_view(unet, case, camera, meta["num_frames"]), 5e-5)
    if "eps_single_view_nocam" in case:
        single = len(case["eps_single_view_nocam"])
        unet.class_embedding = None  # no camera
        install_cross_view_attention(unet, 1)
        with torch.no_grad():
            out = unet(case["x"][:single], case["t"][:single], case["context"][:single]).sample
        case.close("eps_single_view_nocam", out, 5e-5)


def mvdream_vae_schedule(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = ldm_vae(case.meta["model"])
    case.require("epsilons of the autoencoder", vae_epsilons(vae))
    case.require("scale_factor", vae.config.scaling_factor == case.meta["scale_factor"])
    _vae(case, vae, vae.config.scaling_factor)
    schedule = NoiseSchedule.from_config(LDM_SCHEDULE)
    steps = case["steps"]
    product = schedule.alphas_cumprod[steps]
    before = torch.where(steps > 0, schedule.alphas_cumprod[(steps - 1).clamp(min=0)], 1.0)
    found = {
        "alphas_cumprod": product,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": product.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - product).sqrt(),
        "sqrt_recip_alphas_cumprod": (1 / product).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / product - 1).sqrt(),
        "q_sample": schedule.add_noise(case["q_x"], case["q_noise"], case["q_t"]),
        "predict_start": schedule.to_clean(case["q_noise"], case["q_x"], case["q_t"]),
    }
    for name, value in found.items():
        case.close(name, value, 1e-6)
    # 1 - product / before would lose the digits that the tolerance asks for.
    if "betas" in case:
        case.within("betas", float(((1 - case["betas"]) * before - product).abs().max()), 1e-6)


def richdreamer_unet(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = case.meta
    unet = ldm_unet(meta["model"], linear=meta["use_linear_in_transformer"], camera_dim=meta["camera_dim"])
    case.require("epsilons of the U-Net", unet_epsilons(unet))
    case.told_by_arrays("scale_factor")  # of an autoencoder, which the model does without
    known = {"distance_relative": case["camera_distances_relative"]}
    if "camera_distances" in case:
        known["distance"] = case["camera_distances"]
    made = cameras(case["c2w"], **known)
    camera = richdreamer_camera(made, meta.get("cam_method", "rel_x2"))
    case.close("camera", camera, 1e-6)
    case.close("eps", _multi_view(unet, case, camera, meta["num_frames"]), 5e-5)
    case.close("alphas_cumprod", NoiseSchedule.from_config(LDM_SCHEDULE).alphas_cumprod, 1e-6)


def stable_diffusion(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    sd = case.meta["sd"]
    unet, vae = sd_networks(sd)
    case.require("epsilons of the U-Net", unet_epsilons(unet, sd["unet"].get("norm_eps", 1e-5)))
    case.require("epsilons of the autoencoder", vae_epsilons(vae))
    with torch.no_grad():
        case.close("eps", unet(case["x"], case["t"], case["context"]).sample, 5e-5)
    _vae(case, vae, 1.0)


@torch.no_grad()
def _multi_view(unet: UNet2DConditionModel, case: Case, camera: Tensor, n_view: int) -> Tensor:
    install_cross_view_attention(unet, n_view)
    return unet(case["x"], case["t"], case["context"], class_labels=case.get("camera", camera)).sample


@torch.no_grad()
def _vae(case: Case, vae: AutoencoderKL, scale: float) -> None:
    posterior = vae.encode(case["img"] * 2 - 1).latent_dist
    case.close("mean", posterior.mean, 5e-5)
    case.close("logvar", posterior.logvar, 5e-5)
    case.close("decoded", vae.decode(case["z"] / scale).sample, 5e-5)


def unet_epsilons(unet: nn.Module, norm_eps: float = 1e-5) -> bool:
    """Group norms: `norm_eps` in residual blocks and before the output, 1e-6 in transformers; layer norms: 1e-5."""
    in_transformers = {
        norm for t in unet.modules() if isinstance(t, Transformer2DModel) for norm in _norms(t, nn.GroupNorm)
    }
    others = _norms(unet, nn.GroupNorm) - in_transformers
    return (
        _epsilons(in_transformers) == {1e-6}
        and _epsilons(others) == {norm_eps}
        and _epsilons(_norms(unet, nn.LayerNorm)) == {1e-5}
        and any(isinstance(module, ResnetBlock2D) for module in unet.modules())
    )


def vae_epsilons(vae: nn.Module) -> bool:
    """All norms of an autoencoder, or of its decoder alone, are group norms with 1e-6."""
    return _epsilons(_norms(vae, nn.GroupNorm)) == {1e-6} and not _norms(vae, nn.LayerNorm)


def _norms(module: nn.Module, kind: type[nn.Module]) -> set[nn.Module]:
    return {m for m in module.modules() if isinstance(m, kind)}


def _epsilons(norms: set[nn.Module]) -> set[float]:
    return {norm.eps for norm in norms}
