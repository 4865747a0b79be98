"""What every system that trains a generator has: its siblings, its state, its evaluation. The method is elsewhere."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from triplaneturbo.base import Component, build
from triplaneturbo.bounds import Count, GridPoints, ProjectPath, Range, Seed
from triplaneturbo.draws import Draws, generation_noise
from triplaneturbo.errors import ConfigError, EmptyFieldError, WeightsError
from triplaneturbo.exporters.origin import Origin, weights_id
from triplaneturbo.geometry.legacy import adopt, renamed
from triplaneturbo.interruption import interruption
from triplaneturbo.naming import slug
from triplaneturbo.pictures import save_film, save_png, sheet
from triplaneturbo.registry import find
from triplaneturbo.renderers.mesh import MeshRenderer
from triplaneturbo.scenes import Scene
from triplaneturbo.scenes.isosurface import extract_meshes
from triplaneturbo.schedule import Progress
from triplaneturbo.systems.ema import ParameterAverage
from triplaneturbo.systems.losses import LossConfig
from triplaneturbo.systems.losslog import Records
from triplaneturbo.systems.optimizer import OptimizerConfig, ScheduledOptimizer
from triplaneturbo.types import Batch, Cameras, Views
from triplaneturbo.weights.files import misfit, named_tensors, read_checkpoint

log = logging.getLogger(__name__)

# Views of a turntable rendered together: what a training step holds, so that memory that trains also evaluates.
VIEWS_AT_ONCE = 4
# Frames a second.
FILM_SPEED = {"val": 10, "test": 30}
_FIXED_GEOMETRY = "geometries of another kind cannot be turned into planes; remove it"


@dataclass(kw_only=True)
class WandbConfig:
    """Losses on wandb.ai, beside the files."""

    enable: bool = False
    """Needs the package wandb."""
    project: str = "triplaneturbo"
    """Where they are shown."""
    name: str | None = None
    """As what; None: experiment and trial."""


@dataclass(kw_only=True)
class LoggersConfig:
    """Where losses go besides the trial's folder."""

    wandb: WandbConfig = field(default_factory=WandbConfig)


