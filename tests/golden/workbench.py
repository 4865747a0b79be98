"""The project's parts with formula weights, built from a case's hyper-parameters and kept for the next case."""

import inspect
import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from formula_weights import fill, fill_geometry, filled
from miniature import unet, vae
from torch import Tensor

from triplaneturbo.geometry import FewStepTriplanes
from triplaneturbo.guidance import ScoreDistillation
from triplaneturbo.guidance.diffusion import DiffusionTeacher
from triplaneturbo.guidance.rules import ScoreEstimates
from triplaneturbo.legacy.quirks import repeat
from triplaneturbo.legacy.translate import Translator
from triplaneturbo.types import Cameras
from triplaneturbo.weights.ldm import LDM_SCHEDULE, build_unet, build_vae
from triplaneturbo.weights.ldm_names import unet_shapes, vae_shapes

# RichDreamer's transformers project with 1 x 1 convolutions, MVDream's with matrices.
LINEAR = {"mv": True, "rd": False}
# Of which its autoencoder may have another value than its U-Net.
_OF_FIRST_STAGE = {"vae_ch_mult": "channel_mult", "vae_num_res_blocks": "num_res_blocks"}
# What tells the shape of a multi-view teacher; `resolution` tells its autoencoder where to attend: nowhere.
_LDM_MODEL = {
    *("attention_resolutions", "ch", "channel_mult", "context_dim", "model_channels"),
    *("num_head_channels", "num_heads", "num_res_blocks", "resolution", *_OF_FIRST_STAGE),
}
# Fields of a scheduler's configuration that say what it adds; those that this project has no use for: it places the
# timesteps itself; those that would have an effect it does not have, unless they are false.
_SCHEDULE = {"beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type"}
_PLACING = {"set_alpha_to_one", "skip_prk_steps", "steps_offset", "timestep_spacing", "clip_sample_range"}
_ABSENT = {"clip_sample", "thresholding", "trained_betas", "rescale_betas_zero_snr"}
# What the recorded guidance hyper-parameters hold besides options of the guidance.
_NOT_GUIDANCE = ("mv", "rd", "sd", "global_step")


def ldm_unet(model: Mapping[str, Any], *, linear: bool, camera_dim: int = 16) -> UNet2DConditionModel:
    """A multi-view teacher's U-Net, through the conversion of published checkpoints."""
    _only(model, _LDM_MODEL, "model")
    heads = {"heads": model["num_heads"]} if "num_heads" in model else {"head_width": model["num_head_channels"]}
    shapes = unet_shapes(model, linear=linear, camera_dim=camera_dim)
    return build_unet(_filled(shapes), "a recorded case", **heads).to(torch.get_default_device())


def ldm_vae(model: Mapping[str, Any]) -> AutoencoderKL:
    """MVDream's first stage, through the same conversion."""
    _only(model, _LDM_MODEL, "model")
    first_stage = {**model, **{ours: model[name] for name, ours in _OF_FIRST_STAGE.items() if name in model}}
    return build_vae(_filled(vae_shapes(first_stage)), "a recorded case").to(torch.get_default_device())


def sd_networks(sd: Mapping[str, Any]) -> tuple[UNet2DConditionModel, AutoencoderKL]:
    """U-Net and autoencoder of a Stable Diffusion."""
    _only(sd, {"unet", "vae"}, "sd")
    networks = []
    for name, cls in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        _only(sd[name], set(inspect.signature(cls).parameters), f"sd.{name}")  # diffusers ignores what it does not know
        networks.append(fill(cls.from_config(sd[name]), f"{name}."))
    return tuple(networks)


