"""Captions and solids of the miniature world."""

import itertools
import math
from collections import defaultdict

import pytest
import torch

from custom.shapeworld.bank import shuffled
from custom.shapeworld.measure import iou, sample_solid, solid_occupancy
from custom.shapeworld.render import render, surface_normal
from custom.shapeworld.shapes import SHAPES
from custom.shapeworld.splits import retrieval_bank
from custom.shapeworld.world import (
    BALL_RADIUS,
    GAP,
    INK,
    NO_PART,
    OVERLAP,
    PALETTE,
    PATTERNS,
    PROPORTIONS,
    SMALL,
    Layout,
    Part,
    Solid,
    parse_caption,
    part_sdf,
    placements,
    sdf,
    stands,
)
from triplaneturbo.cameras import orbit_cameras
from triplaneturbo.errors import UnknownNameError

# Closed-form volumes in the units of shapes.py. The rings of an eight overlap: it has none.
VOLUMES = {
    "sphere": 4 / 3 * math.pi,
    "cube": 8,
    "cylinder": math.pi * 0.72**2 * 2,
    "cone": math.pi * 2 / 3,
    "torus": 2 * math.pi**2 * 0.4**2,
    "capsule": math.pi * 0.7**2 * (2 + 4 / 3 * 0.7),
    "pyramid": 4 * 1.9 / 3,
    "diamond": 4 / 3,
    "disk": math.pi * 0.5,
    "wedge": 1.7 * 2 * 0.95,
    "dome": 2 / 3 * math.pi,
    "cross": 3 * (2 * 0.56**2) - 2 * 0.56**3,
    "frame": (2**2 - 1.1**2) * 0.7,
    "arch": (2 * 1.8 - 1.1 * 0.9 - math.pi * 0.55**2 / 2) * 0.9,
    "star": 5 * 0.45 * math.sin(math.pi / 5) * 0.7,
}
FORMS = list(itertools.product(SHAPES, ("", *PROPORTIONS)))


def single(shape, proportion="", color="red", pattern=""):
    return Solid((Part(shape, color, pattern, proportion),))


def of_bank(n, *key, parts=(1, 2, 3), relation=""):
    """n captions of the bank as solids, drawn by `key`."""
    captions = [c for c in retrieval_bank() if f" {relation}" in c]
    solids = map(parse_caption, shuffled(captions, *key))
    return list(itertools.islice((solid for solid in solids if len(solid.parts) in parts), n))


def uniform(n, seed=0, radius=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(n, 3, generator=generator, dtype=torch.float64) * 2 - 1) * radius


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Captions


@pytest.mark.parametrize(
    "caption",
    [
        "a red cube",
        "an orange torus",
        "a tall striped blue cone",
        "a red cube on an orange cylinder",
        "a flat white star under a dotted pink eight",
        "a small green star beside a white arch",
        "a brown wedge beside a small tall striped cyan disk",
        "a red cube on a blue dome on a green frame",
        "a red cube under a blue dome under a green frame",
        "a red cube under a blue dome beside a green frame",
    ],
)
def test_captions_survive_the_round_trip(caption):
    assert str(parse_caption(caption)) == caption
    assert str(parse_caption(f"  {caption.upper().replace(' ', '  ')} ")) == caption


def test_every_word_of_a_part_is_read():
    first, second = parse_caption("a small tall dotted green star beside a flat striped white arch").parts
    assert first == Part("star", "green", "dotted", "tall", small=True)
    assert second == Part("arch", "white", "striped", "flat")


