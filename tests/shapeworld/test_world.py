"""Captions, solids and splits."""

import json
import math
from itertools import product
from pathlib import Path

import pytest
import torch

from custom.shapeworld.splits import load_splits, retrieval_bank, scorer_captions, teacher_captions, whole_bank
from custom.shapeworld.world import (
    BALL_RADIUS,
    PALETTE,
    SHAPES,
    Part,
    Solid,
    occupancy,
    parse_caption,
    part_sdf,
    placements,
    sdf,
)
from triplaneturbo.errors import UnknownNameError

ROOT = Path(__file__).parents[2]
# Closed-form volumes of the primitives in the units of world.py.
VOLUMES = {
    "sphere": 4 / 3 * math.pi,
    "cube": 8,
    "cylinder": math.pi * 0.72**2 * 2,
    "cone": math.pi * 2 / 3,
    "torus": 2 * math.pi**2 * 0.4**2,
    "capsule": math.pi * 0.95**2 * (2 + 4 / 3 * 0.95),
    "pyramid": 4 * 1.9 / 3,
    "diamond": 4 / 3,
    "disk": math.pi * 0.5,
    "wedge": 1.7 * 2 * 0.95,
    "dome": 2 / 3 * math.pi,
    "cross": 3 * (2 * 0.56**2) - 2 * 0.56**3,
}


def single(shape, color="red"):
    return Solid((Part(shape, color),))


def uniform(n, generator_seed=0, radius=1.0):
    generator = torch.Generator().manual_seed(generator_seed)
    return (torch.rand(n, 3, generator=generator, dtype=torch.float64) * 2 - 1) * radius


@pytest.mark.parametrize("caption", ["a red cube", "an orange torus", "a red cube on an orange cylinder"])
def test_captions_survive_the_round_trip(caption):
    assert str(parse_caption(caption)) == caption


def test_the_upper_part_comes_first():
    upper, lower = parse_caption("a red cube on a blue cylinder").parts
    assert (upper, lower) == (Part("cube", "red"), Part("cylinder", "blue"))
    high, low = placements(("cube", "cylinder"))
    assert high.height > low.height


@pytest.mark.parametrize(
    ("caption", "error", "words"),
    [
        ("a rde cube", UnknownNameError, "did you mean 'red'"),
        ("a red cub", UnknownNameError, "did you mean 'cube'"),
        ("a red cube on a blue cilinder", UnknownNameError, "did you mean 'cylinder'"),
        ("red cube", ValueError, "a COLOUR SHAPE"),
        ("a red cube under a blue disk", ValueError, "a COLOUR SHAPE"),
    ],
)
def test_unreadable_captions_say_what_is_allowed(caption, error, words):
    with pytest.raises(error, match=words):
        parse_caption(caption)


def test_every_stack_fits_the_ball_and_touches_it():
    for shapes in [(name,) for name in SHAPES] + list(product(SHAPES, repeat=2)):
        reach = 0.0
        for name, placed in zip(shapes, placements(shapes), strict=True):
            reach = max(reach, *(math.hypot(rho, z) + r for rho, z, r in placed.rim(SHAPES[name])))
        assert reach == pytest.approx(BALL_RADIUS, abs=1e-9)


def test_no_solid_reaches_beyond_the_ball():
    points = uniform(20_000)
    outside = points[points.norm(dim=1) > BALL_RADIUS + 1e-6]
    solids = [single(name) for name in SHAPES] + [parse_caption("a red torus on a blue cone")]
    assert not occupancy(solids, outside.expand(len(solids), -1, -1)).any()


@pytest.mark.parametrize("name", SHAPES)
def test_volumes_agree_with_closed_forms(name):
    n = 400_000
    points = uniform(n, radius=BALL_RADIUS)
    share = occupancy([single(name)], points[None])[0].double().mean().item()
    expected = VOLUMES[name] * placements((name,))[0].scale ** 3 / (2 * BALL_RADIUS) ** 3
    deviation = math.sqrt(expected * (1 - expected) / n)
    assert abs(share - expected) < 4 * deviation


