"""CLIP similarity and recall of the pictures of `launch.py --test`: see CLIP/evaluation_amortized.py.

DIR/NAME/N.png are the views of a prompt, as wide as several pictures side by side, of which the first, the square on
the left, is in colour. The prompt is that of NAME/prompt.txt, or, as in pictures of the original, the folder's name
with blanks for underscores. Similarity is the cosine of a view and its prompt; R@1 is the share of views whose nearest
prompt, among all of DIR, is their own: so it depends on how many these are. Both are means over views, then over
prompts, with 95 % intervals by bootstrap over prompts. Pictures are resized bilinearly, texts that are too long lose
their end.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers.utils import logging as transformers_logging

from triplaneturbo.storage import write_text

from .bootstrap import Interval, format_interval, mean_interval
from .clip_models import ClipJudge, load_clip
from .clip_score import View, judge
from .common import PROMPT_FILE, add_device_option

MODEL = "pretrained/clip-vit-large-patch14"


@dataclass(frozen=True)
class Result:
    """Means over prompts of the means over their views, and the intervals of these."""

    similarity: float
    recall: float
    intervals: tuple[Interval | None, Interval | None]
    n_prompts: int
    n_views: int


def read_sheets(folder: Path) -> list[View]:
    """The views in the folders of `folder`, ordered by prompt.

    Raises:
        ValueError: there are none, or two folders are of one prompt.
    """
    views, known = [], dict[str, Path]()
    for own in sorted({path.parent for path in folder.glob("*/*.png")}):
        prompt = own / PROMPT_FILE
        text = prompt.read_text(encoding="utf-8").rstrip("\n") if prompt.is_file() else own.name.replace("_", " ")
        if text in known:
            raise ValueError(f"{known[text]} and {own} are of the same prompt, {text!r}; keep one of them")
        known[text] = own
        views += [View(path, text) for path in sorted(own.glob("*.png"))]
    if not views:
        raise ValueError(
            f"there are no pictures {folder}/NAME/N.png; launch.py --test makes them, in save/itSTEP-test-..."
        )
    return views


def colour_picture(path: Path, size: int) -> Image.Image:
    """The square on the left of a sheet, `size` pixels wide."""
    picture = Image.open(path)
    square = picture.crop((0, 0, picture.height, picture.height))
    return square.resize((size, size), Image.Resampling.BILINEAR)


def evaluate(views: Sequence[View], model: ClipJudge) -> Result:
    """What the model says of the views and all of their prompts."""
    prompts = list(dict.fromkeys(view.prompt for view in views))
    number = {prompt: i for i, prompt in enumerate(prompts)}
    owner = torch.tensor([number[view.prompt] for view in views])
    found = judge(views, prompts, owner, model, partial(colour_picture, size=model.image_size))
    means = [_by_prompt(values, owner) for values in (found.cosine, found.correct.float())]
    each = torch.arange(len(prompts))
    intervals = mean_interval(means[0], each), mean_interval(means[1], each)
    return Result(means[0].mean().item(), means[1].mean().item(), intervals, len(prompts), len(views))


def _by_prompt(values: Tensor, owner: Tensor) -> Tensor:
    totals = torch.zeros(int(owner.max()) + 1, dtype=torch.float64).index_add_(0, owner, values.double())
    return totals / torch.bincount(owner)


def main(arguments: list[str] | None = None, program: str | None = None) -> None:
    """Command line; writes similarity.txt and recall.txt into the folder of the pictures."""
    parser = argparse.ArgumentParser(program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result_dir", type=Path, required=True, help="folder with a folder of pictures a prompt")
    parser.add_argument("--model", default=MODEL, help="folder of a transformers CLIP model (default: %(default)s)")
    add_device_option(parser)
    given = parser.parse_args(arguments)
    transformers_logging.disable_progress_bar()
    try:
        found = evaluate(read_sheets(given.result_dir), load_clip(given.model, given.devices[0]))
    except ValueError as error:
        parser.error(str(error))
    for label, value, interval in zip(
        ("similarity", "recall"), (found.similarity, found.recall), found.intervals, strict=True
    ):
        print(f"{label:12}{value:8.4f}   {format_interval(interval, digits=4)}")
        write_text(given.result_dir / f"{label}.txt", f"{value}\n")
    print(f"{found.n_prompts} prompts, {found.n_views} views")
