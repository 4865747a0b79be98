"""The lists of captions in custom/shapeworld/splits.json are what their names say."""

import hashlib
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from custom.shapeworld import bank
from custom.shapeworld.bank import all_triples, hidden_triples, pair_groups, triples
from custom.shapeworld.shapes import SHAPES
from custom.shapeworld.splits import (
    EVALUATION_SPLITS,
    SPLITS_FILE,
    load_splits,
    retrieval_bank,
    student_captions,
    teacher_captions,
)
from custom.shapeworld.world import PALETTE, parse_caption

ROOT = Path(__file__).parents[2]
SHA256 = "fac5aa587a923510dac3641c7e004812ac688c3bf5069888ff19b1638bde3b18"


def solids(name):
    return [parse_caption(caption) for caption in load_splits()[name]]


def pairs(solid):
    """Of colour and shape."""
    return {(part.color, part.shape) for part in solid.parts}


def known(names, kind):
    """What occurs in these captions, by `kind` of a solid."""
    return set().union(*(kind(solid) for name in names for solid in solids(name)))


@pytest.fixture(scope="module")
def groups():
    return {name: set(own) for name, own in pair_groups().items()}


def test_the_file_is_the_frozen_one():
    """Every number of the benchmark refers to it."""
    assert hashlib.sha256(SPLITS_FILE.read_bytes()).hexdigest() == SHA256


def test_the_file_can_be_drawn_again():
    assert bank.frozen().encode() == SPLITS_FILE.read_bytes()


def test_counts():
    counts = {name: len(captions) for name, captions in load_splits().items()}
    assert counts["bank"] == 10_000
    assert [counts[name] for name in EVALUATION_SPLITS] == [96] * 7
    assert set(counts) == {*EVALUATION_SPLITS, "student", "teachers", "bank"}
    for name, captions in load_splits().items():
        assert len(set(captions)) == len(captions), name
        assert set(captions) <= set(retrieval_bank()), name


def test_splits_that_are_measured_have_no_caption_in_common():
    captions = [caption for name in EVALUATION_SPLITS for caption in load_splits()[name]]
    assert len(set(captions)) == 7 * 96


def test_only_the_train_split_is_the_students():
    student, teachers = set(student_captions()), set(teacher_captions())
    assert student < teachers
    for name in EVALUATION_SPLITS:
        own = set(load_splits()[name])
        assert own <= student if name == "train" else not own & student, name
        if name in ("train", "validation", "unseen_pairs"):
            assert own <= teachers, name
        else:
            assert not own & teachers, name


def test_pairs_of_colour_and_shape_fall_into_three_groups(groups):
    everything = Counter(pair for own in groups.values() for pair in own)
    assert set(everything) == {(color, shape) for color in PALETTE for shape in SHAPES}
    assert set(everything.values()) == {1}
    for name, count in (("train", 7), ("unseen", 2), ("novel", 1)):
        assert set(Counter(shape for _, shape in groups[name]).values()) == {count}
        assert {color for color, _ in groups[name]} == set(PALETTE)


def test_who_knows_which_pairs(groups):
    assert known(["student"], pairs) == groups["train"]
    assert known(["teachers"], pairs) == groups["train"] | groups["unseen"]
    assert known(["unseen_pairs"], pairs) <= groups["unseen"]
    assert known(["novel_pairs"], pairs) <= groups["novel"]
    assert {len(solid.parts) for name in ("unseen_pairs", "novel_pairs") for solid in solids(name)} == {1}
    for name in ("train", "validation", "unseen_orders", "unseen_relations", "three_parts"):
        assert known([name], pairs) <= groups["train"], name  # nothing else is new in these


def test_hidden_triples_are_hidden():
    orders, relations = hidden_triples()
    assert not orders & relations
    seen = known(["student", "teachers", "train", "validation", "three_parts"], triples)
    assert seen == set(all_triples()) - orders - relations
    assert known(["student"], triples) == seen


def test_of_unseen_orders_the_student_knows_the_reverse():
    orders, _ = hidden_triples()
    seen = known(["student"], triples)
    for solid in solids("unseen_orders"):
        ((upper, relation, lower),) = triples(solid)
        assert relation == "on"
        assert (upper, relation, lower) in orders - seen
        assert (lower, relation, upper) in seen


def test_of_unseen_relations_the_student_knows_the_words_and_the_pair_of_shapes():
    _, relations = hidden_triples()
    student = solids("student")
    words = {relation for solid in student for relation in solid.relations}
    together = {frozenset((a, b)) for solid in student for a, _, b in triples(solid)}
    for solid in solids("unseen_relations"):
        (triple,) = triples(solid)
        assert triple in relations
        assert set(solid.relations) <= words == {"on", "under", "beside"}
        assert frozenset(solid.shapes) in together
    kinds = {solid.relations[0] for solid in solids("unseen_relations")}
    assert kinds == words


def test_three_parts_are_new_as_a_whole_only():
    forms = {solid.form for name in ("student", "teachers") for solid in solids(name)}
    found = solids("three_parts")
    assert {len(solid.parts) for solid in found} == {3}
    assert not {str(solid) for solid in found} & {str(solid) for solid in solids("teachers")}
    assert sum(solid.form in forms for solid in found) <= 2  # in other colours


def test_every_kind_of_solid_is_in_the_splits_of_all():
    for name in ("train", "validation"):
        assert {len(solid.parts) for solid in solids(name)} == {1, 2, 3}, name
        assert {shape for solid in solids(name) for shape in solid.shapes} == set(SHAPES), name


def test_every_arrangement_of_two_shapes_has_as_many_captions():
    counts = Counter(triple for solid in solids("bank") if len(solid.parts) == 2 for triple in triples(solid))
    assert set(counts) == set(all_triples())
    assert max(counts.values()) - min(counts.values()) <= 12  # a pair and its mirror image count once
    assert all(a != b for solid in solids("bank") for a, b in pairwise(part.color for part in solid.parts))


def test_the_prompt_library_is_the_students():
    library = json.loads((ROOT / "load/shapeworld_prompt_library.json").read_text())
    assert list(library) == ["train", "val", "test"]
    assert library["train"] == list(student_captions())
    assert library["val"] == list(load_splits()["validation"][:8])
    assert library["test"] == list(load_splits()["train"])
