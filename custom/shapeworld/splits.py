"""Which captions belong to whom. The lists in splits.json are frozen: every number of the benchmark refers to them.

bank: all 10 000 captions; the scorer is trained on them, and R@1 chooses among them. teachers, student: what these are
trained on. The splits that are measured have 96 captions each:

train             of the student's own
validation        solids that the teachers know and the student does not; all choices are made here
unseen_pairs      single solids whose pair of colour and shape no prompt of the student has; the teachers know them
novel_pairs       the same, known to the scorer alone
unseen_orders     stacks in an order that neither student nor teachers have seen of these shapes; they know the reverse
unseen_relations  pairs of shapes that both know in other relations only
three_parts       three parts, each as the student knows it, in arrangements that neither has seen

`bank.py` says how they were drawn.
"""

import json
from functools import lru_cache
from pathlib import Path

SPLITS_FILE = Path(__file__).with_name("splits.json")
EVALUATION_SPLITS = (
    "train",
    "validation",
    "unseen_pairs",
    "novel_pairs",
    "unseen_orders",
    "unseen_relations",
    "three_parts",
)


@lru_cache
def load_splits() -> dict[str, tuple[str, ...]]:
    """The captions of every list in splits.json."""
    rows = json.loads(SPLITS_FILE.read_text())
    bank = tuple(rows.pop("bank"))
    return {"bank": bank, **{name: tuple(bank[i] for i in row) for name, row in rows.items()}}


def student_captions() -> tuple[str, ...]:
    """What the student is trained on."""
    return load_splits()["student"]


def teacher_captions() -> tuple[str, ...]:
    """What the teachers are trained on."""
    return load_splits()["teachers"]


def retrieval_bank() -> tuple[str, ...]:
    """What R@1 chooses from, and the scorer is trained on: all captions."""
    return load_splits()["bank"]
