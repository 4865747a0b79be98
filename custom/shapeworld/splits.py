"""Which captions belong to whom. The lists in splits.json are frozen: every number of the benchmark refers to them.

train: single solids of the student. train_compositions: its stacks. unseen_pairs: single solids whose colour-shape pair
no prompt of the student contains; the teachers know them. novel_pairs: known to the scorer alone.
unseen_compositions: stacks of the student's pairs that neither student nor teachers have seen.
"""

import json
from functools import lru_cache
from itertools import permutations
from pathlib import Path

SPLITS_FILE = Path(__file__).with_name("splits.json")
EVALUATION_SPLITS = ("train", "unseen_pairs", "novel_pairs", "unseen_compositions")
COMPOSITION_BANK = 128


@lru_cache
def load_splits() -> dict[str, tuple[str, ...]]:
    """The captions of every list in splits.json."""
    return {name: tuple(captions) for name, captions in json.loads(SPLITS_FILE.read_text()).items()}


def _stacks(singles: tuple[str, ...]) -> list[str]:
    return [f"{upper} on {lower}" for upper, lower in permutations(singles, 2)]


@lru_cache
def teacher_captions() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Single solids and stacks that the teachers are trained on: all of their pairs, without unseen_compositions."""
    splits = load_splits()
    singles = splits["train"] + splits["unseen_pairs"]
    hidden = set(splits["unseen_compositions"])
    return singles, tuple(caption for caption in _stacks(singles) if caption not in hidden)


@lru_cache
def scorer_captions() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Single solids and stacks that the scorer is trained on: everything."""
    splits = load_splits()
    singles = splits["train"] + splits["unseen_pairs"] + splits["novel_pairs"]
    return singles, tuple(_stacks(singles))


def retrieval_bank(split: str) -> tuple[str, ...]:
    """The captions that R@1 of `split` chooses from: all singles, or COMPOSITION_BANK stacks, the split's own first."""
    splits = load_splits()
    if split != "unseen_compositions":
        return scorer_captions()[0]
    return (splits[split] + splits["train_compositions"])[:COMPOSITION_BANK]


def whole_bank(split: str) -> tuple[str, ...]:
    """The same with every stack that there is: 9120."""
    singles, stacks = scorer_captions()
    return stacks if split == "unseen_compositions" else singles
