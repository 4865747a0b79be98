"""Guidance: what several teachers together say about rendered pictures.

Each teacher is asked in turn, and its gradient is carried back to the pixels at once, so that an autoencoder's graph
lives no longer than its teacher's turn.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from triplaneturbo.base import Chosen, Module, Modules, Part, option
from triplaneturbo.draws import Draws
from triplaneturbo.errors import ConfigError
from triplaneturbo.guidance.draws import Drawn, GuidanceDraws
from triplaneturbo.guidance.teacher import Question, Sight, Teacher
from triplaneturbo.registry import register
from triplaneturbo.schedule import Progress
from triplaneturbo.types import Cameras, ScoreGradient, TextStates, Views

PICTURES = ("rgb", "normal", "disparity")


class Guidance(Module):
    """Says in which direction pictures should move. What it is made of is no part of the system's state."""

    role = "guidance"

    @property
    def trained(self) -> dict[str, nn.Module]:
        """By name, what is trained beside it, in the system's optimiser and checkpoints."""
        return {}

    def check(self, n_view: int, conditions: Collection[str]) -> None:
        """See `Teacher.check`."""


@register("score-distillation")
class ScoreDistillation(Guidance):
    """The sum of named teachers, each with its own weight, rule and shaping."""

    @dataclass(kw_only=True)
    class Config(Guidance.Config):
        teachers: dict[str, Annotated[Chosen, Part("teacher")]]
        """By name; null takes one away that a base recipe has."""
        parallel: bool = False
        """All renderers share one pass of each teacher: faster, with a larger batch. The gradients are the same."""
        opposite_views: bool = False
        """Teachers of single views see the second renderer's picture from the side opposite to the first one's."""
        shaping: dict[str, Annotated[Chosen, Part("shaping")]] = option({})
        """What is done to the sum of all teachers' gradients, in this order."""
        quirks: list[Literal["sum-over-prompts", "view-per-renderer"]] = option([])
        """sum-over-prompts: of the loss, in place of the mean. view-per-renderer: the view that teachers of single
        views see is drawn for each renderer on its own."""

        def __post_init__(self) -> None:
            labels = [self.label(name) for name in self.used]
            if not labels:
                raise ConfigError("no teacher has a weight above 0: nothing guides the training")
            if len(set(labels)) < len(labels):
                raise ConfigError(f"two teachers have the same label among {', '.join(labels)}")

        @property
        def used(self) -> list[str]:
            """Names of the teachers whose weight is not always 0."""
            return [n for n, teacher in self.teachers.items() if any(v for _, v in teacher.cfg.weight.points)]

        def label(self, name: str) -> str:
            """What logs and draws call the teacher."""
            given = self.teachers[name].cfg.label
            return name if given is None else given

    def configure(self) -> None:
        self.teachers = Modules[Teacher]({name: self.cfg.teachers[name].build() for name in self.cfg.used})
        self._shaping = {name: [s.build() for s in t.cfg.shaping.values()] for name, t in self.teachers.items()}
        self._shaping_of_sum = [shaping.build() for shaping in self.cfg.shaping.values()]

    def check(self, n_view: int, conditions: Collection[str]) -> None:
        """See `Teacher.check`."""
        for teacher in self.teachers.values():
            teacher.check(n_view, conditions)

    @property
    def trained(self) -> dict[str, nn.Module]:
        """By teacher, what is trained beside it."""
        return {name: teacher.trained for name, teacher in self.teachers.items() if hasattr(teacher, "trained")}

    def forward(
        self,
        views: Sequence[Views],
        cameras: Cameras,
        conditions: Mapping[str, TextStates],
        draws: Draws,
        progress: Progress,
        timestep_range: tuple[float, float] | None = None,
        share: float = 1.0,
        prompts: Sequence[str] = (),
    ) -> list[ScoreGradient]:
        """Score gradients with respect to the pictures of several renderers with the same cameras.

        Args:
            conditions: what the encoders say about the prompts, by name.
            timestep_range: replaces every teacher's smallest and largest timestep.
            share: of the gradients of what is trained beside the teachers, which are added to their parameters at once.
            prompts: their texts, for teachers that read them.

        Returns:
            One `ScoreGradient` for each renderer, detached: of a loss that is the mean over the prompts of this
            process. Averaging over processes is the caller's.
        """
        drawn = self.sample_draws(draws, len(views), cameras.n_view, progress, timestep_range)
        return self.gradients(views, cameras, conditions, drawn, progress, share, prompts)

    def sample_draws(
        self,
        draws: Draws,
        n_renderers: int,
        n_view: int,
        progress: Progress,
        timestep_range: tuple[float, float] | None = None,
    ) -> GuidanceDraws:
        """All random numbers of one call; each is keyed by its teacher, renderer and sample."""
        by_teacher = {
            name: [
                teacher.draw(draws.within(f"{self.cfg.label(name)}{r}"), n_view, progress, timestep_range)
                for r in range(n_renderers)
            ]
            for name, teacher in self.teachers.items()
        }
        return GuidanceDraws(by_teacher, self._draw_view(draws, n_renderers, n_view))

    def _draw_view(self, draws: Draws, n_renderers: int, n_view: int) -> Int[Tensor, " G"]:
        if "view-per-renderer" in self.cfg.quirks:
            return torch.cat([draws.integers(f"view{r}", 0, n_view) for r in range(n_renderers)])
        first = draws.integers("view", 0, n_view)
        step = n_view // 2 if self.cfg.opposite_views else 0
        return torch.cat([(first + step * r) % n_view for r in range(n_renderers)])

    @torch.enable_grad()
    def gradients(
        self,
        views: Sequence[Views],
        cameras: Cameras,
        conditions: Mapping[str, TextStates],
        draws: GuidanceDraws,
        progress: Progress,
        share: float = 1.0,
        prompts: Sequence[str] = (),
    ) -> list[ScoreGradient]:
        """The score gradients as a pure function of the random numbers."""
        logs: list[dict[str, Tensor]] = [{} for _ in views]
        leaves = [_leaf(v) for v in views]
        for name, teacher in self.teachers.items():
            if teacher.cfg.weight(progress) == 0:
                continue
            own = [_leaf(v) for v in views] if self._shaping[name] else leaves
            sights = self._sights(teacher, own, cameras, draws.view)
            for turn in [sights] if self.cfg.parallel else [(sight,) for sight in sights]:
                question = Question(turn, cameras, conditions, progress, prompts)
                found = self._ask(teacher, question, [draws.teachers[name][sight.block] for sight in turn], share)
                for sight, log in zip(turn, found, strict=True):
                    logs[sight.block] |= {f"{self.cfg.label(name)}_{what}": value for what, value in log.items()}
            if self._shaping[name]:
                _add(leaves, own, self._shaping[name], progress)
        return [self._score(leaf, log, progress) for leaf, log in zip(leaves, logs, strict=True)]

    def _ask(self, teacher: Teacher, question: Question, drawn: list[Drawn], share: float) -> list[dict[str, Tensor]]:
        """One teacher's turn: adds to the gradients of the pictures; returns what to log of each sight."""
        prompts = question.n_prompts if "sum-over-prompts" in self.cfg.quirks else 1
        with teacher.at_hand(question.cameras.positions.device):
            loss, logs = teacher.judge(question, drawn)
            (loss * (teacher.cfg.weight(question.progress) * prompts)).backward()
        learned = teacher.training_loss(question, drawn)
        if learned is not None:
            (share * learned).backward()
            logs[0]["training_loss"] = learned.detach()
        return logs

    def _sights(
        self, teacher: Teacher, leaves: list[Views], cameras: Cameras, view: Int[Tensor, " G"]
    ) -> tuple[Sight, ...]:
        """What the teacher sees of each renderer's pictures."""
        n_view, device = cameras.n_view, view.device
        n_prompts = len(cameras) // n_view
        if teacher.sees_all:
            rows = [torch.arange(len(cameras), device=device)] * len(leaves)
        else:
            prompts = torch.arange(n_prompts, device=device)
            rows = [prompts * n_view + v for v in view.split(n_prompts)]
        owners = [0 if teacher.cfg.first_renderer_only else r for r in range(len(leaves))]
        return tuple(Sight(r, owner, leaves[owner], rows[r]) for r, owner in enumerate(owners))

    def _score(self, leaf: Views, log: dict[str, Tensor], progress: Progress) -> ScoreGradient:
        found = {name: getattr(leaf, name).grad for name in PICTURES}
        for shaping in self._shaping_of_sum:
            found = {name: None if g is None else shaping(g, progress) for name, g in found.items()}
        return ScoreGradient(**found, logs=log)


def _leaf(views: Views) -> Views:
    return replace(views, **{name: getattr(views, name).detach().requires_grad_() for name in PICTURES})


def _add(leaves: list[Views], own: list[Views], shapings: list, progress: Progress) -> None:
    """Add one teacher's gradients, shaped, to those of all."""
    for leaf, mine in zip(leaves, own, strict=True):
        for name in PICTURES:
            gradient, total = getattr(mine, name).grad, getattr(leaf, name)
            if gradient is not None:
                for shaping in shapings:
                    gradient = shaping(gradient, progress)
                total.grad = gradient if total.grad is None else total.grad + gradient
