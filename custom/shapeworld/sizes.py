"""Would a smaller or larger bank do? R@1 among 10^3, 10^4 and 10^5 captions: `python -m custom.shapeworld.sizes`.

The scorer and the teachers are those that were trained with the middle one, the bank of shapeworld-1, and the pictures
are of its splits: exact ones and MVDream's samples, from four sides each. What the other two banks are: `nested_banks`.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from custom.shapeworld.bank import bank, shuffled
from custom.shapeworld.models import IMAGE_SIZE, N_VIEW
from custom.shapeworld.render import render
from custom.shapeworld.report import Teachers
from custom.shapeworld.scorer import Scorer
from custom.shapeworld.splits import EVALUATION_SPLITS, load_splits, retrieval_bank
from custom.shapeworld.world import parse_caption
from triplaneturbo.cameras import orbit_cameras
from triplaneturbo.draws import keyed_generator
from triplaneturbo.storage import write_text
from triplaneturbo.types import Cameras

_LARGE = (210, 16321)  # captions for every pair of shapes and relation, and of three parts: 100 000 with single solids
_AT_ONCE = 12  # captions whose pictures are sampled together


def nested_banks(large: tuple[int, int] = _LARGE) -> dict[int, tuple[str, ...]]:
    """Banks of 10^3, 10^4 and 10^5 captions, each in the next.

    The second is that of the benchmark; the first has the captions of all splits and others drawn from the second, the
    third is drawn as the second, with about eleven times as many captions of several parts (`large`, see `bank`).
    """
    middle = retrieval_bank()
    asked = [caption for split in EVALUATION_SPLITS for caption in load_splits()[split]]
    others = shuffled(sorted(set(middle) - set(asked)), "small bank")
    banks = tuple(asked + others)[:1000], middle, tuple(map(str, bank(*large)))
    return {len(captions): captions for captions in banks}


def four_sides(n_object: int) -> Cameras:
    """The benchmark's cameras: 25 degrees above, 90 degrees apart, once for each object."""
    azimuths = torch.tensor([45.0, 135.0, 225.0, 315.0]).repeat(n_object)
    elevation, distance, fovy = (torch.full_like(azimuths, value) for value in (25.0, 1.55, 60.0))
    return orbit_cameras(elevation, azimuths, distance, fovy, n_view=N_VIEW, relative=False)


def recalls(
    similarity: Float[Tensor, "M K"],
    captions: Sequence[str],
    banks: Mapping[int, Sequence[str]],
    largest: Sequence[str],
) -> dict[int, tuple[float, float]]:
    """R@1 of single views and of objects, by the size of the bank.

    similarity: of pictures, N_VIEW for each of `captions` in turn, and all captions of `largest`.
    """
    position = {caption: k for k, caption in enumerate(largest)}
    found = {}
    for size, candidates in banks.items():
        columns = torch.tensor([position[caption] for caption in candidates])
        own = torch.tensor([position[caption] for caption in captions])
        views = similarity[:, columns].unflatten(0, (-1, N_VIEW))
        right = columns[views.argmax(dim=-1)] == own[:, None]
        whole = columns[views.sum(dim=1).argmax(dim=-1)] == own
        found[size] = (right.float().mean().item(), whole.float().mean().item())
    return found


@torch.no_grad()
def pictures_of(
    captions: Sequence[str], teachers: Teachers, steps: int, scale: float
) -> dict[str, Float[Tensor, "M 3 H W"]]:
    """Exact pictures of the captions and MVDream's samples, N_VIEW of each."""
    device, drawn = next(teachers.unets["mvdream"].parameters()).device, {"exact": [], "MVDream": []}
    for start in range(0, len(captions), _AT_ONCE):
        some = list(captions[start : start + _AT_ONCE])
        cameras = four_sides(len(some)).to(device)
        generator = keyed_generator("sizes", some[0], device=device)
        solids = [parse_caption(caption) for caption in some]
        drawn["exact"].append(render(solids, cameras, IMAGE_SIZE).rgb.permute(0, 3, 1, 2))
        drawn["MVDream"].append(teachers.sample("mvdream", some, cameras, generator, steps=steps, scale=scale))
    return {name: torch.cat(pictures) for name, pictures in drawn.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=Path("load/shapeworld"))
    parser.add_argument("--n", type=int, default=24, help="captions a split")
    parser.add_argument("--steps", type=int, default=25, help="of MVDream's samples")
    parser.add_argument("--guidance-scale", type=float, default=3.0, help="of MVDream's samples")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, default=Path("outputs/shapeworld/sizes.json"))
    given = parser.parse_args(arguments)
    sys.stderr.write("drawing the banks (about a minute)\n")
    banks = nested_banks()
    largest = banks[max(banks)]
    teachers, scorer = Teachers.load(given.weights, given.device), Scorer.load(given.weights / "scorer", given.device)
    found = {}
    for split in tqdm(EVALUATION_SPLITS, disable=None):
        captions = load_splits()[split][: given.n]
        pictures = pictures_of(captions, teachers, given.steps, given.guidance_scale)
        found[split] = {
            name: recalls(scorer.similarity(shown, largest).cpu(), captions, banks, largest)
            for name, shown in pictures.items()
        }
    write_text(given.json, json.dumps(found, indent=2) + "\n")
    names = [f"{name}, {size}" for name in ("exact", "MVDream") for size in banks]
    sys.stdout.write("| split | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|\n")
    for split, row in found.items():
        cells = [f"{view:.3f}, {whole:.3f}" for sizes in row.values() for view, whole in sizes.values()]
        sys.stdout.write(f"| {split} | " + " | ".join(cells) + " |\n")


if __name__ == "__main__":
    main()
