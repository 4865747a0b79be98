"""Systems whose networks make scenes: what they are looked at with, their evaluation and their export."""

import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from triplaneturbo.base import Chosen, Modules, Part, option
from triplaneturbo.bounds import GridPoints, Range
from triplaneturbo.draws import Draws, generation_noise
from triplaneturbo.errors import ConfigError, EmptyFieldError
from triplaneturbo.exporters.origin import Origin, weights_id
from triplaneturbo.interruption import interruption
from triplaneturbo.losses import LossConfig, Losses, Objective
from triplaneturbo.naming import slug
from triplaneturbo.pictures import save_png, save_video, sheet
from triplaneturbo.renderers.base import Renderer
from triplaneturbo.scenes import Scene
from triplaneturbo.scenes.isosurface import extract_meshes
from triplaneturbo.storage import write_text
from triplaneturbo.systems.training import TrainingSystem
from triplaneturbo.types import Batch, Cameras, Views

log = logging.getLogger(__name__)

# Views of a turntable rendered together: what a training step holds, so that memory that trains also evaluates.
VIEWS_AT_ONCE = 4
# Frames a second.
VIDEO_SPEED = {"val": 10, "test": 30}


class SceneSystem(TrainingSystem[Batch]):
    """Geometry, material, background and renderers, with their evaluation and export; the method is a subclass's.

    The state dict holds what is trained and small buffers; frozen base networks come from their own folders.
    """

    @dataclass(kw_only=True)
    class Config(TrainingSystem.Config):
        geometry: Annotated[Chosen, Part("geometry")]
        """What makes scenes."""
        material: Annotated[Chosen, Part("material", "unlit")] = option("unlit")
        """What makes colours of their features."""
        background: Annotated[Chosen, Part("background", "solid-color")] = option("solid-color")
        """What lies behind them."""
        renderers: dict[str, Annotated[Chosen, Part("renderer")]]
        """What they are looked at with, by name, in the order in which teachers see their pictures."""
        losses: dict[str, Losses] = option({})
        """By renderer, what its pictures are judged by, see `losses.LossConfig`."""
        exporter: Annotated[Chosen, Part("exporter", "mesh-files")] = option("mesh-files")
        """What writes meshes."""
        measures: dict[str, Annotated[Chosen, Part("measure")]] = option({})
        """What is measured of every prompt's scene in tests, by name."""
        export_resolution: GridPoints | None = None
        """Grid points along an edge for exported meshes; None: as many as in training."""
        inference_steps: Annotated[int, Range(1, 1000)] = 4
        """Denoising steps of generation."""
        cleanup_after_validation_step: bool = False
        """Give unused memory back to the GPU after each validated prompt."""
        cleanup_after_test_step: bool = False
        """Give unused memory back to the GPU after each tested prompt."""

        def __post_init__(self) -> None:
            if not self.renderers:
                raise ConfigError("a system needs a renderer: renderers: {NAME: {type: ...}}")
            for name in self.losses.keys() - self.renderers.keys():
                raise ConfigError(
                    f"losses are given for {name!r}, but there is no such renderer: {', '.join(self.renderers)}"
                )

    def assemble(self) -> None:
        cfg = self.cfg
        self.geometry = cfg.geometry.build()
        self.material = cfg.material.build()
        self.background = cfg.background.build()
        surroundings = {"material": self.material, "background": self.background}
        self.renderers = Modules[Renderer]({name: part.build(**surroundings) for name, part in cfg.renderers.items()})
        for renderer in self.renderers.values():
            renderer.check_geometry(self.geometry)
        self.objectives = {name: Objective(cfg.losses.get(name) or LossConfig()) for name in self.renderers}

    def label(self, name: str) -> str:
        """What ends the names of a renderer's draws and losses."""
        given = self.renderers[name].cfg.label
        return f"_{name}" if given is None else given

    # Evaluation

    def render(
        self,
        renderer: Renderer,
        scene: Scene,
        cameras: Cameras,
        batch: Batch,
        draws: Draws | None = None,
    ) -> Views:
        """Pictures at the size meant for this renderer: rays are cast at ray_size, triangles drawn at image_size.

        draws: random numbers of a training step; None in evaluation.
        """
        size = batch.image_size if renderer.draws_triangles else batch.ray_size
        return renderer(scene, cameras, batch.condition.pooled, size=size, draws=draws, progress=self.progress)

    def generate(self, batch: Batch) -> Scene:
        """The scene of the batch's prompts from the noise of the run's seed, as `TextToMeshPipeline` makes it."""
        noise = generation_noise([self.run.seed] * len(batch.prompts), batch.latent_shape).to(self.device)
        return self.geometry.generate(batch.condition, noise, self.cfg.inference_steps)

    def on_predict_start(self) -> None:
        """Exports are made with the averaged weights and with the adapters folded in, as in a pipeline: a checkpoint,
        a prompt and a seed are one mesh. This is for good: the system can no longer be trained."""
        self.swap_average()
        parts = nn.ModuleDict({"geometry": self.geometry, "material": self.material})
        self._weights_id = weights_id(parts.state_dict())
        self.geometry.merge()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Pictures from all sides, and a video, of one prompt by each renderer; none if the run is about to stop."""
        if interruption.signal is None:
            self._save_pictures(batch, "val", self.cfg.cleanup_after_validation_step)

    def on_test_epoch_start(self) -> None:
        self._measures = {name: part.build() for name, part in self.cfg.measures.items()}
        self._measured: list[dict[str, Any]] = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As in validation, with the cameras of the test; then what is measured of the scene, unless it is a film."""
        scene = self._save_pictures(batch, "test", self.cfg.cleanup_after_test_step)
        if batch.film:
            return
        for name, measure in self._measures.items():
            values = measure(scene, batch.prompts[0], self.material)
            self._measured.append({"measure": name, "prompt": batch.prompts[0], **values})

    def on_test_epoch_end(self) -> None:
        if self._measured:
            rank = f"-{self.global_rank}" if self.trainer.world_size > 1 else ""
            path = self.run.save / f"it{self.progress.step}-test{rank}.jsonl"
            write_text(path, "".join(json.dumps(row) + "\n" for row in self._measured))
            log.info("measured %d scenes: %s", len({row["prompt"] for row in self._measured}), path)

    def _save_pictures(self, batch: Batch, stage: str, clean_up: bool) -> Scene:
        """One sheet a view, and a video, of the batch's single prompt, or of a film, by each renderer; returns the
        scene that was looked at, of a film the last one.

        clean_up: give unused memory back to the GPU afterwards.
        """
        sheets: dict[str, list[Tensor]] = {name: [] for name in self.renderers}
        for scene, cameras, shown in self._shots(batch):
            for name, renderer in self.renderers.items():
                sheets[name].append(sheet(self.render(renderer, scene, cameras, shown)))
        title = slug(" to ".join(batch.prompts))
        for name, shots in sheets.items():
            folder = self.run.save / f"it{self.progress.step}-{stage}-{name}"
            pictures = torch.cat(shots)
            for i, picture in enumerate(pictures):
                save_png(folder / title / f"{i}.png", picture)
            if not batch.film:
                write_text(folder / title / "prompt.txt", batch.prompts[0])
            if len(pictures) > 1:
                save_video(folder / title, pictures, VIDEO_SPEED[stage])
        if clean_up and self.device.type == "cuda":
            torch.cuda.empty_cache()
        return scene

    def _shots(self, batch: Batch) -> Iterator[tuple[Scene, Cameras, Batch]]:
        """What pictures are taken of: the prompt's scene from a few cameras at a time; of a film a scene for each."""
        (cameras,) = batch.cameras
        at_once = 1 if batch.film else VIEWS_AT_ONCE
        scene, shown = None, batch
        for start in range(0, len(cameras), at_once):
            if batch.film:
                shown = batch.between(start / max(len(cameras) - 1, 1))
            if scene is None or batch.film:
                scene = self.generate(shown)
            stop = min(start + at_once, len(cameras))
            yield scene, cameras.select(slice(start, stop), n_view=stop - start), shown

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Path]:
        """Export the meshes of the prompts and return their paths; one without a surface is reported at the end."""
        resolution = self.cfg.export_resolution or self.geometry.resolution
        try:
            meshes = extract_meshes(
                self.generate(batch),
                self.material,
                resolution,
                batch.prompts,
                smallest_component=self.geometry.smallest_component,
                fill_cavities=self.geometry.fill_cavities,
            )
            paths = self._exporter(meshes, *self._places(batch.prompts))
        except EmptyFieldError as error:
            self._empty.append(str(error))
            return []
        log.info("wrote %s", ", ".join(map(str, paths)))
        return paths

    def on_predict_epoch_start(self) -> None:
        """Look for meshes that must not be replaced before the first one is made."""
        self._exporter = self.cfg.exporter.build()
        self._empty: list[str] = []
        (n_batches,) = self.trainer.num_predict_batches
        loader = self.trainer.predict_dataloaders or ()
        batches = islice(loader, None if n_batches == math.inf else int(n_batches))
        self._exporter.check(*self._places([prompt for batch in batches for prompt in batch.prompts]))

    def _places(self, prompts: Sequence[str]) -> tuple[list[str], Path, list[Origin]]:
        """Prompts, folder and origins of meshes, as exporters want them."""
        folder = self.run.export or self.run.save / f"it{self.progress.step}-export"
        return list(prompts), folder, [Origin(prompt, self.run.seed, self._weights_id) for prompt in prompts]

    def on_predict_end(self) -> None:
        if self._empty:
            raise EmptyFieldError(f"{len(self._empty)} prompts gave no mesh:\n" + "\n".join(self._empty))
