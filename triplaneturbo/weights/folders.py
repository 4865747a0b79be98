"""Models in diffusers folders: `unet/`, `vae/`, `scheduler/`, each with a JSON configuration and safetensors."""

from pathlib import Path
from typing import Any, TypeVar

from diffusers.models import AutoencoderKL, ModelMixin, UNet2DConditionModel
from diffusers.utils import is_accelerate_available
from transformers import PreTrainedModel

from triplaneturbo.diffusion import NoiseSchedule
from triplaneturbo.errors import ConfigError, WeightsError
from triplaneturbo.storage import read_json
from triplaneturbo.weights.files import describe_mismatch, read_checkpoint

Model = TypeVar("Model", bound=ModelMixin | PreTrainedModel)


def load_unet(folder: str | Path) -> UNet2DConditionModel:
    """The U-Net of a diffusers folder, in float32 and evaluation mode."""
    return load_model(UNet2DConditionModel, folder, "unet")


def load_vae(folder: str | Path) -> AutoencoderKL:
    """The autoencoder of a diffusers folder, in float32 and evaluation mode."""
    return load_model(AutoencoderKL, folder, "vae")


def load_model(cls: type[Model], folder: str | Path, part: str) -> Model:
    """The model in the subfolder `part`, in float32 and evaluation mode, every tensor accounted for.

    A file for a model of transformers may hold more: those of CLIP have positions, and some a projection.

    Raises:
        WeightsError: the folder, its configuration or its weights are missing, damaged or do not fit each other.
    """
    part_folder = require_part(folder, part, "config.json")
    of_diffusers = issubclass(cls, ModelMixin)
    options = {"low_cpu_mem_usage": is_accelerate_available()} if of_diffusers else {}
    try:
        check_weights(part_folder)
        # With the loading info it is a pair, which its annotation does not say.
        loaded: tuple[Model, dict[str, Any]] = cls.from_pretrained(  # type: ignore[assignment]
            part_folder, local_files_only=True, output_loading_info=True, **options
        )
        model, info = loaded
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(f"{part_folder} cannot be loaded as {cls.__name__}: {error}") from error
    shapes = {name: (given, wanted) for name, given, wanted in info["mismatched_keys"]}
    problem = describe_mismatch(info["missing_keys"], info["unexpected_keys"] if of_diffusers else (), shapes)
    if problem:
        raise WeightsError(f"{part_folder}: the weights do not fit config.json: {problem}")
    return model.float().eval()


def check_weights(folder: str | Path) -> None:
    """Compare the weights of a folder with their checksums, which `from_pretrained` does not.

    Raises:
        WeightsError: a file is damaged.
    """
    for path in sorted(Path(folder).glob("*.safetensors")) or sorted(Path(folder).glob("*.bin")):
        read_checkpoint(path)


def load_schedule(folder: str | Path) -> NoiseSchedule:
    """The noise schedule of `scheduler/scheduler_config.json`."""
    path = require_part(folder, "scheduler", "scheduler_config.json") / "scheduler_config.json"
    try:
        return NoiseSchedule.from_config(read_json(path))
    except (KeyError, ConfigError) as error:
        raise WeightsError(f"{path} is not a usable noise schedule: {error}") from error


def require_part(folder: str | Path, part: str, file: str) -> Path:
    """The subfolder `part` of a model folder that holds `file`.

    Raises:
        WeightsError: with what is not there and how to get it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise WeightsError(
            f"the model folder {folder} does not exist; give the path of a local diffusers folder "
            "(`hf download <model> --local-dir <path>` fetches one)"
        )
    if not (folder / part / file).is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir() if p.is_dir())) or "no subfolders"
        raise WeightsError(f"{folder} has no {part}/{file}; it holds: {found}")
    return folder / part
