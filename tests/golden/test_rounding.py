"""How much of a recorded number is the rounding of the CPU that recorded it."""

from pathlib import Path

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from golden_case import Case
from torch import Tensor
from workbench import sd_networks

S26 = Path(__file__).parent / "data" / "scaledreamer" / "s26_asd_sd_single_prompt.npz"


@torch.no_grad()
def encode(case: Case, dtype: torch.dtype) -> Tensor:
    """The latents of a case, with the draws that it records."""
    _, vae = sd_networks(case.meta["sd"])
    size = case.meta["image_size"]
    pictures = (case["rgb_u8"].to(dtype) / 255).permute(0, 3, 1, 2)
    pictures = F.interpolate(pictures, size=(size, size), mode="bilinear", align_corners=False) * 2 - 1
    found = vae.to(dtype).encode(pictures).latent_dist
    return (found.mean + found.std * case["vae_noise"].to(dtype)).double() * vae.config.scaling_factor


def test_what_s26_is_off_by_is_the_rounding_of_the_cpus_group_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(S26)
    recorded = case["latents"].double()

    def error(latents: Tensor, wanted: Tensor) -> float:
        return ((latents - wanted).abs().max() / recorded.abs().max()).item()

    def in_float64(self: nn.GroupNorm, x: Tensor) -> Tensor:
        exact = F.group_norm(x.double(), self.num_groups, self.weight.double(), self.bias.double(), self.eps)
        return exact.to(x.dtype)

    exact = encode(case, torch.float64)
    assert error(exact, recorded) == pytest.approx(2.48e-4, rel=0.01)
    monkeypatch.setattr(nn.GroupNorm, "forward", in_float64)
    assert error(encode(case, torch.float32), exact) < 1e-5