@pytest.mark.parametrize(
    ("caption", "error", "words"),
    [
        ("a rde cube", UnknownNameError, "no colour 'rde'; did you mean 'red'"),
        ("a red cub", UnknownNameError, "no shape 'cub'; did you mean 'cube'"),
        ("a red cube beside a blue cilinder", UnknownNameError, "did you mean 'cylinder'"),
        ("red cube", ValueError, "a COLOUR SHAPE"),
        ("a red cube over a blue disk", ValueError, "a COLOUR SHAPE"),
        ("a striped tall red cube", ValueError, "a COLOUR SHAPE"),
        ("a red cube on", ValueError, "a COLOUR SHAPE"),
        ("", ValueError, "a COLOUR SHAPE"),
        ("a red cube beside a blue disk on a green dome", ValueError, "three parts are a tower"),
        ("a red cube beside a blue disk beside a green dome", ValueError, "three parts are a tower"),
        ("a red cube on a blue disk under a green dome", ValueError, "three parts are a tower"),
        ("a red cube on a blue disk on a green dome on a red star", ValueError, "three parts are a tower"),
        ("a small red cube", ValueError, "can be small"),
        ("a small red cube on a blue disk", ValueError, "can be small"),
        ("a small red cube beside a small blue disk", ValueError, "can be small"),
        ("a red cube on a blue disk beside a small green dome", ValueError, "can be small"),
        ("a red capsule on a blue torus", ValueError, "fits through the hole"),
        ("a red torus under a tall blue cylinder beside a green star", ValueError, "fits through the hole"),
    ],
)
def test_unreadable_captions_say_what_is_allowed(caption, error, words):
    with pytest.raises(error, match=words):
        parse_caption(caption)


@pytest.mark.parametrize(
    ("caption", "same"),
    [
        ("a red cube under a blue disk", "a blue disk on a red cube"),
        ("a red cube under a blue disk under a green dome", "a green dome on a blue disk on a red cube"),
        ("a red cube under a blue disk beside a green dome", "a blue disk on a red cube beside a green dome"),
    ],
)
def test_under_is_on_the_other_way_around(caption, same):
    under, on = parse_caption(caption), parse_caption(same)
    assert under != on
    assert (under.columns, under.form, under.placed_parts) == (on.columns, on.form, on.placed_parts)
    assert under.canonical == on.canonical
    assert under.rephrased("on") == on
    assert on.rephrased("under") == under
    points = uniform(200)[None]
    assert torch.equal(part_sdf([under], points), part_sdf([on], points))


def test_columns_are_named_from_the_top_down():
    solid = parse_caption("a red cube under a blue disk beside a green dome")
    assert [[part.shape for part in column] for column in solid.columns] == [["disk", "cube"], ["dome"]]
    disk, cube, dome = placements(solid.form)
    assert disk.center[2] > cube.center[2]
    assert disk.center[0] == cube.center[0] < dome.center[0]


def test_captions_of_the_bank_are_canonical_and_read_as_themselves():
    solids = [parse_caption(caption) for caption in retrieval_bank()]
    assert tuple(map(str, solids)) == retrieval_bank()
    for solid in solids:
        assert solid.canonical == solid
        assert solid.rephrased("on").canonical == solid.rephrased("under").canonical == solid
    words = [solid.relations[0] for solid in solids if solid.relations and solid.relations[0] != "beside"]
    assert 0.45 < words.count("on") / len(words) < 0.55


# Solids


@pytest.mark.parametrize("name", VOLUMES)
def test_volumes_agree_with_closed_forms(name):
    """Those of tall and flat shapes are the same, times what these stretch."""
    n, points = 200_000, uniform(200_000, radius=BALL_RADIUS)
    for proportion in ("", *PROPORTIONS):
        solid = single(name, proportion)
        (placed,) = placements(solid.form)
        wide, high = placed.stretch
        assert high / wide == pytest.approx({"": 1, "tall": 1 / 0.6, "flat": 0.5}[proportion])
        expected = VOLUMES[name] * wide**2 * high * placed.radius**3 / (2 * BALL_RADIUS) ** 3
        share = (sdf([solid], points[None])[0] < 0).double().mean().item()
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / n), solid


def test_an_eight_is_two_rings():
    points = uniform(200_000, radius=BALL_RADIUS)
    solid = single("eight")
    (placed,) = placements(solid.form)
    x, y, z = (points / placed.radius / placed.stretch[0]).unbind(-1)
    rings = [((x.square() + (z - h).square()).sqrt() - 0.62).square() + y.square() < 0.26**2 for h in (-0.68, 0.68)]
    assert torch.equal(sdf([solid], points[None])[0] < 0, rings[0] | rings[1])


