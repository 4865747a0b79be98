"""Rules of score distillation: from what a teacher says about noisy latents to a gradient of the clean ones.

With x_t = alpha x + sigma noise, every rule here has the form

    gradient = w(t) * (first - second),      first = e_u + s (e_c - e_u) at t, perhaps with perpendicular negatives

and differs in the second estimate; the weight is an option of each.

    | rule | second                                       | usual weight |
    |------|----------------------------------------------|--------------|
    | sds  | the true noise                               | sds          |
    | csd  | e_c at t                                     | any          |
    | asd  | e_c at t+ > t, the same noise                | sds, dmd     |
    | vsd  | at t, of a copy that is trained beside it    | sds          |

All estimates are of the noise, whatever the network predicts, so the rules hold for eps- and v-prediction alike.
"""

import re
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from triplaneturbo.base import Component, option
from triplaneturbo.bounds import Range
from triplaneturbo.diffusion import NoiseSchedule
from triplaneturbo.errors import ConfigError
from triplaneturbo.guidance.perp_neg import perpendicular
from triplaneturbo.registry import register

Weighting = Literal["dmd", "sds", "uniform", "fantasia3d", "sds_sqrt"]


def known_growth(value: str, place: str) -> str:
    """`value` if it is a growth of the shift of `AsynchronousScoreDistillation`.

    Raises:
        ConfigError: it is not.
    """
    if not re.fullmatch(r"linear|sqrt(_\d+(\.\d+)?)?", value):
        raise ConfigError(f"{place} is {value!r}; allowed: 'linear', 'sqrt', 'sqrt_<bias>' such as 'sqrt_100'")
    return value


@dataclass(frozen=True)
class ScoreEstimates:
    """What one teacher says about N latents, `frames` consecutive ones of each prompt.

    latents: x, clean. noise: eps, shared by both timesteps. t, t_plus: of x_t and of the shifted x_t+.
    uncond, cond: e_u and e_c at t. plus: the second network output a rule asks for (`cond` itself where it asks for
    none). scale: s, of classifier-free guidance. negatives: e_k at t with texts that are held against each latent, and
    their weights w_k, see `perp_neg`; None: there are none.
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
    negatives: Float[Tensor, "N K C H W"] | None = None
    negative_weights: Float[Tensor, "N K"] | None = None

    @property
    def guided(self) -> Float[Tensor, "N C H W"]:
        """e_u + s (e_c - e_u + sum_k w_k p_k) at t, where p_k is e_k - e_u without its projection on e_c - e_u."""
        towards = direction = self.cond - self.uncond
        if self.negatives is not None and self.negative_weights is not None:
            for away, weight in zip(self.negatives.unbind(1), self.negative_weights.unbind(1), strict=True):
                towards = towards + weight.view(-1, 1, 1, 1) * perpendicular(away - self.uncond, direction)
        return self.uncond + self.scale * towards


class Rule(Component):
    """A distillation rule. A subclass gives `second`, and `shift` if that is an estimate at another timestep."""

    role = "rule"

    @dataclass(kw_only=True)
    class Config(Component.Config):
        weighting: Weighting = "sds"
        """w(t): sds, sds_sqrt, uniform, fantasia3d: sigma^2, sigma, 1, alpha sigma^2. dmd: (sigma / alpha) /
        (gap + eps), which makes the gradient the difference of two estimates of the clean latent, normalised as in
        distribution matching distillation (Yin et al. 2024)."""
        eps: Annotated[float, Range(0, 1, above=True)] = 0.01
        """Keeps the dmd weight finite where the teacher agrees with the picture."""
        gap_over_views: bool = False
        """dmd: the gap is averaged over the views of a prompt."""
        gap_at_shift: bool = False
        """dmd: the gap is that at the shifted timestep, of e_u + s (second - e_u)."""
        quirks: list[Literal["gap-from-clean"]] = option([])
        """gap-from-clean: the clean latent is estimated from the clean latent itself in place of the noisy one."""

    asks_trained: ClassVar[bool] = False
    """Whether the second estimate is that of the teacher's trained copy."""

    def shift(
        self, t: Int[Tensor, " G"], t_min: int, rand: Float[Tensor, " G"], n_timesteps: int
    ) -> Int[Tensor, " G"] | None:
        """The timestep of a further estimate with text; None: none is needed.

        t_min: the smallest timestep that is drawn at present. rand: uniform numbers in [0, 1).
        """
        return None

    @abstractmethod
    def second(self, estimates: ScoreEstimates) -> Float[Tensor, "N C H W"]:
        """What is subtracted from the guided estimate."""

    def gradient(self, estimates: ScoreEstimates) -> Float[Tensor, "N C H W"]:
        """d loss / d latents, before any division by views or prompts."""
        e = estimates
        difference = e.guided - self.second(e)
        alpha, sigma = e.schedule.alpha_sigma(e.t, e.latents)
        if self.cfg.weighting == "dmd":
            gap = self.gap(e, at_plus=self.cfg.gap_at_shift)
            if self.cfg.gap_over_views:
                by_prompt = gap.unflatten(0, (-1, e.frames))
                gap = by_prompt.mean(dim=1, keepdim=True).expand_as(by_prompt).flatten(0, 1)
            return (sigma / alpha) * difference / (gap + self.cfg.eps)
        weights = {"sds": sigma**2, "sds_sqrt": sigma, "fantasia3d": alpha * sigma**2}
        return difference if self.cfg.weighting == "uniform" else weights[self.cfg.weighting] * difference

    def gap(self, estimates: ScoreEstimates, *, at_plus: bool = False) -> Float[Tensor, "N 1 1 1"]:
        """How far the guided estimate of the clean latent is from the latent: mean_CHW |x - (x_t - sigma e) / alpha|.

        at_plus: the estimate is made at t_plus, from e_u + s (plus - e_u).
        """
        e = estimates
        t = e.t_plus if at_plus else e.t
        guess = e.uncond + e.scale * (e.plus - e.uncond) if at_plus else e.guided
        alpha, sigma = e.schedule.alpha_sigma(t, e.latents)
        source = e.latents if "gap-from-clean" in self.cfg.quirks else alpha * e.latents + sigma * e.noise
        return (e.latents - (source - sigma * guess) / alpha).abs().mean(dim=(1, 2, 3), keepdim=True)


