"""A teacher with a copy of its network that learns what the pictures look like, as a stranger would write it."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from triplaneturbo.guidance import Question, StableDiffusionTeacher
from triplaneturbo.guidance.draws import DiffusionDraws
from triplaneturbo.registry import register
from triplaneturbo.types import Condition


@register("test-teacher-with-a-copy")
class TeacherWithACopy(StableDiffusionTeacher):
    """Its copy is all that is trained."""

    def configure(self) -> None:
        super().configure()
        self.trained = copy.deepcopy(self.unet).requires_grad_(True)

    def second(
        self, noisy: Float[Tensor, "N c s s"], t: Int[Tensor, " N"], condition: Condition
    ) -> Float[Tensor, "N c s s"]:
        return self.trained(noisy, t, condition.text).sample

    def training_loss(self, question: Question, drawn: list[Any]) -> Float[Tensor, ""]:
        """The usual loss of a denoiser, on the pictures as they are."""
        draws = DiffusionDraws.join(drawn)
        with torch.no_grad():
            latents = self.encode(self.preprocess(question), draws.vae_noise)
        _, told = self.conditions(question)
        t = draws.t.repeat_interleave(question.frames)
        noisy = self.schedule_on(latents.device).add_noise(latents, draws.noise, t)
        noise = self.schedule.to_noise(self.trained(noisy, t, told.text).sample, noisy, t)
        return F.mse_loss(noise, draws.noise)
