"""CLIP score and retrieval of rendered views: see clipscore/compute.py.

For a picture I and its caption T, score = 2.5 max(cos(I, T), 0) (Hessel et al. 2021), times 100; R@1 is the share of
pictures whose nearest caption, among those of all prompts, is their own. Both are means over all pictures, with 95 %
intervals by bootstrap over prompts.

The caption is the prompt of prompt.txt after the prefix "A photo depicts ". `--protocol original` builds it as the
original does: no blank after the prefix, no commas and full stops, the end of a long text cut off.

Several folders are the same prompts with other noise seeds. `--compare` says how far two methods are apart.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from .bootstrap import LEVEL, difference_interval, format_interval, mean_interval
from .clip_models import BATCH, ClipJudge, load_clip
from .common import PROMPT_FILE, Protocol, add_device_option, add_protocol_option, write_csv, write_json
from .views import read_settings

PREFIX = "A photo depicts "
SCALE = 2.5
PICTURES = {"right": ("rgb_*.png",), "original": ("*.png", "*.jpg")}


@dataclass(frozen=True)
class View:
    """One picture and the prompt that it should show."""

    path: Path
    prompt: str


@dataclass(frozen=True)
class Judgement:
    """What the model says about M pictures and K captions.

    similarity: cosines. owner: the number of each picture's own caption.
    """

    similarity: Float[Tensor, "M K"]
    owner: Int[Tensor, " M"]

    @property
    def cosine(self) -> Float[Tensor, " M"]:
        """Of each picture and its own caption."""
        return self.similarity.gather(1, self.owner[:, None])[:, 0]

    @property
    def score(self) -> Float[Tensor, " M"]:
        return _score(self.cosine)

    @property
    def nearest(self) -> Int[Tensor, " M"]:
        """The caption that the model prefers."""
        return self.similarity.argmax(dim=1)

    @property
    def correct(self) -> Bool[Tensor, " M"]:
        return self.nearest == self.owner

    @property
    def score_of_others(self) -> float | None:
        """Mean score of the pictures with the captions of all other prompts: what a picture of anything has."""
        n_pictures, n_captions = self.similarity.shape
        if n_captions == 1:
            return None
        others = _score(self.similarity).sum() - self.score.sum()
        return others.item() / (n_pictures * (n_captions - 1))


def _score(cosine: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    return 100 * SCALE * cosine.clamp(min=0)


def caption_of(prompt: str, prefix: str, protocol: Protocol) -> str:
    """What the picture of `prompt` is compared with."""
    if protocol == "right":
        return prefix + prompt
    return prefix.rstrip() + prompt.replace(",", "").replace(".", "").replace("_", " ")


def read_views(folder: Path, protocol: Protocol) -> list[View]:
    """Pictures in the folders folder/NAME, ordered by path, with the text of NAME/prompt.txt.

    original: every PNG and JPEG; where there is no prompt.txt the folder's name is the prompt, as for pictures that the
    original's program made.

    Raises:
        ValueError: there are none, they were made by different protocols, or there is no prompt.
    """
    paths = sorted(path for pattern in PICTURES[protocol] for path in folder.glob(f"*/{pattern}"))
    if not paths:
        raise ValueError(f"there are no pictures {folder}/NAME/rgb_*.png; mesh_visualize.py makes them")
    without = [path.parent for path in paths if not (path.parent / PROMPT_FILE).is_file()]
    if without and protocol == "right":
        raise ValueError(f"{without[0]} has no {PROMPT_FILE}; write the prompt of its mesh into it")
    return [View(path, _prompt_of(path.parent)) for path in paths]


def _prompt_of(folder: Path) -> str:
    path = folder / PROMPT_FILE
    return path.read_text().rstrip("\n") if path.is_file() else folder.name


def picture_protocol(views: Sequence[View]) -> str | None:
    """The protocol that the pictures were rendered by; None if mesh_visualize.py did not make them.

    Raises:
        ValueError: they are of different kinds.
    """
    kinds = {folder: read_settings(folder) for folder in dict.fromkeys(view.path.parent for view in views)}
    if len(set(kinds.values())) > 1:
        first, *others = kinds
        other = next(folder for folder in others if kinds[folder] != kinds[first])
        raise ValueError(
            f"{first} and {other} were rendered in different ways ({kinds[first]}, {kinds[other]}); render one of them "
            "again with mesh_visualize.py --force"
        )
    (settings,) = set(kinds.values())
    return settings.protocol if settings else None


def judge(
    views: Sequence[View],
    captions: Sequence[str],
    owner: Int[Tensor, " M"],
    model: ClipJudge,
    open_picture: Callable[[Path], Image.Image] = Image.open,
) -> Judgement:
    """Cosines of all pictures with all captions."""
    texts = model.texts(captions).cpu()
    rows = []
    for start in tqdm(range(0, len(views), BATCH), unit="batch"):
        pictures = [open_picture(view.path) for view in views[start : start + BATCH]]
        rows.append(model.images(pictures).cpu() @ texts.T)
    return Judgement(torch.cat(rows), owner)


@dataclass(frozen=True)
class Evaluation:
    """The pictures of one method, the captions of their prompts in alphabetical order, and the model's judgement."""

    views: list[View]
    captions: list[str]
    judgement: Judgement


