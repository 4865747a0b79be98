"""What do the teachers answer to exact pictures? `python -m custom.shapeworld.bias`.

A student that makes exact pictures learns no more where a teacher, shown them with noise, expects the same pictures on
average. How far it is from that, in units of the latents (standard deviation 1): the bias of MVDream and RichDreamer at
timesteps and guidance scales. And does MVDream know where dots are? It is shown dotted solids in the mean of their
colours, and again as they are: how much of the way to the dots does its answer go, and how much of them does it lose?
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from custom.shapeworld.data import sample_cameras
from custom.shapeworld.models import IMAGE_SIZE, N_VIEW, ND_SIZE, TeacherKind
from custom.shapeworld.render import render
from custom.shapeworld.report import Teachers
from custom.shapeworld.splits import load_splits
from custom.shapeworld.world import Solid, parse_caption
from triplaneturbo.draws import keyed_generator
from triplaneturbo.types import Cameras, Views

SCALES = (1.0, 1.25, 1.5, 2.5, 10.0)
TIMESTEPS = (60, 150, 300, 500, 700, 900)
_DRAWS = 6  # of the noise, an even number


def exact_captions() -> list[str]:
    """Eight captions of each of three splits, evenly spread."""
    return [c for split in ("train", "validation", "unseen_pairs") for c in load_splits()[split][::12]]


def dotted_captions() -> list[str]:
    """Twelve dotted single solids in colours that the student has not seen."""
    return [caption for caption in load_splits()["unseen_pairs"] if "dotted" in caption][:12]


def without_dots(caption: str) -> Solid:
    """The same solid, plain."""
    solid = parse_caption(caption)
    return replace(solid, parts=tuple(replace(part, pattern="") for part in solid.parts))


def in_mean_colour(dotted: Views, plain: Views) -> Float[Tensor, "M 3 H W"]:
    """The plain solids as dark as the dotted ones are on average over an object's views and pixels."""
    rgb, flat, seen = (x.unflatten(0, (-1, N_VIEW)) for x in (dotted.rgb, plain.rgb, plain.opacity > 0.5))
    ratio = (rgb * seen).sum((1, 2, 3), keepdim=True) / (flat * seen).sum((1, 2, 3), keepdim=True)
    return torch.where(seen, flat * ratio, flat).flatten(0, 1).permute(0, 3, 1, 2)


@torch.no_grad()
def clean_input(teachers: Teachers, kind: TeacherKind, views: Views) -> Float[Tensor, "M 4 h w"]:
    """What a teacher denoises: latents of the pictures, or small normals and disparities."""
    if kind == "richdreamer":
        geometry = torch.cat([views.normal, views.disparity], dim=-1).permute(0, 3, 1, 2)
        return F.adaptive_avg_pool2d(geometry * 2 - 1, ND_SIZE)
    return latents(teachers, views.rgb.permute(0, 3, 1, 2))


@torch.no_grad()
def latents(teachers: Teachers, rgb: Float[Tensor, "M 3 H W"]) -> Float[Tensor, "M 4 h w"]:
    """Scaled latents of pictures in [0, 1]."""
    return teachers.vae.encode(rgb * 2 - 1).latent_dist.mode() * teachers.vae.config.scaling_factor


@torch.no_grad()
def expected(
    teachers: Teachers,
    kind: TeacherKind,
    clean: Float[Tensor, "M 4 h w"],
    captions: Sequence[str],
    cameras: Cameras,
    t: int,
    generator: torch.Generator,
) -> dict[float, tuple[Float[Tensor, "M 4 h w"], Float[Tensor, "M 4 h w"]]]:
    """The teacher's mean estimate of the clean input, by guidance scale: of two independent halves of the noises."""
    conditions = teachers.conditions(kind, captions, cameras)
    timesteps = torch.full((len(clean),), t, device=clean.device)
    found = {scale: [torch.zeros_like(clean), torch.zeros_like(clean)] for scale in SCALES}
    for k in range(_DRAWS):
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        noisy = teachers.schedule.add_noise(clean, noise, timesteps)
        conditional, free = teachers.ask(kind, noisy, t, conditions)
        for scale, halves in found.items():
            guided = free + scale * (conditional - free)
            halves[k % 2] += teachers.schedule.to_clean(guided, noisy, timesteps) / (_DRAWS // 2)
    return {scale: tuple(halves) for scale, halves in found.items()}


def bias(halves: Sequence[Tensor], clean: Tensor) -> float:
    """Root mean square of how far the mean answer is off; the product of the halves is free of the noise's variance."""
    one, two = (half - clean for half in halves)
    return (one * two).mean().clamp(min=0).sqrt().item()


def share(halves: Sequence[Tensor], start: Tensor, way: Tensor) -> float:
    """How much of `way` the mean answer goes from `start`."""
    moved = sum(halves) / len(halves) - start
    return ((moved * way).sum() / way.square().sum()).item()


def _row(first: str, values: Sequence[float]) -> None:
    sys.stdout.write(f"| {first} | " + " | ".join(f"{value:.3f}" for value in values) + " |\n")


def _report_bias(teachers: Teachers, device: str) -> None:
    captions, generator = exact_captions(), keyed_generator(0, "bias", device=device)
    cameras = sample_cameras(len(captions), N_VIEW, generator)
    views = render([parse_caption(caption) for caption in captions], cameras, IMAGE_SIZE)
    for kind in ("mvdream", "richdreamer"):
        clean = clean_input(teachers, kind, views)
        for t in TIMESTEPS:
            found = expected(teachers, kind, clean, captions, cameras, t, generator)
            _row(f"{kind}, bias | {t}", [bias(halves, clean) for halves in found.values()])


def _report_dots(teachers: Teachers, device: str) -> None:
    captions, generator = dotted_captions(), keyed_generator(0, "dots", device=device)
    cameras = sample_cameras(len(captions), N_VIEW, generator)
    dotted = render([parse_caption(caption) for caption in captions], cameras, IMAGE_SIZE)
    plain = render([without_dots(caption) for caption in captions], cameras, IMAGE_SIZE)
    with_dots, without = (
        latents(teachers, dotted.rgb.permute(0, 3, 1, 2)),
        latents(teachers, in_mean_colour(dotted, plain)),
    )
    for t in TIMESTEPS:
        for name, start, way in (
            ("to the dots", without, with_dots - without),
            ("of the dots lost", with_dots, without - with_dots),
        ):
            found = expected(teachers, "mvdream", start, captions, cameras, t, generator)
            _row(f"mvdream, {name} | {t}", [share(halves, start, way) for halves in found.values()])


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=Path("load/shapeworld"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args(arguments)
    teachers = Teachers.load(given.weights, given.device)
    scales = " | ".join(f"scale {scale:g}" for scale in SCALES)
    sys.stdout.write(f"| | timestep | {scales} |\n|---|--:" + "|--:" * len(SCALES) + "|\n")
    _report_bias(teachers, given.device)
    _report_dots(teachers, given.device)


if __name__ == "__main__":
    main()
