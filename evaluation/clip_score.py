"""CLIP score and retrieval of rendered views: see clipscore/compute.py.

For a picture I and its caption T, score = 2.5 max(cos(I, T), 0) (Hessel et al. 2021), times 100; R@1 is the share of
pictures whose nearest caption, among all captions of the folder, is their own. Both are means over all pictures; the
standard error takes prompts, not pictures, as independent.

The caption is the prompt of prompt.txt after the prefix "A photo depicts ". `--protocol original` builds it as the
original does: without the blank after the prefix, and without commas and full stops.
"""

import argparse
import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from evaluation.clip_models import ClipJudge, load_clip
from evaluation.views import PROMPT_FILE, Protocol, add_device_option
from triplaneturbo.weights.files import replacing

PREFIX = "A photo depicts "
SCALE = 2.5


@dataclass(frozen=True)
class Judgement:
    """What the model says about M pictures and the K captions they may show.

    owner: the caption of each picture. nearest: the caption the model prefers.
    """

    cosine: Float[Tensor, " M"]
    nearest: Int[Tensor, " M"]
    owner: Int[Tensor, " M"]

    @property
    def score(self) -> Float[Tensor, " M"]:
        return 100 * SCALE * self.cosine.clamp(min=0)

    @property
    def correct(self) -> Bool[Tensor, " M"]:
        return self.nearest == self.owner


def judge(pictures: Float[Tensor, "M D"], captions: Float[Tensor, "K D"], owner: Int[Tensor, " M"]) -> Judgement:
    """From unit vectors of pictures and captions; `owner[m]` is the row of picture m's own caption."""
    similarity = pictures @ captions.T
    own = similarity.gather(1, owner[:, None])[:, 0]
    return Judgement(cosine=own, nearest=similarity.argmax(dim=1), owner=owner)


def mean_and_error(values: Float[Tensor, " M"], owner: Int[Tensor, " M"]) -> tuple[float, float]:
    """Mean over pictures, and its standard error with captions as the independent units (0 for a single one)."""
    owners, row = owner.unique(return_inverse=True)
    count = torch.bincount(row)
    means = torch.zeros(len(owners)).index_add(0, row, values.float()) / count
    error = means.std().item() / len(owners) ** 0.5 if len(owners) > 1 else 0.0
    return values.float().mean().item(), error


def caption_of(prompt: str, prefix: str, protocol: Protocol) -> str:
    """What the picture of `prompt` is compared with."""
    if protocol == "original":
        return prefix.rstrip() + prompt.replace(",", "").replace(".", "")
    return prefix + prompt


def read_views(folder: Path) -> tuple[list[Path], list[str]]:
    """Pictures folder/NAME/rgb_*.png and the prompt of each.

    Raises:
        ValueError: there are none, or a folder has no prompt.txt.
    """
    paths = sorted(folder.glob("*/rgb_*.png"))
    if not paths:
        raise ValueError(f"there are no pictures {folder}/NAME/rgb_*.png; mesh_visualize.py makes them")
    without = [path.parent for path in paths if not (path.parent / PROMPT_FILE).is_file()]
    if without:
        raise ValueError(f"{without[0]} has no {PROMPT_FILE}; write the prompt of its mesh into it")
    return paths, [(path.parent / PROMPT_FILE).read_text().rstrip("\n") for path in paths]


def evaluate(folder: Path, model: ClipJudge, *, prefix: str, protocol: Protocol) -> tuple[dict, list[dict[str, Any]]]:
    """Summary, and one row for each picture."""
    paths, prompts = read_views(folder)
    distinct = list(dict.fromkeys(prompts))
    position = {prompt: i for i, prompt in enumerate(distinct)}
    owner = torch.tensor([position[prompt] for prompt in prompts])
    pictures = torch.cat([model.images(_read_picture(path)).cpu() for path in paths])
    captions = model.texts([caption_of(prompt, prefix, protocol) for prompt in distinct]).cpu()
    found = judge(pictures, captions, owner)
    score, score_error = mean_and_error(found.score, owner)
    recall, recall_error = mean_and_error(found.correct, owner)
    summary = {
        "clip_score": score,
        "clip_score_error": score_error,
        "r_at_1": recall,
        "r_at_1_error": recall_error,
        "n_prompts": len(distinct),
        "n_pictures": len(paths),
        "protocol": protocol,
        "prefix": prefix,
    }
    rows = [
        {
            "prompt": prompt,
            "view": path.stem,
            "cosine": found.cosine[i].item(),
            "clip_score": found.score[i].item(),
            "nearest": distinct[found.nearest[i]],
            "correct": int(found.correct[i]),
        }
        for i, (path, prompt) in enumerate(zip(paths, prompts, strict=True))
    ]
    return summary, rows


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """One line a row, columns as in the first."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, content: dict) -> None:
    """Indented, with a new line at the end."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def _read_picture(path: Path) -> Float[Tensor, "1 H W 3"]:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).float()[None] / 255


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result_dir", type=Path, required=True, help="folder that mesh_visualize.py wrote")
    parser.add_argument(
        "--model",
        default="pretrained/clip-vit-base-patch32",
        help="folder of a transformers CLIP model, or open_clip:ARCHITECTURE/WEIGHTS",
    )
    parser.add_argument("--prefix", default=PREFIX, help="text before every prompt")
    parser.add_argument("--protocol", choices=("right", "original"), default="right")
    parser.add_argument("--json", type=Path, help="write the summary here")
    parser.add_argument("--csv", type=Path, help="one line a picture; default: clip_scores.csv in --result_dir")
    add_device_option(parser)
    given = parser.parse_args(arguments)
    try:
        model = load_clip(given.model, given.device)
        summary, rows = evaluate(given.result_dir, model, prefix=given.prefix, protocol=given.protocol)
    except ValueError as error:
        parser.error(str(error))
    summary["model"] = given.model
    write_csv(given.csv or given.result_dir / "clip_scores.csv", rows)
    if given.json:
        write_json(given.json, summary)
    print(f"CLIP score {summary['clip_score']:.2f} +- {summary['clip_score_error']:.2f}")
    print(f"R@1        {100 * summary['r_at_1']:.2f} +- {100 * summary['r_at_1_error']:.2f} %")
    print(f"{summary['n_prompts']} prompts, {summary['n_pictures']} pictures")
