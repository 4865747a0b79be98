"""Asynchronous score distillation with Stable Diffusion, MVDream and RichDreamer."""

from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from triplaneturbo.bounds import Pixels, ProjectPath, Range, ScheduledShare, ScheduledWeight
from triplaneturbo.errors import ConfigError
from triplaneturbo.guidance.camera_conditions import CamMethod
from triplaneturbo.guidance.distillation import ScoreDistillationGuidance, TeacherOptions
from triplaneturbo.guidance.rules import ScoreEstimates, Weighting, score_gradient
from triplaneturbo.guidance.teachers import RichDreamerTeacher
from triplaneturbo.precision import DtypeName
from triplaneturbo.registry import find, register
from triplaneturbo.schedule import Progress, Schedule

TEACHERS = {"rd": "richdreamer-teacher", "mv": "mvdream-teacher", "sd": "stable-diffusion-teacher"}


@register("richdreamer-mvdream-stablediffusion-asynchronous-score-distillation-guidance")
class AsynchronousScoreDistillation(ScoreDistillationGuidance):
    """Three teachers, one rule each (`rules.score_gradient`); options of a teacher carry its prefix rd_, mv_ or sd_."""

    @dataclass(kw_only=True)
    class Config(ScoreDistillationGuidance.Config):
        mv_model_name_or_path: ProjectPath = "sd-v2.1-base-4view"
        """A diffusers folder, when mv_ckpt_path is not given."""
        mv_ckpt_path: ProjectPath | None = None
        """The published checkpoint, or a diffusers folder."""
        mv_vae_path: ProjectPath | None = None
        """A diffusers folder whose autoencoder MVDream uses, when its own folder has none."""
        mv_image_size: Pixels = 256
        mv_camera_condition_type: Literal["rotation"] = "rotation"
        mv_weight: ScheduledWeight = 0.25
        """A teacher of weight 0 is not loaded."""
        mv_guidance_scale: Annotated[Schedule, Range(0, 1e4)] = 7.5
        mv_min_step_percent: ScheduledShare | None = None
        """Smallest timestep, as a share of all; min_step_percent when not given."""
        mv_max_step_percent: ScheduledShare | None = None
        mv_plus_ratio: Annotated[float, Range(0, 1000)] = 0.1
        """Size of the timestep shift of the second estimate; 0: none, and one pass of the network less."""
        mv_plus_random: bool = True
        """Draw the shift between 0 and its full size."""
        mv_weighting_strategy: Weighting = "uniform"
        mv_use_sds: bool = False
        """The second estimate is the true noise: SDS."""

        rd_model_name_or_path: ProjectPath = "nd-4view"
        rd_ckpt_path: ProjectPath | None = None
        rd_image_size: Pixels = 32
        cam_method: CamMethod = "rel_x2"
        """Camera distance as RichDreamer is told it: twice the relative one, the relative one, the absolute one."""
        rd_weight: ScheduledWeight = 1.0
        rd_guidance_scale: Annotated[Schedule, Range(0, 1e4)] = 7.5
        rd_min_step_percent: ScheduledShare | None = None
        rd_max_step_percent: ScheduledShare | None = None
        rd_plus_ratio: Annotated[float, Range(0, 1000)] = 0.1
        rd_plus_random: bool = True
        rd_weighting_strategy: Weighting = "uniform"
        rd_use_sds: bool = False

        sd_model_name_or_path: ProjectPath = "stabilityai/stable-diffusion-2-1-base"
        sd_image_size: Pixels = 512
        sd_weight: ScheduledWeight = 1.0
        sd_guidance_scale: Annotated[Schedule, Range(0, 1e4)] = 7.5
        sd_min_step_percent: ScheduledShare | None = None
        sd_max_step_percent: ScheduledShare | None = None
        sd_plus_ratio: Annotated[float, Range(0, 1000)] = 0.1
        sd_plus_random: bool = True
        sd_weighting_strategy: Weighting = "uniform"
        sd_use_sds: bool = False

        min_step_percent: ScheduledShare = 0.02
        max_step_percent: ScheduledShare = 0.98
        eps: Annotated[float, Range(0, 1, above=True)] = 0.01
        """Keeps the dmd weightings finite."""
        gradient_checkpoint: bool = False
        """Recompute the autoencoders in the backward pass: less memory, more time."""
        auto_grad: bool = True
        """Pixel gradients are taken teacher by teacher, as soon as they are known; the only way here."""
        half_precision_weights: bool = True
        """False: all networks in float32."""
        network_dtype: DtypeName = "auto"
        """Floating-point type of the networks; auto is bfloat16 on CUDA."""

        REFUSED: ClassVar[dict[str, str]] = {
            "rd_recon_std_rescale": "no published recipe uses it; choose among rd_weighting_strategy",
        }

        def __post_init__(self) -> None:
            if not self.auto_grad:
                raise ConfigError("auto_grad: false would keep all graphs at once for the same gradients; leave it out")
            if not self.half_precision_weights:
                self.network_dtype = "float32"
            for teacher in TEACHERS:
                self._check_timesteps(teacher)

        def _check_timesteps(self, teacher: str) -> None:
            """Raises ConfigError if there is a time at which the teacher has no timesteps to draw from."""
            low, high = (
                Schedule.parse(getattr(self, name) if own is None else own)
                for name in ("min_step_percent", "max_step_percent")
                for own in (getattr(self, f"{teacher}_{name}"),)
            )
            for time, _ in (*low.points, *high.points):
                now = Progress(time, time)
                if low(now) >= high(now):
                    raise ConfigError(
                        f"{teacher}: min_step_percent must be below max_step_percent, but at time {time:g} they are "
                        f"{low(now):g} and {high(now):g}"
                    )

    @classmethod
    def differences(cls, cfg: Any) -> dict[int, str]:
        used = _used_teachers(cfg)
        found = super().differences(cfg)
        if any(getattr(cfg, f"{name}_weighting_strategy").startswith("dmd") for name in used):
            found[1] = "dmd weightings estimate the clean latent from the noisy one, not from the clean one itself"
        return found | (RichDreamerTeacher.differences(cfg) if "rd" in used else {})

    def configure(self) -> None:
        cfg = self.cfg
        shared = {"gradient_checkpoint": cfg.gradient_checkpoint, "network_dtype": cfg.network_dtype}
        own = {
            "rd": {
                "path": cfg.rd_ckpt_path or cfg.rd_model_name_or_path,
                "image_size": cfg.rd_image_size,
                "n_view": cfg.n_view,
                "cam_method": cfg.cam_method,
                "compat": cfg.compat,
            },
            "mv": {
                "path": cfg.mv_ckpt_path or cfg.mv_model_name_or_path,
                "vae_path": cfg.mv_vae_path,
                "image_size": cfg.mv_image_size,
                "n_view": cfg.n_view,
            },
            "sd": {"path": cfg.sd_model_name_or_path, "image_size": cfg.sd_image_size},
        }
        self.options = {name: self._teacher_options(name) for name in _used_teachers(cfg)}
        self.teachers = nn.ModuleDict({name: find(TEACHERS[name])(own[name] | shared) for name in self.options})
        if not self.teachers:
            raise ConfigError("rd_weight, mv_weight and sd_weight are all 0: nothing guides the training")

    def _teacher_options(self, prefix: str) -> TeacherOptions:
        """The options that carry `prefix`; the common range of timesteps where a teacher has none of its own."""
        values = {f.name: getattr(self.cfg, f"{prefix}_{f.name}") for f in fields(TeacherOptions)}
        for name in ("min_step_percent", "max_step_percent"):
            if values[name] is None:
                values[name] = getattr(self.cfg, name)
        return TeacherOptions(**values)

    def latent_gradient(self, estimates: ScoreEstimates, options: TeacherOptions) -> Float[Tensor, "N C H W"]:
        return score_gradient(
            estimates,
            weighting=options.weighting_strategy,
            eps=self.cfg.eps,
            use_sds=options.use_sds,
            compat=self.cfg.compat,
        )


def _used_teachers(cfg: Any) -> list[str]:
    """Prefixes of the teachers whose weight is not always 0."""
    return [name for name in TEACHERS if any(value for _, value in getattr(cfg, f"{name}_weight").points)]
