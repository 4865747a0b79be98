import sys

import pytest
import torch
import torch.nn.functional as F
from solids import sphere

from triplaneturbo.errors import ConfigError, UnknownNameError
from triplaneturbo.exporters.unwrap import check_available, simplify, unwrap
from triplaneturbo.ops.rasterize import rasterize

SIZE = 512


def directed_edges(faces):
    return torch.stack([faces, faces.roll(-1, 1)], 2).flatten(0, 1)


@pytest.mark.parametrize("max_faces", [100, 1000])
def test_fewer_faces_keep_the_mesh_closed_and_turned_outwards(max_faces):
    mesh = sphere(0.5, 32)
    vertices, faces = simplify(mesh.vertices, mesh.faces, max_faces)
    assert 0.9 * max_faces <= len(faces) <= max_faces
    edges = directed_edges(faces)
    assert len(edges.unique(dim=0)) == len(edges)
    assert torch.equal(edges.unique(dim=0), edges.flip(1).unique(dim=0))
    assert len(vertices) - len(edges) // 2 + len(faces) == 2
    a, b, c = vertices[faces].unbind(1)
    normals = F.normalize(torch.linalg.cross(b - a, c - a), dim=1)
    assert ((normals * F.normalize(a + b + c, dim=1)).sum(1) > 0.5).all()


def test_small_meshes_and_no_limit_change_nothing():
    mesh = sphere()
    for limit in (0, len(mesh.faces)):
        vertices, faces = simplify(mesh.vertices, mesh.faces, limit)
        assert vertices is mesh.vertices
        assert faces is mesh.faces


@pytest.fixture(scope="module")
def charts():
    mesh = sphere()
    vertices, faces = simplify(mesh.vertices, mesh.faces, 1500)
    return vertices, faces, *unwrap(vertices, faces, SIZE)


def owners(corners):
    """The face of every texel; of several, the first."""
    clip = F.pad(corners.flatten(0, 1) * 2 - 1, (0, 1))
    clip = F.pad(clip, (0, 1), value=1.0)
    return rasterize(clip[None], torch.arange(len(clip)).view(-1, 3), SIZE, SIZE).face_index[0]


def test_coordinates_are_in_the_unit_square_and_belong_to_the_mesh(charts):
    _, faces, coordinates, origin, triangles = charts
    assert coordinates.amin() >= 0
    assert coordinates.amax() <= 1
    assert torch.equal(origin[triangles], faces)


def test_charts_do_not_overlap(charts):
    """Whoever is drawn first, a texel has the same face, and together the faces cover the area that they have."""
    _, faces, coordinates, _, triangles = charts
    corners = coordinates[triangles]
    first, last = owners(corners), owners(corners.flip(0))
    last = torch.where(last < 0, -1, len(faces) - 1 - last)
    assert (first != last).sum() <= 3  # texel centres that lie on an edge
    sides = corners[:, 1:] - corners[:, :1]
    area = torch.linalg.det(sides).abs().sum() / 2
    assert (first >= 0).float().mean().item() == pytest.approx(area.item(), rel=0.005)
    assert area > 0.4


def test_charts_keep_their_distance(charts):
    """Texels of different charts are never neighbours."""
    _, _, coordinates, _, triangles = charts
    labels = torch.arange(len(coordinates))
    for _ in range(200):
        lowest = labels[triangles].amin(1, keepdim=True).expand_as(triangles)
        labels = labels.scatter_reduce(0, triangles.flatten(), lowest.flatten(), "amin")
    face = owners(coordinates[triangles])
    chart = torch.where(face < 0, -1, labels[triangles[:, 0]][face])
    assert len(chart.unique()) > 3
    for a, b in ((chart[1:], chart[:-1]), (chart[:, 1:], chart[:, :-1])):
        assert not ((a != b) & (a >= 0) & (b >= 0)).any()


def test_the_same_mesh_has_the_same_charts(charts):
    vertices, faces, *first = charts
    for one, other in zip(first, unwrap(vertices, faces, SIZE), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("package", ["xatlas", "fast_simplification"])
def test_missing_packages_are_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"need the package {package.replace('_', '-')}.*`pip install xatlas fast-s"):
        check_available({}, {})


@pytest.mark.parametrize(
    ("chart", "pack", "error", "message"),
    [
        (
            {"max_cot": 1.0},
            {},
            UnknownNameError,
            "chart_options has no option 'max_cot'; did you mean 'max_cost'",
        ),
        ({}, {"brute_force": True}, UnknownNameError, "xatlas_pack_options.*did you mean 'bruteForce'"),
        ({}, {"padding": "wide"}, ConfigError, "xatlas_pack_options.padding must be of type int, not 'wide'"),
    ],
)
def test_options_of_xatlas_are_checked(chart, pack, error, message):
    with pytest.raises(error, match=message):
        check_available(chart, pack)


def test_options_reach_xatlas(charts):
    vertices, faces, coordinates, *_ = charts
    free, *_ = unwrap(vertices, faces, SIZE, {"max_cost": 16.0}, {"padding": 0})
    assert len(free) < len(coordinates)


def test_charts_of_several_textures_are_refused():
    mesh = sphere(0.5, 8)
    with pytest.raises(ConfigError, match=r"over \d+ textures.*leave out texels_per_unit"):
        unwrap(mesh.vertices, mesh.faces, 64, None, {"texels_per_unit": 64.0})
