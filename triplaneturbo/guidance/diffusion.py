"""Teachers that are diffusion models: pictures to latents, noisy latents to a prediction, a rule to a gradient."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from jaxtyping import Float, Int
from torch import Tensor

from triplaneturbo.base import Chosen, Part, option
from triplaneturbo.bounds import Pixels, ProjectPath, Range, ScheduledShare
from triplaneturbo.diffusion import NoiseSchedule
from triplaneturbo.draws import Draws
from triplaneturbo.errors import ConfigError
from triplaneturbo.graphs import GraphReplay, Pool, TrainingReplay
from triplaneturbo.guidance.draws import DiffusionDraws, Drawn
from triplaneturbo.guidance.perp_neg import PerpNeg, SideTexts
from triplaneturbo.guidance.rules import Rule, ScoreEstimates
from triplaneturbo.guidance.shaping import Limit
from triplaneturbo.guidance.teacher import Question, Teacher
from triplaneturbo.nn.fused import store_channels_last, streamline
from triplaneturbo.offload import HostCopy
from triplaneturbo.performance import graphs_run_on, kernels_run_on
from triplaneturbo.precision import DtypeName, cast_frozen, resolve_dtype
from triplaneturbo.schedule import Progress, Schedule
from triplaneturbo.types import Cameras, Condition, TextStates

# Teachers are asked one after the other, each going back to its pictures before the next.
_of_encoders = Pool()


class DiffusionTeacher(Teacher):
    """A frozen U-Net, perhaps an autoencoder, and the noise schedule they were trained with.

    `configure` of a subclass sets `unet`, `vae` (or None) and `schedule`, and calls `_freeze`.
    """

    @dataclass(kw_only=True)
    class Config(Teacher.Config):
        path: ProjectPath
        """A diffusers folder."""
        image_size: Pixels = 512
        """Side of the pictures it looks at."""
        rule: Annotated[Chosen, Part("rule")] = option("sds")
        """What becomes of its estimates: sds, csd, asd, vsd, ..."""
        guidance_scale: Annotated[Schedule, Range(0, 1e4)] = option(7.5)
        """Of classifier-free guidance."""
        min_timestep: ScheduledShare = option(0.02)
        """The smallest timestep that is drawn, as a share of all."""
        max_timestep: ScheduledShare = option(0.98)
        """The largest."""
        max_timestep_included: bool = False
        """Whether that is drawn, too, or those below it only."""
        unconditional: Literal["negative", "empty"] = "negative"
        """The text of the branch without the prompt: the encoder's negative prompt, or none."""
        text_by_view: bool = False
        """Tell it the prompt with the side that the camera sees; data.conditions.NAME.by_view must be true."""
        perp_neg: PerpNeg = field(default_factory=PerpNeg)
        """Hold the texts of other sides against it; needs text_by_view."""
        latent_clip: Limit | None = None
        """The largest magnitude of an entry of a latent gradient."""
        gradient_checkpoint: bool = False
        """Recompute the encoder in the backward pass: less memory, more time."""
        offload: bool = False
        """Keep the networks in the host's memory, and bring them to the device for each question: less memory, more
        time; not for teachers with a trained copy."""
        network_dtype: DtypeName = "auto"
        """Floating-point type of the networks; auto is bfloat16 on CUDA."""

        def __post_init__(self) -> None:
            low, high = Schedule.parse(self.min_timestep), Schedule.parse(self.max_timestep)
            for time, _ in (*low.points, *high.points):
                if low.at(time) >= high.at(time):
                    raise ConfigError(
                        f"min_timestep must be below max_timestep, but at time {time:g} they are {low.at(time):g} and "
                        f"{high.at(time):g}"
                    )
            if self.perp_neg.strength and not self.text_by_view:
                raise ConfigError("perp_neg.strength is above 0, which needs text_by_view=true: the texts of the sides")

    unet: UNet2DConditionModel
    vae: AutoencoderKL | None
    schedule: NoiseSchedule

    def _freeze(self) -> None:
        self.rule: Rule = self.cfg.rule.build()
        if self.rule.asks_trained and type(self).second is DiffusionTeacher.second:
            raise ConfigError(
                f"rule {self.cfg.rule.type!r} needs a teacher with a trained copy, which {type(self).__name__} has not"
            )
        if self.cfg.offload and hasattr(self, "trained"):
            raise ConfigError("offload=true: what is trained beside this teacher must stay on the device")
        self._host: HostCopy | None = None
        self.requires_grad_(False)
        self.eval()
        self._replay, self._encoder_replay = GraphReplay(), TrainingReplay(_of_encoders)
        self._stored_on: torch.device | None = None
        for network in (self.unet, self.vae):
            if network is not None:
                streamline(network)
        if self.vae is not None and self.cfg.gradient_checkpoint:
            self.vae.enable_gradient_checkpointing()
        if hasattr(self, "trained"):
            self.trained.requires_grad_(True)

    # What differs between teachers

    def preprocess(self, question: Question) -> Float[Tensor, "N C S S"]:
        """The pictures at the teacher's size, in [0, 1]; differentiable."""
        size = (self.cfg.image_size, self.cfg.image_size)
        return F.interpolate(question.pictures("rgb"), size, mode="bilinear", align_corners=False)

    def encode(
        self, pictures: Float[Tensor, "N C S S"], vae_noise: Float[Tensor, "N c s s"] | None
    ) -> Float[Tensor, "N c s s"]:
        """Latents of pictures in [0, 1]; differentiable. vae_noise: of the posterior sample."""
        assert self.vae is not None
        assert vae_noise is not None
        dtype = self._settle(pictures.device)

        def moments_of(pictures: Tensor) -> tuple[Tensor]:
            assert self.vae is not None
            return (self.vae.encode((2 * pictures - 1).to(dtype)).latent_dist.parameters.float(),)

        if self._is_recorded(pictures.device) and pictures.requires_grad and not self.cfg.gradient_checkpoint:
            key = self.vae.encoder.conv_in.weight.data_ptr()
            (moments,) = self._encoder_replay(moments_of, (pictures,), (), key)
        else:
            (moments,) = moments_of(pictures)
        posterior = DiagonalGaussianDistribution(moments)
        latents = posterior.mean + posterior.std * vae_noise
        return latents * self.vae.config["scaling_factor"]

    def camera(self, cameras: Cameras) -> Float[Tensor, "M 16"] | None:
        """What it is told about each camera, or None."""
        return None

    def conditions(self, question: Question) -> tuple[Condition, Condition]:
        """What it is told about each picture without and with the prompt."""
        states = self.states(question)
        seen, prompts = question.cameras_of_pictures(), question.prompts_of_pictures()
        if self.cfg.perp_neg.strength:
            with_text = states.blended(self._sides(states, seen).mix, prompts)
        else:
            with_text = states.seen_from(seen, prompts) if self.cfg.text_by_view else states.tokens[prompts]
        without = getattr(states, self.cfg.unconditional).expand_as(with_text)
        camera = self.camera(seen)
        return Condition(without, camera), Condition(with_text, camera)

    def negatives(self, question: Question) -> tuple[list[Condition], Float[Tensor, "N K"] | None]:
        """What is held against each picture, and how strongly; nothing without `perp_neg`."""
        if not self.cfg.perp_neg.strength:
            return [], None
        states = self.states(question)
        seen, prompts = question.cameras_of_pictures(), question.prompts_of_pictures()
        sides, camera = self._sides(states, seen), self.camera(seen)
        without = getattr(states, self.cfg.unconditional)
        texts = (states.with_side(side, prompts, without) for side in sides.negative.unbind(1))
        return [Condition(text, camera) for text in texts], sides.weight

    def _sides(self, states: TextStates, seen: Cameras) -> SideTexts:
        return self.cfg.perp_neg.texts(seen.elevation_deg, seen.azimuth_deg, states.view_limits[2])

    @torch.no_grad()
    def predict(
        self, noisy: Float[Tensor, "N c s s"], t: Int[Tensor, " N"], condition: Condition
    ) -> Float[Tensor, "N c s s"]:
        """The network's output, float32, without gradient."""
        dtype = self._settle(noisy.device)
        told = () if condition.camera is None else (condition.camera.to(dtype),)
        arguments = noisy.to(dtype), t, condition.text.to(dtype), *told

        def output(noisy: Tensor, t: Tensor, text: Tensor, camera: Tensor | None = None) -> Tensor:
            return self.unet(noisy, t, text, class_labels=camera).sample.float()

        if not self._is_recorded(noisy.device):
            return output(*arguments)
        return self._replay(output, arguments, key=self.unet.conv_in.weight.data_ptr())

    def second(
        self, noisy: Float[Tensor, "N c s s"], t: Int[Tensor, " N"], condition: Condition
    ) -> Float[Tensor, "N c s s"]:
        """The output of the copy that is trained beside the teacher, for rules that ask for it; no gradient."""
        raise NotImplementedError

    # The same for all

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        factor = 1 if self.vae is None else 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        return self.unet.config["in_channels"], self.cfg.image_size // factor, self.cfg.image_size // factor

    def draw(
        self, draws: Draws, n_view: int, progress: Progress, timestep_range: tuple[float, float] | None
    ) -> DiffusionDraws:
        """See `Teacher.draw`.

        Raises:
            ConfigError: the range of timesteps is empty.
        """
        low, high = timestep_range or (self.cfg.min_timestep(progress), self.cfg.max_timestep(progress))
        n_timesteps = len(self.schedule.alphas_cumprod)
        end = min(int(n_timesteps * high) + self.cfg.max_timestep_included, n_timesteps)
        bounds = int(n_timesteps * low), end
        if not 0 <= bounds[0] < bounds[1]:
            raise ConfigError(f"{draws.scope}: no timesteps between {low} and {high} of {n_timesteps}")
        shape = (n_view if self.sees_all else 1, *self.latent_shape)
        # Views that know of each other are denoised together, those that do not each on its own.
        groups = (n_view,) if self.sees_all and not self.multi_view else ()
        return DiffusionDraws(
            t=draws.integers("t", *bounds, *groups).flatten(),
            t_min=bounds[0],
            plus_rand=draws.uniform("plus", *groups).flatten(),
            noise=draws.normal("noise", *shape).flatten(0, 1),
            vae_noise=None if self.vae is None else draws.normal("vae", *shape).flatten(0, 1),
        )

    def judge(self, question: Question, drawn: list[Drawn]) -> tuple[Float[Tensor, ""], list[dict[str, Tensor]]]:
        """See `Teacher.judge`: the gradient of the latents by the rule, carried back through the encoder."""
        draws = DiffusionDraws.join(drawn)
        latents = self.encode(self.preprocess(question), draws.vae_noise)
        estimates = self.estimate(latents.detach(), question, draws)
        raw = self.rule.gradient(estimates)
        gradient = torch.nan_to_num(raw, nan=0.0, posinf=0.0, neginf=0.0)
        if self.cfg.latent_clip is not None:
            limit = self.cfg.latent_clip(question.progress)
            gradient = gradient.clamp(-limit, limit)
        gap, n = self.rule.gap(estimates), len(question.sights)
        logs = [
            {"grad_norm": g.norm(), "gap": d.mean(), "nonfinite": (~r.isfinite()).sum()}
            for g, d, r in zip(gradient.chunk(n), gap.chunk(n), raw.chunk(n), strict=True)
        ]
        return (latents * gradient).sum() / (question.frames * question.n_prompts), logs

    @torch.no_grad()
    def estimate(self, latents: Float[Tensor, "N c s s"], question: Question, draws: DiffusionDraws) -> ScoreEstimates:
        """Ask the network: without text at t, with text at t, and what else the rule wants."""
        schedule = self.schedule_on(latents.device)
        group = len(latents) // len(draws.t)
        without, with_text = self.conditions(question)
        negatives, weights = self.negatives(question)
        t = draws.t.repeat_interleave(group)
        now = schedule.add_noise(latents, draws.noise, t)
        rows = self.cfg.perp_neg.latents_of(len(negatives), len(latents), t.device)
        told, times = [without, with_text, *negatives], [t, t, *(t[of] for of in rows)]
        noisy = [now, now, *(now[of] for of in rows)]
        shifted = self.rule.shift(draws.t, draws.t_min, draws.plus_rand, len(schedule.alphas_cumprod))
        if shifted is not None:
            later = shifted.repeat_interleave(group)
            told, times = [*told, with_text], [*times, later]
            noisy.append(schedule.add_noise(latents, draws.noise, later))
        outputs = self.predict(torch.cat(noisy), torch.cat(times), Condition.join(told)).chunk(len(times))
        uncond, cond, *others = (schedule.to_noise(*each) for each in zip(outputs, noisy, times, strict=True))
        plus = cond if shifted is None else others.pop()
        if self.rule.asks_trained:
            plus = schedule.to_noise(self.second(now, t, with_text), now, t)
        return ScoreEstimates(
            latents=latents,
            noise=draws.noise,
            t=t,
            t_plus=times[-1],
            uncond=uncond,
            cond=cond,
            plus=plus,
            scale=self.cfg.guidance_scale(question.progress),
            schedule=schedule,
            frames=question.frames,
            negatives=torch.stack(others, 1) if others else None,
            negative_weights=weights,
        )

    @contextmanager
    def at_hand(self, device: torch.device) -> Iterator[None]:
        if not self.cfg.offload:
            yield
            return
        if self._host is None:
            self._settle(device)
            self._host = HostCopy(self)
        with self._host.on(device):
            yield

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DiffusionTeacher":
        return self if self.cfg.offload else super()._apply(fn, recurse)

    def _is_recorded(self, device: torch.device) -> bool:
        """Whether its networks are replayed as graphs, which hold the addresses of weights."""
        return graphs_run_on(device) and not self.cfg.offload

    def _settle(self, device: torch.device) -> torch.dtype:
        """Networks are stored in the type they run in, which is known once they are on their device."""
        dtype = resolve_dtype(self.cfg.network_dtype, device)
        if self.unet.dtype != dtype:
            cast_frozen(self, dtype)
        if kernels_run_on(device) and self._stored_on != device:
            store_channels_last(self)
            self._stored_on = device
        return dtype

    def schedule_on(self, device: torch.device) -> NoiseSchedule:
        """The noise schedule, with its table on `device`."""
        if self.schedule.alphas_cumprod.device != device:
            self.schedule = replace(self.schedule, alphas_cumprod=self.schedule.alphas_cumprod.to(device))
        return self.schedule
