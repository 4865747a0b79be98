"""The random numbers of one guidance call, apart from what is done with them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class DiffusionDraws:
    """Random numbers of a diffusion teacher. A group is what shares a timestep: all views of a prompt, or one view.

    Pictures (rows of the noises) are group-major, then view. t_min: the smallest timestep that could have been drawn.
    vae_noise: None for teachers without an autoencoder.
    """

    t: Int[Tensor, " G"]
    t_min: int
    plus_rand: Float[Tensor, " G"]
    noise: Float[Tensor, "N c s s"]
    vae_noise: Float[Tensor, "N c s s"] | None

    @classmethod
    def join(cls, blocks: Sequence["DiffusionDraws"]) -> "DiffusionDraws":
        """The draws for several renderers as one."""
        if len(blocks) == 1:
            return blocks[0]
        noises = [b.vae_noise for b in blocks if b.vae_noise is not None]
        return cls(
            t=torch.cat([b.t for b in blocks]),
            t_min=blocks[0].t_min,
            plus_rand=torch.cat([b.plus_rand for b in blocks]),
            noise=torch.cat([b.noise for b in blocks]),
            vae_noise=torch.cat(noises) if noises else None,
        )


# What a teacher has drawn; it alone knows what that is.
Drawn = Any


@dataclass(frozen=True)
class GuidanceDraws:
    """Of each teacher what it drew for each renderer; and the view, of every renderer and prompt, that teachers of
    single views look at."""

    teachers: dict[str, list[Drawn]]
    view: Int[Tensor, " G"]