@register("sds")
class ScoreDistillationSampling(Rule):
    """Against the true noise (Poole et al. 2022)."""

    def second(self, estimates: ScoreEstimates) -> Float[Tensor, "N C H W"]:
        return estimates.noise


@register("csd")
class ClassifierScoreDistillation(Rule):
    """Against the conditional estimate itself (Yu et al. 2023): (s - 1) (e_c - e_u) is left."""

    def second(self, estimates: ScoreEstimates) -> Float[Tensor, "N C H W"]:
        return estimates.cond


@register("asd")
class AsynchronousScoreDistillation(Rule):
    """Against the conditional estimate at a later timestep t+ (Ma et al. 2024, arXiv 2407.02040).

    t+ = clip(t + floor(D), 1, T - 1) with D = ratio (t - t_min), at least 0 and at most T - 1 - t.
    """

    @dataclass(kw_only=True)
    class Config(Rule.Config):
        ratio: Annotated[float, Range(0, 1000, above=True)] = 0.1
        """Size of the shift."""
        random: bool = True
        """Draw the shift between 0 and its full size."""
        growth: Annotated[str, known_growth] = "linear"
        """Of the shift with t: linear, or ratio sqrt(t + bias): sqrt (bias 0) or sqrt_<bias>."""
        from_zero: bool = False
        """Linear growth starts at t = 0, not at the smallest timestep that is drawn."""
        limit_last: bool = False
        """The shift is limited after it has been multiplied by the random number, not before."""

    def shift(self, t: Int[Tensor, " G"], t_min: int, rand: Float[Tensor, " G"], n_timesteps: int) -> Int[Tensor, " G"]:
        cfg = self.cfg
        if cfg.growth == "linear":
            shift = cfg.ratio * (t - (0 if cfg.from_zero else t_min))
        else:
            shift = cfg.ratio * torch.sqrt(t + float(cfg.growth.partition("_")[2] or 0))
        share = rand if cfg.random else 1.0
        room = (n_timesteps - 1 - t).to(shift.dtype)
        if cfg.limit_last:
            shift = torch.minimum((shift * share).clamp(min=0), room)
        else:
            shift = torch.minimum(shift.clamp(min=0), room) * share
        return (t + shift.long()).clamp(1, n_timesteps - 1)

    def second(self, estimates: ScoreEstimates) -> Float[Tensor, "N C H W"]:
        return estimates.plus


@register("vsd")
class VariationalScoreDistillation(Rule):
    """Against a copy of the teacher that learns what the pictures look like (Wang et al. 2023)."""

    asks_trained = True

    def second(self, estimates: ScoreEstimates) -> Float[Tensor, "N C H W"]:
        return estimates.plus
