"""Distillation rules against slow references and a distribution whose score is known."""

import math
from dataclasses import replace

import pytest
import torch

from triplaneturbo.diffusion import NoiseSchedule
from triplaneturbo.errors import ConfigError
from triplaneturbo.guidance.rules import ScoreEstimates, clean_gap, plus_timestep, score_gradient
from triplaneturbo.weights.ldm import LDM_SCHEDULE

SCHEDULE = NoiseSchedule.from_config(LDM_SCHEDULE)
N, FRAMES = 4, 2


def make_estimates(**changes) -> ScoreEstimates:
    generator = torch.Generator().manual_seed(1)
    latents, noise, uncond, cond, plus = (
        torch.randn(N, 3, 2, 2, generator=generator, dtype=torch.float64) for _ in range(5)
    )
    values = {
        "latents": latents,
        "noise": noise,
        "t": torch.tensor([20, 300, 700, 979]),
        "t_plus": torch.tensor([25, 330, 760, 999]),
        "uncond": uncond,
        "cond": cond,
        "plus": plus,
        "scale": 7.5,
        "schedule": SCHEDULE,
        "frames": FRAMES,
    }
    return ScoreEstimates(**(values | changes))


def coefficients(t: torch.Tensor) -> tuple[list[float], list[float]]:
    products = SCHEDULE.alphas_cumprod[t].tolist()
    return [math.sqrt(p) for p in products], [math.sqrt(1 - p) for p in products]


def slow_gap(e: ScoreEstimates, i: int, at_plus: bool, original: bool) -> float:
    second, t = (e.plus, e.t_plus) if at_plus else (e.cond, e.t)
    (alpha,), (sigma,) = coefficients(t[i : i + 1])
    total = 0.0
    for x, eps, u, c in zip(*(v[i].flatten().tolist() for v in (e.latents, e.noise, e.uncond, second)), strict=True):
        noisy = x if original else alpha * x + sigma * eps
        total += abs(x - (noisy - sigma * (u + e.scale * (c - u))) / alpha)
    return total / e.latents[i].numel()


@pytest.mark.parametrize("compat", ["right", "original"])
@pytest.mark.parametrize("at_plus", [False, True])
def test_gap_is_the_mean_distance_to_the_estimated_clean_latent(compat: str, at_plus: bool) -> None:
    e = make_estimates()
    expected = [slow_gap(e, i, at_plus, compat == "original") for i in range(N)]
    torch.testing.assert_close(
        clean_gap(e, at_plus=at_plus, compat=compat).flatten(),
        torch.tensor(expected, dtype=torch.float64),
        rtol=1e-6,
        atol=0,
    )


def test_right_gap_is_the_error_of_the_noise_estimate() -> None:
    e = make_estimates()
    alpha, sigma = SCHEDULE.alpha_sigma(e.t, e.latents)
    expected = (sigma / alpha) * (e.guided - e.noise).abs().mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(clean_gap(e), expected)


