"""Learning from teachers alone: scenes are rendered, teachers say how the pictures should change."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from triplaneturbo.base import Chosen, Part
from triplaneturbo.draws import Draws
from triplaneturbo.errors import ConfigError
from triplaneturbo.registry import register
from triplaneturbo.scenes import FieldScene
from triplaneturbo.schedule import Progress
from triplaneturbo.systems.scene import SceneSystem
from triplaneturbo.types import Batch, Cameras, ScoreGradient, TextStates, Views


@runtime_checkable
class Guidance(Protocol):
    """What a system asks of its guidance, see `guidance.distillation.ScoreDistillation`."""

    @property
    def trained(self) -> dict[str, nn.Module]: ...

    def check(self, n_view: int, conditions: Collection[str]) -> None: ...

    def to(self, device: torch.device) -> nn.Module: ...

    def __call__(
        self,
        views: Sequence[Views],
        cameras: Cameras,
        conditions: Mapping[str, TextStates],
        draws: Draws,
        progress: Progress,
        timestep_range: tuple[float, float] | None,
        share: float,
        prompts: Sequence[str],
    ) -> list[ScoreGradient]: ...


@register("scene-distillation")
class SceneDistillation(SceneSystem):
    """A geometry learns from the pictures of its scenes: a generator of many prompts, or the parameters of one."""

    @dataclass(kw_only=True)
    class Config(SceneSystem.Config):
        guidance: Annotated[Chosen, Part("guidance", "score-distillation")] | None = None
        """What judges the pictures; needed in training only."""

    in_training_only = ("teachers",)

    def setup(self, stage: str) -> None:
        """In training load the teachers. They are kept out of the module tree, neither trained nor saved, except for
        what is trained beside them.

        Raises:
            ConfigError: training without guidance.
        """
        super().setup(stage)
        if stage != "fit" or hasattr(self, "_guidance"):
            return
        if self.cfg.guidance is None:
            raise ConfigError("training needs system.guidance")
        self._guidance = (self.cfg.guidance.build(),)
        if self.guidance.trained:
            self.teachers = nn.ModuleDict(self.guidance.trained)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Raises ConfigError: the optimiser leaves out what is trained beside a teacher."""
        optimizer = super().configure_optimizers()
        updated = set(map(id, self.scheduled_optimizer.parameters))
        for name, part in (self.guidance.trained if hasattr(self, "_guidance") else {}).items():
            if not any(id(parameter) in updated for parameter in part.parameters()):
                raise ConfigError(
                    f"what is trained beside the teacher {name!r} is in no group of system.optimizer.params: add "
                    "teachers, such as {teachers: {lr: 1e-4}}"
                )
        return optimizer

    @property
    def guidance(self) -> Guidance:
        """The teachers."""
        return self._guidance[0]

    def on_fit_start(self) -> None:
        """Raises ConfigError: teachers and data do not go together."""
        data = self.data_module
        if data.n_view is not None:
            self.guidance.check(data.n_view, data.condition_names)
        self.guidance.to(self.device)

    def accumulate(self, batch: Batch) -> None:
        """Look at the scenes of the prompts, and send what the teachers say back to the geometry."""
        draws = Draws(self.run.seed, batch.samples, self.device).within("train")
        scene = self.geometry.scene(batch.condition, draws)
        self.distil(scene, batch.cameras[0], batch, draws, self.share)

    def distil(
        self,
        scene: FieldScene,
        cameras: Cameras,
        batch: Batch,
        draws: Draws,
        share: float,
        timestep_range: tuple[float, float] | None = None,
    ) -> None:
        """Add the gradient of `share` times the loss of a scene's pictures to what made it.

        Pictures send their gradients to a copy of the scene, renderer after renderer, so that a renderer's graph is
        freed before the next is used and the geometry is passed through once.
        """
        self.guidance.check(cameras.n_view, batch.conditions)
        leaf, send_back = scene.detached()
        views = {
            name: self.render(renderer, leaf, cameras, batch, draws.within(f"renderer{self.label(name)}"))
            for name, renderer in self.renderers.items()
        }
        scores = self.guidance(
            list(views.values()),
            cameras,
            batch.conditions,
            draws,
            self.progress,
            timestep_range,
            share,
            batch.prompts,
        )
        for name, score in zip(list(views), scores, strict=True):
            self.manual_backward(share * self.loss(views.pop(name), score, name, share))
        send_back()

    def loss(self, views: Views, score: ScoreGradient, name: str, share: float) -> Float[Tensor, ""]:
        """A scalar with the teachers' gradient, weighted, plus the terms for the renderer `name`."""
        objective, label = self.objectives[name], self.label(name)
        terms, values = objective(views, self.progress)
        named = {f"loss_{term}{label}": value for term, value in values.items()}
        self.measure(named | {f"{what}{label}": value for what, value in score.logs.items()}, share)
        return objective.score(self.progress) * score.surrogate(views) + terms
