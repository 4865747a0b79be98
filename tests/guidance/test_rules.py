"""Distillation rules against slow references and a distribution whose score is known."""

import math
from dataclasses import replace

import pytest
import torch

from triplaneturbo.base import build
from triplaneturbo.diffusion import NoiseSchedule
from triplaneturbo.errors import ConfigError
from triplaneturbo.guidance import Rule
from triplaneturbo.guidance.rules import ScoreEstimates
from triplaneturbo.registry import names
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


def rule(name: str, **options) -> Rule:
    return build("rule", {"type": name, **options})


def coefficients(t: torch.Tensor) -> tuple[list[float], list[float]]:
    products = SCHEDULE.alphas_cumprod[t].tolist()
    return [math.sqrt(p) for p in products], [math.sqrt(1 - p) for p in products]


def slow_gap(e: ScoreEstimates, i: int, at_plus: bool, from_clean: bool) -> float:
    second, t = (e.plus, e.t_plus) if at_plus else (e.cond, e.t)
    (alpha,), (sigma,) = coefficients(t[i : i + 1])
    total = 0.0
    for x, eps, u, c in zip(*(v[i].flatten().tolist() for v in (e.latents, e.noise, e.uncond, second)), strict=True):
        noisy = x if from_clean else alpha * x + sigma * eps
        total += abs(x - (noisy - sigma * (u + e.scale * (c - u))) / alpha)
    return total / e.latents[i].numel()


# With alpha = 0.6 and sigma = 0.8 at t, one latent, s = 3: x = 1, noise = 2, so that x_t = 2.2.
HAND = {"latents": 1.0, "noise": 2.0, "uncond": 0.5, "cond": 1.5, "plus": -1.0}


def hand_estimates() -> ScoreEstimates:
    """Guided: 0.5 + 3 * 1 = 3.5, so the clean latent is estimated as (2.2 - 0.8 * 3.5) / 0.6 = -1: 2 from x."""
    schedule = replace(SCHEDULE, alphas_cumprod=torch.tensor([0.5, 0.36, 0.25], dtype=torch.float64))
    one = {name: torch.full((1, 1, 1, 1), value, dtype=torch.float64) for name, value in HAND.items()}
    return make_estimates(**one, t=torch.tensor([1]), t_plus=torch.tensor([2]), scale=3.0, schedule=schedule, frames=1)


@pytest.mark.parametrize(
    ("name", "difference"), [("sds", 3.5 - 2), ("csd", 3.5 - 1.5), ("asd", 3.5 + 1), ("vsd", 3.5 + 1)]
)
@pytest.mark.parametrize(
    ("weighting", "weight"),
    [("uniform", 1.0), ("sds", 0.64), ("sds_sqrt", 0.8), ("fantasia3d", 0.6 * 0.64), ("dmd", (0.8 / 0.6) / (2 + 0.5))],
)
def test_rules_by_name_against_numbers_worked_out_by_hand(
    name: str, difference: float, weighting: str, weight: float
) -> None:
    got = rule(name, weighting=weighting, eps=0.5).gradient(hand_estimates())
    assert got.item() == pytest.approx(weight * difference, rel=1e-6)


def test_only_the_rule_of_a_trained_copy_asks_for_one_and_only_the_asynchronous_one_shifts() -> None:
    t, rand = torch.tensor([500]), torch.tensor([0.5])
    found = {name: rule(name) for name in ("sds", "csd", "asd", "vsd")}
    assert set(found) <= set(names("rule"))
    assert {name for name, each in found.items() if each.asks_trained} == {"vsd"}
    assert {name for name, each in found.items() if each.shift(t, 20, rand, 1000) is not None} == {"asd"}


@pytest.mark.parametrize("quirks", [[], ["gap-from-clean"]])
@pytest.mark.parametrize("at_plus", [False, True])
def test_gap_is_the_mean_distance_to_the_estimated_clean_latent(quirks: list[str], at_plus: bool) -> None:
    e = make_estimates()
    expected = [slow_gap(e, i, at_plus, bool(quirks)) for i in range(N)]
    torch.testing.assert_close(
        rule("asd", quirks=quirks).gap(e, at_plus=at_plus).flatten(),
        torch.tensor(expected, dtype=torch.float64),
        rtol=1e-6,
        atol=0,
    )


