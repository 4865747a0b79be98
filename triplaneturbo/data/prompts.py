"""The data of a method without 3D data: prompts, random cameras, and what encoders say about the prompts."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch.utils.data import DataLoader, Dataset

from triplaneturbo.base import Chosen, Part, option
from triplaneturbo.bounds import Count, Elevation, FieldOfView, LatentSize, Length, Pixels, ProjectPath, Range
from triplaneturbo.cameras import turntable
from triplaneturbo.data.cameras import CameraSampler
from triplaneturbo.data.library import PromptLibrary, prompt_index
from triplaneturbo.data.stream import StreamData
from triplaneturbo.draws import Draws
from triplaneturbo.errors import ConfigError
from triplaneturbo.naming import check_prompts
from triplaneturbo.registry import register
from triplaneturbo.schedule import Progress
from triplaneturbo.types import Batch, TextStates

log = logging.getLogger(__name__)

Size = tuple[Pixels, Pixels]


@register("prompts-and-cameras")
class PromptsAndCameras(StreamData[Batch]):
    """Batches of prompts, each with fresh sets of cameras. The prompts are run through in a new order each epoch."""

    @dataclass(kw_only=True)
    class Config(StreamData.Config):
        prompt_library: str | None = None
        """Name of a JSON file in prompt_library_dir."""
        prompt_library_dir: ProjectPath | None = None
        """Folder of the prompt library; None: `load`, then `datasets`, of the project."""
        prompts: list[str] | None = None
        """Prompts in place of a library."""
        eval_prompt: str | None = None
        """Look at and test this prompt only."""
        target_prompt: str | None = None
        """Test by a film that goes from eval_prompt to this prompt, through what lies between their states."""
        batch_size: Count = 4
        """Views in a micro-batch of one process: prompts times cameras.n_view."""
        cameras: Annotated[Chosen, Part("cameras", "ring")] = option("ring")
        """Where a prompt is looked at from in training."""
        camera_sets: Count = 1
        """Sets of cameras of a micro-batch: one for each round of a PRD step."""
        height: Pixels = 256
        """Height of the rasteriser's pictures."""
        width: Pixels = 256
        """Width of the rasteriser's pictures."""
        ray_height: Pixels = 64
        """Height of the volume renderer's pictures."""
        ray_width: Pixels = 64
        """Width of the volume renderer's pictures."""
        milestones: list[Count] = option([])
        """Steps from which on the pictures of the training have other sizes."""
        later_sizes: list[Size] = option([])
        """From each of these on, height and width of the rasteriser's pictures; none: they keep theirs."""
        later_ray_sizes: list[Size] = option([])
        """Likewise of the volume renderer's."""
        eval_size: Size | None = None
        """Height and width of all pictures in evaluation; None: as at the start of the training."""
        n_val_views: Count = 1
        """Views of the turntable in validation."""
        n_test_views: Count = 32
        """Views of the turntable in tests."""
        eval_elevation_deg: Elevation = 15.0
        """Elevation of the turntable."""
        eval_camera_distance: Length = 1.5
        """Distance of the turntable, world units."""
        eval_fovy_deg: FieldOfView = 70.0
        """Vertical field of view of the turntable."""
        test_view: Annotated[int, Range(0, 2**20)] | None = None
        """Hold the camera of tests still: show this view of the turntable, from 0 on, as often as there are views."""
        latent_shape: tuple[Literal[6], LatentSize, LatentSize, LatentSize] = (6, 4, 32, 32)
        """Noise of one prompt: planes, channels, height, width."""
        conditions: dict[str, Annotated[Chosen, Part("condition", "clip-text")]] = option({})
        """What encodes the prompts, by names that teachers refer to."""
        generator_condition: str | None = None
        """The name of the one whose states the generator is told; None: the first."""
        quirks: list[Literal["repeated-first-view"]] = option([])
        """repeated-first-view: a turntable ends where it began."""

        def __post_init__(self) -> None:
            n_view = Part("cameras", "ring")(self.cameras, "data.cameras").cfg.n_view
            if self.batch_size % n_view:
                raise ConfigError(
                    f"data.batch_size counts views, so it must be a multiple of cameras.n_view={n_view}, "
                    f"not {self.batch_size}"
                )
            if self.test_view is not None and self.test_view >= self.n_test_views:
                raise ConfigError(
                    f"data.test_view is {self.test_view}, but n_test_views={self.n_test_views}: the turntable has the "
                    f"views 0 to {self.n_test_views - 1}"
                )
            if self.target_prompt is not None and self.eval_prompt is None:
                raise ConfigError("data.target_prompt is where a film ends: give data.eval_prompt, where it begins")
            for name in ("later_sizes", "later_ray_sizes"):
                sizes = getattr(self, name)
                if sizes and (len(sizes) != len(self.milestones) or self.milestones != sorted(set(self.milestones))):
                    raise ConfigError(
                        f"data.{name} ({sizes}) must have an entry for each of the increasing data.milestones "
                        f"({self.milestones})"
                    )
            if self.generator_condition is not None and self.generator_condition not in self.conditions:
                raise ConfigError(
                    f"data.generator_condition is {self.generator_condition!r}; data.conditions has "
                    f"{', '.join(self.conditions) or 'none'}"
                )

    def configure(self) -> None:
        cfg = self.cfg
        self.allow_zero_length_dataloader_with_multiple_devices = True  # with fewer evaluation prompts than processes
        if cfg.prompts is not None:
            self.library = PromptLibrary.of(cfg.prompts)
        elif cfg.prompt_library is not None:
            self.library = PromptLibrary.read(cfg.prompt_library, cfg.prompt_library_dir)
        else:
            raise ConfigError("there are no prompts: set data.prompt_library, or give --prompt")
        if cfg.eval_prompt is not None:
            chosen = check_prompts([cfg.eval_prompt], "data.eval_prompt")
            self.library = replace(self.library, val=chosen, test=chosen)
        self.camera_sampler: CameraSampler = cfg.cameras.build()
        self.n_view, self.camera_sets = self.camera_sampler.cfg.n_view, cfg.camera_sets
        self.condition_names = cfg.conditions
        self.samples_per_batch = cfg.batch_size // self.n_view
        self.samples_per_epoch, self.fingerprint = len(self.library.train), self.library.fingerprint
        self._encoders: dict[str, Callable[[Sequence[str]], TextStates]] = {}

    # Training

    def training_batch(self, step: int, samples: range) -> Batch:
        """See `StreamData.training_batch`."""
        cfg, seed, now = self.cfg, self.run.seed, Progress(self.step_of(step))
        draws = Draws(seed, tuple(samples), torch.device("cpu"))
        prompts = self.library.train
        sampler = self.camera_sampler.at(now)
        n_view = sampler.cfg.n_view
        sets = tuple(sampler(draws, f"cameras/{number}") for number in range(cfg.camera_sets))
        passed = sum(now.step >= milestone for milestone in cfg.milestones)
        if any((len(made), made.n_view) != (len(samples) * n_view, n_view) for made in sets):
            raise ValueError(
                f"{self.cfg.cameras.type} places {len(sets[0])} cameras, {sets[0].n_view} a prompt; wanted are n_view="
                f"{n_view} for each of {len(samples)} prompts"
            )
        return Batch(
            prompts=tuple(prompts[prompt_index(seed, sample, len(prompts))] for sample in samples),
            samples=tuple(samples),
            step=step,
            cameras=sets,
            image_size=_at_stage((cfg.height, cfg.width), cfg.later_sizes, passed),
            ray_size=_at_stage((cfg.ray_height, cfg.ray_width), cfg.later_ray_sizes, passed),
            latent_shape=cfg.latent_shape,
        )

    # Evaluation

    def val_dataloader(self) -> DataLoader:
        return self._evaluation(self.library.val, self.cfg.n_val_views)

    def test_dataloader(self) -> DataLoader:
        if self.cfg.target_prompt is not None:
            return DataLoader(_Batches([self.film()] if self.trainer.global_rank == 0 else []), batch_size=None)
        return self._evaluation(self.library.test, self.cfg.n_test_views, self.cfg.test_view)

    def predict_dataloader(self) -> DataLoader:
        if not self.library.test:
            raise ConfigError("the prompt library has no prompts in its list 'test': nothing to export; give --prompt")
        return self._evaluation(self.library.test, 0)

    def _evaluation(self, prompts: tuple[str, ...], n_views: int, view: int | None = None) -> DataLoader:
        """This process's share of the prompts, each once; n_views, view: see `evaluation_batch`."""
        first: dict[str, int] = {}
        for index, prompt in enumerate(prompts):
            first.setdefault(prompt, index)
        if len(first) < len(prompts):
            log.warning("%d prompts are there more than once; each is looked at once", len(prompts) - len(first))
        mine = list(first.values())[self.trainer.global_rank :: self.trainer.world_size]
        batches = [self.evaluation_batch(prompts, index, n_views, view) for index in mine]
        return DataLoader(_Batches(batches), batch_size=None)

    def film(self) -> Batch:
        """A film from eval_prompt to target_prompt, with a view of the test for each picture."""
        prompts = check_prompts([self.cfg.eval_prompt, self.cfg.target_prompt], "data.target_prompt")
        first = self.evaluation_batch(prompts, 0, self.cfg.n_test_views, self.cfg.test_view)
        return replace(first, prompts=tuple(prompts), samples=(0, 1), film=True)

    def evaluation_batch(self, prompts: tuple[str, ...], index: int, n_views: int, view: int | None = None) -> Batch:
        """Prompt `index` of `prompts` seen from a turntable, or so many times from its view number `view`; without
        cameras if `n_views` is 0."""
        cfg = self.cfg
        cameras = turntable(
            n_views,
            elevation_deg=cfg.eval_elevation_deg,
            distance=cfg.eval_camera_distance,
            fovy_deg=cfg.eval_fovy_deg,
            repeat_first="repeated-first-view" in cfg.quirks,
        )
        if view is not None:
            cameras = cameras.select(torch.full((n_views,), view), n_view=n_views)
        return Batch(
            prompts=(prompts[index],),
            samples=(index,),
            step=0,
            cameras=(cameras,) if n_views else (),
            image_size=cfg.eval_size or (cfg.height, cfg.width),
            ray_size=cfg.eval_size or (cfg.ray_height, cfg.ray_width),
            latent_shape=cfg.latent_shape,
        )

    # Conditions

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Add what the encoders say about the prompts; of those of the teachers in training only."""
        names = list(self.cfg.conditions)
        if not names:
            raise ConfigError("data.conditions is empty: name an encoder, such as {sd: {type: clip-text, ...}}")
        first = self.cfg.generator_condition or names[0]
        wanted = [first, *(name for name in names if name != first)] if self.trainer.training else [first]
        return replace(batch, conditions={name: self._encoder(name)(batch.prompts) for name in wanted})

    def _encoder(self, name: str) -> Callable[[Sequence[str]], TextStates]:
        if name not in self._encoders:
            self._encoders[name] = self.cfg.conditions[name].build().to(self.trainer.strategy.root_device)
        return self._encoders[name]


def _at_stage(first: Size, later: Sequence[Size], passed: int) -> Size:
    """The size after so many milestones."""
    return later[passed - 1] if later and passed else first


class _Batches(Dataset):
    """A list of batches."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        return self.batches[index]
