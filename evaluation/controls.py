"""What the measures say of the truth, and of meshes that know nothing of their caption."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from triplaneturbo.draws import keyed_generator
from triplaneturbo.ops.marching_cubes import marching_cubes
from triplaneturbo.pictures import to_bytes
from triplaneturbo.pipelines.text_to_mesh import TextToMeshPipeline
from triplaneturbo.types import Mesh

from .judge import EXACT_RESOLUTION, Judge, Measured
from .measures import psnr, silhouette_iou
from .sources import Student, untrained
from .world import GRID, PALETTE, best_constant, exact_mesh, iou, parse_caption


def controls(judge: Judge, prompts: Sequence[str], student: TextToMeshPipeline) -> dict[str, list[Measured]]:
    """By name, what is measured of each prompt.

    exact_solids: the scorer can be wrong about exact pictures, and two samples of one surface are not at distance 0.
    exact_meshes: the same surfaces on a grid of EXACT_RESOLUTION. random_student: `student` before its training.
    best_constant_mesh: the one mesh for all of them.
    """
    inside, _ = best_constant(torch.stack([judge.truth(prompt).inside for prompt in prompts]))
    seen = judge.see(_constant_mesh(inside, prompts), keyed_generator("constant", device=judge.device))
    meshes = ((p, exact_mesh(parse_caption(p), EXACT_RESOLUTION, judge.device)) for p in prompts)
    return {
        "exact_solids": [judge.exact(prompt) for prompt in prompts],
        "exact_meshes": [judge.measure(prompt, 0, mesh) for prompt, mesh in meshes],
        "random_student": [judge.measure(*found) for found in Student(untrained(student), (0,)).meshes(prompts)],
        "best_constant_mesh": [judge.measured(seen, prompt) for prompt in prompts],
    }


def captions_of_others(judge: Judge, measured: Sequence[Measured]) -> dict[str, float | None]:
    """Means over all pairs of a mesh and a wrong caption of the split: what agreement is worth nothing.

    None if there is one caption only. Of the measures that need no surface in common.
    """
    prompts = list(dict.fromkeys(m.prompt for m in measured))
    inside = torch.stack([judge.truth(prompt).inside for prompt in prompts])
    numbers = {judge.position[prompt] for prompt in prompts}
    sums = dict.fromkeys(("iou", "silhouette_iou", "psnr", "r_at_1", "r_at_1_object"), 0.0)
    for m in measured:
        others = [i for i, prompt in enumerate(prompts) if prompt != m.prompt]
        rows = torch.tensor(others, device=inside.device, dtype=torch.long)
        sums["iou"] += iou(m.inside.expand(len(rows), -1), inside[rows]).sum().item()
        wrong = numbers - {judge.position[m.prompt]}
        sums["r_at_1"] += sum(n in wrong for n in m.nearest) / len(m.nearest)
        sums["r_at_1_object"] += m.nearest_object in wrong
        pictures = m.pictures.to(inside.device) / 255
        for prompt in (prompts[i] for i in others):
            true = judge.truth(prompt)
            sums["silhouette_iou"] += silhouette_iou(m.covered, true.sight.covered)
            sums["psnr"] += psnr(pictures, to_bytes(true.pictures).to(inside.device) / 255)
    pairs = len(measured) * (len(prompts) - 1)
    return {name: value / pairs if pairs else None for name, value in sums.items()}


def _constant_mesh(inside: Bool[Tensor, " P"], prompts: Sequence[str]) -> Mesh:
    """The surface of a set of grid cells, in the mean colour of the prompts."""
    grid = inside.view(GRID, GRID, GRID)
    vertices, faces = marching_cubes(0.5 - grid.float())
    vertices = (vertices + 0.5) * (2 / GRID) - 1
    colors = [PALETTE[part.color] for prompt in prompts for part in parse_caption(prompt).parts]
    color = vertices.new_tensor(colors).mean(dim=0)
    return Mesh(vertices, faces, color.expand_as(vertices))
