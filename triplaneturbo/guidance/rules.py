"""Score distillation as pure functions of noise estimates.

With x_t = alpha x + sigma noise, every rule here has the form

    gradient = w(t) * (first - second),      first = e_u + s (e_c - e_u) at t

and differs in three independent choices: the second estimate, the shift of its timestep, and the weight.

    | method | second                                | shift         | usual weight |
    |--------|---------------------------------------|---------------|--------------|
    | SDS    | the true noise (`use_sds`)            | -             | sds          |
    | CSD    | e_c at t (`plus_ratio: 0`)            | 0             | any          |
    | ASD    | e_c at t+ > t, the same noise         | plus_timestep | sds, dmd     |

All estimates are of the noise, whatever the network predicts, so the rules hold for eps- and v-prediction alike.
"""

import re
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from triplaneturbo.diffusion import NoiseSchedule
from triplaneturbo.errors import ConfigError

Weighting = Literal["dmd", "sds", "uniform", "fantasia3d", "sds_sqrt", "dmd_mv", "dmd+1", "dmd_mv+1"]
PlusType = Literal["v1", "v2", "v3", "v4"]
Compat = Literal["right", "original"]


@dataclass(frozen=True)
class ScoreEstimates:
    """What one teacher says about N latents, `frames` consecutive ones of each prompt.

    latents: x, clean. noise: eps, shared by both timesteps. t, t_plus: of x_t and of the shifted x_t+.
    uncond, cond: e_u and e_c at t. plus: e_c at t_plus (`cond` itself where no shift is asked for).
    scale: s, of classifier-free guidance.
    """

    latents: Float[Tensor, "N C H W"]
    noise: Float[Tensor, "N C H W"]
    t: Int[Tensor, " N"]
    t_plus: Int[Tensor, " N"]
    uncond: Float[Tensor, "N C H W"]
    cond: Float[Tensor, "N C H W"]
    plus: Float[Tensor, "N C H W"]
    scale: float
    schedule: NoiseSchedule
    frames: int

    @property
    def guided(self) -> Float[Tensor, "N C H W"]:
        """e_u + s (e_c - e_u) at t."""
        return self.uncond + self.scale * (self.cond - self.uncond)


def clean_gap(
    estimates: ScoreEstimates, *, at_plus: bool = False, compat: Compat = "right"
) -> Float[Tensor, "N 1 1 1"]:
    """How far the guided estimate of the clean latent is from the latent: mean_CHW |x - (x_t - sigma e) / alpha|.

    at_plus: the estimate is made at t_plus, from e_u + s (plus - e_u).
    compat: original puts x in the place of x_t (docs/compat.md row 1).
    """
    e = estimates
    t = e.t_plus if at_plus else e.t
    guess = e.uncond + e.scale * (e.plus - e.uncond) if at_plus else e.guided
    alpha, sigma = e.schedule.alpha_sigma(t, e.latents)
    source = e.latents if compat == "original" else alpha * e.latents + sigma * e.noise
    return (e.latents - (source - sigma * guess) / alpha).abs().mean(dim=(1, 2, 3), keepdim=True)


def score_gradient(
    estimates: ScoreEstimates,
    *,
    weighting: Weighting = "dmd",
    eps: float = 0.1,
    use_sds: bool = False,
    compat: Compat = "right",
) -> Float[Tensor, "N C H W"]:
    """The distillation gradient with respect to the latents, before any division by views or prompts.

    sds, sds_sqrt, uniform, fantasia3d: w = sigma^2, sigma, 1, alpha sigma^2.
    dmd: w = (sigma / alpha) / (gap + eps), which makes the gradient the difference of the two estimates of the clean
    latent, normalised as in distribution matching distillation; gap is `clean_gap`, "_mv" averages it over the
    frames of a prompt, "+1" takes it at t_plus.

    Args:
        eps: keeps the dmd weight finite where the teacher agrees with the picture.
        use_sds: the second estimate is the true noise.
    """
    e = estimates
    difference = e.guided - (e.noise if use_sds else e.plus)
    alpha, sigma = e.schedule.alpha_sigma(e.t, e.latents)
    if weighting.startswith("dmd"):
        gap = clean_gap(e, at_plus=weighting.endswith("+1"), compat=compat)
        if "_mv" in weighting:
            gap = (
                gap.unflatten(0, (-1, e.frames))
                .mean(dim=1, keepdim=True)
                .expand(-1, e.frames, -1, -1, -1)
                .flatten(0, 1)
            )
        return (sigma / alpha) * difference / (gap + eps)
    weights = {"sds": sigma**2, "sds_sqrt": sigma, "uniform": 1.0, "fantasia3d": alpha * sigma**2}
    return weights[weighting] * difference


def plus_timestep(
    t: Int[Tensor, " G"],
    t_min: int,
    ratio: float,
    rand: Float[Tensor, " G"] | None,
    *,
    t_plus_type: PlusType = "v1",
    plus_schedule: str = "linear",
    n_timesteps: int = 1000,
) -> Int[Tensor, " G"]:
    """The shifted timestep t+ = clip(t + floor(D), 1, T - 1) of asynchronous score distillation.

    D = ratio (t - t_min) ("linear"; v3, v4: ratio t) or ratio sqrt(t + bias) ("sqrt_<bias>", "sqrt" for bias 0), at
    least 0 and at most T - 1 - t. v1 and v3 limit D before it is multiplied by `rand`, v2 and v4 after.

    Args:
        t_min: the smallest timestep that is drawn at present.
        rand: uniform numbers in [0, 1), or None for the full shift.

    Raises:
        ConfigError: plus_schedule has another form.
    """
    if plus_schedule == "linear":
        shift = ratio * (t - (t_min if t_plus_type in ("v1", "v2") else 0))
    else:
        shift = ratio * torch.sqrt(t + _sqrt_bias(plus_schedule))
    share = 1.0 if rand is None else rand
    room = (n_timesteps - 1 - t).to(shift.dtype)
    if t_plus_type in ("v1", "v3"):
        shift = torch.minimum(shift.clamp(min=0), room) * share
    else:
        shift = torch.minimum((shift * share).clamp(min=0), room)
    return (t + shift.long()).clamp(1, n_timesteps - 1)


def known_plus_schedule(value: str, place: str) -> str:
    """`value` if `plus_timestep` knows it.

    Raises:
        ConfigError: it does not.
    """
    if not re.fullmatch(r"linear|sqrt(_\d+(\.\d+)?)?", value):
        raise ConfigError(f"{place} is {value!r}; allowed: 'linear', 'sqrt', 'sqrt_<bias>' such as 'sqrt_100'")
    return value


def _sqrt_bias(plus_schedule: str) -> float:
    known_plus_schedule(plus_schedule, "plus_schedule")
    return float(plus_schedule.partition("_")[2] or 0)
