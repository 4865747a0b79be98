"""Text to coloured meshes from a folder of weights."""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor, nn

from triplaneturbo.base import Part, as_tree, parse_config
from triplaneturbo.bounds import GridPoints, LatentSize, Range, inside
from triplaneturbo.config import read_config
from triplaneturbo.draws import generation_noise
from triplaneturbo.errors import ConfigError, WeightsError, WriteError
from triplaneturbo.exporters.files import check_mesh, write_mesh
from triplaneturbo.exporters.mesh_exporter import MeshExporter
from triplaneturbo.exporters.origin import Origin, weights_id
from triplaneturbo.geometry import FewStepTriplanes
from triplaneturbo.legacy.pipelines import suited, translate_pipeline
from triplaneturbo.legacy.state_dicts import translate_state
from triplaneturbo.materials import Unlit
from triplaneturbo.naming import check_prompts
from triplaneturbo.prompts.text_encoder import TextEncoder
from triplaneturbo.scenes import FieldScene
from triplaneturbo.scenes.isosurface import extract_meshes
from triplaneturbo.storage import Json, Tree, copy_file, make_folder, read_json, write_text
from triplaneturbo.types import Mesh, TextStates
from triplaneturbo.weights.files import load_exactly, named_tensors, read_checkpoint, save_tensors

CONFIG_FILE = "pipeline.json"


@dataclass(kw_only=True)
class PipelineConfig:
    """The content of pipeline.json."""

    base: Annotated[str, inside] = "base"
    """Folder of the text-to-image model (unet, vae, scheduler, tokenizer, text_encoder), relative to pipeline.json."""
    weights: Annotated[str, inside] = "student.safetensors"
    """What was trained: tensors named geometry.* and material.*, relative to pipeline.json."""
    geometry: dict = field(default_factory=dict)
    """Options of few-step-triplanes."""
    material: dict = field(default_factory=dict)
    """Options of unlit."""
    latent_size: tuple[LatentSize, LatentSize] = (32, 32)
    """Height and width of the noise of a plane."""
    num_inference_steps: Annotated[int, Range(1, 1000)] = 4
    """Denoising steps, unless a call says otherwise."""
    resolution: GridPoints = 160
    """Grid points along an edge in which the surface is searched, unless a call says otherwise."""
    keep_end_token: bool = True
    """Whether prompts that are too long keep their end token."""