def test_distances_never_overshoot():
    a, b = uniform(2000, 1), uniform(2000, 2)
    for solid in [single(*form) for form in FORMS] + of_bank(40, "slope", parts=(2, 3)):
        slope = (sdf([solid], a[None]) - sdf([solid], b[None])).abs() / (a - b).norm(dim=1)
        assert slope.max() <= 1 + 1e-5, solid
        points = uniform(1000, 3).requires_grad_(True)
        (gradient,) = torch.autograd.grad(sdf([solid], points[None]).sum(), points)
        length = gradient.norm(dim=1)
        assert (length <= 1 + 1e-9).all(), solid
        if not any(part.proportion for part in solid.parts):
            assert length.median().item() == pytest.approx(1, abs=1e-4), solid


def test_every_solid_of_the_bank_can_be_built():
    for solid in map(parse_caption, retrieval_bank()):
        assert stands(solid), solid
    for solid in of_bank(300, "built"):
        numbers = [x for placed in placements(solid.form) for x in (*placed.center, placed.radius)]
        assert all(map(math.isfinite, numbers)), solid


def test_every_surface_has_a_normal():
    """The gradient of the distance keeps its direction up to the surface itself, where rays and samples end."""
    for form in FORMS:
        points = sample_solid(single(*form), 500, generator())
        normals = surface_normal([single(*form)], points[None])[0]
        beside = sdf(
            [single(*form)], torch.stack([points + 2e-3 * normals, points - 2e-3 * normals]).flatten(0, 1)[None]
        )
        right = (beside[0].view(2, -1) * torch.tensor([[1.0], [-1.0]]) > 0).all(dim=0)
        assert right.float().mean() > 0.97, form  # the others are at edges


def test_solids_are_inside_the_ball_and_touch_it():
    points = uniform(20_000)
    outside = points[points.norm(dim=1) > BALL_RADIUS + 2e-3]  # arcs have finitely many points in their rim
    for form in FORMS:
        solid = single(*form)
        assert (sdf([solid], outside[None]) > 0).all(), solid
        reach = sample_solid(solid, 2000, generator()).norm(dim=1).max().item()
        assert 0.97 * BALL_RADIUS < reach < BALL_RADIUS + 2e-3, solid
    for solid in of_bank(300, "ball", parts=(2, 3)):
        assert (sdf([solid], outside[None, ::5]) > 0).all(), solid
        rings = [
            ring
            for part, placed in zip(solid.placed_parts, placements(solid.form), strict=True)
            for ring in placed.outline(SHAPES[part.shape])
        ]
        reach = max(math.hypot(abs(axis) + rho, z) for rho, axis, z in rings)
        assert reach == pytest.approx(BALL_RADIUS, abs=1e-6), solid
    for solid in of_bank(60, "arcs", parts=(2, 3)):
        assert sample_solid(solid, 500, generator()).norm(dim=1).max() < BALL_RADIUS + 2e-3, solid


def inside_on_lines(solid, n=49, levels=241):
    """Which points of vertical lines are inside each part, and the heights of the points."""
    axis, heights = (torch.linspace(-BALL_RADIUS, BALL_RADIUS, k) for k in (n, levels))
    points = torch.stack(torch.meshgrid(axis, axis, heights, indexing="ij"), dim=-1)
    return part_sdf([solid], points.reshape(1, -1, 3))[0].reshape(-1, n, n, levels) < 0, axis, heights


def test_stacked_parts_touch_and_sink_in_a_little():
    """By OVERLAP where what is below is highest under what is above, on the finest lines that a grid has."""
    for solid in of_bank(16, "stack", parts=(2,), relation="on ") + of_bank(8, "stack", parts=(3,), relation="on "):
        inside, _, heights = inside_on_lines(solid)
        stack = solid.columns[0]
        for i in range(len(stack) - 1):
            upper, lower = inside[i], inside[i + 1 : len(stack)].any(dim=0)
            bottom = torch.where(upper, heights, torch.inf).amin(dim=-1)
            top = torch.where(lower, heights, -torch.inf).amax(dim=-1)
            depth = (top - bottom).max().item()
            expected = OVERLAP * placements(solid.form)[i].radius
            assert abs(depth - expected) < 0.03, solid