@pytest.mark.parametrize(
    ("weighting", "weight"),
    [
        ("uniform", lambda a, s: 1.0),
        ("sds", lambda a, s: 1 - a * a),
        ("sds_sqrt", lambda a, s: s),
        ("fantasia3d", lambda a, s: a * (1 - a * a)),
    ],
)
def test_plain_weightings(weighting: str, weight) -> None:
    e = make_estimates()
    got = score_gradient(e, weighting=weighting)
    for i, (a, s) in enumerate(zip(*coefficients(e.t), strict=True)):
        expected = weight(a, s) * (e.uncond[i] + 7.5 * (e.cond[i] - e.uncond[i]) - e.plus[i])
        torch.testing.assert_close(got[i], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("compat", ["right", "original"])
@pytest.mark.parametrize("weighting", ["dmd", "dmd_mv", "dmd+1", "dmd_mv+1"])
def test_dmd_is_the_normalised_difference_of_clean_estimates(weighting: str, compat: str) -> None:
    e = make_estimates()
    got = score_gradient(e, weighting=weighting, eps=0.1, compat=compat)
    gaps = [slow_gap(e, i, "+1" in weighting, compat == "original") for i in range(N)]
    if "_mv" in weighting:
        gaps = [sum(gaps[i - i % FRAMES : i - i % FRAMES + FRAMES]) / FRAMES for i in range(N)]
    for i, (a, s) in enumerate(zip(*coefficients(e.t), strict=True)):
        noisy = a * e.latents[i] + s * e.noise[i]
        first = (noisy - s * (e.uncond[i] + 7.5 * (e.cond[i] - e.uncond[i]))) / a
        second = (noisy - s * e.plus[i]) / a
        torch.testing.assert_close(got[i], (second - first) / (gaps[i] + 0.1), rtol=1e-6, atol=1e-9)


def test_without_a_shift_only_the_classifier_is_left() -> None:
    e = make_estimates()
    e = replace(e, plus=e.cond, t_plus=e.t)
    torch.testing.assert_close(score_gradient(e, weighting="uniform"), 6.5 * (e.cond - e.uncond))


def test_sds_does_not_look_at_the_second_estimate() -> None:
    e = make_estimates()
    expected = e.uncond + 7.5 * (e.cond - e.uncond) - e.noise
    torch.testing.assert_close(score_gradient(e, weighting="uniform", use_sds=True), expected)


def test_sds_with_an_exact_score_points_to_the_mean_of_the_data() -> None:
    """Data N(mu, d^2): E_eps[e(x_t) - eps] = sigma alpha (x - mu) / (alpha^2 d^2 + sigma^2) (Poole et al. 2022)."""
    mu, deviation = 0.7, 0.2
    x = torch.full((1, 1, 1, 200_000), -0.4, dtype=torch.float64)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([500])
    alpha, sigma = SCHEDULE.alpha_sigma(t, x)
    exact = sigma * (SCHEDULE.add_noise(x, noise, t) - alpha * mu) / ((alpha * deviation) ** 2 + sigma**2)
    e = make_estimates(latents=x, noise=noise, t=t, t_plus=t, uncond=exact, cond=exact, plus=exact, frames=1)
    got = score_gradient(e, weighting="uniform", use_sds=True).mean()
    expected = (sigma * alpha * (-0.4 - mu) / ((alpha * deviation) ** 2 + sigma**2)).mean()
    standard_error = noise.std() / math.sqrt(x.numel())
    assert abs(got - expected) < 4 * standard_error
    assert expected < -0.3


@pytest.mark.parametrize("kind", ["v1", "v2", "v3", "v4"])
@pytest.mark.parametrize("growth", ["linear", "sqrt", "sqrt_100"])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.6])
def test_plus_timestep(kind: str, growth: str, ratio: float) -> None:
    t = torch.arange(0, 1000, 7)
    rand = torch.rand(len(t), generator=torch.Generator().manual_seed(2))
    got = plus_timestep(t, 356, ratio, rand, t_plus_type=kind, plus_schedule=growth)
    for now, share, shifted in zip(t.tolist(), rand.tolist(), got.tolist(), strict=True):
        origin = 356 if kind in ("v1", "v2") else 0
        bias = 100 if growth == "sqrt_100" else 0
        shift = ratio * (now - origin) if growth == "linear" else ratio * math.sqrt(now + bias)
        shift = max(shift, 0.0)
        if kind in ("v1", "v3"):
            shift = min(shift, 999 - now) * share
        else:
            shift = min(shift * share, 999 - now)
        assert shifted == max(1, now + math.floor(shift))


def test_plus_timestep_without_randomness_is_the_full_shift() -> None:
    t = torch.tensor([100, 500, 990])
    assert plus_timestep(t, 100, 0.5, None).tolist() == [100, 700, 999]


@pytest.mark.parametrize("name", ["cubic", "sqrt_x", "linear_3"])
def test_unknown_plus_schedule_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="sqrt_<bias>"):
        plus_timestep(torch.tensor([5]), 0, 0.1, None, plus_schedule=name)


@pytest.mark.parametrize(
    "option",
    [
        {"beta_schedule": "squaredcos_cap_v2"},
        {"prediction_type": "sample"},
        {"trained_betas": [0.1, 0.2]},
        {"rescale_betas_zero_snr": True},
    ],
)
def test_a_noise_schedule_that_would_be_misread_is_refused(option: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        NoiseSchedule.from_config(LDM_SCHEDULE | option)
