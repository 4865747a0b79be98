"""Exact pictures for the training of the teachers, rendered once at the start and kept on the device."""

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Literal

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from custom.shapeworld.models import IMAGE_SIZE, build_tokenizer, token_ids
from custom.shapeworld.render import render
from custom.shapeworld.splits import retrieval_bank, teacher_captions
from custom.shapeworld.world import Solid, parse_caption
from triplaneturbo.bounds import Count, FieldOfView, Length, Range, Share
from triplaneturbo.cameras import orbit_cameras
from triplaneturbo.data.stream import StreamData
from triplaneturbo.draws import keyed_generator
from triplaneturbo.errors import ConfigError
from triplaneturbo.registry import register
from triplaneturbo.types import Cameras

logger = logging.getLogger(__name__)
_RAYS_AT_ONCE = 2**23
ELEVATION = (-45.0, 60.0)  # degrees: the range from which every solid of the world can be known


@dataclass(frozen=True)
class Pool:
    """Pictures of N objects, V views each, in 256 levels.

    tokens: of the captions. rgb: on a grey that varies from object to object. geometry: normals and disparity.
    """

    captions: tuple[str, ...]
    tokens: Int[Tensor, "N L"]
    rgb: UInt8[Tensor, "N V 3 H W"]
    geometry: UInt8[Tensor, "N V 4 H W"]
    cameras: Cameras

    def __len__(self) -> int:
        return len(self.captions)

    def views_of(self, rows: Int[Tensor, " B"]) -> Cameras:
        """The cameras of the objects in `rows`."""
        n_view = self.cameras.n_view
        picked = rows[:, None] * n_view + torch.arange(n_view, device=rows.device)
        return self.cameras.select(picked.flatten(), n_view)


def sample_cameras(
    n: int,
    n_view: int,
    generator: torch.Generator,
    *,
    fovy: tuple[float, float] = (60.0, 60.0),
    distance: tuple[float, float] = (0.8, 1.0),
) -> Cameras:
    """Random cameras of n objects as the recipe draws them: within ELEVATION, views equally spaced around.

    fovy, distance: ranges of the field of view (degrees) and of the relative distance.
    """
    draws = torch.rand(4, n, 1, generator=generator, device=generator.device).expand(-1, -1, n_view)
    k = torch.arange(n_view, device=generator.device)
    azimuth = (draws[0] + k) / n_view * 360 - 180
    return orbit_cameras(
        (ELEVATION[0] + (ELEVATION[1] - ELEVATION[0]) * draws[1]).flatten(),
        azimuth.flatten(),
        (distance[0] + (distance[1] - distance[0]) * draws[2]).flatten(),
        (fovy[0] + (fovy[1] - fovy[0]) * draws[3]).flatten(),
        n_view=n_view,
        relative=True,
    )


def _bytes(pictures: Tensor, n_view: int) -> Tensor:
    """[N * V, H, W, C] in [0, 1] as [N, V, C, H, W] levels."""
    return (pictures * 255).round().byte().permute(0, 3, 1, 2).unflatten(0, (-1, n_view))


def render_pool(solids: Sequence[Solid], cameras: Cameras, background: tuple[float, float], seed: int) -> Pool:
    """Render all views of all solids, solids of the same shapes together, on the device of the cameras.

    background: range of the grey levels behind the solids.
    """
    device, n_view, size = cameras.c2w.device, cameras.n_view, IMAGE_SIZE
    captions = tuple(map(str, solids))
    pool = Pool(
        captions,
        token_ids(build_tokenizer(), list(captions)).to(device),
        torch.empty(len(solids), n_view, 3, size, size, dtype=torch.uint8, device=device),
        torch.empty(len(solids), n_view, 4, size, size, dtype=torch.uint8, device=device),
        cameras,
    )
    generator = keyed_generator(seed, "background", device=device)
    at_once = max(1, _RAYS_AT_ONCE // (4 * n_view * size * size))
    order = sorted(range(len(solids)), key=lambda row: [part.shape for part in solids[row].placed_parts])
    for start in range(0, len(order), at_once):
        chunk = order[start : start + at_once]
        rows = torch.tensor(chunk, device=device)
        views = render([solids[row] for row in chunk], pool.views_of(rows), size, background=0.0)
        grey = torch.rand(len(chunk), 1, generator=generator, device=device).expand(-1, n_view)
        grey = (background[0] + (background[1] - background[0]) * grey).reshape(-1, 1, 1, 1)
        pool.rgb[rows] = _bytes(views.rgb + grey * (1 - views.opacity), n_view)
        pool.geometry[rows] = _bytes(torch.cat([views.normal, views.disparity], dim=-1), n_view)
    return pool


def draw_solids(captions: Sequence[str], n: int, single_share: float, seed: int, *, reword: bool) -> list[Solid]:
    """n solids, `single_share` of them of one part; each kind is gone through evenly, in laps.

    What is alike follows each other: in the first and every other lap solids in the order of their captions, which are
    of the same shapes for the most part, in the other laps those of the same colours.

    reword: whether `on` or `under` is drawn anew for each stack, or as in its caption.
    """
    generator = keyed_generator(seed, "captions")
    solids = [parse_caption(caption) for caption in captions]
    looks = sorted(range(len(solids)), key=lambda i: _look(solids[i]))
    place = {i: number for number, i in enumerate(looks)}

    def cycle(kind: Sequence[int], count: int) -> list[int]:
        drawn: list[int] = []
        while kind and len(drawn) < count:
            chosen = torch.randperm(len(kind), generator=generator)[: count - len(drawn)]
            by_look = len(drawn) // len(kind) % 2
            drawn += sorted((kind[i] for i in chosen.tolist()), key=place.__getitem__ if by_look else None)
        return drawn

    n_single = round(n * single_share)
    singles = cycle([i for i, solid in enumerate(solids) if len(solid.parts) == 1], n_single)
    drawn = singles + cycle([i for i, solid in enumerate(solids) if len(solid.parts) > 1], n - n_single)
    words = ["on" if word < 0.5 else "under" for word in torch.rand(len(drawn), generator=generator).tolist()]
    return [solids[i].rephrased(word) if reword else solids[i] for i, word in zip(drawn, words, strict=True)]


def _look(solid: Solid) -> tuple[object, ...]:
    """What a solid looks like, its shapes last."""
    parts = solid.parts
    colors, details = [p.color for p in parts], [(p.pattern, p.proportion, p.small) for p in parts]
    return len(parts), colors, solid.relations, details, solid.shapes


@dataclass(frozen=True)
class PoolBatch:
    """Objects that a step is made with.

    step: micro-batch counter. sample: the global index of its first object, the key of all its random draws.
    rows: of the pool.
    """

    step: int
    sample: int
    rows: Int[Tensor, " B"]

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str) -> "PoolBatch":
        """The same, with its rows on `device`."""
        return replace(self, rows=self.rows.to(device))