@pytest.mark.parametrize("name", SHAPES)
def test_distances_never_overshoot(name):
    a, b = uniform(4000, 1), uniform(4000, 2)
    solid = [single(name)]
    slope = (sdf(solid, a[None]) - sdf(solid, b[None])).abs() / (a - b).norm(dim=1)
    assert slope.max() <= 1 + 1e-5
    points = uniform(2000, 3).requires_grad_(True)
    (gradient,) = torch.autograd.grad(sdf(solid, points[None]).sum(), points)
    length = gradient.norm(dim=1)
    assert (length <= 1 + 1e-9).all()
    assert length.median().item() == pytest.approx(1, abs=1e-4)


def test_parts_of_every_stack_overlap():
    """Stacked parts sink into each other: there are points inside both, and none deep inside both."""
    axis = torch.linspace(-BALL_RADIUS, BALL_RADIUS, 48, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(1, -1, 3)
    for shapes in [
        ("sphere", "sphere"),
        ("torus", "cone"),
        ("cross", "torus"),
        ("cube", "pyramid"),
        ("disk", "diamond"),
    ]:
        solid = Solid(tuple(Part(name, "red") for name in shapes))
        overlap = part_sdf([solid], points)[0].amax(dim=0).min().item()
        assert -0.05 < overlap < 0.012  # a grid point may miss a thin contact by half a cell


def test_a_mixed_batch_equals_its_solids_one_by_one():
    captions = ["a red cube", "a blue torus on a green cone", "a red sphere", "a green cube on a red cross"]
    solids = [parse_caption(caption) for caption in captions]
    points = uniform(400).reshape(4, 100, 3)
    one_by_one = torch.cat([part_sdf([solid], points[i : i + 1]) for i, solid in enumerate(solids)])
    torch.testing.assert_close(part_sdf(solids, points), one_by_one, rtol=0, atol=1e-6)


def test_splits_are_what_their_names_say():
    splits = load_splits()
    train, unseen, novel = (set(splits[name]) for name in ("train", "unseen_pairs", "novel_pairs"))
    assert len(train | unseen | novel) == 96 == len(train) + len(unseen) + len(novel)
    assert train | unseen | novel == {str(single(s, c)) for s in SHAPES for c in PALETTE}
    hidden, shown = set(splits["unseen_compositions"]), set(splits["train_compositions"])
    assert len(hidden) == 64
    assert not hidden & shown
    for caption in hidden | shown:
        assert {str(Solid((part,))) for part in parse_caption(caption).parts} <= train
    for group in (unseen, novel):
        assert {parse_caption(caption).shapes[0] for caption in group} == set(SHAPES)


def test_teachers_know_neither_novel_pairs_nor_hidden_stacks():
    splits = load_splits()
    singles, stacks = teacher_captions()
    assert set(singles) == set(splits["train"]) | set(splits["unseen_pairs"])
    assert not set(stacks) & set(splits["unseen_compositions"])
    assert set(splits["train_compositions"]) < set(stacks)
    assert not any(novel in stack for novel in splits["novel_pairs"] for stack in stacks)
    assert set(splits["unseen_compositions"]) < set(scorer_captions()[1])


def test_retrieval_banks_contain_their_split():
    for split in ("train", "unseen_pairs", "novel_pairs", "unseen_compositions"):
        bank = retrieval_bank(split)
        assert set(load_splits()[split]) <= set(bank)
        assert len(set(bank)) == len(bank) == (128 if split == "unseen_compositions" else 96)
        everything = whole_bank(split)
        assert set(bank) <= set(everything)
        assert len(set(everything)) == len(everything) == (96 * 95 if split == "unseen_compositions" else 96)


def test_unseen_stacks_are_new_in_colour_only():
    """What README.md says of this split: the student was trained on each ordered pair of shapes in other colours."""

    def shapes(caption):
        return tuple(part.shape for part in parse_caption(caption).parts)

    splits = load_splits()
    assert {shapes(stack) for stack in splits["unseen_compositions"]} <= {
        shapes(stack) for stack in splits["train_compositions"]
    }


def test_the_prompt_library_holds_the_students_prompts_only():
    library = json.loads((ROOT / "load/shapeworld_prompt_library.json").read_text())
    splits = load_splits()
    assert set(library["train"]) == set(splits["train"]) | set(splits["train_compositions"])
    assert set(library["val"]) < set(library["train"])
    assert library["test"] == list(splits["train"])
