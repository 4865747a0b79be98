"""Banks of other sizes than that of the benchmark."""

from pathlib import Path

import torch

from custom.shapeworld.scorer import Scorer
from custom.shapeworld.sizes import N_VIEW, four_sides, nested_banks, recalls
from custom.shapeworld.splits import EVALUATION_SPLITS, load_splits, retrieval_bank
from custom.shapeworld.world import parse_caption
from triplaneturbo.evaluation.judge import Judge

SCORER = Path(__file__).parents[2] / "load/shapeworld/scorer"


def test_each_bank_is_in_the_next_and_the_smallest_has_all_splits():
    banks = nested_banks((19, 1600))  # the largest takes a minute
    small, middle, large = banks.values()
    assert list(banks) == [1_000, 10_000, len(large)]
    assert [len(set(bank)) for bank in banks.values()] == list(banks)
    assert middle == retrieval_bank()
    assert set(small) < set(middle) < set(large)
    assert all(set(load_splits()[split]) <= set(small) for split in EVALUATION_SPLITS)
    for caption in large[::97]:
        assert str(parse_caption(caption)) == caption == str(parse_caption(caption).canonical)


def test_a_larger_bank_has_more_that_can_be_taken_for_a_caption():
    """Views of `a` look like `a`, but one like `c`; two of `b` look like `c`, and all together like `b`."""
    a, b, c = torch.eye(3)
    similarity = torch.stack([a, a, a, c + 0.1 * b, 0.6 * b + 0.9 * c, c + 0.1 * b, 3 * b, b])
    assert len(similarity) == 2 * N_VIEW
    found = recalls(similarity, ["a", "b"], {2: ["b", "a"], 3: ["c", "a", "b"]}, ["a", "b", "c"])
    assert found == {2: (7 / 8, 1.0), 3: (5 / 8, 1.0)}


def test_pictures_are_taken_as_the_benchmark_takes_them():
    cameras, judges = four_sides(2), Judge(Scorer.load(SCORER), "cpu").cameras
    assert torch.equal(cameras.c2w, judges.c2w.repeat(2, 1, 1))
