"""The random numbers of one guidance call, apart from what is done with them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class TeacherDraws:
    """Random numbers of one teacher. A group is what shares a timestep: all views of a prompt, or one single view.

    Groups are renderer-major, then prompt; pictures (rows of the noises) are group-major, then view.
    t_min: the smallest timestep that could have been drawn. vae_noise: None for teachers without an autoencoder.
    """

    t: Int[Tensor, " G"]
    t_min: int
    plus_rand: Float[Tensor, " G"]
    noise: Float[Tensor, "N c s s"]
    vae_noise: Float[Tensor, "N c s s"] | None

    def select(self, start: int, stop: int) -> "TeacherDraws":
        """The draws of groups start..stop."""
        frames = self.noise.shape[0] // self.t.shape[0]
        rows = slice(start * frames, stop * frames)
        return TeacherDraws(
            t=self.t[start:stop],
            t_min=self.t_min,
            plus_rand=self.plus_rand[start:stop],
            noise=self.noise[rows],
            vae_noise=None if self.vae_noise is None else self.vae_noise[rows],
        )


def join(blocks: list[TeacherDraws]) -> TeacherDraws:
    """The draws of several renderers as one."""
    return TeacherDraws(
        t=torch.cat([b.t for b in blocks]),
        t_min=blocks[0].t_min,
        plus_rand=torch.cat([b.plus_rand for b in blocks]),
        noise=torch.cat([b.noise for b in blocks]),
        vae_noise=None if blocks[0].vae_noise is None else torch.cat([b.vae_noise for b in blocks]),
    )


@dataclass(frozen=True)
class GuidanceDraws:
    """By teacher; and the view, of every renderer and prompt, that single-view teachers look at."""

    teachers: dict[str, TeacherDraws]
    view: Int[Tensor, " G"]