def evaluate(folders: Sequence[Path], model: ClipJudge, *, prefix: str, protocol: Protocol) -> Evaluation:
    """Judge the pictures of one method, in one folder or in one for each noise seed.

    Raises:
        ValueError: pictures or prompts are missing, the folders have different prompts, or a caption is too long.
    """
    views, captions = [], []
    for folder in folders:
        own = read_views(folder, protocol)
        distinct = sorted({caption_of(view.prompt, prefix, protocol) for view in own})
        if captions:
            require_same(folders[0], captions, folder, distinct)
        views, captions = views + own, distinct
    too_long = model.too_long(captions) if protocol == "right" else []
    if too_long:
        raise ValueError(
            f"{len(too_long)} of {len(captions)} captions are longer than the {model.max_tokens} tokens that the model "
            f"reads, first {too_long[0]!r}; shorten them, or leave the prefix away with --prefix ''"
        )
    number = {caption: i for i, caption in enumerate(captions)}
    owner = torch.tensor([number[caption_of(view.prompt, prefix, protocol)] for view in views])
    return Evaluation(views, captions, judge(views, captions, owner, model))


def require_same(a: Path, captions: Sequence[str], b: Path, others: Sequence[str]) -> None:
    """Raise if two folders do not have the same captions, so that they cannot be pooled or paired.

    Raises:
        ValueError: naming a caption of one of them alone.
    """
    for one, only in ((a, set(captions) - set(others)), (b, set(others) - set(captions))):
        if only:
            raise ValueError(f"{a} and {b} have different prompts: {sorted(only)[0]!r} is in {one} alone")


def summarise(evaluation: Evaluation) -> dict[str, Any]:
    """Means over pictures, their intervals, and what they are without knowledge of the caption (chance)."""
    found = evaluation.judgement
    return {
        "clip_score": found.score.mean().item(),
        "r_at_1": found.correct.float().mean().item(),
        "intervals": {
            "clip_score": mean_interval(found.score, found.owner),
            "r_at_1": mean_interval(found.correct, found.owner),
        },
        "chance": {"clip_score": found.score_of_others, "r_at_1": 1 / len(evaluation.captions)},
        "n_prompts": len(evaluation.captions),
        "n_pictures": len(evaluation.views),
        "pictures": picture_protocol(evaluation.views),
    }


def printed_by_original(evaluation: Evaluation) -> float:
    """The CLIP score that the original's program prints: it keeps one picture for each file name, that of the last
    folder, here in the order of names (there in the file system's). Its R@1 is that of all pictures."""
    last = {view.path.stem: score for view, score in zip(evaluation.views, evaluation.judgement.score, strict=True)}
    return torch.stack(list(last.values())).mean().item()


def compare(one: Evaluation, other: Evaluation) -> dict[str, Any]:
    """Difference of the means (one - other), with paired intervals."""
    a, b = one.judgement, other.judgement
    return {
        "clip_score": (a.score.mean() - b.score.mean()).item(),
        "r_at_1": (a.correct.float().mean() - b.correct.float().mean()).item(),
        "intervals": {
            "clip_score": difference_interval(a.score, a.owner, b.score, b.owner),
            "r_at_1": difference_interval(a.correct, a.owner, b.correct, b.owner),
        },
    }


