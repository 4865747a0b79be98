import pytest
import torch
import torch.nn.functional as F
from painted_ball import RADIUS, STEEPEST, DepthBall, bilinear, painted_ball, surface_points
from solids import sphere

from triplaneturbo.exporters.texture import add_texture, curved_faces, fill, quadratic_weights
from triplaneturbo.ops.mesh import signed_volume

SIZE = 256


@pytest.fixture(scope="module")
def textured():
    return add_texture(painted_ball(), size=SIZE, max_faces=1000)


@pytest.fixture(scope="module")
def looked_up(textured):
    """Points on the faces: the face of each, its place in the texture, and what a lookup there gets wrong."""
    face, points, coordinates = surface_points(textured)
    truth = textured.surface.colors(textured.surface.project(points))
    return face, coordinates, (bilinear(textured.texture.image, coordinates) - truth).abs().amax(1)


def texel_length(mesh):
    """Length of a texel on the surface, for every face: the largest singular value of d position / d texel."""
    position, place = mesh.vertices[mesh.faces], mesh.texture.coordinates[mesh.texture.faces] * SIZE
    sides = [(corners[:, 1:] - corners[:, :1]).transpose(1, 2) for corners in (position, place)]
    return torch.linalg.matrix_norm(sides[0] @ torch.linalg.inv(sides[1]), ord=2)


def test_the_texture_has_the_colours_of_the_surface(textured, looked_up):
    """A lookup mixes texels at most one away along each axis, and those at seams have colours from one further away."""
    face, _, error = looked_up
    assert error.mean() < 0.5 / 255
    assert (error < STEEPEST * 2 * 2**0.5 * texel_length(textured)[face]).all()


def test_seams_are_padded(textured, looked_up):
    """Only near seams does a lookup read texels that no face covers; it is nearly as good there as elsewhere."""
    _, coordinates, error = looked_up
    unpadded = torch.where(covered(textured).unsqueeze(2), 0.0, 1.0).expand(-1, -1, 3)
    at_seams = bilinear(unpadded, coordinates)[:, 0] > 0.01
    assert at_seams.float().mean() > 0.02
    assert error[at_seams].mean() < 1.5 / 255


def covered(mesh):
    """Texels whose centre lies in a face, face by face and by the definition."""
    centers = (torch.arange(SIZE) + 0.5) / SIZE
    inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    for corners in mesh.texture.coordinates[mesh.texture.faces]:
        (left, top), (right, bottom) = (corners.amin(0) * SIZE).long(), (corners.amax(0) * SIZE).long() + 1
        place = torch.stack(torch.meshgrid(centers[left:right], centers[top:bottom], indexing="xy"), dim=2)
        side, offset = corners.roll(-1, 0) - corners, place.unsqueeze(2) - corners
        turn = side[:, 0] * offset[..., 1] - side[:, 1] * offset[..., 0]
        inside[top:bottom, left:right] |= (turn >= 0).all(2) | (turn <= 0).all(2)
    return inside


def test_colours_are_not_those_of_the_flat_faces():
    """200 faces pass up to 0.01 below the ball, where it is darker by 0.2; the texture does not know."""
    mesh = add_texture(painted_ball(surface=DepthBall()), size=128, max_faces=200)
    _, points, coordinates = surface_points(mesh)
    assert (mesh.surface.colors(points) - 0.5).abs().mean() > 0.05
    assert (bilinear(mesh.texture.image, coordinates) - 0.5).abs().mean() < 0.005


def test_the_mesh_stays_closed_and_its_own_colours_give_way(textured):
    assert textured.colors is None
    assert len(textured.faces) <= 1000
    assert torch.equal(textured.texture.vertices[textured.texture.faces], textured.faces)
    volume = signed_volume(textured.vertices, textured.faces).item()
    assert volume == pytest.approx(4 / 3 * torch.pi * RADIUS**3, rel=0.02)


def test_curved_faces_share_their_edges():
    mesh = painted_ball(12)
    nodes = curved_faces(mesh.surface, mesh.vertices, mesh.faces)
    torch.testing.assert_close(nodes.norm(dim=2), torch.full(nodes.shape[:2], RADIUS))
    middle = F.normalize(mesh.vertices[mesh.faces] + mesh.vertices[mesh.faces].roll(-1, 1), dim=2) * RADIUS
    torch.testing.assert_close(nodes[:, 3:], middle)
    assert len(nodes[:, 3:].flatten(0, 1).unique(dim=0)) == len(mesh.faces) * 3 // 2


def test_quadratic_weights_reproduce_quadratic_functions():
    corner = torch.eye(3, dtype=torch.float64)
    nodes = torch.cat([corner, (corner + corner.roll(-1, 0)) / 2])
    points = torch.distributions.Dirichlet(torch.ones(3, dtype=torch.float64)).sample((50,))

    def function(p):
        return 1 + p @ torch.tensor([2.0, -1, 3]).double() + p[:, 0] * p[:, 1] * 5 - p[:, 2] ** 2

    torch.testing.assert_close(quadratic_weights(points) @ function(nodes), function(points))


def test_unknown_texels_take_known_colours():
    image = torch.zeros(8, 12, 3)
    image[2, 3], image[2, 4], image[7, 11] = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    known = image.sum(2) > 0
    filled = fill(image, known)
    assert torch.equal(filled[known], image[known])
    torch.testing.assert_close(filled[1, 3], torch.tensor([0.5, 0.5, 0]))
    torch.testing.assert_close(filled[2, 2], torch.tensor([1.0, 0, 0]))
    torch.testing.assert_close(filled[6, 9], torch.tensor([0.0, 0, 1]))
    torch.testing.assert_close(filled.sum(2), torch.ones(8, 12))


def test_a_mesh_without_a_field_has_nothing_to_paint():
    with pytest.raises(ValueError, match="this mesh has none; write its colours per vertex"):
        add_texture(sphere())
