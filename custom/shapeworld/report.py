"""Do the teachers know the world? Samples against truth: `python -m custom.shapeworld.report`.

Writes teachers.json (a split: R@1 of true views and of samples by the scorer, silhouette overlap of the
normal-disparity samples) and teachers.png (a row a caption: four true views, one Stable Diffusion sample, four MVDream
samples, four RichDreamer normal pictures).
"""

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from custom.shapeworld.data import sample_cameras
from custom.shapeworld.models import (
    IMAGE_SIZE,
    LATENT_CHANNELS,
    LATENT_SIZE,
    N_VIEW,
    ND_SIZE,
    TeacherKind,
    build_scheduler,
    token_ids,
)
from custom.shapeworld.render import render
from custom.shapeworld.scorer import Scorer
from custom.shapeworld.splits import EVALUATION_SPLITS, load_splits, retrieval_bank
from custom.shapeworld.world import parse_caption
from triplaneturbo.diffusion import NoiseSchedule, few_step_timesteps
from triplaneturbo.draws import keyed_generator
from triplaneturbo.guidance.camera_conditions import mvdream_camera, richdreamer_camera
from triplaneturbo.guidance.multiview import install_cross_view_attention
from triplaneturbo.types import Cameras
from triplaneturbo.weights.folders import load_model, load_unet, load_vae

logger = logging.getLogger(__name__)
_SHOWN = 4  # captions a split in the picture


