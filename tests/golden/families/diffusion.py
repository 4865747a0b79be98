"""Sampling, the steps of progressive rendering distillation, and regularisers."""

import math
import re
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import pytest
import torch
from golden_case import Case
from recorded_draws import RecordedDraws
from torch import Tensor
from workbench import Workbench, cameras, translated

from triplaneturbo.geometry.adapters import N_PLANES
from triplaneturbo.guidance import Guidance
from triplaneturbo.losses import LossConfig, Objective
from triplaneturbo.scenes import FieldScene
from triplaneturbo.systems import prd
from triplaneturbo.types import Batch, ScoreGradient, TextStates, Views

_GENERATOR = {"training_type": "self_lora_rank_2-cross_lora_rank_2-locon_rank_2", "output_dim": 8}
# Options of the system that a case may set.
SYSTEM_OPTIONS = ("gradient_accumulation_steps", "noise_addition", "num_parts_training", "num_steps_training")
_BOTH_RENDERERS = {
    "renderer_type": "generative-space-mesh-rasterize-renderer",
    "renderer_2nd_type": "generative-space-sdf-volume-renderer",
}
_RECURRENCE_LOSS = (
    "fidelity=sum(denoised*w_fidelity[i]), regularization=0.5*sum(denoised^2); both weighted 1/num_parts; "
    "divided by gradient_accumulation_steps"
)


