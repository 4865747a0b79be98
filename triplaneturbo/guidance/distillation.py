"""The machinery of score distillation, without a rule.

A guidance asks frozen teachers in which direction rendered pictures should move. For each teacher: pictures are
turned into latents x, noise is added, the U-Net predicts it with and without the text, a rule turns the predictions
into d loss / d x, and that is carried back to the pixels at once, so that an autoencoder's graph lives no longer than
its teacher's turn. `latent_gradient` is the rule; a new method overrides it and nothing else.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from triplaneturbo.base import Module
from triplaneturbo.bounds import Range
from triplaneturbo.draws import Draws
from triplaneturbo.errors import ConfigError
from triplaneturbo.guidance.draws import GuidanceDraws, TeacherDraws, join
from triplaneturbo.guidance.rules import (
    Compat,
    PlusType,
    ScoreEstimates,
    Weighting,
    clean_gap,
    known_plus_schedule,
    plus_timestep,
)
from triplaneturbo.guidance.teachers import Teacher
from triplaneturbo.schedule import Progress, Schedule
from triplaneturbo.types import Cameras, ScoreGradient, TextStates, Views


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """How one teacher is used; schedules may change during training."""

    weight: Schedule
    guidance_scale: Schedule
    min_step_percent: Schedule
    max_step_percent: Schedule
    plus_ratio: float = 0.0
    plus_random: bool = True
    weighting_strategy: Weighting = "dmd"
    use_sds: bool = False


class Look(NamedTuple):
    """What a teacher sees of each prompt: `rows` of the views of renderer `owner`. block: its place in the draws."""

    block: int
    owner: int
    rows: Int[Tensor, " N"]


class Scene(NamedTuple):
    """What one guidance call is about. leaves: the renderers' views, detached, collecting gradients."""

    leaves: list[Views]
    cameras: Cameras
    texts: tuple[TextStates, TextStates]
    progress: Progress

    @property
    def n_prompts(self) -> int:
        return len(self.cameras) // self.cameras.n_view


