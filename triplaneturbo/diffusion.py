"""The forward process shared by generator and teachers, and the few-step timesteps of PRD."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from triplaneturbo.errors import ConfigError


@dataclass(frozen=True)
class NoiseSchedule:
    """x_t = alpha_t x_0 + sigma_t eps with alpha_t = sqrt(alphas_cumprod[t]), sigma_t = sqrt(1 - alphas_cumprod[t]).

    prediction_type: what the network that goes with this schedule predicts, eps or v = alpha_t eps - sigma_t x_0.
    """

    alphas_cumprod: Float[Tensor, " T"]
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "NoiseSchedule":
        """From the fields of a diffusers scheduler_config.json.

        The product is taken in float64: diffusers takes it in float32 and is off by 5e-7.

        Raises:
            ConfigError: a beta schedule or prediction type this project does not know.
        """
        for name in ("trained_betas", "rescale_betas_zero_snr"):
            if config.get(name):
                raise ConfigError(f"the scheduler's configuration sets {name}, which no model of this project needs")
        start, end, n = config["beta_start"], config["beta_end"], config["num_train_timesteps"]
        kind = config["beta_schedule"]
        if kind == "scaled_linear":
            betas = torch.linspace(start**0.5, end**0.5, n, dtype=torch.float64) ** 2
        elif kind == "linear":
            betas = torch.linspace(start, end, n, dtype=torch.float64)
        else:
            raise ConfigError(f"beta_schedule is {kind!r}; allowed: 'scaled_linear', 'linear'")
        prediction_type = config.get("prediction_type", "epsilon")
        if prediction_type not in ("epsilon", "v_prediction"):
            raise ConfigError(f"prediction_type is {prediction_type!r}; allowed: 'epsilon', 'v_prediction'")
        return cls(torch.cumprod(1 - betas, dim=0).float(), prediction_type)

    def alpha_sigma(self, t: Int[Tensor, " N"], like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t, sigma_t with the dtype and device of `like`, shaped [N, 1, ...] to broadcast over it."""
        product = self.alphas_cumprod.to(like.device)[t].reshape(-1, *[1] * (like.dim() - 1))
        return product.sqrt().to(like.dtype), (1 - product).sqrt().to(like.dtype)

    def add_noise(self, clean: Float[Tensor, "N ..."], noise: Float[Tensor, "N ..."], t: Int[Tensor, " N"]) -> Tensor:
        """x_t."""
        alpha, sigma = self.alpha_sigma(t, clean)
        return alpha * clean + sigma * noise

    def to_clean(self, output: Float[Tensor, "N ..."], noisy: Float[Tensor, "N ..."], t: Int[Tensor, " N"]) -> Tensor:
        """The estimate of x_0 that the network output at x_t = `noisy` stands for."""
        alpha, sigma = self.alpha_sigma(t, noisy)
        if self.prediction_type == "v_prediction":
            return alpha * noisy - sigma * output
        return (noisy - sigma * output) / alpha

    def to_noise(self, output: Float[Tensor, "N ..."], noisy: Float[Tensor, "N ..."], t: Int[Tensor, " N"]) -> Tensor:
        """The estimate of eps that the network output at x_t = `noisy` stands for."""
        alpha, sigma = self.alpha_sigma(t, noisy)
        if self.prediction_type == "v_prediction":
            return sigma * noisy + alpha * output
        return output


def few_step_timesteps(n_steps: int, n_train_timesteps: int = 1000) -> list[int]:
    """`n_steps` equally spaced timesteps from the noisiest down: 4 of 1000 -> [999, 749, 499, 249]."""
    if not 1 <= n_steps <= n_train_timesteps:
        raise ConfigError(f"the number of steps must be 1 to {n_train_timesteps}, not {n_steps}")
    stride = n_train_timesteps // n_steps
    return [n_train_timesteps - 1 - stride * i for i in range(n_steps)]
