import pytest
import torch

from triplaneturbo.ops.marching_cubes import marching_cubes
from triplaneturbo.ops.mesh import Topology, keep_large_components, signed_volume, topology, vertex_normals


def balls(size, centres, radii):
    line = torch.linspace(-1, 1, size, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1)
    fields = [(points - torch.tensor(c)).norm(dim=-1) - r for c, r in zip(centres, radii, strict=True)]
    vertices, faces = marching_cubes(torch.stack(fields).amin(0))
    return vertices / (size - 1) * 2 - 1, faces


def test_normals_of_a_sphere_point_outwards():
    vertices, faces = balls(32, [(0.0, 0.0, 0.0)], [0.7])
    normals = vertex_normals(vertices, faces)
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(len(normals), dtype=torch.float64))
    assert ((normals * vertices).sum(1) / vertices.norm(dim=1)).min() > 0.995


def test_normals_are_weighted_by_area():
    vertices = torch.tensor([[0.0, 0, 0], [3, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    normals = vertex_normals(vertices, torch.tensor([[0, 1, 2], [0, 2, 3]]))
    expected = torch.tensor([1.0, 0, 3], dtype=torch.float64) / 10**0.5
    torch.testing.assert_close(normals[0], expected)


def test_vertices_without_area_get_the_up_normal_and_no_gradient():
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [5, 5, 5]], requires_grad=True)
    normals = vertex_normals(vertices, torch.tensor([[0, 1, 2]]))
    assert torch.equal(normals, torch.tensor([[0.0, 0, 1]]).expand(4, 3))
    normals.sum().backward()
    assert not vertices.grad.any()


def test_normal_gradients_equal_finite_differences():
    vertices = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [3, 4, 5], [5, 0, 1]])
    assert torch.autograd.gradcheck(lambda v: vertex_normals(v, faces), (vertices,))


def test_volume_of_a_box_corner_is_signed():
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]])
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    assert signed_volume(vertices, faces).item() == pytest.approx(1)
    assert signed_volume(vertices, faces.flip(1)).item() == pytest.approx(-1)


def test_small_pieces_and_unused_vertices_go():
    centres, radii = [(-0.5, -0.4, 0.0), (0.6, 0.5, 0.0), (0.0, 0.0, 0.85)], [0.4, 0.3, 0.08]
    vertices, faces = balls(32, centres, radii)
    vertices = torch.cat([vertices, torch.zeros(2, 3, dtype=vertices.dtype)])
    kept, kept_faces = keep_large_components(vertices, faces, 0.3)
    expected = vertices[:-2][vertices[:-2, 2] < 0.6]
    assert torch.equal(kept, expected)
    assert torch.equal(kept[kept_faces], vertices[faces][(vertices[faces][..., 2] < 0.6).all(1)])
    largest, _ = keep_large_components(vertices, faces, 1.0)
    assert (largest[:, 0] < 0).all()
    everything, all_faces = keep_large_components(vertices, faces, 0.0)
    assert torch.equal(everything, vertices[:-2])
    assert torch.equal(all_faces, faces)


def test_pieces_are_compared_with_the_largest_one():
    """Of two equal pieces both stay: neither has half of the faces of the other."""
    vertices, faces = torch.arange(18.0).view(6, 3), torch.arange(6).view(2, 3)
    assert torch.equal(keep_large_components(vertices, faces, 1.0)[1], faces)


def test_a_long_strip_is_one_component():
    first = torch.arange(500)
    faces = torch.stack([first, first + 1, first + 2], 1)[
        torch.randperm(500, generator=torch.Generator().manual_seed(0))
    ]
    vertices = torch.randn(502, 3, generator=torch.Generator().manual_seed(1))
    kept, kept_faces = keep_large_components(vertices, faces, 1.0)
    assert torch.equal(kept, vertices)
    assert torch.equal(kept_faces, faces)


def test_an_empty_mesh_stays_empty_and_a_bad_ratio_is_refused():
    vertices, faces = keep_large_components(torch.zeros(3, 3), torch.zeros(0, 3, dtype=torch.long), 0.1)
    assert vertices.shape == (0, 3)
    assert faces.shape == (0, 3)
    with pytest.raises(ValueError, match="from 0 to 1"):
        keep_large_components(vertices, faces, 1.5)


# Topology


def level_set(size, distance):
    line = torch.linspace(-1, 1, size, dtype=torch.float64)
    vertices, faces = marching_cubes(distance(*torch.meshgrid(line, line, line, indexing="ij")))
    return vertices, faces


def ring(x, y, z, centre=0.0):
    return torch.hypot(torch.hypot(x - centre, y) - 0.28, z) - 0.12


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        (lambda x, y, z: (x**2 + y**2 + z**2).sqrt() - 0.7, Topology(True, 1, 0)),
        (ring, Topology(True, 1, 1)),
        (lambda x, y, z: torch.minimum(ring(x, y, z, -0.3), ring(x, y, z, 0.3)), Topology(True, 1, 2)),
        (lambda x, y, z: torch.minimum(ring(x, y, z, -0.5), ring(x, y, z, 0.5)), Topology(True, 2, 2)),
        (lambda x, y, z: ((x**2 + y**2 + z**2).sqrt() - 0.6).abs() - 0.1, Topology(True, 2, 0)),  # a hollow ball
    ],
    ids=["ball", "ring", "two rings grown together", "two rings", "hollow ball"],
)
def test_handles_and_pieces_of_closed_surfaces(distance, expected):
    vertices, faces = level_set(48, distance)
    assert topology(vertices, faces) == expected
    assert topology(vertices[faces.flatten()], torch.arange(faces.numel()).view(-1, 3)) == expected  # as a soup
    assert topology(vertices, faces.flip(1)) == expected


def test_open_and_badly_turned_surfaces_are_not_watertight():
    vertices, faces = level_set(24, ring)
    turned = torch.cat([faces[:1].flip(1), faces[1:]])
    doubled = torch.cat([faces, faces[:1]])
    for damaged in (faces[1:], turned, doubled):
        assert topology(vertices, damaged) == Topology(False, 1, None)
    assert topology(vertices, faces[:0]) == Topology(False, 0, None)


def test_surfaces_that_touch_in_a_point_are_not_one_and_have_no_handle():
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    both = torch.cat([corners, -corners]), torch.cat([faces, faces.flip(1) + 4])
    assert topology(*both) == Topology(True, 2, 0)


def test_faces_without_three_corners_do_not_count():
    vertices, faces = level_set(24, ring)
    flat = torch.tensor([[0, 0, 1], [2, 2, 2]])
    assert topology(vertices, torch.cat([faces, flat])) == Topology(True, 1, 1)
