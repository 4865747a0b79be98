"""Progressive rendering distillation (Ma et al. 2025, arXiv 2503.21694)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from triplaneturbo.bounds import Count, Range
from triplaneturbo.diffusion import few_step_timesteps
from triplaneturbo.draws import Draws
from triplaneturbo.errors import ConfigError
from triplaneturbo.registry import register
from triplaneturbo.systems.distillation import SceneDistillation
from triplaneturbo.types import Batch, Cameras


@register("progressive-rendering-distillation")
class ProgressiveRenderingDistillation(SceneDistillation):
    """A few-step generator learns from the pictures of every one of its K denoising rounds.

    Each round noises the clean estimate of the one before, without gradient through it, estimates again, and has its
    scene rendered and judged; so memory does not grow with K.
    """

    @dataclass(kw_only=True)
    class Config(SceneDistillation.Config):
        rounds: Count = 4
        """K: the training timesteps are divided into so many ranges; one timestep is drawn from each."""
        training_timesteps: Annotated[int, Range(1, 1000)] = 4
        """Number of training timesteps, evenly spaced."""
        update_every_round: bool = False
        """Make an optimizer step after each round instead of after all of them."""
        fresh_noise: bool = True
        """Add noise to the last clean estimate; without it the estimate is only scaled."""
        guidance_timesteps: Literal["teacher", "round"] = "teacher"
        """round: in round i teachers look at timesteps between that of round i + 1 and that of round i."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.training_timesteps % self.rounds:
                raise ConfigError(
                    f"training_timesteps ({self.training_timesteps}) must be a multiple of rounds ({self.rounds})"
                )
            if self.update_every_round and self.gradient_accumulation_steps > 1:
                raise ConfigError("update_every_round leaves no gradients to accumulate: set one of the two options")

    def assemble(self) -> None:
        super().assemble()
        if not hasattr(self.geometry, "space_generator"):
            raise ConfigError(
                f"{self.cfg.geometry.type} does not denoise: progressive-rendering-distillation needs a geometry with "
                "a space_generator, such as few-step-triplanes; others are trained by scene-distillation"
            )
        self.n_timesteps = len(self.geometry.space_generator.schedule.alphas_cumprod)
        self.timesteps = few_step_timesteps(self.cfg.training_timesteps, self.n_timesteps)

    def on_fit_start(self) -> None:
        """Raises ConfigError: the data module does not give a set of cameras for each round."""
        super().on_fit_start()
        given = self.data_module.camera_sets
        if given not in (None, self.cfg.rounds):
            raise ConfigError(f"data.camera_sets ({given}) must be system.rounds ({self.cfg.rounds})")

    def step_of(self, batch: int) -> int:
        return batch * self.cfg.rounds if self.cfg.update_every_round else super().step_of(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """K denoising rounds with a backward pass each."""
        if not self.cfg.update_every_round:
            return super().training_step(batch, batch_idx)
        with self.gradients_kept_local():
            for _ in self.rounds(batch, share=1.0):
                self.update(batch)
        return None

    def accumulate(self, batch: Batch) -> None:
        for _ in self.rounds(batch, self.share / self.cfg.rounds):
            pass

    def rounds(self, batch: Batch, share: float) -> Iterator[int]:
        """Go through the rounds; each has its gradient when its number is given out."""
        if len(batch.cameras) != self.cfg.rounds:
            raise ValueError(
                f"a batch has {len(batch.cameras)} sets of cameras, but there are {self.cfg.rounds} rounds"
            )
        draws = Draws(self.run.seed, batch.samples, self.device).within("train")
        clean = draws.normal("start", *batch.latent_shape).flatten(0, 1)
        times = self.draw_timesteps(draws)
        for number, cameras in enumerate(batch.cameras):
            clean = self.distil_round(
                clean, times[number], cameras, batch, draws.within(f"part{number}"), number, share
            )
            yield number

    def distil_round(
        self,
        previous: Float[Tensor, "N c h w"],
        times: Int[Tensor, " B"],
        cameras: Cameras,
        batch: Batch,
        draws: Draws,
        number: int,
        share: float,
    ) -> Float[Tensor, "N c h w"]:
        """One denoising step, its pictures, and the gradient of `share` times their loss; returns the clean latents."""
        noise = draws.normal("noise", *batch.latent_shape).flatten(0, 1)
        if not self.cfg.fresh_noise:
            noise = torch.zeros_like(noise)
        times = times.repeat_interleave(batch.latent_shape[0])
        clean, scene = self.geometry.prd_round(previous, noise, times, batch.condition.tokens)
        self.distil(scene, cameras, batch, draws, share, self.teacher_range(number))
        return clean

    def draw_timesteps(self, draws: Draws) -> Int[Tensor, "K B"]:
        """A timestep for each round and prompt, from the noisiest down."""
        picks = draws.integers("timesteps", 0, len(self.timesteps) // self.cfg.rounds, self.cfg.rounds)
        return pick_timesteps(self.timesteps, picks.T)

    def teacher_range(self, number: int) -> tuple[float, float] | None:
        """The share of all timesteps that the teachers look at in a round, if it is not theirs to choose."""
        if self.cfg.guidance_timesteps == "teacher":
            return None
        bounds = [*self.timesteps[:: len(self.timesteps) // self.cfg.rounds], 0]
        return bounds[number + 1] / self.n_timesteps, bounds[number] / self.n_timesteps


def pick_timesteps(timesteps: list[int], picks: Int[Tensor, "K B"]) -> Int[Tensor, "K B"]:
    """Entry `picks[i]` of range i of `timesteps`, which are divided into K equal ranges in their order."""
    return torch.tensor(timesteps, device=picks.device).view(len(picks), -1).gather(1, picks)