class RecordedNetwork:
    """In the place of `denoise`: call i answers outputs[i]; remembers what it was asked."""

    def __init__(self, outputs: Sequence[Tensor]) -> None:
        self.outputs = outputs
        self.inputs: list[Tensor] = []
        self.times: list[Tensor] = []

    def __call__(self, noisy: Tensor, t: Tensor, text: Tensor) -> Tensor:
        self.inputs.append(noisy)
        self.times.append(t)
        return self.outputs[len(self.inputs) - 1]

    def compare(self, case: Case) -> None:
        case.close("inputs", torch.stack(self.inputs), 1e-5)
        if "timesteps" not in case:
            return
        times = torch.stack(self.times)
        # Recorded once a step, once a prompt or once a plane.
        recorded = case["timesteps"].reshape(len(times), -1)
        repeated = recorded.repeat_interleave(times.shape[1] // recorded.shape[1], dim=1)
        case.require("timesteps", bool((times == repeated).all()))


@torch.no_grad()
def inference_ddim(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    case.option("sampler", "ddim")
    case.option("timesteps_from_T", True)
    scheduler = {**case.meta["scheduler"], "prediction_type": case.meta["prediction_type"]}
    geometry = workbench.geometry({"space_generator_config": _GENERATOR}, workbench.small_folder(scheduler))
    generator = geometry.space_generator
    network = RecordedNetwork(case["model_outputs"])
    monkeypatch.setattr(generator, "denoise", network)
    final = generator.sample(_text(len(case["noise"])).tokens, case["noise"], case.meta["num_steps_sampling"])
    network.compare(case)
    case.close("final_latents", final, 1e-5)
    case.close("alphas_cumprod", generator.schedule.alphas_cumprod, 1e-5)
    last = 1.0 if scheduler.get("set_alpha_to_one", True) else generator.schedule.alphas_cumprod[0]
    case.close("final_alpha_cumprod", last, 1e-5)


def training_recurrence(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real training step; network, decoder, renderer and loss are stand-ins."""
    case.option("loss", _RECURRENCE_LOSS)
    meta = case.meta
    scheduler = {**meta["scheduler"], "prediction_type": meta["prediction_type"]}
    base = workbench.small_folder(scheduler)
    system = system_of(
        {
            **{name: meta[name] for name in SYSTEM_OPTIONS if name in meta},
            "geometry_type": "few-step-triplane-dual-stable-diffusion",
            "geometry": workbench.geometry_options({"space_generator_config": _GENERATOR}, base),
            "renderer_2nd_type": "generative-space-sdf-volume-renderer",
        }
    )
    outputs = case["model_outputs"].clone().requires_grad_()
    network = RecordedNetwork(outputs)
    denoised: list[Tensor] = []
    losses: list[Tensor] = []

    def loss(planes: Tensor, score: Tensor, name: str, share: float) -> Tensor:
        return (planes * score).sum() + 0.5 * planes.square().sum()

    def backward(scalar: Tensor) -> None:
        losses.append(scalar.detach())
        scalar.backward()

    def decode(latents: Tensor) -> FieldScene:
        denoised.append(latents)
        return FieldScene(system.geometry.field, {"planes": latents.unflatten(0, (-1, N_PLANES))})

    class Fidelity(Guidance):
        trained: ClassVar[dict[str, Any]] = {}

        def check(self, *arguments: Any) -> None:
            """Goes with everything."""

        def forward(self, *arguments: Any) -> list[Tensor]:
            return [case["w_fidelity"][len(denoised) - 1].unflatten(0, (-1, N_PLANES))]

    monkeypatch.setattr(system.geometry.space_generator, "denoise", network)
    monkeypatch.setattr(system.geometry, "decode", decode)
    monkeypatch.setattr(system, "render", lambda renderer, scene, *others: scene.tensors["planes"])
    monkeypatch.setattr(system, "loss", loss)
    monkeypatch.setattr(system, "_guidance", (Fidelity(),), raising=False)
    monkeypatch.setattr(system, "manual_backward", backward)
    latent = case["latent0"].unflatten(0, (-1, N_PLANES))
    # Where nothing is to be added, no number may matter.
    noises = case["noise_draws"] if "noise_draws" in case else torch.ones_like(outputs)
    streams = {
        "train/start": latent,
        "train/timesteps": one_row_a_prompt(case["timestep_draw"].T, len(latent)),
        **{f"train/part{i}/noise": noise.unflatten(0, (-1, N_PLANES)) for i, noise in enumerate(noises)},
    }
    views = [cameras(torch.eye(4).expand(len(latent), 4, 4), 1)] * meta["num_parts_training"]
    run_training_step(system, _batch(len(latent), tuple(latent.shape[1:]), views), streams, monkeypatch)

    network.compare(case)
    case.close("denoised", torch.stack(denoised), 1e-5)
    case.close("losses", torch.stack(losses), 1e-5)
    case.close("grad_model_outputs", outputs.grad, 1e-5)


def system_of(options: dict[str, Any]) -> prd.ProgressiveRenderingDistillation:
    """The system with published options, and the original's mistakes."""
    block = translated(options)["system"]
    del block["type"]
    return prd.ProgressiveRenderingDistillation(block)


def one_row_a_prompt(picks: Tensor, n_prompts: int) -> Tensor:
    """Drawn indices of timesteps [B, K], of which a case may record one row for all prompts."""
    return picks.expand(n_prompts, -1)


def run_training_step(
    system: prd.ProgressiveRenderingDistillation,
    batch: Batch,
    streams: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The system's training step with recorded draws, up to the optimizer's update."""
    draws = RecordedDraws.of(streams, len(batch.samples))
    monkeypatch.setattr(prd, "Draws", lambda *key: draws)
    monkeypatch.setattr(system, "gradients_kept_local", nullcontext)
    monkeypatch.setattr(system, "update", lambda batch: None)
    system.train()
    system.training_step(batch, 0)


def regularization(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = case.progress
    losses = translated({**_BOTH_RENDERERS, "loss": case.meta["lambdas"]})["system"]["losses"]
    score = ScoreGradient(None, None, None, {name: torch.tensor(v) for name, v in case.meta["guidance"].items()})
    names = case.meta["logged_names"]
    (step,) = {name.rpartition("_")[2] for name in names}
    measured = {}
    for name, slot, prefix, views in (
        ("mesh", "", "1st", _listed(case)),
        ("volume", "_2nd", "2nd", _recorded_views(case)),
    ):
        objective = Objective(LossConfig.parse(losses[name], "losses"))
        total, values = objective(views, progress)
        case.close(f"{prefix}_regularization", total, 1e-5)
        fidelity = objective.score(progress) * score.logs["loss_asd"]
        case.close(f"{prefix}_fidelity", fidelity, 1e-5)
        values = {f"loss_{name}{slot}": value for name, value in values.items()}
        values |= {f"{name}{slot}": value for name, value in score.logs.items()}
        measured |= {f"train/{name}_{step}": float(value) for name, value in values.items()}
    case.require(f"logged_names are {sorted(measured)}", measured.keys() == set(names))
    if "logged" in case:
        for name, expected in zip(names, case["logged"].tolist(), strict=True):
            gap = abs(measured.get(name, math.nan) - expected)
            case.within(f"logged: {name}", gap / max(abs(expected), 1e-30), 1e-5)


def _recorded_views(case: Case, **changes: list[Tensor]) -> Views:
    inputs = {name: case[f"in_{name}"] for name in case.with_prefix("in_")}
    opacity = inputs.pop("opacity")
    picture = torch.zeros_like(inputs["comp_normal"])
    return Views(picture, picture, opacity, opacity, opacity, extras={**inputs, **changes})


def _listed(case: Case) -> Views:
    """The first renderer's views: its samples are lists of two pieces, whose ends the case's note tells."""
    told = re.search(r"second half starting (\d+) rows earlier\] / \[first (\d+), rest", case.meta["note"])
    if told is None:
        raise NotImplementedError(f"the note does not tell how the lists of samples are cut: {case.meta['note']!r}")
    overlap, first = map(int, told.groups())
    gradients, sdf = case["in_sdf_grad"], case["in_sdf"]
    half = len(gradients) // 2
    return _recorded_views(
        case, sdf_grad=[gradients[:half], gradients[half - overlap :]], sdf=[sdf[:first], sdf[first:]]
    )


def _text(n_rows: int) -> TextStates:
    blank = torch.zeros(n_rows // N_PLANES, 1, 1)
    return TextStates(blank, blank[:, 0], blank[:1], blank[:1])


def _batch(n_prompts: int, latent_shape: tuple[int, ...], views: Sequence[Any]) -> Batch:
    text = _text(n_prompts * N_PLANES)
    return Batch(
        prompts=("a cube",) * n_prompts,
        samples=tuple(range(n_prompts)),
        step=0,
        cameras=tuple(views),
        image_size=(1, 1),
        ray_size=(1, 1),
        latent_shape=latent_shape,
        conditions={"generator": text},
    )
