"""Where the meshes of a method come from: a student's weights, or a folder that anyone wrote."""

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from triplaneturbo.errors import EmptyFieldError
from triplaneturbo.exporters.files import read_mesh
from triplaneturbo.geometry import FewStepTriplanes
from triplaneturbo.materials import Unlit
from triplaneturbo.naming import slug
from triplaneturbo.pipelines.text_to_mesh import TextToMeshPipeline
from triplaneturbo.scenes import FieldScene
from triplaneturbo.types import Mesh
from triplaneturbo.weights.files import save_tensors

from .common import PROMPT_FILE
from .views import find_meshes

BATCH = 8

Found = tuple[str, int, Mesh | None]


class Source(Protocol):
    """One training of a method."""

    def check(self, prompts: Sequence[str]) -> None:
        """Raise ValueError if there is nothing for any of the prompts."""

    def meshes(self, prompts: Sequence[str]) -> Iterator[Found]:
        """Prompt, seed and mesh, None where there is none."""
        ...


@dataclasses.dataclass(frozen=True)
class Student:
    """Meshes of a pipeline for each noise seed, None where a field has no surface."""

    pipeline: TextToMeshPipeline
    seeds: Sequence[int]

    def check(self, prompts: Sequence[str]) -> None:
        """It makes something of every prompt."""

    def meshes(self, prompts: Sequence[str]) -> Iterator[Found]:
        """All prompts for the first seed, then for the next."""
        for seed in self.seeds:
            for start in range(0, len(prompts), BATCH):
                batch = prompts[start : start + BATCH]
                scene = self.pipeline.generate(batch, seed=seed)
                for number, prompt in enumerate(batch):
                    yield prompt, seed, self._mesh_or_none(prompt, scene.prompt(number))

    def _mesh_or_none(self, prompt: str, scene: FieldScene) -> Mesh | None:
        try:
            return self.pipeline.extract([prompt], scene)[0]
        except EmptyFieldError:
            return None


class Exported:
    """Meshes in files, one a prompt, as seed 0; None where there is none. Those without colours are grey.

    A file is of the prompt that prompt.txt beside it says, or whose name it or its folder has: `a_red_cube/model.glb`,
    `a_red_cube.obj`.

    Raises:
        ValueError: there are no meshes in the folder, or two of one name.
    """

    def __init__(self, folder: Path, device: str | torch.device) -> None:
        self.folder, self.device = folder, device
        self.files: dict[str, Path] = {}
        for name, path in find_meshes(folder).items():
            said = path.parent / PROMPT_FILE
            own = path.parent != folder and said.is_file()
            self.files[slug(said.read_text().strip()) if own else name] = path

    def check(self, prompts: Sequence[str]) -> None:
        """See `Source.check`."""
        if not any(slug(prompt) in self.files for prompt in prompts):
            raise ValueError(
                f"none of the {len(self.files)} meshes in {self.folder} is of a caption that was asked for; "
                f"name them like {slug(prompts[0])}/model.glb or {slug(prompts[0])}.obj, "
                f"or write the caption into {PROMPT_FILE} beside the mesh"
            )

    def meshes(self, prompts: Sequence[str]) -> Iterator[Found]:
        """See `Source.meshes`."""
        for prompt in prompts:
            path = self.files.get(slug(prompt))
            yield prompt, 0, None if path is None else read_mesh(path).to(self.device)


def load_pipeline(weights: Path, device: torch.device) -> TextToMeshPipeline:
    """From a pipeline folder, from the weights in one, or from a checkpoint in a trial's ckpts folder."""
    if weights.is_dir():
        return TextToMeshPipeline.from_pretrained(weights, device)
    trial = weights.resolve().parent.parent / "configs" / "parsed.yaml"
    if trial.is_file():
        return TextToMeshPipeline.from_training(trial, weights, device)
    return TextToMeshPipeline.from_pretrained(weights.parent, device, weights=weights)


def untrained(pipeline: TextToMeshPipeline) -> TextToMeshPipeline:
    """The same student before its training: fresh adapters and fields on the same text-to-image model."""
    generator = {**(pipeline.config.geometry.get("space_generator") or {})}
    generator["pretrained_model_name_or_path"] = str(pipeline.base)
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        geometry = FewStepTriplanes({**pipeline.config.geometry, "space_generator": generator})
        parts = nn.ModuleDict({"geometry": geometry, "material": Unlit(pipeline.config.material)})
        path = Path(folder) / "untrained.safetensors"
        save_tensors(path, parts.state_dict())
        return TextToMeshPipeline(pipeline.config, pipeline.base, path).to(pipeline.device)
