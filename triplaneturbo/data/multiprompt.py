"""The data of a method without 3D data: prompts, random cameras, and text states."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from triplaneturbo.base import Component, build
from triplaneturbo.bounds import (
    Count,
    Degrees,
    Elevation,
    FieldOfView,
    LatentSize,
    Length,
    Pixels,
    ProjectPath,
    Range,
    Seed,
)
from triplaneturbo.cameras import turntable
from triplaneturbo.data.cameras import CameraRanges, training_cameras
from triplaneturbo.data.library import Position, PromptLibrary, micro_batches, prompt_index
from triplaneturbo.draws import Draws
from triplaneturbo.errors import ConfigError
from triplaneturbo.naming import check_prompts
from triplaneturbo.registry import register
from triplaneturbo.types import Batch

log = logging.getLogger(__name__)

_NO_3D_DATA = "it belongs to training with 3D data, which this method does without; remove it"
_NO_LIGHT = "materials are not lit, so there is no light to place; remove it"


@register("multiview-multiprompt-dualrenderer-multistep-datamodule-v2")
class MultipromptDataModule(Component, pl.LightningDataModule):
    """Batches of prompts, each with `n_steps` fresh sets of cameras.

    Training is one endless stream that runs through the prompts in a new order each epoch. Micro-batch m of process r
    holds global samples m * global_batch + r * local + (0 ... local - 1); everything random is keyed by these
    indices, and `position`, kept in checkpoints, is all that a resumed run needs.
    """

    @dataclass(kw_only=True)
    class Config:
        REFUSED: ClassVar[dict[str, str]] = {
            **dict.fromkeys(("obj_library_dir", "rgb_bg", "normal_bg", "depth_bg"), _NO_3D_DATA),
            **dict.fromkeys(("light_sample_strategy", "unsup_light_distance_range"), _NO_LIGHT),
            "resolution_milestones": "sizes do not change during training; set height, width, ray_height and ray_width",
            "target_prompt": "prompts are not edited; use eval_prompt or a prompt library",
            "eval_fix_camera": "evaluation shows a whole turntable; set n_val_views and n_test_views",
        }

        prompt_library: str | None = None
        """Name of a JSON file in prompt_library_dir."""
        prompt_library_dir: ProjectPath | None = None
        """Its folder; None: `load`, then `datasets`, of the project."""
        prompt_library_format: Literal["json"] = "json"
        """The one format there is."""
        prompts: list[str] | None = None
        """Prompts in place of a library."""
        eval_prompt: str | None = None
        """Look at and test this prompt only."""
        batch_size: Count = 4
        """Views in a micro-batch of one process: prompts times n_view."""
        eval_batch_size: Literal[1] = 1
        """Prompts evaluated together."""
        n_view: Annotated[int, Range(1, 1024)] = 4
        """Views of a prompt."""
        n_steps: Count = 4
        """Camera sets of a micro-batch: one for each part of a PRD step."""
        height: Pixels = 256
        """Of the rasteriser's pictures."""
        width: Pixels = 256
        """Of the rasteriser's pictures."""
        ray_height: Pixels = 64
        """Of the volume renderer's pictures."""
        ray_width: Pixels = 64
        """Of the volume renderer's pictures."""
        unsup_elevation_range: tuple[Elevation, Elevation] = (-10.0, 90.0)
        """Degrees."""
        unsup_azimuth_range: tuple[Degrees, Degrees] = (-180.0, 180.0)
        """Degrees."""
        unsup_camera_distance_range: tuple[Length, Length] = (1.0, 1.5)
        """World units, or with relative_radius in units of 1 / tan(fovy / 2)."""
        unsup_fovy_range: tuple[FieldOfView, FieldOfView] = (40.0, 70.0)
        """Vertical field of view, degrees."""
        relative_radius: bool = True
        """Choose the distance so that objects appear equally large at every field of view."""
        n_val_views: Count = 1
        """Views of the turntable in validation."""
        n_test_views: Count = 32
        """Views of the turntable in tests."""
        eval_elevation_deg: Elevation = 15.0
        """Of the turntable."""
        eval_camera_distance: Length = 1.5
        """Of the turntable, world units."""
        eval_fovy_deg: FieldOfView = 70.0
        """Of the turntable."""
        dim_gaussian: tuple[Literal[6], LatentSize, LatentSize, LatentSize] = (6, 4, 32, 32)
        """Noise of one prompt: planes, channels, height, width."""
        pure_zeros: Literal[False] = False
        """The generator starts from noise."""
        guidance_processor_type: str = ""
        """Registered name of the text processor of the teachers; needed in training only."""
        guidance_processor: dict = field(default_factory=dict)
        """Its options."""
        condition_processor_type: str = ""
        """Registered name of the text processor of the generator."""
        condition_processor: dict = field(default_factory=dict)
        """Its options."""
        seed: Seed = 0
        """Key of prompts and cameras."""
        compat: Literal["right", "original"] = "right"
        """original: the last view of a turntable repeats the first."""
        # Nothing is learnt from 3D data: these have one value each, that of the published recipes.
        obj_library: Literal["none"] = "none"
        meta_json: Literal["none"] = "none"
        rgb_data_dir: Literal["none"] = "none"
        normal_data_dir: Literal["none"] = "none"
        depth_data_dir: Literal["none"] = "none"
        camera_data_dir: Literal["none"] = "none"
        frontal_idx: Literal[24] = 24
        sup_unsup_mode: Literal["vanilla"] = "vanilla"

        def __post_init__(self) -> None:
            if self.batch_size % self.n_view:
                raise ConfigError(
                    f"data.batch_size counts views, so it must be a multiple of n_view={self.n_view}, "
                    f"not {self.batch_size}"
                )
            for name in ("elevation", "azimuth", "camera_distance", "fovy"):
                bounds = getattr(self, f"unsup_{name}_range")
                if bounds[0] > bounds[1]:
                    raise ConfigError(f"data.unsup_{name}_range must be [low, high], not {list(bounds)}")

        @property
        def handed_down(self) -> dict[str, Any]:
            """For the text processors."""
            return {"compat": self.compat}

    @classmethod
    def differences(cls, cfg: Any) -> dict[int, str]:
        return {11: "a turntable has n distinct views, its last one does not repeat the first; its noise has a seed"}

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
        self.prompts_per_batch = cfg.batch_size // cfg.n_view
        self.position = Position()
        self._condition_processor: Any = None
        self._guidance_processor: Any = None

    # Training

    def train_dataloader(self) -> DataLoader:
        start = self.position
        return DataLoader(_TrainingStream(self, start), batch_size=None)

    def training_batch(self, batch: int, samples: range) -> Batch:
        """Micro-batch `batch` with the given global samples: a pure function of the seed."""
        cfg = self.cfg
        draws = Draws(cfg.seed, tuple(samples), torch.device("cpu"))
        ranges = CameraRanges(
            elevation=cfg.unsup_elevation_range,
            azimuth=cfg.unsup_azimuth_range,
            fovy=cfg.unsup_fovy_range,
            distance=cfg.unsup_camera_distance_range,
            relative=cfg.relative_radius,
        )
        prompts = self.library.train
        return self._batch(
            prompts=tuple(prompts[prompt_index(cfg.seed, sample, len(prompts))] for sample in samples),
            samples=tuple(samples),
            step=batch,
            cameras=tuple(
                training_cameras(draws.uniform(f"cameras/{part}", 4), ranges, cfg.n_view) for part in range(cfg.n_steps)
            ),
        )

    def advance(self, batch: Batch) -> None:
        """Note that training has used `batch`: a checkpoint made now continues after it."""
        used = batch.step + 1 - self.position.batches
        samples = self.position.samples + used * self.prompts_per_batch * self.trainer.world_size
        self.position = Position(batch.step + 1, samples)

    @property
    def epoch(self) -> int:
        """Passes over the training prompts."""
        return self.position.samples // len(self.library.train)

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.position.batches, "samples": self.position.samples, "prompts": self.library.fingerprint}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        if self.trainer.state.fn != "fit":
            return
        if state_dict["prompts"] != self.library.fingerprint:
            raise ConfigError(
                "the checkpoint was trained on other prompts, so its run cannot be continued; "
                "to start a new run from its weights use system.weights instead of resume"
            )
        self.position = Position(state_dict["batches"], state_dict["samples"])

    # Evaluation

    def val_dataloader(self) -> DataLoader:
        return self._evaluation(self.library.val, self.cfg.n_val_views)

    def test_dataloader(self) -> DataLoader:
        return self._evaluation(self.library.test, self.cfg.n_test_views)

    def predict_dataloader(self) -> DataLoader:
        if not self.library.test:
            raise ConfigError("the prompt library has no prompts in its list 'test': nothing to export; give --prompt")
        return self._evaluation(self.library.test, 0)

    def _evaluation(self, prompts: tuple[str, ...], n_views: int) -> DataLoader:
        """This process's share of the prompts, each once with a turntable of `n_views` views."""
        first: dict[str, int] = {}
        for index, prompt in enumerate(prompts):
            first.setdefault(prompt, index)
        if len(first) < len(prompts):
            log.warning("%d prompts are there more than once; each is looked at once", len(prompts) - len(first))
        mine = list(first.values())[self.trainer.global_rank :: self.trainer.world_size]
        batches = [self.evaluation_batch(prompts, index, n_views) for index in mine]
        return DataLoader(_Batches(batches), batch_size=None)

    def evaluation_batch(self, prompts: tuple[str, ...], index: int, n_views: int) -> Batch:
        """Prompt `index` of `prompts` seen from a turntable; without cameras if `n_views` is 0."""
        cfg = self.cfg
        cameras = turntable(
            n_views,
            elevation_deg=cfg.eval_elevation_deg,
            distance=cfg.eval_camera_distance,
            fovy_deg=cfg.eval_fovy_deg,
            repeat_first=cfg.compat == "original",
        )
        return self._batch(prompts=(prompts[index],), samples=(index,), step=0, cameras=(cameras,) if n_views else ())

    def _batch(self, **values: Any) -> Batch:
        cfg = self.cfg
        return Batch(
            **values,
            image_size=(cfg.height, cfg.width),
            ray_size=(cfg.ray_height, cfg.ray_width),
            latent_shape=cfg.dim_gaussian,
        )

    # Text

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Add what the text encoders say about the prompts; the teachers' text in training only."""
        device = self.trainer.strategy.root_device
        if self._condition_processor is None:
            self._condition_processor = self._processor("condition", device)
        condition = self._condition_processor(batch.prompts)
        if not self.trainer.training:
            return replace(batch, condition=condition)
        if self._guidance_processor is None:
            self._guidance_processor = self._processor("guidance", device)
        return replace(batch, condition=condition, guidance=self._guidance_processor(batch.prompts))

    def _processor(self, kind: str, device: torch.device) -> Any:
        name, options = getattr(self.cfg, f"{kind}_processor_type"), getattr(self.cfg, f"{kind}_processor")
        if not name:
            raise ConfigError(f"data.{kind}_processor_type is empty; name a text processor")
        return build(name, options, handed_down=self.cfg.handed_down).to(device)


class _TrainingStream(IterableDataset):
    """The endless stream of this process's micro-batches."""

    def __init__(self, data: MultipromptDataModule, start: Position) -> None:
        self.data = data
        self.start = start

    def __iter__(self) -> Iterator[Batch]:
        trainer = self.data.trainer
        stream = micro_batches(self.start, self.data.prompts_per_batch, trainer.global_rank, trainer.world_size)
        return (self.data.training_batch(batch, samples) for batch, samples in stream)


class _Batches(Dataset):
    """A list of batches."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        return self.batches[index]
