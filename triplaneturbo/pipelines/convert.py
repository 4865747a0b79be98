"""Published checkpoints as folders of safetensors, and a student of ours as a checkpoint of the original.

Checkpoints are read without executing anything in them; one that holds code is refused.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from diffusers.models import ModelMixin
from diffusers.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import Tensor

from triplaneturbo.config import read_config
from triplaneturbo.errors import WeightsError
from triplaneturbo.geometry import FewStepTriplanes
from triplaneturbo.legacy.pipelines import suited
from triplaneturbo.legacy.state_dicts import PREFIX, is_original, to_original, translate_state
from triplaneturbo.pipelines.text_to_mesh import of_training, read_pipeline, refer_to_base, write_pipeline
from triplaneturbo.storage import write_text
from triplaneturbo.weights.files import load_tensors, save_checkpoint, save_tensors
from triplaneturbo.weights.ldm import LDM_SCHEDULE, UNET_PREFIX, VAE_PREFIX, build_unet, build_vae

Kind = Literal["mvdream", "richdreamer", "student"]
# Grid points along an edge in which the published pipeline looks for the surface.
PUBLISHED_RESOLUTION = 160


def kind_of(state: Mapping[str, Tensor], source: str | Path) -> Kind:
    """What a checkpoint holds, by the names of its tensors and the form of its projections.

    Raises:
        WeightsError: it is none of the three.
    """
    if is_original(state):
        return "student"
    projections = [t for name, t in state.items() if name.startswith(UNET_PREFIX) and name.endswith(".proj_in.weight")]
    if not projections:
        raise WeightsError(
            f"{source} is neither MVDream's, RichDreamer's nor a student's checkpoint: it holds no tensors named "
            f"{UNET_PREFIX}* or {PREFIX}space_generator.peft_layers.*"
        )
    return "mvdream" if projections[0].dim() == 2 else "richdreamer"


def convert(source: str | Path, folder: str | Path, config: str | Path) -> Kind:
    """Write the published checkpoint `source` as `folder`, which takes its place in configurations and pipelines.

    MVDream gives unet/, vae/ and scheduler/, RichDreamer unet/ and scheduler/: what it runs on. A student gives a
    folder for `TextToMeshPipeline.from_pretrained`.

    Args:
        config: the recipe of a student; its base model is referred to where it is.

    Raises:
        WeightsError: the file is missing, damaged, holds code, is of another kind, or does not fit `config`.
    """
    state, folder = load_tensors(source), Path(folder)
    kind = kind_of(state, source)
    if kind == "student":
        _write_student(state, folder, config)
        return kind
    head = {"head_width": 64} if kind == "mvdream" else {"heads": 8}
    models: dict[str, ModelMixin] = {"unet": build_unet(state, source, **head)}
    if kind == "mvdream":
        if not any(name.startswith(VAE_PREFIX) for name in state):
            raise WeightsError(f"{source} holds no autoencoder ({VAE_PREFIX}*), which MVDream needs")
        models["vae"] = build_vae(state, source)
    for part, model in models.items():
        save_tensors(folder / part / SAFETENSORS_WEIGHTS_NAME, model.state_dict(), {"format": "pt"})
        write_text(folder / part / CONFIG_NAME, model.to_json_string())
    write_text(folder / "scheduler" / "scheduler_config.json", json.dumps(LDM_SCHEDULE, indent=2) + "\n")
    return kind


def _write_student(state: Mapping[str, Tensor], folder: Path, config: str | Path) -> None:
    pipeline = of_training(read_config([config], ["data.prompt_library=none"]).tree)
    with torch.device("meta"):
        geometry = FewStepTriplanes(pipeline.geometry)
    own = {PREFIX + name: tensor for name, tensor in geometry.state_dict().items()}
    renamed = translate_state(state, own, folder)
    base = Path(geometry.cfg.space_generator.pretrained_model_name_or_path)
    pipeline = dataclasses.replace(
        pipeline,
        base=refer_to_base(base, folder),
        geometry=suited(pipeline.geometry, state),
        resolution=PUBLISHED_RESOLUTION,
    )
    trained = {name: tensor for name, tensor in renamed.items() if name.startswith(PREFIX)}
    save_tensors(folder / pipeline.weights, trained)
    write_pipeline(pipeline, folder)


def convert_back(folder: str | Path, path: str | Path) -> None:
    """Write the student of a pipeline folder as the original's checkpoint `path` (.pth), under its tensor names.

    Raises:
        WeightsError: there is no such folder, or its student has parts that the original's file has no place for.
    """
    folder = Path(folder)
    state = load_tensors(folder / read_pipeline(folder).weights)
    others = sorted(name for name in state if not name.startswith(PREFIX))
    if others:
        raise WeightsError(f"the original's checkpoint has no place for {others[0]}: its material has no network")
    original = to_original({name.removeprefix(PREFIX): tensor for name, tensor in state.items()})
    content = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": "2.0.0",
        "state_dict": {PREFIX + name: tensor.clone() for name, tensor in original.items()},
    }
    save_checkpoint(path, content)