def read_pipeline(folder: Path) -> PipelineConfig:
    """The content of pipeline.json in `folder`.

    Raises:
        WeightsError: there is none, it has options that do not exist, or it refers to files outside `folder`.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise WeightsError(f"{folder} has no {CONFIG_FILE}: it is not a folder that save_pretrained has written")
    try:
        config = parse_config(PipelineConfig, translate_pipeline(read_json(path)), CONFIG_FILE)
        parse_config(FewStepTriplanes.Config, config.geometry, f"{CONFIG_FILE}: geometry")
        parse_config(Unlit.Config, config.material, f"{CONFIG_FILE}: material")
        return config
    except ConfigError as error:
        raise WeightsError(f"{path} cannot be used: {error}") from error


def write_pipeline(config: PipelineConfig, folder: Path) -> None:
    """Write pipeline.json into `folder`, without the path that the base model has on this machine: it says `base`."""
    generator = dict(config.geometry.get("space_generator") or {})
    generator.pop("pretrained_model_name_or_path", None)
    config = dataclasses.replace(config, geometry={**config.geometry, "space_generator": generator})
    write_text(folder / CONFIG_FILE, json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def of_training(tree: Mapping[str, Json]) -> PipelineConfig:
    """What a pipeline needs of the configuration of a training; nothing else of it is looked at.

    Raises:
        ConfigError: its geometry is not few-step-triplanes, its material not unlit, or its generator not told by
            clip-text.
    """
    data, system = tree["data"], tree["system"]
    geometry = Part("geometry")(system.get("geometry"), "system.geometry")
    material = Part("material", "unlit")(system.get("material", {}), "system.material")
    if geometry.type != "few-step-triplanes" or material.type != "unlit":
        raise ConfigError(
            "a pipeline makes meshes with few-step-triplanes and unlit material; other trainings export with "
            "launch.py --export"
        )
    encoders = data.get("conditions") or {}
    told = encoders.get(data.get("generator_condition") or next(iter(encoders), ""))
    encoder = None if told is None else Part("condition", "clip-text")(told, "data.conditions")
    if encoder is None or encoder.type != "clip-text":
        raise ConfigError("a pipeline reads prompts with clip-text; data.conditions names no such encoder")
    return PipelineConfig(
        geometry=as_tree(geometry.cfg),
        material=as_tree(material.cfg),
        latent_size=tuple(data.get("latent_shape", (6, 4, 32, 32))[2:]),
        num_inference_steps=system.get("inference_steps", 4),
        resolution=system.get("export_resolution") or geometry.cfg.field.training_resolution,
        keep_end_token="lost-end-token" not in encoder.cfg.quirks,
    )


def refer_to_base(base: Path, folder: Path) -> str:
    """How pipeline.json in `folder` names the model folder `base`: a file from elsewhere cannot point outside its
    folder, so what lies there gets a symbolic link, which only this machine can make.

    Raises:
        WriteError: something else has the link's name.
    """
    inner = os.path.relpath(base.resolve(), folder.resolve())
    if not inner.startswith(".."):
        return inner
    link = folder / PipelineConfig.base
    if link.is_symlink():
        link.unlink()
    if link.exists():
        raise WriteError(f"{link} is there and is not {base}; remove it, or choose another folder")
    make_folder(folder)
    link.symlink_to(inner)
    return link.name


def trained_tensors(content: Tree, parts: nn.ModuleDict, path: Path) -> dict[str, Tensor]:
    """What was trained of `parts` (geometry, material), under our names, from the content of the file `path`.

    Raises:
        WeightsError: a checkpoint of the original does not fit.
    """
    trained = translate_state(named_tensors(content, path), parts.state_dict(), path)
    if "state_dict" in content:  # a training's: it also holds renderers and background, which no mesh depends on
        trained = {name: tensor for name, tensor in trained.items() if name.split(".")[0] in parts}
    return trained


def student_id(folder: Path) -> str:
    """`weights_id` of the student of a pipeline folder, as the origins of its meshes have it; networks are not built.

    Raises:
        WeightsError: the folder or its student is missing or damaged.
    """
    config = read_pipeline(folder)
    path = folder / config.weights
    content = read_checkpoint(path)
    options = suited(config.geometry, named_tensors(content, path))
    generator = {**(options.get("space_generator") or {}), "pretrained_model_name_or_path": str(folder / config.base)}
    with torch.device("meta"):
        geometry = FewStepTriplanes({**options, "space_generator": generator})
        parts = nn.ModuleDict({"geometry": geometry, "material": Unlit(config.material)})
    return weights_id(trained_tensors(content, parts, path))


@dataclass(frozen=True)
class TextToMeshOutput:
    """One mesh a prompt, the scene they were read from, and what they were made from."""

    prompts: tuple[str, ...]
    meshes: list[Mesh]
    scene: FieldScene
    origins: tuple[Origin, ...]

    def export(self, path: str | Path) -> Path:
        """Write the only mesh; the suffix, .glb or .obj, decides how.

        Raises:
            ValueError: there are several meshes, or the suffix is another one.
        """
        if len(self.meshes) != 1:
            raise ValueError(f"{len(self.meshes)} meshes do not fit into one file; use export_all(folder)")
        check_mesh(self.meshes[0], self.prompts[0])
        write_mesh(path, self.meshes[0])
        return Path(path)

    def export_all(self, folder: str | Path, **options: Json) -> list[Path]:
        """Write every mesh with a turntable picture into a folder of its prompt; returns the mesh files.

        options: of `MeshExporter`, such as fmt="obj".

        Raises:
            WriteError: there are meshes of another prompt, seed or training in the place of these; give
                overwrite=True, or another folder.
        """
        return MeshExporter(options)(self.meshes, list(self.prompts), folder, self.origins)


class TextToMeshPipeline:
    """Turns prompts into meshes: `TextToMeshPipeline.from_pretrained(folder)("a red cube", seed=0).export("cube.glb")`.

    The mesh of a prompt depends on the prompt and its seed alone, up to rounding: not on the others of a batch, nor on
    the device. `launch.py --export` with these weights and this seed writes the same mesh.

    Attributes: text_encoder, geometry, material: the networks. config: see PipelineConfig. base: folder of the
    text-to-image model.
    """

    def __init__(self, config: PipelineConfig, base: str | Path, weights: str | Path) -> None:
        """Load the networks on the CPU, and fold the adapters into them.

        Args:
            base: a diffusers folder; takes the place of `config.base`.
            weights: a file of trained tensors; takes the place of `config.weights`.

        Raises:
            ConfigError: an option does not exist or has no such value.
            WeightsError: a file is missing, damaged, or does not fit the configuration.
        """
        self.base = Path(base).absolute()
        tensors = read_checkpoint(weights)
        self.config = dataclasses.replace(config, geometry=suited(config.geometry, named_tensors(tensors, weights)))
        generator = self.config.geometry.get("space_generator") or {}
        generator = {**generator, "pretrained_model_name_or_path": str(self.base)}
        self.geometry = FewStepTriplanes({**self.config.geometry, "space_generator": generator}).eval()
        self.text_encoder = TextEncoder(self.base, keep_end_token=config.keep_end_token)
        self.material = Unlit(config.material).eval()
        self._trained = self._load(tensors, Path(weights))
        self.geometry.merge()

    def _load(self, content: Tree, path: Path) -> dict[str, Tensor]:
        """Load the trained tensors of a file's `content` into the networks and return them, under our names."""
        parts = nn.ModuleDict({"geometry": self.geometry, "material": self.material})
        trained = trained_tensors(content, parts, path)
        load_exactly(parts, trained, path)
        return trained

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str | torch.device | None = None,
        *,
        weights: str | Path | None = None,
    ) -> "TextToMeshPipeline":
        """Load from a folder with pipeline.json, as `save_pretrained` writes it.

        Args:
            device: where to run; None: the GPU if there is one.
            weights: other trained tensors of the same configuration, such as a checkpoint of further training.

        Raises:
            WeightsError: the folder or a part of it is missing, damaged, or does not fit.
        """
        folder = Path(folder)
        config = read_pipeline(folder)
        try:
            pipeline = cls(config, folder / config.base, folder / config.weights if weights is None else weights)
        except ConfigError as error:
            raise WeightsError(f"{folder / CONFIG_FILE} cannot be used: {error}") from error
        return pipeline.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @classmethod
    def from_training(
        cls, config: str | Path, weights: str | Path, device: str | torch.device | None = None
    ) -> "TextToMeshPipeline":
        """From a training run: its resolved configuration (configs/parsed.yaml) and one of its checkpoints.

        If the run kept averages of its weights, the meshes are made with these.
        """
        pipeline_config = of_training(read_config([config]).tree)
        base = pipeline_config.geometry["space_generator"]["pretrained_model_name_or_path"]
        return cls(pipeline_config, base, weights).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def save_pretrained(self, folder: str | Path, *, copy_base: bool = True, half: bool = False) -> None:
        """Write pipeline.json and the trained tensors, so that `from_pretrained(folder)` gives this pipeline again.

        copy_base: also copy the text-to-image model, so that the folder is complete; otherwise it has a link to where
            that is now.
        half: write the tensors in half precision; they are loaded in single precision again.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        base = PipelineConfig.base
        if not copy_base:
            base = refer_to_base(self.base, folder)
        elif (folder / base).is_symlink() or (folder / base).resolve() != self.base.resolve():
            source = self.base.resolve()
            if (folder / base).is_symlink():
                (folder / base).unlink()
            for file in (path for path in source.rglob("*") if path.is_file()):
                copy_file(file, folder / base / file.relative_to(source))
        trained = {name: tensor.half() for name, tensor in self._trained.items()} if half else self._trained
        save_tensors(folder / PipelineConfig.weights, trained)
        write_pipeline(dataclasses.replace(self.config, base=base, weights=PipelineConfig.weights), folder)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.geometry.bbox.device

    def to(self, device: str | torch.device) -> "TextToMeshPipeline":
        """Move the networks; returns the pipeline."""
        for module in (self.text_encoder, self.geometry, self.material):
            module.to(device)
        return self

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        seed: int | Sequence[int] = 0,
        num_inference_steps: int | None = None,
        resolution: int | None = None,
    ) -> TextToMeshOutput:
        """Meshes of one or several prompts.

        Args:
            seed: of the noise (`draws.generation_noise`); one for all prompts, or one each.
            num_inference_steps: denoising steps; None: as pipeline.json says.
            resolution: grid points along an edge in which the surface is searched; None: as pipeline.json says. Time
                and memory grow with its third power.

        Raises:
            EmptyFieldError: a prompt's field has no surface; the message names it.
            ValueError: no prompt, or seeds that do not fit the prompts.
        """
        prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
        scene = self.generate(prompts, seed=seed, num_inference_steps=num_inference_steps)
        seeds = (seed,) * len(prompts) if isinstance(seed, int) else seed
        origins = tuple(Origin(*made, self.weights_id) for made in zip(prompts, seeds, strict=True))
        return TextToMeshOutput(prompts, self.extract(prompts, scene, resolution=resolution), scene, origins)

    @functools.cached_property
    def weights_id(self) -> str:
        """Of what was trained, as the origins of meshes have it."""
        return weights_id(self._trained)

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[str], *, seed: int | Sequence[int] = 0, num_inference_steps: int | None = None
    ) -> FieldScene:
        """The scene of the prompts; arguments as of a call."""
        if not prompts:
            raise ValueError("there is no prompt; give a text or a list of texts")
        check_prompts(list(prompts), "prompt")
        seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds do not fit {len(prompts)} prompts; give one seed, or one a prompt")
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        tokens, pooled = self.text_encoder.encode(prompts)
        condition = TextStates(tokens, pooled, tokens[:1], tokens[:1])
        return self.geometry.generate(condition, self._noise(seeds), steps)

    def extract(self, prompts: Sequence[str], scene: FieldScene, *, resolution: int | None = None) -> list[Mesh]:
        """The meshes of a scene; arguments as of a call. The prompts are for messages."""
        resolution = self.config.resolution if resolution is None else resolution
        return extract_meshes(
            scene, self.material, resolution, prompts, smallest_component=self.geometry.smallest_component
        )

    def _noise(self, seeds: Sequence[int]) -> Float[Tensor, "N c h w"]:
        shape = (6, self.geometry.space_generator.latent_channels, *self.config.latent_size)
        return generation_noise(seeds, shape).to(self.device)
