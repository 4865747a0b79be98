"""The trainings of the miniature world: VAE, the three teachers, the scorer."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from custom.shapeworld.data import PoolBatch
from custom.shapeworld.models import (
    IMAGE_PROCESSOR,
    LATENT_CHANNELS,
    LATENT_SCALE,
    LATENT_SIZE,
    N_VIEW,
    ND_SIZE,
    PIPELINE,
    TeacherKind,
    build_scheduler,
    build_scorer,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
    save_part,
    standardise_latents,
    token_ids,
)
from custom.shapeworld.training import TrainingStage
from triplaneturbo.bounds import Share, Weight
from triplaneturbo.diffusion import NoiseSchedule
from triplaneturbo.errors import WeightsError
from triplaneturbo.guidance.camera_conditions import mvdream_camera, richdreamer_camera
from triplaneturbo.guidance.multiview import install_cross_view_attention
from triplaneturbo.registry import register
from triplaneturbo.storage import write_text
from triplaneturbo.weights.folders import load_model, load_unet, load_vae

_AT_ONCE = 512  # pictures or captions that are encoded together before training


def _blur(pictures: Float[Tensor, "B C H W"], factor: int) -> Float[Tensor, "B C H W"]:
    small = F.avg_pool2d(pictures, factor)
    return F.interpolate(small, size=pictures.shape[-2:], mode="bilinear", align_corners=False)


def _edges(pictures: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H1 W1"]:
    """Differences to the right and lower neighbours."""
    inner = pictures[..., :-1, :-1]
    return torch.cat([pictures[..., :-1, 1:] - inner, pictures[..., 1:, :-1] - inner], dim=1)


@register("shapeworld-vae")
class VaeStage(TrainingStage):
    """Trains the autoencoder on renders, normal pictures, and blurred or blended ones.

    The last kinds stand for the soft pictures that a generator makes early in its training.
    """

    @dataclass(kw_only=True)
    class Config(TrainingStage.Config):
        kl_weight: Weight = 1e-4
        """Of the latents' divergence from standard normal ones."""

    stage = "vae"

    def assemble(self) -> None:
        self.vae = build_vae().to(memory_format=torch.channels_last)

    def pictures(self, rows: Tensor, generator: torch.Generator) -> Float[Tensor, "B 3 H W"]:
        """Half of the rows as renders, an eighth as normals, the rest as soft renders, in [-1, 1]."""
        rgb = self.pool.rgb[rows, 0].float() / 127.5 - 1
        n = len(rows) // 8
        normals = self.pool.geometry[rows[:n], 0, :3].float() / 127.5 - 1
        share = torch.rand(n, 1, 1, 1, generator=generator, device=self.device)
        ghosts = torch.lerp(rgb[n : 2 * n], _blur(rgb[2 * n : 3 * n], 4), share)
        return torch.cat([normals, ghosts, _blur(rgb[2 * n : 3 * n], 2), _blur(rgb[3 * n : 4 * n], 4), rgb[4 * n :]])

    def inputs(self, batch: PoolBatch) -> tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B 4 h w"]]:
        """Pictures in [-1, 1], channels last, and the noise of their latents."""
        generator = self.generator(batch)
        pictures = self.pictures(batch.rows, generator).contiguous(memory_format=torch.channels_last)
        shape = len(pictures), LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE
        return pictures, torch.randn(shape, generator=generator, device=self.device)

    def terms(self, pictures: Float[Tensor, "B 3 H W"], noise: Float[Tensor, "B 4 h w"]) -> dict[str, Tensor]:
        """How far decoded pictures are from what they were, and the latents from standard normal ones."""
        with self.autocast():
            moments = self.vae.encode(pictures).latent_dist
            decoded = self.vae.decode(moments.mean + moments.std * noise).sample
        decoded, mean, logvar = decoded.float(), moments.mean.float(), moments.logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return {
            "pixels": (decoded - pictures).abs().mean(),
            "edges": (_edges(decoded) - _edges(pictures)).abs().mean(),
            "kl": self.cfg.kl_weight * kl,
        }

    def save(self, folder: Path) -> None:
        sample = self.pool.rgb[: 4 * _AT_ONCE, 0].float() / 127.5 - 1
        latents = torch.cat([self.vae.encode(part).latent_dist.mean for part in sample.split(_AT_ONCE)])
        standardise_latents(self.vae, latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3)))
        save_part(self.vae.half(), folder / "stable_diffusion" / "vae")


