import math

import pytest
import torch
from packages import implementations, provided

from triplaneturbo.ops.backends import Backends, using
from triplaneturbo.ops.marching_cubes import marching_cubes, marching_cubes_packed
from triplaneturbo.ops.marching_cubes_tables import CORNERS, EDGES, triangles_of_cases


@pytest.fixture(autouse=True, params=[pytest.param("", id="torch"), *implementations("diso")])
def implementation(request):
    """Every test runs with torch's marching cubes, with the stand-in for diso's, and with diso's where it is."""
    if not request.param:
        yield
        return
    with provided("diso", request.param), using(Backends(isosurface="diso")), torch.device(request.param):
        yield


def seeded(seed):
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


def grid_points(size):
    line = torch.linspace(-1, 1, size, dtype=torch.float64)
    return torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1)


def signed_volume(vertices, faces):
    a, b, c = vertices[faces].unbind(1)
    return (a * torch.linalg.cross(b, c)).sum().item() / 6


def directed_edges(faces):
    return [edge for a, b, c in faces.tolist() for edge in ((a, b), (b, c), (c, a))]


def assert_closed_manifold(faces):
    edges = directed_edges(faces)
    assert len(set(edges)) == len(edges)
    assert {(b, a) for a, b in edges} == set(edges)


def boundary_by_rule(case):
    """Directed boundary of a case's triangles: each run of outside corners of a face is cut off.

    Faces are walked counter-clockwise seen from outside the cell; a segment leads from the edge behind the run
    back to the edge before it. Independent of the table.
    """
    number = {frozenset(edge): i for i, edge in enumerate(EDGES)}
    faces = [(0, 3, 2, 1), (4, 5, 6, 7), (0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7)]
    segments = set()
    for face in faces:
        outside = [bool(case >> corner & 1) for corner in face]
        for start in range(4):
            if not outside[start] or outside[start - 1]:
                continue
            stop = start
            while outside[(stop + 1) % 4]:
                stop += 1
            behind = number[frozenset((face[stop % 4], face[(stop + 1) % 4]))]
            before = number[frozenset((face[start - 1], face[start]))]
            segments.add((behind, before))
    return segments


def test_every_case_has_the_boundary_that_the_corner_signs_demand():
    cases = triangles_of_cases()
    assert len(cases) == 256
    assert all(sum(abs(p - q) for p, q in zip(CORNERS[a], CORNERS[b], strict=True)) == 1 for a, b in EDGES)
    for case, triangles in enumerate(cases):
        edges = [edge for a, b, c in triangles for edge in ((a, b), (b, c), (c, a))]
        assert len(set(edges)) == len(edges)
        boundary = {(a, b) for a, b in edges if (b, a) not in edges}
        assert boundary == boundary_by_rule(case)


@pytest.mark.parametrize("share_inside", [0.2, 0.5, 0.8])
def test_random_fields_give_closed_manifolds_with_outward_faces(share_inside):
    rng = seeded(0)
    field = torch.rand(14, 13, 12, dtype=torch.float64, generator=rng)
    vertices, faces = marching_cubes(field, level=share_inside)
    assert_closed_manifold(faces)
    assert faces.unique().numel() == len(vertices)
    assert signed_volume(vertices, faces) > 0


def test_the_sphere_is_met_to_second_order():
    errors = []
    for size in (33, 65):
        vertices, faces = marching_cubes(grid_points(size).norm(dim=-1) - 0.5)
        radii = (vertices / (size - 1) * 2 - 1).norm(dim=-1)
        errors.append((radii - 0.5).abs().max().item())
        assert_closed_manifold(faces)
        assert len(vertices) - 3 * len(faces) // 2 + len(faces) == 2
    assert errors[1] < 1e-3
    assert 3 < errors[0] / errors[1] < 5