def rows_of(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One row for each picture."""
    found = evaluation.judgement
    return [
        {
            "folder": str(view.path.parent),
            "view": view.path.stem,
            "prompt": view.prompt,
            "cosine": found.cosine[i].item(),
            "clip_score": found.score[i].item(),
            "nearest": evaluation.captions[found.nearest[i]],
            "correct": int(found.correct[i]),
        }
        for i, view in enumerate(evaluation.views)
    ]


def table(title: str, summary: dict[str, Any]) -> str:
    """The two numbers of `summarise` or `compare`, each with its interval."""
    chance = summary.get("chance")
    lines = [f"{title:24}{'mean':>8}   {f'{100 * LEVEL:.0f} % interval':18}{'chance' if chance else ''}".rstrip()]
    for label, name, scale in (("CLIP score", "clip_score", 1.0), ("R@1, %", "r_at_1", 100.0)):
        span = format_interval(summary["intervals"][name], scale)
        without = f"{scale * chance[name]:.2f}" if chance and chance[name] is not None else ""
        lines.append(f"{label:24}{scale * summary[name]:8.2f}   {span:18}{without}".rstrip())
    return "\n".join(lines)


def _parser(program: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result_dir", type=Path, nargs="+", default=[], help="folders that mesh_visualize.py wrote")
    parser.add_argument("--compare", type=Path, nargs="+", metavar="OTHER_DIR", help="the same of another method")
    parser.add_argument(
        "--model",
        default="pretrained/clip-vit-base-patch32",
        help="folder of a transformers CLIP model, or open_clip:ARCHITECTURE/WEIGHTS (default: %(default)s)",
    )
    parser.add_argument("--check", action="store_true", help="see that --model can be loaded, before hours of export")
    parser.add_argument("--prefix", default=PREFIX, help="text before every prompt (default: '%(default)s')")
    add_protocol_option(parser)
    parser.add_argument("--json", type=Path, help="write the summary here")
    parser.add_argument("--csv", type=Path, help="one line a picture; default: clip_scores.csv in the first folder")
    add_device_option(parser)
    return parser


def run(given: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report, and one row for each picture of --result_dir.

    Raises:
        ValueError: as `evaluate`; or the two methods were not measured alike.
    """
    model = load_clip(given.model, given.devices[0])
    settings = {"protocol": given.protocol, "prefix": given.prefix}
    one = evaluate(given.result_dir, model, **settings)
    report = {"result_dir": list(map(str, given.result_dir)), **summarise(one), **settings, "model": given.model}
    if given.protocol == "original":
        report["printed_by_original"] = printed_by_original(one)
    if given.compare:
        other = evaluate(given.compare, model, **settings)
        require_same(given.result_dir[0], one.captions, given.compare[0], other.captions)
        report["compare"] = {"result_dir": list(map(str, given.compare)), **summarise(other)}
        kinds = {report["pictures"], report["compare"]["pictures"]} - {None}
        if len(kinds) > 1:
            raise ValueError(f"the two methods were rendered by different protocols, {' and '.join(sorted(kinds))}")
        report["compare"]["difference"] = compare(one, other)
    return report, rows_of(one)


def print_report(report: dict[str, Any]) -> None:
    """Tables of what `run` found."""
    print(table(report["result_dir"][0], report))
    if "printed_by_original" in report:
        print(f"{'the original prints':24}{report['printed_by_original'] / 100:8.4f}   of the last prompt's pictures")
    rendered = f"rendered by protocol {report['pictures']}" if report["pictures"] else "of another program"
    print(f"{report['n_prompts']} prompts, {report['n_pictures']} pictures, {rendered}")
    if other := report.get("compare"):
        print("\n" + table(other["result_dir"][0], other))
        print("\n" + table("difference, paired", other["difference"]))


def main(arguments: list[str] | None = None, program: str | None = None) -> None:
    """Command line."""
    parser = _parser(program)
    given = parser.parse_args(arguments)
    if not (given.result_dir or given.check):
        parser.error("--result_dir is needed")
    transformers_logging.disable_progress_bar()  # one for every small network that is loaded
    try:
        if given.check:
            load_clip(given.model, given.devices[0])
            return
        report, rows = run(given)
    except ValueError as error:
        parser.error(str(error))
    print_report(report)
    write_csv(given.csv or given.result_dir[0] / "clip_scores.csv", rows)
    if given.json:
        write_json(given.json, report)