@dataclass
class Teachers:
    """The trained networks of the miniature world, in float32."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unets: dict[TeacherKind, UNet2DConditionModel]
    schedule: NoiseSchedule

    @classmethod
    def load(cls, folder: Path, device: str) -> "Teachers":
        """From the folder that scripts/train/shapeworld.sh wrote."""
        base = folder / "stable_diffusion"
        unets = {kind: load_unet(folder / kind).to(device) for kind in ("stable_diffusion", "mvdream", "richdreamer")}
        for kind in ("mvdream", "richdreamer"):
            install_cross_view_attention(unets[kind], N_VIEW)
        return cls(
            CLIPTokenizer.from_pretrained(base / "tokenizer"),
            load_model(CLIPTextModel, base, "text_encoder").to(device),
            load_vae(base).to(device),
            unets,
            NoiseSchedule.from_config(build_scheduler().config),
        )

    def conditions(self, kind: TeacherKind, captions: Sequence[str], cameras: Cameras) -> dict[str, Tensor | None]:
        """What a teacher is told of the captions, and then of as many empty ones: of each from each of its cameras.

        Stable Diffusion is asked for one picture a caption, whatever the cameras.
        """
        views, camera = (1 if kind == "stable_diffusion" else N_VIEW), None
        if kind != "stable_diffusion":
            embed = mvdream_camera if kind == "mvdream" else richdreamer_camera
            camera = embed(cameras).repeat(2, 1)
        ids = token_ids(self.tokenizer, [*captions, *[""] * len(captions)]).to(cameras.c2w.device)
        text = self.text_encoder(ids).last_hidden_state.repeat_interleave(views, dim=0)
        return {"encoder_hidden_states": text, "class_labels": camera}

    def ask(
        self,
        kind: TeacherKind,
        noisy: Float[Tensor, "M C H W"],
        t: int,
        conditions: Mapping[str, Tensor | None],
    ) -> tuple[Float[Tensor, "M C H W"], Float[Tensor, "M C H W"]]:
        """The velocities that a teacher sees in noisy pictures, with their captions and with empty ones."""
        timesteps = torch.full((2 * len(noisy),), t, device=noisy.device)
        return self.unets[kind](noisy.repeat(2, 1, 1, 1), timesteps, **conditions).sample.chunk(2)

    @torch.no_grad()
    def sample(
        self,
        kind: TeacherKind,
        captions: list[str],
        cameras: Cameras,
        generator: torch.Generator,
        *,
        steps: int,
        scale: float,
    ) -> Float[Tensor, "M C H W"]:
        """DDIM samples with classifier-free guidance, in [0, 1]: pictures, or for RichDreamer normals and disparity.

        Stable Diffusion makes one picture a caption, the others one a camera.
        """
        device, size = cameras.c2w.device, ND_SIZE if kind == "richdreamer" else LATENT_SIZE
        conditions = self.conditions(kind, captions, cameras)
        n = len(conditions["encoder_hidden_states"]) // 2
        x = torch.randn((n, LATENT_CHANNELS, size, size), generator=generator, device=device)
        timesteps = few_step_timesteps(steps)
        for now, later in zip(timesteps, [*timesteps[1:], 0], strict=True):
            conditional, free = self.ask(kind, x, now, conditions)
            guided, t = free + scale * (conditional - free), torch.full((n,), now, device=device)
            clean, noise = self.schedule.to_clean(guided, x, t), self.schedule.to_noise(guided, x, t)
            x = self.schedule.add_noise(clean, noise, torch.full_like(t, later))
        if kind != "richdreamer":
            clean = self.vae.decode(clean / self.vae.config.scaling_factor).sample
        return (clean / 2 + 0.5).clamp(0, 1)


def _overlap(disparity: Float[Tensor, "M 1 h w"], opacity: Float[Tensor, "M 1 h w"]) -> float:
    """Mean intersection over union of the silhouettes."""
    drawn, true = disparity > 0.05, opacity > 0.5
    union = (drawn | true).sum(dim=(1, 2, 3)).clamp(min=1)
    return ((drawn & true).sum(dim=(1, 2, 3)) / union).mean().item()


def report_split(teachers: Teachers, scorer: Scorer, split: str, arguments: argparse.Namespace) -> tuple[dict, Tensor]:
    """Numbers of one split and its part of the picture."""
    device = next(scorer.model.parameters()).device
    captions = list(load_splits()[split][: arguments.n])
    generator = keyed_generator(0, "report", split, device=device)
    cameras = sample_cameras(len(captions), N_VIEW, generator)
    truth = render([parse_caption(c) for c in captions], cameras, IMAGE_SIZE)
    true_rgb = truth.rgb.permute(0, 3, 1, 2)
    bank, pictures = list(retrieval_bank()), {"truth": true_rgb}
    for kind in teachers.unets:
        pictures[kind] = teachers.sample(
            kind, captions, cameras, generator, steps=arguments.steps, scale=arguments.guidance_scale
        )
    numbers = {}
    for name in ("truth", "stable_diffusion", "mvdream"):
        repeats = len(pictures[name]) // len(captions)
        wanted = [caption for caption in captions for _ in range(repeats)]
        numbers[f"{name}_r_at_1"] = round(scorer.recall(pictures[name], wanted, bank), 4)
    drawn = pictures["richdreamer"]
    opacity = F.adaptive_avg_pool2d(truth.opacity.permute(0, 3, 1, 2), ND_SIZE)
    normal = F.adaptive_avg_pool2d(truth.normal.permute(0, 3, 1, 2), ND_SIZE)
    numbers["richdreamer_silhouette_iou"] = round(_overlap(drawn[:, 3:], opacity), 4)
    numbers["richdreamer_normal_l1"] = round((drawn[:, :3] - normal).abs().mean().item(), 4)
    numbers["mvdream_rgb_l1"] = round((pictures["mvdream"] - true_rgb).abs().mean().item(), 4)
    shown = {name: value.unflatten(0, (len(captions), -1))[:_SHOWN] for name, value in pictures.items()}
    normals = F.interpolate(shown["richdreamer"][:, :, :3].flatten(0, 1), size=IMAGE_SIZE)
    columns = [shown["truth"], shown["stable_diffusion"], shown["mvdream"], normals.unflatten(0, (-1, N_VIEW))]
    row = torch.cat(columns, dim=1)
    return numbers, row.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2).cpu()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=Path("load/shapeworld"))
    parser.add_argument("--out", type=Path, default=Path("outputs/shapeworld"), help="folder of the report")
    parser.add_argument("--n", type=int, default=64, help="captions a split")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    teachers = Teachers.load(arguments.weights, arguments.device)
    scorer = Scorer.load(arguments.weights / "scorer", arguments.device)
    numbers, rows = {}, []
    for split in EVALUATION_SPLITS:
        numbers[split], picture = report_split(teachers, scorer, split, arguments)
        rows.append(picture)
        logger.info("%s %s", split, json.dumps(numbers[split]))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "teachers.json").write_text(json.dumps(numbers, indent=2) + "\n")
    levels = (torch.cat(rows) * 255).round().byte().numpy()
    Image.fromarray(levels).save(arguments.out / "teachers.png")


if __name__ == "__main__":
    main()