def _only(given: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(key for key in given if key not in known and not key.startswith("_"))
    if unknown:
        raise NotImplementedError(f"{where} has {', '.join(unknown)}, which this runner does not know")


def cameras(c2w: Tensor, n_view: int | None = None, **known: Tensor) -> Cameras:
    """Cameras of which a case records some fields; the others are NaN, so that using one shows."""
    unknown = c2w.new_full((len(c2w),), float("nan"))
    names = ("fovy", "distance", "distance_relative", "elevation_deg", "azimuth_deg")
    return Cameras(c2w=c2w, n_view=n_view or len(c2w), **{name: known.get(name, unknown) for name in names})


DATA = "multiview-multiprompt-dualrenderer-multistep-datamodule-v2"
PROCESSOR = "dual-stable-diffusion-multi-prompt-processor-callable"
SYSTEM = "multiprompt-dual-renderer-multistep-generator-system"
GUIDANCE = "richdreamer-mvdream-stablediffusion-asynchronous-score-distillation-guidance"


def translated(system: Mapping[str, Any], data: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Published options of a system and of its data in this project's names, with all mistakes of the original."""
    translator = Translator()
    given = {"data_type": DATA, "data": data or {}, "system_type": SYSTEM, "system": system, "compat": "original"}
    tree = translator(given)
    repeat(tree, translator.compat)
    return tree


class WatchedGuidance(ScoreDistillation):
    """Remembers what the last teacher said."""

    seen: ScoreEstimates

    def configure(self) -> None:
        super().configure()
        for teacher in self.teachers.values():
            self._watch(teacher)

    def _watch(self, teacher: DiffusionTeacher) -> None:
        gradient = teacher.rule.gradient

        def watched(estimates: ScoreEstimates) -> Tensor:
            self.seen = estimates
            return gradient(estimates)

        teacher.rule.gradient = watched

    def labelled(self, label: str) -> DiffusionTeacher:
        """The teacher of that label."""
        return next(teacher for name, teacher in self.teachers.items() if self.cfg.label(name) == label)


class Workbench:
    """Folders of models, written once for each set of hyper-parameters."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def sd_folder(self, sd: Mapping[str, Any], scheduler: Mapping[str, Any] = LDM_SCHEDULE) -> Path:
        def write(folder: Path) -> None:
            unet, vae = sd_networks(sd)
            unet.save_pretrained(folder / "unet")
            vae.save_pretrained(folder / "vae")

        return self._written(["sd", sd], scheduler, write)

    def ldm_folder(self, kind: str, model: Mapping[str, Any]) -> Path:
        """Of MVDream ("mv") or RichDreamer ("rd")."""

        def write(folder: Path) -> None:
            ldm_unet(model, linear=LINEAR[kind]).save_pretrained(folder / "unet")
            if kind == "mv":
                ldm_vae(model).save_pretrained(folder / "vae")

        return self._written([kind, model], LDM_SCHEDULE, write)

    def small_folder(self, scheduler: Mapping[str, Any] = LDM_SCHEDULE) -> Path:
        """A Stable Diffusion for cases that record what its networks said, or have no need of them."""

        def write(folder: Path) -> None:
            unet(camera=False).save_pretrained(folder / "unet")
            vae().save_pretrained(folder / "vae")

        return self._written(["small"], scheduler, write)

    def _written(self, key: list[Any], scheduler: Mapping[str, Any], write: Callable[[Path], None]) -> Path:
        _only(scheduler, _SCHEDULE | _PLACING | {name for name in _ABSENT if not scheduler.get(name)}, "scheduler")
        content = json.dumps([*key, scheduler], sort_keys=True)
        folder = self.folder / sha256(content.encode()).hexdigest()[:16]
        if not folder.exists():
            write(folder)
            (folder / "scheduler").mkdir()
            (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
        return folder

    def geometry_options(self, geometry: Mapping[str, Any], base: Path) -> dict[str, Any]:
        """Recorded geometry options, on top of the base model in a folder."""
        generator = {**geometry["space_generator_config"], "pretrained_model_name_or_path": str(base)}
        generator["network_dtype"] = "float32"
        return {**geometry, "space_generator_config": generator}

    def own_geometry_options(self, geometry: Mapping[str, Any], base: Path) -> dict[str, Any]:
        """The same in this project's names."""
        published = "few-step-triplane-dual-stable-diffusion"
        system = {"geometry_type": published, "geometry": self.geometry_options(geometry, base)}
        options = translated(system)["system"]["geometry"]
        return {key: value for key, value in options.items() if key != "type"}

    def geometry(self, geometry: Mapping[str, Any], base: Path | None = None) -> FewStepTriplanes:
        built = FewStepTriplanes(self.own_geometry_options(geometry, base or self.small_folder()))
        fill_geometry(built)
        return built.to(torch.get_default_device())

    def guidance(self, meta: Mapping[str, Any], **changes: Any) -> WatchedGuidance:
        """The guidance with recorded options and teachers; meta holds nothing else."""
        options = {key: value for key, value in meta.items() if key not in _NOT_GUIDANCE}
        paths = {f"{kind}_ckpt_path": self.ldm_folder(kind, meta[kind]) for kind in ("mv", "rd") if kind in meta}
        if "sd" in meta:
            paths["sd_model_name_or_path"] = self.sd_folder(meta["sd"])
        paths = {key: str(path) for key, path in paths.items()}
        # The recorded gradients are the same whichever way autograd took; here there is one way.
        options |= {"network_dtype": "float32", "auto_grad": True, **paths}
        system = {"guidance_type": GUIDANCE, "guidance": options | changes}
        data = {"n_view": options.get("n_view", 4), "guidance_processor_type": PROCESSOR}
        block = translated(system, data)["system"]["guidance"]
        del block["type"]
        return WatchedGuidance(block).to(torch.get_default_device())


def _filled(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return filled({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
