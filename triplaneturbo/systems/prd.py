"""Progressive rendering distillation (Ma et al. 2025, arXiv 2503.21694)."""

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor

from triplaneturbo.bounds import Count, ProjectPath, Range
from triplaneturbo.diffusion import few_step_timesteps
from triplaneturbo.draws import Draws
from triplaneturbo.errors import ConfigError
from triplaneturbo.interruption import interruption
from triplaneturbo.registry import register
from triplaneturbo.schedule import Progress
from triplaneturbo.systems.base import GeneratorSystem
from triplaneturbo.systems.losses import regularisation
from triplaneturbo.systems.optimizer import average_gradients
from triplaneturbo.types import Batch, Cameras, ScoreGradient, Views

log = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 20


@register("multiprompt-dual-renderer-multistep-generator-system")
class ProgressiveRenderingDistillation(GeneratorSystem):
    """A few-step generator learns from the pictures of every one of its K denoising steps.

    Each step noises the clean estimate of the one before, without gradient through it, estimates again, and has its
    scene rendered and judged; so memory does not grow with K.
    """

    @dataclass(kw_only=True)
    class Config(GeneratorSystem.Config):
        num_parts_training: Count = 4
        """K: parts into which the training timesteps are divided; one timestep is drawn from each."""
        num_steps_training: Annotated[int, Range(1, 1000)] = 50
        """Number of training timesteps."""
        num_steps_sampling: Annotated[int, Range(1, 1000)] = 50
        """Denoising steps of generation."""
        step_every_part: bool = False
        """Make an optimizer step after each part instead of after all of them."""
        parallel_guidance: bool = False
        """The pictures of both renderers share one pass of each teacher."""
        noise_addition: Literal["gaussian", "zero"] = "gaussian"
        """What is added to the last clean estimate: fresh noise or nothing."""
        specifiy_guidance_timestep: Literal["v1"] | None = None
        """v1: the teachers of part i look at timesteps between that of part i + 1 and that of part i."""
        predition_type: Literal["epsilon", "v_prediction"] | None = None
        """Must be what the generator's base model predicts; None: do not check."""
        scheduler_dir: ProjectPath | None = None
        """Must be the generator's folder, whose noise schedule is used; None: do not check."""
        noise_scheduler: Literal["ddpm", "ddim"] = "ddpm"
        """Accepted for old configurations: both name the same way of adding noise."""
        sample_scheduler: Literal["ddim"] = "ddim"
        """How planes are generated; only ddim does so in a few steps."""
        timesteps_from_T: Literal[True] = True
        """The first timestep is the noisiest."""
        initialize_shape: bool = False
        """Accepted for old configurations: the start shape is the bias of the field."""
        visualize_samples: Literal[False] = False
        rgb_as_latents: Literal[False] = False
        train_guidance: Literal[False] = False

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.num_steps_training % self.num_parts_training:
                raise ConfigError(
                    f"num_steps_training ({self.num_steps_training}) must be a multiple of num_parts_training "
                    f"({self.num_parts_training})"
                )
            if self.step_every_part and self.gradient_accumulation_steps > 1:
                raise ConfigError("step_every_part leaves no gradients to accumulate: set one of the two options")

        @property
        def handed_down(self) -> dict[str, Any]:
            return super().handed_down | {"parallel": self.parallel_guidance}

    @classmethod
    def differences(cls, cfg: Any) -> dict[int, str]:
        found = super().differences(cfg)
        if cfg.specifiy_guidance_timestep:
            found[13] = "specifiy_guidance_timestep is followed, not only computed"
        return found

    def configure(self) -> None:
        super().configure()
        self.automatic_optimization = False
        schedule = self.geometry.space_generator.schedule
        if self.cfg.predition_type not in (None, schedule.prediction_type):
            raise ConfigError(
                f"predition_type is {self.cfg.predition_type!r}, but the base model predicts "
                f"{schedule.prediction_type!r}"
            )
        folder = self.geometry.space_generator.cfg.pretrained_model_name_or_path
        if self.cfg.scheduler_dir not in (None, folder):
            raise ConfigError(f"scheduler_dir is {self.cfg.scheduler_dir!r}, but the generator is in {folder!r}")
        self.n_timesteps = len(schedule.alphas_cumprod)
        self.timesteps = few_step_timesteps(self.cfg.num_steps_training, self.n_timesteps)
        self.measured: dict[str, Tensor] = {}
        self.skipped = self.skipped_in_a_row = 0

    def on_fit_start(self) -> None:
        """Load the teachers. They are kept out of the module tree: they are neither trained nor saved."""
        if not self.cfg.guidance_type:
            raise ConfigError("training needs system.guidance_type")
        n_steps = self.trainer.datamodule.cfg.n_steps
        if n_steps != self.cfg.num_parts_training:
            raise ConfigError(f"data.n_steps ({n_steps}) must be num_parts_training ({self.cfg.num_parts_training})")
        guidance = self._build("guidance").to(self.device)
        n_view = self.trainer.datamodule.cfg.n_view
        if guidance.cfg.n_view != n_view:
            raise ConfigError(f"system.guidance.n_view ({guidance.cfg.n_view}) must be data.n_view ({n_view})")
        self._teachers = (guidance,)

    @property
    def guidance(self) -> Any:
        return self._teachers[0]

    # The method

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """K denoising steps with a backward pass each."""
        cfg = self.cfg
        draws = Draws(cfg.seed, batch.samples, self.device).within("train")
        clean = draws.normal("start", *batch.latent_shape).flatten(0, 1)
        share = 1 / cfg.gradient_accumulation_steps
        if not cfg.step_every_part:
            share /= cfg.num_parts_training
        times = self.draw_timesteps(draws)
        with self.gradients_kept_local():
            for part, cameras in enumerate(batch.cameras):
                clean = self.distil_part(clean, times[part], cameras, batch, draws.within(f"part{part}"), part, share)
                if cfg.step_every_part:
                    self.update(batch)
        accumulated = (batch.step + 1) % cfg.gradient_accumulation_steps == 0
        if accumulated and not cfg.step_every_part:
            self.update(batch)

    def distil_part(
        self,
        previous: Float[Tensor, "N c h w"],
        times: Int[Tensor, " B"],
        cameras: Cameras,
        batch: Batch,
        draws: Draws,
        part: int,
        share: float,
    ) -> Float[Tensor, "N c h w"]:
        """One denoising step, its pictures, and the gradient of `share` times their loss; returns the clean latents.

        Pictures send their gradients to a copy of the scene, renderer after renderer, so that a renderer's graph is
        freed before the next is used and the generator is passed through once.
        """
        noise = draws.normal("noise", *batch.latent_shape).flatten(0, 1)
        if self.cfg.noise_addition == "zero":
            noise = torch.zeros_like(noise)
        times = times.repeat_interleave(batch.latent_shape[0])
        clean = self.geometry.space_generator.prd_step(previous, noise, times, batch.condition.tokens)
        scene, send_back = self.geometry.decode(clean).detached()
        views = {
            slot: self.render(renderer, scene, cameras, batch, draws.within(f"renderer{slot}"))
            for slot, renderer in self.slots.items()
        }
        scores = self.guidance(
            list(views.values()), cameras, batch.guidance, draws, self.progress, self.teacher_range(part)
        )
        for slot, score in zip(list(views), scores, strict=True):
            self.manual_backward(share * self.loss(views.pop(slot), score, slot, share))
        send_back()
        return clean.detach()

    def loss(self, views: Views, score: ScoreGradient, slot: str, share: float) -> Float[Tensor, ""]:
        """lambda_asd * (a scalar with the teachers' gradient) + regularisers, for the renderer of `slot`."""
        terms, values = regularisation(views, self.cfg.loss, slot, self.progress)
        values |= {f"{name}{slot}": value for name, value in score.logs.items()}
        for name, value in values.items():
            self.measured[name] = self.measured.get(name, 0.0) + share * value
        return self.cfg.loss.weight("asd", slot, self.progress) * score.surrogate(views) + terms

    def draw_timesteps(self, draws: Draws) -> Int[Tensor, "K B"]:
        """A timestep for each part and prompt, from the noisiest part down."""
        n_parts = self.cfg.num_parts_training
        picks = draws.integers("timesteps", 0, len(self.timesteps) // n_parts, n_parts)
        return pick_timesteps(self.timesteps, picks.T)

    def teacher_range(self, part: int) -> tuple[float, float] | None:
        """The share of all timesteps that the teachers of `part` look at, if it is not theirs to choose."""
        if self.cfg.specifiy_guidance_timestep is None or self.cfg.compat == "original":  # docs/compat.md row 13
            return None
        bounds = [*self.timesteps[:: len(self.timesteps) // self.cfg.num_parts_training], 0]
        return bounds[part + 1] / self.n_timesteps, bounds[part] / self.n_timesteps

    # The update

    def gradients_kept_local(self) -> AbstractContextManager:
        """Gradients of the K backward passes are averaged over processes once, by `update`, not by each pass."""
        strategy = self.trainer.strategy
        return strategy.model.no_sync() if isinstance(strategy, DDPStrategy) else nullcontext()

    def update(self, batch: Batch) -> None:
        """One optimizer step with the gradients of all processes; skipped if they are not finite.

        Raises:
            RuntimeError: no update was possible 20 times in a row.
        """
        norm, wishes = average_gradients(self.scheduled_optimizer.parameters, interruption.take_wishes())
        interruption.agree(wishes)
        rate = self.scheduled_optimizer.set_learning_rates(self.progress)
        measured, self.measured = self.measured, {}
        data = self.trainer.datamodule
        data.advance(batch)
        if norm.isfinite():  # the host waits for the device
            self.optimizers().step()
            self.progress = Progress(self.trainer.global_step, data.epoch)
            if self.average:
                self.average.update(self.progress.step)
            known = {"prompts": data.position.samples, "lr": rate, "skipped": self.skipped}
            self.records.add(self.progress.step, known, {**measured, "grad_norm": norm})
            self.skipped_in_a_row = 0
        else:
            self._note_skipped()
        self.zero_grad(set_to_none=True)
        if len(self.records) >= self.trainer.log_every_n_steps:
            self.records.write(self.trainer.loggers)

    def _note_skipped(self) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        log.warning("gradients are not finite after step %d: update skipped", self.progress.step)
        if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise RuntimeError(
                f"gradients were not finite {MAX_SKIPPED_IN_A_ROW} times in a row after step {self.progress.step}: "
                "lower the learning rate, or continue from an earlier checkpoint"
            )

    def on_train_end(self) -> None:
        self.records.write(self.trainer.loggers)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["skipped"] = [self.skipped, self.skipped_in_a_row]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.skipped, self.skipped_in_a_row = checkpoint["skipped"]


def pick_timesteps(timesteps: list[int], picks: Int[Tensor, "K B"]) -> Int[Tensor, "K B"]:
    """Entry `picks[i]` of part i of `timesteps`, which are divided into K equal parts in their order."""
    return torch.tensor(timesteps, device=picks.device).view(len(picks), -1).gather(1, picks)