@register("shapeworld-data")
class ShapeWorldData(StreamData):
    """Renders a `Pool` on the training device; batches are row numbers of the pool, drawn anew for each."""

    @dataclass(kw_only=True)
    class Config(StreamData.Config):
        captions: Literal["teachers", "scorer"] = "teachers"
        """Whose captions: the teachers', whose stacks are worded anew each time, or the whole bank as it is."""
        n_objects: Annotated[int, Range(1, 2**24)] = 16384
        """Size of the pool."""
        n_view: Annotated[int, Range(1, 1024)] = 1
        """Views of an object."""
        batch_size: Count = 256
        """Objects in a micro-batch of one process."""
        single_share: Share = 0.3
        """Share of solids of one part among the objects."""
        neighbours: Count = 1
        """Objects of a batch are drawn in runs of so many that are alike, in their shapes or in their colours; it
        divides the batch."""
        background: tuple[Share, Share] = (0.4, 0.6)
        """Range of the grey levels behind the objects; the teachers' pictures are on a middle grey."""
        fovy: tuple[FieldOfView, FieldOfView] = (60.0, 60.0)
        """Range of the cameras' vertical field of view, degrees."""
        distance: tuple[Length, Length] = (0.8, 1.0)
        """Range of the cameras' distance, relative to the field of view."""

    pool: Pool

    def configure(self) -> None:
        if self.cfg.batch_size % self.cfg.neighbours:
            raise ConfigError(
                f"data.batch_size={self.cfg.batch_size} is no multiple of data.neighbours={self.cfg.neighbours}"
            )
        self.samples_per_batch, self.samples_per_epoch = self.cfg.batch_size, self.cfg.n_objects
        pool = [value for name, value in asdict(self.cfg).items() if name != "batch_size"]
        self.fingerprint = hashlib.blake2b(json.dumps(pool).encode(), digest_size=8).hexdigest()

    def setup(self, stage: str) -> None:
        """Render the pictures; `stage` is ignored, there is only training."""
        start, cfg, seed = time.monotonic(), self.cfg, self.run.seed
        device = self.trainer.strategy.root_device
        of_teachers = cfg.captions == "teachers"
        captions = teacher_captions() if of_teachers else retrieval_bank()
        solids = draw_solids(captions, cfg.n_objects, cfg.single_share, seed, reword=of_teachers)
        generator = keyed_generator(seed, "cameras", device=device)
        cameras = sample_cameras(len(solids), cfg.n_view, generator, fovy=cfg.fovy, distance=cfg.distance)
        self.pool = render_pool(solids, cameras, cfg.background, seed)
        logger.info("rendered %d objects x %d views in %.1f s", len(solids), cfg.n_view, time.monotonic() - start)

    def training_batch(self, step: int, samples: range) -> PoolBatch:
        """See `StreamData.training_batch`."""
        generator = keyed_generator(self.run.seed, "batches", samples.start)
        runs = len(samples) // self.cfg.neighbours
        first = torch.randint(len(self.pool), (runs, 1), generator=generator)
        rows = (first + torch.arange(self.cfg.neighbours)).flatten() % len(self.pool)
        return PoolBatch(step, samples.start, rows)
