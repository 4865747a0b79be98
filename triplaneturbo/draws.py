"""Random numbers that do not depend on how the work is spread.

Every draw of a training is keyed by (seed, stream, global sample index): never by rank, device count, batch size or a
global generator. One process and four, one large batch and accumulated small ones, a run and its continuation after a
kill, see the same numbers for a sample. A training never sees a sample index twice. The noise that meshes are made from
is keyed by its seed alone: see `generation_noise`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor


def derive_seed(*key: int | str) -> int:
    """A 63-bit seed from the parts of `key`, the same on every machine and in every Python process."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def keyed_generator(*key: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator seeded by `derive_seed(*key)`."""
    return torch.Generator(device).manual_seed(derive_seed(*key))


def generation_noise(seeds: Sequence[int], latent_shape: Sequence[int]) -> Float[Tensor, "N c h w"]:
    """The noise of the planes of one mesh for each seed, `latent_shape` = (6, c, h, w), on the CPU.

    A seed is one noise: for every prompt, in every place of a list, in an export, a pipeline and the pictures of
    validation, on every device. So the mesh of a prompt does not depend on its neighbours, and two prompts with one
    seed differ in their text alone.
    """
    rows = [torch.randn(tuple(latent_shape), generator=keyed_generator(seed, "pipeline/noise")) for seed in seeds]
    return torch.cat(rows)


@dataclass(frozen=True)
class Draws:
    """The random numbers of one micro-batch of training, one row for each sample.

    seed: the run's seed.
    samples: global sample indices; row b of every result depends on samples[b] alone.
    device: where results live. CPU and CUDA give different numbers for the same key.
    scope: prefix of all stream names, e.g. the PRD part and the renderer in turn.
    """

    seed: int
    samples: Sequence[int]
    device: torch.device
    scope: str = ""

    def within(self, scope: str) -> "Draws":
        """The same draws under a further prefix."""
        return replace(self, scope=f"{self.scope}{scope}/")

    def _rows(self, stream: str, draw) -> Tensor:
        generator = torch.Generator(self.device)
        rows = []
        for sample in self.samples:
            generator.manual_seed(derive_seed(self.seed, self.scope + stream, sample))
            rows.append(draw(generator))
        return torch.stack(rows)

    def normal(self, stream: str, *shape: int) -> Float[Tensor, "B *shape"]:
        """Standard normal numbers [B, *shape]."""
        return self._rows(stream, lambda g: torch.randn(shape, generator=g, device=self.device))

    def uniform(self, stream: str, *shape: int) -> Float[Tensor, "B *shape"]:
        """Uniform numbers in [0, 1), [B, *shape]."""
        return self._rows(stream, lambda g: torch.rand(shape, generator=g, device=self.device))

    def integers(self, stream: str, low: int, high: int, *shape: int) -> Int[Tensor, "B *shape"]:
        """Integers in [low, high), [B, *shape]."""
        return self._rows(stream, lambda g: torch.randint(low, high, shape, generator=g, device=self.device))