@register("shapeworld-diffusion")
class DiffusionStage(TrainingStage):
    """Trains a teacher by v-prediction, with the empty caption for a tenth of the objects.

    Stable Diffusion trains its text encoder too and needs the VAE; the other two start from its weights, or from their
    own. A stage that does the latter is named KIND_longer.
    """

    @dataclass(kw_only=True)
    class Config(TrainingStage.Config):
        kind: TeacherKind
        """Which teacher."""
        longer: bool = False
        """Go on from the teacher's own weights in `out_dir`, whose place the new ones take."""
        empty_share: Share = 0.1
        """Share of the objects whose caption is dropped."""

    def assemble(self) -> None:
        self.stage = f"{self.cfg.kind}_longer" if self.cfg.longer else self.cfg.kind
        self.schedule = NoiseSchedule.from_config(build_scheduler().config)
        self.unet = build_unet(self.cfg.kind)
        self.base = Path(self.cfg.out_dir) / "stable_diffusion"
        own = Path(self.cfg.out_dir) / self.cfg.kind
        earlier = own / "unet" if self.cfg.longer else self.base / ("vae" if self._is_first else "unet")
        if not earlier.is_dir():
            raise WeightsError(f"{earlier} is missing; train it first, see scripts/train/shapeworld.sh")
        if self._is_first:
            self.tokenizer = build_tokenizer()
            self.text_encoder = build_text_encoder(self.tokenizer)
        else:
            self.tokenizer = CLIPTokenizer.from_pretrained(self.base / "tokenizer")
            self.text_encoder = load_model(CLIPTextModel, self.base, "text_encoder").requires_grad_(False)
        if self.cfg.longer:
            self.unet.load_state_dict(load_unet(own).state_dict())
        elif not self._is_first:
            self._start_from_stable_diffusion()
        if self.cfg.kind != "stable_diffusion":
            install_cross_view_attention(self.unet, N_VIEW)
        self.unet.to(memory_format=torch.channels_last)

    @property
    def _is_first(self) -> bool:
        """Whether it makes Stable Diffusion, and with it the text encoder of all."""
        return self.cfg.kind == "stable_diffusion" and not self.cfg.longer

    def _start_from_stable_diffusion(self) -> None:
        given = load_unet(self.base).state_dict()
        own = self.unet.state_dict()
        own.update({name: value for name, value in given.items() if name in own and own[name].shape == value.shape})
        self.unet.load_state_dict(own)
        nn.init.zeros_(self.unet.class_embedding.linear_2.weight)
        nn.init.zeros_(self.unet.class_embedding.linear_2.bias)

    @torch.no_grad()
    def on_train_start(self) -> None:
        """Encode all pictures, and all captions unless their encoder is being trained."""
        empty = token_ids(self.tokenizer, [""]).to(self.device)
        if self._is_first:
            self.captions, self.empty = self.pool.tokens, empty
        else:
            parts = self.pool.tokens.split(_AT_ONCE)
            self.captions = torch.cat([self.text_encoder(part).last_hidden_state for part in parts])
            self.empty = self.text_encoder(empty).last_hidden_state
        self.clean, self.cameras = self._clean_pictures(), self._camera_conditions()
        self.schedule = replace(self.schedule, alphas_cumprod=self.schedule.alphas_cumprod.to(self.device))
        super().on_train_start()

    def _clean_pictures(self) -> Float[Tensor, "N V 4 h w"]:
        if self.cfg.kind == "richdreamer":
            parts = self.pool.geometry.flatten(0, 1).split(_AT_ONCE)
            small = [F.adaptive_avg_pool2d(part.float() / 127.5 - 1, ND_SIZE) for part in parts]
            return torch.cat(small).unflatten(0, self.pool.geometry.shape[:2])
        vae = load_vae(self.base).to(self.device)
        parts = self.pool.rgb.flatten(0, 1).split(_AT_ONCE)
        latents = [LATENT_SCALE * vae.encode(part.float() / 127.5 - 1).latent_dist.mean for part in parts]
        return torch.cat(latents).unflatten(0, self.pool.rgb.shape[:2])

    def _chosen_captions(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """[B, L] tokens while their encoder is being trained, else [B, L, C] text states; some of the empty caption."""
        dropped = torch.rand(len(rows), generator=generator, device=self.device) < self.cfg.empty_share
        chosen = self.captions[rows]
        return torch.where(dropped.reshape(-1, *[1] * (chosen.dim() - 1)), self.empty, chosen)

    def _camera_conditions(self) -> Float[Tensor, "N V 16"] | None:
        if self.cfg.kind == "stable_diffusion":
            return None
        embed = mvdream_camera if self.cfg.kind == "mvdream" else richdreamer_camera
        return embed(self.pool.cameras).unflatten(0, (-1, N_VIEW))

    def inputs(self, batch: PoolBatch) -> tuple[Tensor, ...]:
        """Noisy pictures and v = alpha eps - sigma x_0, [B V, 4, h, w], timesteps [B V], captions of the B objects, and
        cameras [B V, 16] if the teacher knows any. The views of an object share their timestep."""
        rows, generator = batch.rows, self.generator(batch)
        clean = self.clean[rows].flatten(0, 1)
        n_view = self.clean.shape[1]
        t = torch.randint(1000, (len(rows),), generator=generator, device=self.device).repeat_interleave(n_view)
        noise = torch.randn(clean.shape, generator=generator, device=self.device)
        alpha, sigma = self.schedule.alpha_sigma(t, clean)
        noisy = (alpha * clean + sigma * noise).contiguous(memory_format=torch.channels_last)
        cameras = () if self.cameras is None else (self.cameras[rows].flatten(0, 1),)
        return noisy, alpha * noise - sigma * clean, t, self._chosen_captions(rows, generator), *cameras

    def terms(
        self,
        noisy: Float[Tensor, "N 4 h w"],
        velocity: Float[Tensor, "N 4 h w"],
        t: Int[Tensor, " N"],
        captions: Tensor,
        cameras: Float[Tensor, "N 16"] | None = None,
    ) -> dict[str, Tensor]:
        """Mean squared error of the predicted velocity."""
        with self.autocast():
            text = self.text_encoder(captions).last_hidden_state if captions.dim() == 2 else captions
            text = text.repeat_interleave(len(noisy) // len(text), dim=0)
            predicted = self.unet(noisy, t, text, class_labels=cameras).sample
        return {"velocity": F.mse_loss(predicted.float(), velocity)}

    def save(self, folder: Path) -> None:
        target = folder / self.cfg.kind
        parts = {"unet": self.unet.half(), "scheduler": build_scheduler()}
        if self._is_first:
            parts |= {"text_encoder": self.text_encoder.half(), "tokenizer": self.tokenizer}
        for name, part in parts.items():
            save_part(part, target / name)
        if self._is_first:
            write_text(target / "model_index.json", json.dumps(PIPELINE, indent=2) + "\n")


@register("shapeworld-scorer")
class ScorerStage(TrainingStage):
    """Trains a CLIP model by contrast; pictures of the same caption are all right answers to it."""

    stage = "scorer"

    def assemble(self) -> None:
        self.tokenizer = build_tokenizer()
        self.model = build_scorer(self.tokenizer)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Also limits the temperature after every update."""
        optimizer = super().configure_optimizers()
        optimizer.register_step_post_hook(self._limit_temperature)
        return optimizer

    def _limit_temperature(self, *of_the_hook: object) -> None:
        self.model.logit_scale.data.clamp_(max=4.6)

    def augment(self, pictures: Float[Tensor, "B 3 H W"], generator: torch.Generator) -> Float[Tensor, "B 3 H W"]:
        """Shift, blur a third mildly and a sixth strongly, change contrast, tint, noise: generated views are soft."""
        n, device = len(pictures), self.device
        up, left = torch.randint(-4, 5, (2,), generator=generator, device=device)
        height, width = pictures.shape[-2:]
        y = (torch.arange(height, device=device) + up) % height
        x = (torch.arange(width, device=device) + left) % width
        pictures = pictures[:, :, y][:, :, :, x]
        mild, strong = n // 3, n // 6
        soft = torch.cat(
            [_blur(pictures[:mild], 2), _blur(pictures[mild : mild + strong], 4), pictures[mild + strong :]]
        )

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device)

        contrast, tint = 1 + 0.15 * normal(n, 1, 1, 1), 0.04 * normal(n, 3, 1, 1)
        return ((soft - 0.5) * contrast + 0.5 + tint + 0.02 * normal(*pictures.shape)).clamp(0, 1)

    def inputs(self, batch: PoolBatch) -> tuple[Int[Tensor, "B L"], Float[Tensor, "B 3 H W"]]:
        """Tokens of the captions, and augmented pictures in [-1, 1]."""
        pictures = self.augment(self.pool.rgb[batch.rows, 0].float() / 255, self.generator(batch)) * 2 - 1
        return self.pool.tokens[batch.rows], pictures

    def terms(self, tokens: Int[Tensor, "B L"], pictures: Float[Tensor, "B 3 H W"]) -> dict[str, Tensor]:
        """Cross-entropy of the captions of each picture, and of the pictures of each caption."""
        with self.autocast():
            output = self.model(input_ids=tokens, pixel_values=pictures)
        logits = output.logits_per_image.float()
        same = (tokens[:, None] == tokens[None]).all(dim=-1).float()
        target = same / same.sum(dim=1, keepdim=True)
        return {
            "pictures": 0.5 * F.cross_entropy(logits, target),
            "captions": 0.5 * F.cross_entropy(logits.T, target),
        }

    def save(self, folder: Path) -> None:
        target = folder / "scorer"
        for part in (self.model.half(), self.tokenizer):
            save_part(part, target)
        write_text(target / "preprocessor_config.json", json.dumps(IMAGE_PROCESSOR, indent=2) + "\n")