def test_right_gap_is_the_error_of_the_noise_estimate() -> None:
    e = make_estimates()
    alpha, sigma = SCHEDULE.alpha_sigma(e.t, e.latents)
    expected = (sigma / alpha) * (e.guided - e.noise).abs().mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(rule("sds").gap(e), expected)


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
    got = rule("asd", weighting=weighting).gradient(e)
    for i, (a, s) in enumerate(zip(*coefficients(e.t), strict=True)):
        expected = weight(a, s) * (e.uncond[i] + 7.5 * (e.cond[i] - e.uncond[i]) - e.plus[i])
        torch.testing.assert_close(got[i], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("quirks", [[], ["gap-from-clean"]])
@pytest.mark.parametrize("over_views", [False, True])
@pytest.mark.parametrize("at_shift", [False, True])
def test_dmd_is_the_normalised_difference_of_clean_estimates(
    over_views: bool, at_shift: bool, quirks: list[str]
) -> None:
    e = make_estimates()
    options = {"gap_over_views": over_views, "gap_at_shift": at_shift, "quirks": quirks}
    got = rule("asd", weighting="dmd", eps=0.1, **options).gradient(e)
    gaps = [slow_gap(e, i, at_shift, bool(quirks)) for i in range(N)]
    if over_views:
        gaps = [sum(gaps[i - i % FRAMES : i - i % FRAMES + FRAMES]) / FRAMES for i in range(N)]
    for i, (a, s) in enumerate(zip(*coefficients(e.t), strict=True)):
        noisy = a * e.latents[i] + s * e.noise[i]
        first = (noisy - s * (e.uncond[i] + 7.5 * (e.cond[i] - e.uncond[i]))) / a
        second = (noisy - s * e.plus[i]) / a
        torch.testing.assert_close(got[i], (second - first) / (gaps[i] + 0.1), rtol=1e-6, atol=1e-9)


def test_of_classifier_score_distillation_only_the_classifier_is_left() -> None:
    e = make_estimates()
    torch.testing.assert_close(rule("csd", weighting="uniform").gradient(e), 6.5 * (e.cond - e.uncond))
    together = replace(e, plus=e.cond, t_plus=e.t)
    torch.testing.assert_close(
        rule("asd", weighting="uniform").gradient(together), rule("csd", weighting="uniform").gradient(e)
    )


def test_sds_does_not_look_at_the_second_estimate() -> None:
    e = make_estimates()
    expected = e.uncond + 7.5 * (e.cond - e.uncond) - e.noise
    torch.testing.assert_close(rule("sds", weighting="uniform").gradient(e), expected)


def test_sds_with_an_exact_score_points_to_the_mean_of_the_data() -> None:
    """Data N(mu, d^2): E_eps[e(x_t) - eps] = sigma alpha (x - mu) / (alpha^2 d^2 + sigma^2) (Poole et al. 2022)."""
    mu, deviation = 0.7, 0.2
    x = torch.full((1, 1, 1, 200_000), -0.4, dtype=torch.float64)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([500])
    alpha, sigma = SCHEDULE.alpha_sigma(t, x)
    exact = sigma * (SCHEDULE.add_noise(x, noise, t) - alpha * mu) / ((alpha * deviation) ** 2 + sigma**2)
    e = make_estimates(latents=x, noise=noise, t=t, t_plus=t, uncond=exact, cond=exact, plus=exact, frames=1)
    got = rule("sds", weighting="uniform").gradient(e).mean()
    expected = (sigma * alpha * (-0.4 - mu) / ((alpha * deviation) ** 2 + sigma**2)).mean()
    standard_error = noise.std() / math.sqrt(x.numel())
    assert abs(got - expected) < 4 * standard_error
    assert expected < -0.3


@pytest.mark.parametrize("from_zero", [False, True])
@pytest.mark.parametrize("limit_last", [False, True])
@pytest.mark.parametrize("growth", ["linear", "sqrt", "sqrt_100"])
@pytest.mark.parametrize("ratio", [0.1, 0.6])
def test_the_shift_of_the_timestep(from_zero: bool, limit_last: bool, growth: str, ratio: float) -> None:
    t = torch.arange(0, 1000, 7)
    rand = torch.rand(len(t), generator=torch.Generator().manual_seed(2))
    options = {"from_zero": from_zero, "limit_last": limit_last, "growth": growth, "ratio": ratio}
    got = rule("asd", **options).shift(t, 356, rand, 1000)
    for now, share, shifted in zip(t.tolist(), rand.tolist(), got.tolist(), strict=True):
        origin = 0 if from_zero else 356
        bias = 100 if growth == "sqrt_100" else 0
        shift = ratio * (now - origin) if growth == "linear" else ratio * math.sqrt(now + bias)
        shift = max(shift, 0.0)
        shift = min(shift * share, 999 - now) if limit_last else min(shift, 999 - now) * share
        assert shifted == max(1, now + math.floor(shift))


def test_without_randomness_the_shift_is_full() -> None:
    t = torch.tensor([100, 500, 990])
    full = rule("asd", ratio=0.5, random=False).shift(t, 100, torch.full((3,), 0.1), 1000)
    assert full.tolist() == [100, 700, 999]


@pytest.mark.parametrize("name", ["cubic", "sqrt_x", "linear_3"])
def test_an_unknown_growth_of_the_shift_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="sqrt_<bias>"):
        rule("asd", growth=name)


@pytest.mark.parametrize("ratio", [0.0, -0.1])
def test_a_shift_of_nothing_is_another_rule(ratio: float) -> None:
    with pytest.raises(ConfigError, match="ratio must be in"):
        rule("asd", ratio=ratio)


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