class ScoreDistillationGuidance(Module):
    """Base of guidances. `configure` of a subclass fills `teachers` and `options`, by the same names."""

    @dataclass(kw_only=True)
    class Config(Module.Config):
        n_view: Annotated[int, Range(1, 1024)] = 4
        """Views of a prompt."""
        parallel: bool = False
        """All renderers share one pass of each teacher: faster, with a larger batch. The gradients are the same."""
        sd_oppo_side: bool = False
        """The second renderer's single view is the one opposite to the first renderer's, instead of the same."""
        sd_hq_only: bool = False
        """Single-view teachers look at the first renderer only, as often as they would look at all of them."""
        t_plus_type: PlusType = "v1"
        """Form of the timestep shift, see `rules.plus_timestep`."""
        plus_schedule: Annotated[str, known_plus_schedule] = "linear"
        """Growth of the timestep shift with t: linear, sqrt or sqrt_<bias>."""
        grad_clip: Annotated[Schedule, Range(0, 1e6, above=True)] | None = None
        """Largest magnitude of an entry of a latent gradient."""
        compat: Compat = "right"
        """original: sums over prompts (docs/compat.md row 3), and the rows named where this is read."""

    @classmethod
    def differences(cls, cfg: Any) -> dict[int, str]:
        found = {3: "the loss is the mean over all prompts of a step, not the sum over those of a process"}
        if not cfg.parallel:
            found[14] = "the single view of Stable Diffusion is drawn once a step, not anew for each renderer"
        if cfg.sd_oppo_side and not cfg.parallel:
            found[9] = "sd_oppo_side is followed without parallel_guidance too"
        return found

    teachers: nn.ModuleDict
    options: dict[str, TeacherOptions]

    @abstractmethod
    def latent_gradient(self, estimates: ScoreEstimates, options: TeacherOptions) -> Float[Tensor, "N C H W"]:
        """The rule: d loss / d latents, before any division by views or prompts."""

    def forward(
        self,
        views: Sequence[Views],
        cameras: Cameras,
        texts: tuple[TextStates, TextStates],
        draws: Draws,
        progress: Progress,
        timestep_range: tuple[float, float] | None = None,
    ) -> list[ScoreGradient]:
        """Score gradients with respect to the pictures of several renderers with the same cameras.

        Args:
            texts: of the first (RichDreamer) and the second (Stable Diffusion, MVDream) text encoder.
            timestep_range: replaces every teacher's min_step_percent and max_step_percent.

        Returns:
            One `ScoreGradient` for each renderer, detached: of a loss that is the mean over the prompts of this
            process (compat=original: the sum). Averaging over processes is the caller's.
        """
        drawn = self.sample_draws(draws, len(views), progress, timestep_range)
        return self.gradients(views, cameras, texts, drawn, progress)

    def sample_draws(
        self, draws: Draws, n_renderers: int, progress: Progress, timestep_range: tuple[float, float] | None = None
    ) -> GuidanceDraws:
        """All random numbers of one call; each is keyed by its teacher, renderer and sample.

        Raises:
            ConfigError: the range of timesteps is empty.
        """
        by_teacher = {}
        for name, teacher in self.teachers.items():
            options = self.options[name]
            low, high = timestep_range or (options.min_step_percent(progress), options.max_step_percent(progress))
            n_timesteps = len(teacher.schedule.alphas_cumprod)
            bounds = int(n_timesteps * low), int(n_timesteps * high)
            if not 0 <= bounds[0] < bounds[1] <= n_timesteps:
                raise ConfigError(f"{name}: no timesteps between {low} and {high} of {n_timesteps}")
            by_teacher[name] = join(
                [self._teacher_draws(draws.within(f"{name}{r}"), teacher, bounds) for r in range(n_renderers)]
            )
        return GuidanceDraws(by_teacher, self._draw_view(draws, n_renderers))

    def _teacher_draws(self, draws: Draws, teacher: Teacher, bounds: tuple[int, int]) -> TeacherDraws:
        shape = (self._frames(teacher), *teacher.latent_shape)
        return TeacherDraws(
            t=draws.integers("t", *bounds),
            t_min=bounds[0],
            plus_rand=draws.uniform("plus"),
            noise=draws.normal("noise", *shape).flatten(0, 1),
            vae_noise=None if teacher.vae is None else draws.normal("vae", *shape).flatten(0, 1),
        )

    def _draw_view(self, draws: Draws, n_renderers: int) -> Int[Tensor, " G"]:
        n_view = self.cfg.n_view
        if self.cfg.compat == "original" and not self.cfg.parallel:  # docs/compat.md rows 9 and 14
            return torch.cat([draws.integers(f"view{r}", 0, n_view) for r in range(n_renderers)])
        first = draws.integers("view", 0, n_view)
        step = n_view // 2 if self.cfg.sd_oppo_side else 0
        return torch.cat([(first + step * r) % n_view for r in range(n_renderers)])

    def _frames(self, teacher: Teacher) -> int:
        return self.cfg.n_view if teacher.multi_view else 1

    @torch.enable_grad()
    def gradients(
        self,
        views: Sequence[Views],
        cameras: Cameras,
        texts: tuple[TextStates, TextStates],
        draws: GuidanceDraws,
        progress: Progress,
    ) -> list[ScoreGradient]:
        """The score gradients as a pure function of the random numbers."""
        if cameras.n_view != self.cfg.n_view:
            raise ValueError(f"the cameras have {cameras.n_view} views a prompt, but n_view is {self.cfg.n_view}")
        scene = Scene([_leaf(v) for v in views], cameras, texts, progress)
        logs: list[dict[str, Tensor]] = [{} for _ in views]
        for name, teacher in self.teachers.items():
            if self.options[name].weight(progress) == 0:
                continue
            looks = self._looks(teacher, scene, draws.view)
            for turn in [looks] if self.cfg.parallel else [[look] for look in looks]:
                found = self._take_turn(name, turn, scene, draws.teachers[name])
                for look, log in zip(turn, found, strict=True):
                    logs[look.block] |= log
        return [
            ScoreGradient(leaf.rgb.grad, leaf.normal.grad, leaf.disparity.grad, log)
            for leaf, log in zip(scene.leaves, logs, strict=True)
        ]

    def _looks(self, teacher: Teacher, scene: Scene, view: Int[Tensor, " G"]) -> list[Look]:
        n_view, device = self.cfg.n_view, view.device
        if teacher.multi_view:
            rows = torch.arange(len(scene.cameras), device=device)
            return [Look(r, r, rows) for r in range(len(scene.leaves))]
        prompts = torch.arange(scene.n_prompts, device=device)
        return [
            Look(r, 0 if self.cfg.sd_hq_only else r, prompts * n_view + v)
            for r, v in enumerate(view.split(scene.n_prompts))
        ]

    def _take_turn(self, name: str, looks: list[Look], scene: Scene, draws: TeacherDraws) -> list[dict[str, Tensor]]:
        """One pass of a teacher over `looks`: adds to the gradients of the leaves, returns what to log of each look."""
        teacher, options = self.teachers[name], self.options[name]
        n, frames = scene.n_prompts, self._frames(teacher)
        draws = draws.select(looks[0].block * n, (looks[-1].block + 1) * n)
        pictures = torch.cat([teacher.preprocess(scene.leaves[look.owner], look.rows) for look in looks])
        latents = teacher.encode(pictures, draws.vae_noise)
        estimates = self._estimate(name, latents.detach(), looks, scene, draws)
        raw = self.latent_gradient(estimates, options)
        gradient = torch.nan_to_num(raw, nan=0.0, posinf=0.0, neginf=0.0)
        if self.cfg.grad_clip is not None:
            limit = self.cfg.grad_clip(scene.progress)
            gradient = gradient.clamp(-limit, limit)
        prompts = 1 if self.cfg.compat == "original" else n  # docs/compat.md row 3
        latents.backward(gradient * (options.weight(scene.progress) / (frames * prompts)))
        gap = clean_gap(estimates, compat=self.cfg.compat)
        return [
            {
                f"{name}_grad_norm": g.norm(),
                f"{name}_gap": d.mean(),
                f"{name}_nonfinite": (~r.isfinite()).sum(),
            }
            for g, d, r in zip(gradient.chunk(len(looks)), gap.chunk(len(looks)), raw.chunk(len(looks)), strict=True)
        ]

    def _estimate(
        self, name: str, latents: Float[Tensor, "N c s s"], looks: list[Look], scene: Scene, draws: TeacherDraws
    ) -> ScoreEstimates:
        """Ask the network: without text at t, with text at t, and with text at t+ if there is a shift."""
        teacher, options, frames = self.teachers[name], self.options[name], self._frames(self.teachers[name])
        schedule = teacher.schedule_on(latents.device)
        cond, uncond = teacher.text(scene.texts)
        cond = cond.repeat(len(looks), 1, 1).repeat_interleave(frames, dim=0)
        uncond = uncond.expand(len(cond), -1, -1)
        camera = teacher.camera(scene.cameras)
        camera = None if camera is None else torch.cat([camera[look.rows] for look in looks])
        t = t_plus = draws.t.repeat_interleave(frames)
        times, texts = [t, t], [uncond, cond]
        if options.plus_ratio > 0 and not options.use_sds:
            t_plus = self._shifted(draws, options, len(schedule.alphas_cumprod)).repeat_interleave(frames)
            times, texts = [*times, t_plus], [*texts, cond]
        noisy = [schedule.add_noise(latents, draws.noise, time) for time in times]
        cameras = None if camera is None else camera.repeat(len(times), 1)
        outputs = teacher.predict(torch.cat(noisy), torch.cat(times), torch.cat(texts), cameras).chunk(len(times))
        noises = [schedule.to_noise(*each) for each in zip(outputs, noisy, times, strict=True)]
        return ScoreEstimates(
            latents=latents,
            noise=draws.noise,
            t=t,
            t_plus=t_plus,
            uncond=noises[0],
            cond=noises[1],
            plus=noises[-1],
            scale=options.guidance_scale(scene.progress),
            schedule=schedule,
            frames=frames,
        )

    def _shifted(self, draws: TeacherDraws, options: TeacherOptions, n_timesteps: int) -> Int[Tensor, " G"]:
        return plus_timestep(
            draws.t,
            draws.t_min,
            options.plus_ratio,
            draws.plus_rand if options.plus_random else None,
            t_plus_type=self.cfg.t_plus_type,
            plus_schedule=self.cfg.plus_schedule,
            n_timesteps=n_timesteps,
        )


def _leaf(views: Views) -> Views:
    pictures = {name: getattr(views, name).detach().requires_grad_() for name in ("rgb", "normal", "disparity")}
    return replace(views, **pictures)