def test_volume_and_axes_of_an_off_centre_ellipsoid():
    centre, radii = torch.tensor([0.2, -0.1, 0.3]), torch.tensor([0.6, 0.45, 0.3])
    vertices, faces = marching_cubes(((grid_points(40) - centre) / radii).norm(dim=-1) - 1)
    world = vertices / 39 * 2 - 1
    torch.testing.assert_close(world.amin(0), (centre - radii).double(), rtol=0, atol=0.01)
    torch.testing.assert_close(world.amax(0), (centre + radii).double(), rtol=0, atol=0.01)
    assert signed_volume(world, faces) == pytest.approx(4 / 3 * math.pi * radii.prod().item(), rel=0.01)


def test_padding_closes_what_leaves_the_grid():
    field = grid_points(10)[..., 0] - 0.3
    _, faces = marching_cubes(field)
    assert_closed_manifold(faces)
    vertices, faces = marching_cubes(field, pad=False)
    torch.testing.assert_close(vertices[:, 0], torch.full((100,), (0.3 + 1) / 2 * 9, dtype=torch.float64))
    assert len(faces) == 2 * 81
    # The inside is at small x, so the open sheet faces +x.
    a, b, c = vertices[faces].unbind(1)
    assert (torch.linalg.cross(b - a, c - a)[:, 0] > 0).all()


def test_the_level_shifts_the_surface():
    points = grid_points(24)
    raised, _ = marching_cubes(points.norm(dim=-1), level=0.6)
    plain, _ = marching_cubes(points.norm(dim=-1) - 0.6)
    torch.testing.assert_close(raised, plain)


def test_deformation_moves_the_grid_points():
    field = grid_points(9).norm(dim=-1) - 0.55
    plain, faces = marching_cubes(field)
    shift = torch.tensor([0.25, -0.1, 0.4], dtype=torch.float64)
    moved, moved_faces = marching_cubes(field, shift.expand(9, 9, 9, 3))
    torch.testing.assert_close(moved, plain + shift)
    assert torch.equal(faces, moved_faces)


def test_a_stretched_grid_stretches_the_surface():
    """Both ends of an edge are moved, each by its own deformation."""
    field = grid_points(9).norm(dim=-1) - 0.55
    plain, _ = marching_cubes(field)
    line = torch.arange(9, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1)
    scale = torch.tensor([1.5, 0.8, 1.1], dtype=torch.float64)
    stretched, _ = marching_cubes(field, (scale - 1) * points)
    torch.testing.assert_close(stretched, scale * plain)


def test_gradients_equal_finite_differences():
    rng = seeded(1)
    field = torch.randn(4, 4, 4, dtype=torch.float64, generator=rng).requires_grad_()
    deformation = (0.2 * torch.randn(4, 4, 4, 3, dtype=torch.float64, generator=rng)).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, d: marching_cubes(s, d)[0], (field, deformation))


@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_a_field_without_a_sign_change_gives_an_empty_mesh(value):
    vertices, faces = marching_cubes(torch.full((5, 5, 5), value, requires_grad=True), pad=False)
    assert vertices.shape == (0, 3)
    assert faces.shape == (0, 3)
    vertices.sum().backward()


def test_grids_in_a_batch_stay_apart():
    rng = seeded(2)
    fields = torch.rand(3, 5, 6, 7, dtype=torch.float64, generator=rng)
    fields[1] = 1
    shifts = 0.1 * torch.randn(3, 5, 6, 7, 3, dtype=torch.float64, generator=rng)
    vertices, faces, sizes = marching_cubes_packed(fields, shifts, level=0.5)
    singles = [marching_cubes(field, shift, level=0.5) for field, shift in zip(fields, shifts, strict=True)]
    assert torch.equal(vertices, torch.cat([single[0] for single in singles]))
    assert sizes == [(len(single[0]), len(single[1])) for single in singles]
    assert torch.equal(faces, torch.cat([singles[0][1], singles[2][1] + len(singles[0][0])]))