class GeneratorSystem(Component, pl.LightningModule):
    """Geometry, material, background and one or two renderers, with everything but the training step.

    The state dict holds what is trained and small buffers; frozen base networks come from their own folders, and the
    guidance is no part of the state.
    """

    @dataclass(kw_only=True)
    class Config:
        REFUSED: ClassVar[dict[str, str]] = {
            **dict.fromkeys(("geometry_convert_from", "geometry_convert_override"), _FIXED_GEOMETRY),
            "geometry_convert_inherit_texture": _FIXED_GEOMETRY,
            "prompt_processor_type": "text processors are options of data: condition_processor, guidance_processor",
            "prompt_processor": "text processors are options of data: condition_processor, guidance_processor",
            "scheduler": "write the learning rate as a schedule: optimizer.params.geometry.lr=[0, 2e-4, 2e-5, 15000]",
        }

        geometry_type: str
        """Registered name of the generator and its field."""
        geometry: dict = field(default_factory=dict)
        """Its options."""
        material_type: str = "no-material"
        """Registered name of the material."""
        material: dict = field(default_factory=dict)
        """Its options."""
        background_type: str = "solid-color-background"
        """Registered name of the background."""
        background: dict = field(default_factory=dict)
        """Its options."""
        renderer_type: str = ""
        """Registered name of the first renderer; empty: none."""
        renderer: dict = field(default_factory=dict)
        """Its options."""
        renderer_2nd_type: str = ""
        """Registered name of the second renderer; empty: none."""
        renderer_2nd: dict = field(default_factory=dict)
        """Its options."""
        guidance_type: str = ""
        """Registered name of the guidance; needed in training only."""
        guidance: dict = field(default_factory=dict)
        """Its options."""
        exporter_type: str = "multiprompt-mesh-exporter"
        """Registered name of the exporter."""
        exporter: dict = field(default_factory=dict)
        """Its options."""
        export_resolution: GridPoints | None = None
        """Grid points along an edge for exported meshes; None: as many as in training."""
        loss: LossConfig = field(default_factory=LossConfig)
        """Weights of the loss terms."""
        optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
        """The optimiser."""
        gradient_accumulation_steps: Count = 1
        """Micro-batches whose gradients are averaged in one optimizer step."""
        ema_decay: Annotated[float, Range(0, 1, below=True)] = 0.0
        """Decay of the average of the trained parameters that evaluation uses; 0: no average."""
        num_steps_sampling: Annotated[int, Range(1, 1000)] = 4
        """Denoising steps of generation."""
        weights: ProjectPath | None = None
        """A checkpoint whose weights training or evaluation starts from."""
        weights_ignore_modules: list[str] | None = None
        """Parts of the system that do not take their weights from it."""
        loggers: LoggersConfig = field(default_factory=LoggersConfig)
        """Read by the launcher."""
        cleanup_after_validation_step: bool = False
        """Give unused memory back to the GPU after each validated prompt."""
        cleanup_after_test_step: bool = False
        """The same for tests."""
        seed: Seed = 0
        """Key of all random draws."""
        compat: Literal["right", "original"] = "right"
        """Handed to all parts."""

        def __post_init__(self) -> None:
            if not (self.renderer_type or self.renderer_2nd_type):
                raise ConfigError("a system needs renderer_type or renderer_2nd_type")

        @property
        def handed_down(self) -> dict[str, Any]:
            """For the parts."""
            return {"seed": self.seed, "compat": self.compat}

    @classmethod
    def differences(cls, cfg: Any) -> dict[int, str]:
        weights = (
            (cfg.renderer_type, cfg.loss.lambda_normal_smoothness_2d),
            (cfg.renderer_2nd_type, cfg.loss.lambda_normal_smoothness_2d_2nd),
        )
        smoothed = [find(name) for name, weight in weights if name and any(value for _, value in weight.points)]
        line = "rasteriser: normal_smoothness_2d compares unit normals, as for the volume renderer, not their colours"
        return {16: line} if any(issubclass(renderer, MeshRenderer) for renderer in smoothed) else {}

    def configure(self) -> None:
        cfg = self.cfg
        self.geometry = self._build("geometry")
        self.material = self._build("material")
        self.background = self._build("background")
        surroundings = {"material": self.material, "background": self.background}
        self.slots: dict[str, nn.Module] = {}
        if cfg.renderer_type:
            self.renderer = self._build_renderer("renderer", surroundings)
            self.slots[""] = self.renderer
        if cfg.renderer_2nd_type:
            self.renderer_2nd = self._build_renderer("renderer_2nd", surroundings)
            self.slots["_2nd"] = self.renderer_2nd
        self.progress = Progress()
        self.records = Records()
        self.set_folders(save=Path("outputs"), export=None)
        if cfg.weights:
            self.load_weights(cfg.weights)
        self.average = ParameterAverage(self._trainable(), cfg.ema_decay) if cfg.ema_decay else None

    def _build(self, part: str, **siblings: Any) -> Any:
        return build(
            getattr(self.cfg, f"{part}_type"), getattr(self.cfg, part), handed_down=self.cfg.handed_down, **siblings
        )

    def _build_renderer(self, part: str, surroundings: dict[str, nn.Module]) -> nn.Module:
        """A renderer that can draw the geometry's scenes.

        Raises:
            ConfigError: it cannot.
        """
        renderer = self._build(part, **surroundings)
        renderer.check_geometry(self.geometry)
        return renderer

    def setup(self, stage: str) -> None:
        """Raises ConfigError: the trainer is asked to choose the precision."""
        if self.trainer.precision != "32-true":
            raise ConfigError(
                f"trainer.precision must be 32, not {self.trainer.precision}: the frozen networks have types of their "
                "own, system.geometry.space_generator_config.network_dtype and system.guidance.network_dtype"
            )

    def set_folders(self, *, save: Path, export: Path | None) -> None:
        """Where pictures go, and where exported meshes go if not there as well."""
        self.save_dir, self.export_dir = save, export

    def _trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    # State

    def configure_optimizers(self) -> torch.optim.Optimizer:
        config = replace(self.cfg.optimizer, params=renamed(self.cfg.optimizer.params))
        self.scheduled_optimizer = ScheduledOptimizer(config, self)
        return self.scheduled_optimizer.optimizer

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As for any module, with errors that name the tensors.

        Raises:
            WeightsError: `strict`, and tensors are missing, unexpected, or of another shape or kind.
        """
        problem = misfit(state_dict, self.state_dict()) if strict else ""
        if problem:
            raise WeightsError(f"the checkpoint does not belong to this system: {problem}")
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def load_weights(self, path: str) -> None:
        """Start from the weights of a checkpoint of ours or of the original; averaged ones, if it has them.

        Parts of the system that are not in the file keep their start values, which is logged. Evaluation sees the
        schedules where the file left them; training starts them anew.

        Raises:
            WeightsError: the file cannot be read, has tensors that this system has no place for, or lacks some of a
                part.
        """
        ignored = tuple(f"{name}." for name in self.cfg.weights_ignore_modules or ())
        state, self.progress = read_weights(path)
        state = adopt(self.geometry, {name: value for name, value in state.items() if not name.startswith(ignored)})
        present = {name.split(".")[0] for name in state}
        own = self.state_dict()
        problem = misfit(state, {name: value for name, value in own.items() if name.split(".")[0] in present})
        if problem:
            raise WeightsError(f"{path} does not belong to this system: {problem}")
        self.load_state_dict(state, strict=False)
        absent = sorted({name.split(".")[0] for name in own} - present)
        log.info("took %s from %s; not in it: %s", sorted(present), path, absent or "nothing")

    def on_train_start(self) -> None:
        """Schedules begin where the trainer does, whatever weights were loaded."""
        self.train()
        self.progress = Progress(self.trainer.global_step, self.trainer.datamodule.epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.records.write(self.trainer.loggers)
        checkpoint["progress"] = {"step": self.progress.step, "epoch": self.progress.epoch}
        if self.average:
            checkpoint["ema"] = self.average.averages

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "progress" not in checkpoint:
            raise WeightsError("the checkpoint is of another program: it does not say how far its training had come")
        self.progress = Progress(**checkpoint["progress"])
        for part in ("state_dict", "ema"):
            if part in checkpoint:
                checkpoint[part] = renamed(checkpoint[part])
        if self.average:
            if "ema" not in checkpoint:
                raise WeightsError("the checkpoint has no averaged weights; set system.ema_decay=0")
            self.average.load(checkpoint["ema"])

    # Evaluation

    def render(
        self,
        renderer: nn.Module,
        scene: Scene,
        cameras: Cameras,
        batch: Batch,
        draws: Draws | None = None,
    ) -> Views:
        """Pictures at the size meant for this renderer: rays are cast at ray_size, triangles drawn at image_size.

        draws: random numbers of a training step; None in evaluation.
        """
        options = {"size": batch.ray_size}
        if isinstance(renderer, MeshRenderer):
            options = {"size": batch.image_size, "ray_size": batch.ray_size}
        return renderer(scene, cameras, batch.condition.pooled, draws=draws, progress=self.progress, **options)

    def generate(self, batch: Batch) -> Scene:
        """The scene of the batch's prompts from the noise of the run's seed, as `TextToMeshPipeline` makes it."""
        seeds = [self.cfg.seed] * len(batch.prompts)
        noise = generation_noise(seeds, batch.latent_shape).to(self.device)
        return self.geometry.generate(batch.condition.tokens, noise, self.cfg.num_steps_sampling)

    def swap_average(self) -> None:
        """Before and after evaluation: exchange the weights and their average, if there is one."""
        if self.average:
            self.average.swap()

    on_validation_start = on_validation_end = on_test_start = on_test_end = swap_average

    def on_predict_start(self) -> None:
        """Exports are made with the averaged weights and with the adapters folded in, as in a pipeline: a checkpoint,
        a prompt and a seed are one mesh. This is for good: the system can no longer be trained."""
        self.swap_average()
        parts = nn.ModuleDict({"geometry": self.geometry, "material": self.material})
        self._weights_id = weights_id(parts.state_dict())
        self.geometry.merge()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Pictures from all sides, and a film, of one prompt by each renderer; none if the run is about to stop."""
        if interruption.signal is None:
            self._save_pictures(batch, "val", self.cfg.cleanup_after_validation_step)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As in validation, with the cameras of the test."""
        self._save_pictures(batch, "test", self.cfg.cleanup_after_test_step)

    def _save_pictures(self, batch: Batch, stage: str, clean_up: bool) -> None:
        """One sheet a view, and a film, of the batch's single prompt by each renderer.

        clean_up: give unused memory back to the GPU afterwards.
        """
        scene = self.generate(batch)
        (cameras,), (prompt,) = batch.cameras, batch.prompts
        for slot, renderer in self.slots.items():
            folder = self.save_dir / f"it{self.progress.step}-{stage}-{'2nd' if slot else '1st'}"
            sheets = []
            for start in range(0, len(cameras), VIEWS_AT_ONCE):
                stop = min(start + VIEWS_AT_ONCE, len(cameras))
                some = cameras.select(slice(start, stop), n_view=stop - start)
                sheets.append(sheet(self.render(renderer, scene, some, batch)))
            pictures = torch.cat(sheets)
            for i, picture in enumerate(pictures):
                save_png(folder / slug(prompt) / f"{i}.png", picture)
            if len(pictures) > 1:
                save_film(folder / slug(prompt), pictures, FILM_SPEED[stage])
        if clean_up and self.device.type == "cuda":
            torch.cuda.empty_cache()

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Path]:
        """Export the meshes of the prompts and return their paths; one without a surface is reported at the end."""
        resolution = self.cfg.export_resolution or self.geometry.cfg.isosurface_resolution
        try:
            meshes = extract_meshes(
                self.generate(batch),
                self.material,
                resolution,
                batch.prompts,
                smallest_component=self.geometry.smallest_component,
            )
            paths = self._exporter(meshes, *self._places(batch.prompts))
        except EmptyFieldError as error:
            self._empty.append(str(error))
            return []
        log.info("wrote %s", ", ".join(map(str, paths)))
        return paths

    def on_predict_epoch_start(self) -> None:
        """Look for meshes that must not be replaced before the first one is made."""
        self._exporter = self._build("exporter")
        self._empty: list[str] = []
        (n_batches,) = self.trainer.num_predict_batches
        batches = islice(self.trainer.predict_dataloaders, n_batches)
        self._exporter.check(*self._places([prompt for batch in batches for prompt in batch.prompts]))

    def _places(self, prompts: Sequence[str]) -> tuple[list[str], Path, list[Origin]]:
        """Prompts, folder and origins of meshes, as exporters want them."""
        folder = self.export_dir or self.save_dir / f"it{self.progress.step}-export"
        return list(prompts), folder, [Origin(prompt, self.cfg.seed, self._weights_id) for prompt in prompts]

    def on_predict_end(self) -> None:
        if self._empty:
            raise EmptyFieldError(f"{len(self._empty)} prompts gave no mesh:\n" + "\n".join(self._empty))


def read_weights(path: str) -> tuple[dict[str, Tensor], Progress]:
    """The trained tensors of a file, averaged ones if there are any, and the progress they stand for, if known."""
    content = read_checkpoint(path)
    progress = content.get("progress", content)
    step, epoch = content.get("global_step", 0), progress.get("epoch", 0)
    return named_tensors(content, path), Progress(step, epoch)