def test_parts_beside_each_other_keep_a_gap_and_stand_on_one_floor():
    for solid in of_bank(24, "beside", parts=(2,), relation="beside ") + of_bank(
        6, "b", parts=(3,), relation="beside "
    ):
        inside, axis, heights = inside_on_lines(solid, n=97, levels=97)
        n_first = len(solid.columns[0])
        first, second = inside[:n_first].any(dim=0), inside[n_first:].any(dim=0)
        right, left = (axis[which.any(dim=-1).any(dim=-1)] for which in (first, second))
        unit = max(placed.radius for placed in placements(solid.form))
        cell = (axis[1] - axis[0]).item()
        seen = left.min().item() - right.max().item()
        assert -0.5 * cell < seen - GAP * unit < 4 * cell, solid  # sharp tips pass between the lines
        floors = [heights[which.any(dim=0).any(dim=0)].min().item() for which in (first, second)]
        assert floors[0] == pytest.approx(floors[1], abs=0.03), solid


def test_a_small_part_is_smaller():
    first, second = placements(parse_caption("a small red cube beside a blue cube").form)
    assert first.radius == pytest.approx(SMALL * second.radius)
    assert first.center[0] < 0 < second.center[0]


def test_a_mixed_batch_equals_its_solids_one_by_one():
    solids = of_bank(10, "mixed", parts=(1,)) + of_bank(20, "mixed", parts=(2,)) + of_bank(10, "mixed", parts=(3,))
    solids = shuffled(solids, "mixed")
    points = uniform(4000).reshape(40, 100, 3)
    together, layout = part_sdf(solids, points), Layout(solids, points)
    assert together.shape == (40, 3, 100)
    for row, solid in enumerate(solids):
        n, own = len(solid.parts), points[row : row + 1]
        torch.testing.assert_close(together[row : row + 1, :n], part_sdf([solid], own), rtol=0, atol=1e-12)
        assert (together[row, n:] == NO_PART).all()
        torch.testing.assert_close(layout.albedo(points)[row], Layout([solid], own).albedo(own)[0], rtol=0, atol=1e-12)


# What can be told apart


@pytest.mark.parametrize("proportion", ["", *PROPORTIONS])
def test_patterns_show_on_every_single_solid(proportion):
    ink, red = torch.tensor(INK), torch.tensor(PALETTE["red"])
    for shape in SHAPES:
        points = sample_solid(single(shape, proportion), 500, generator())
        for pattern in PATTERNS:
            solid = single(shape, proportion, pattern=pattern)
            colors = Layout([solid], points).albedo(points[None])[0]
            inked = (colors == ink).all(dim=-1)
            assert ((colors == red).all(dim=-1) | inked).all()
            assert 0.1 < inked.float().mean() < 0.7, solid


def test_single_solids_of_different_form_differ():
    inside = solid_occupancy([single(*form) for form in FORMS], n=32)
    first, second = torch.triu_indices(len(FORMS), len(FORMS), offset=1)
    assert iou(inside[first], inside[second]).max() < 0.95  # measured: 0.862


def visible_difference(a, b):
    """Mean difference of two solids' colours over the four pictures of the benchmark's cameras, where either is."""
    full = torch.ones(4)
    cameras = orbit_cameras(
        25 * full, torch.tensor([45.0, 135, 225, 315]), 1.55 * full, 60 * full, n_view=4, relative=False
    )
    one, two = (render([solid], cameras, 32) for solid in (a, b))
    covered = torch.maximum(one.opacity, two.opacity)
    return ((one.rgb - two.rgb).abs().mean(dim=-1).sum() / covered.sum()).item()


def test_captions_with_the_same_colours_and_patterns_are_of_solids_that_differ():
    """In what they fill, or else in where which colour is seen."""
    groups = defaultdict(list)
    for caption in shuffled(retrieval_bank(), "pairs"):
        solid = parse_caption(caption)
        if len(solid.parts) > 1:
            groups[tuple(sorted((part.color, part.pattern) for part in solid.parts))].append(solid)
    pairs = [pair for group in groups.values() for pair in itertools.combinations(group, 2)]
    alike = [(a, b) for a, b in pairs if sorted(a.shapes) == sorted(b.shapes)]  # the most likely ones to look alike
    chosen = shuffled(alike, "pairs")[:200] + shuffled(pairs, "pairs")[:200]
    for start in range(0, len(chosen), 50):
        some = chosen[start : start + 50]
        first, second = (solid_occupancy([pair[i] for pair in some], n=32) for i in (0, 1))
        for pair, same in zip(some, iou(first, second).tolist(), strict=True):
            assert same < 0.95 or visible_difference(*pair) > 0.03, pair
