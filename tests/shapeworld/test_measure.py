"""Occupancy, IoU and Chamfer distance on meshes whose inside is known."""

import math

import pytest
import torch

from custom.shapeworld.measure import (
    best_constant,
    chamfer,
    exact_mesh,
    grid_points,
    iou,
    mesh_occupancy,
    sample_mesh,
    sample_solid,
    solid_occupancy,
)
from custom.shapeworld.shapes import SHAPES
from custom.shapeworld.world import BALL_RADIUS, parse_caption, placements, sdf
from triplaneturbo.types import Mesh

CUBE_FACES = [
    [0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
    [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3],
]  # fmt: skip


def box(half, center=(0.0, 0.0, 0.0)):
    corners = torch.tensor([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
    return Mesh(corners * torch.tensor(half) + torch.tensor(center), torch.tensor(CUBE_FACES))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("center", [(0.0, 0.0, 0.0), (0.013, -0.17, 0.21)])
def test_occupancy_of_a_box_is_exact(center):
    half = torch.tensor([0.4, 0.3, 0.55])
    inside = mesh_occupancy(box(half.tolist(), center), 32)
    expected = ((grid_points(32) - torch.tensor(center)).abs() < half).all(dim=1)
    assert torch.equal(inside, expected)


def test_faces_through_grid_lines_are_counted_once():
    """Diagonals and edges that pass exactly through cell centres."""
    n = 16
    half = 4.5 * 2 / n  # the faces lie on cell centres
    inside = mesh_occupancy(box([half] * 3), n).reshape(n, n, n)
    assert inside[5:11, 5:11, 5:11].all()
    assert not inside[:3].any()
    assert not inside[:, 13:].any()
    assert not inside[..., 13:].any()


def test_occupancy_ignores_merging_and_orientation_and_outvotes_a_hole():
    mesh = box([0.5, 0.4, 0.3])
    soup = Mesh(mesh.vertices[mesh.faces.flatten()], torch.arange(36).reshape(12, 3).flip(1))
    holed = Mesh(mesh.vertices, mesh.faces[1:])
    expected = mesh_occupancy(mesh, 24)
    assert torch.equal(mesh_occupancy(soup, 24), expected)
    assert torch.equal(mesh_occupancy(holed, 24), expected)


def test_a_mesh_beyond_the_grid_fills_it():
    assert mesh_occupancy(box([3.0, 3.0, 3.0]), 8).all()
    assert not mesh_occupancy(box([0.2] * 3, (4.0, 0.0, 0.0)), 8).any()


def test_an_empty_mesh_occupies_nothing():
    empty = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long))
    assert not mesh_occupancy(empty, 8).any()


def test_iou_counts_cells():
    a = torch.tensor([[True, True, False, False], [False] * 4])
    b = torch.tensor([[True, False, True, False], [False] * 4])
    torch.testing.assert_close(iou(a, b), torch.tensor([1 / 3, 1.0]))


def test_the_exact_cube_as_a_mesh_scores_one():
    half = BALL_RADIUS / 3**0.5
    mesh, solid = box([half] * 3), parse_caption("a red cube")
    assert iou(mesh_occupancy(mesh), solid_occupancy([solid])[0]).item() == 1
    inflated = box([half * 1.2] * 3)
    truth = sample_solid(solid, 4096, generator(1))
    near, far = (chamfer(sample_mesh(found, 4096, generator()), truth) for found in (mesh, inflated))
    assert near < 0.02  # the spacing of 4096 points
    assert far > near + 0.03


@pytest.mark.parametrize("n", [1024, 4096])
def test_the_floor_of_the_distance_is_that_of_random_points(n):
    """A random point is at half the root of the area a sample away from the nearest of n others."""
    solid = parse_caption("a red sphere")
    area = 4 * math.pi * (placements(solid.form)[0].radius * placements(solid.form)[0].stretch[0]) ** 2
    samples = [sample_solid(solid, n, generator(seed)) for seed in (0, 1)]
    assert chamfer(*samples) == pytest.approx((area / n) ** 0.5 / 2, rel=0.03)


def test_exact_meshes_lie_on_the_surface_in_its_colours():
    solid = parse_caption("a red sphere on a blue cube")
    mesh = exact_mesh(solid, 64)
    assert sdf([solid], mesh.vertices[None]).abs().median() < 1e-3
    assert iou(mesh_occupancy(mesh), solid_occupancy([solid])[0]) > 0.98
    high, low = (mesh.vertices[:, 2] * sign > 0.45 for sign in (1, -1))
    assert (mesh.colors[high, 0] > mesh.colors[high, 2]).all()
    assert (mesh.colors[low, 0] < mesh.colors[low, 2]).all()


def test_best_constant_beats_every_member_of_the_split():
    occupied = solid_occupancy([parse_caption(f"a red {name}") for name in SHAPES], n=24)
    constant, score = best_constant(occupied)
    assert score == pytest.approx(iou(occupied, constant.expand_as(occupied)).mean().item())
    assert score > max(iou(occupied, member.expand_as(occupied)).mean().item() for member in occupied)


def test_samples_lie_on_the_surfaces():
    solid = parse_caption("a red cylinder")
    assert sdf([solid], sample_solid(solid, 500, generator())[None]).abs().max() < 1e-5
    half = torch.tensor([0.4, 0.3, 0.5])
    relative = (sample_mesh(box(half.tolist()), 500, generator()) / half).abs()
    torch.testing.assert_close(relative.amax(dim=1), torch.ones(500), atol=1e-5, rtol=0)
