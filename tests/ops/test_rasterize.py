import math

import pytest
import torch

from triplaneturbo.ops.marching_cubes import marching_cubes
from triplaneturbo.ops.rasterize import antialias, interpolate, rasterize


def random_triangles(views, count, seed):
    """Clip-space triangles of random size with w between 1 and 3, some of them partly out of view."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.rand(views, count, 1, 2, dtype=torch.float64, generator=rng) * 2.4 - 1.2
    ndc = centres + torch.randn(views, count, 3, 2, dtype=torch.float64, generator=rng) * 0.7
    z = torch.rand(views, count, 3, 1, dtype=torch.float64, generator=rng) * 1.6 - 0.8
    w = torch.rand(views, count, 3, 1, dtype=torch.float64, generator=rng) * 2 + 1
    positions = torch.cat([ndc * w, z * w, w], -1).flatten(1, 2)
    return positions, torch.arange(3 * count).view(-1, 3)


def slow_pixel(triangles, x, y):
    """Nearest face by solving for barycentrics on the screen: (face, perspective-correct weights, z/w)."""
    best = (-1, torch.zeros(3, dtype=torch.float64), 0.0)
    for face, triangle in enumerate(triangles):
        ndc = triangle[:, :3] / triangle[:, 3:]
        system = torch.cat([ndc[:, :2].T, torch.ones(1, 3, dtype=torch.float64)])
        flat = torch.linalg.solve(system, torch.tensor([x, y, 1.0], dtype=torch.float64))
        depth = (flat * ndc[:, 2]).sum().item()
        if flat.min() >= 0 and abs(depth) <= 1 and (best[0] < 0 or depth < best[2]):
            weights = flat / triangle[:, 3]
            best = (face, weights / weights.sum(), depth)
    return best


def flat_disc(radius, centre, corners=64):
    """A fan in the plane z = 0 of clip space, differentiable in the radius and the centre."""
    angle = torch.arange(corners, dtype=torch.float64) * (2 * math.pi / corners)
    rim = centre + radius * torch.stack([angle.cos(), angle.sin()], 1)
    xy = torch.cat([centre.unsqueeze(0), rim])
    positions = torch.cat([xy, torch.zeros_like(xy[:, :1]), torch.ones_like(xy[:, :1])], 1)
    i = torch.arange(corners)
    return positions.unsqueeze(0), torch.stack([torch.zeros_like(i), 1 + i, 1 + (i + 1) % corners], 1)


def coverage(positions, faces, height, width):
    raster = rasterize(positions, faces, height, width)
    mask = (raster.face_index >= 0).to(positions.dtype).unsqueeze(-1)
    return antialias(mask, raster, positions, faces)[..., 0]


def sphere(size=48, radius=0.5):
    line = torch.linspace(-1, 1, size, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1)
    vertices, faces = marching_cubes(points.norm(dim=-1) - radius)
    return vertices / (size - 1) * 2 - 1, faces


def perspective(vertices, distance=2.0):
    """A pinhole at (0, 0, distance) looking at the origin, focal length 3, near 0.1, far 10."""
    depth = distance - vertices[:, 2]
    z = (10.1 * depth - 2) / 9.9
    return torch.stack([3 * vertices[:, 0], -3 * vertices[:, 1], z, depth], 1).unsqueeze(0)


def test_every_pixel_equals_the_slow_reference():
    positions, faces = random_triangles(views=2, count=9, seed=0)
    height, width = 9, 11
    raster = rasterize(positions, faces, height, width)
    assert (raster.face_index >= 0).float().mean() > 0.3
    for view in range(2):
        triangles = positions[view][faces]
        for row in range(height):
            for column in range(width):
                face, weights, depth = slow_pixel(triangles, (2 * column + 1) / width - 1, (2 * row + 1) / height - 1)
                here = (view, row, column)
                assert raster.face_index[here].item() == face
                torch.testing.assert_close(raster.barycentric[here], weights, rtol=0, atol=1e-9)
                assert raster.depth[here].item() == pytest.approx(depth, abs=1e-9)


def test_both_orientations_are_drawn_alike():
    positions, faces = random_triangles(views=1, count=6, seed=1)
    front, back = (rasterize(positions, f, 16, 16) for f in (faces, faces.flip(1)))
    assert torch.equal(front.face_index, back.face_index)
    torch.testing.assert_close(front.barycentric, back.barycentric.flip(-1))


def test_a_triangulated_square_has_no_gaps_even_through_pixel_centres():
    size = 16
    line = (torch.arange(size + 1, dtype=torch.float32) * 2 - 1) / size - 1
    line[0], line[-1] = -1.5, 1.5
    xy = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1)
    inner = torch.rand(size - 1, size - 1, 2, generator=torch.Generator().manual_seed(2)) * 0.1
    inner[::2] = 0  # every other row of vertices lies exactly on pixel centres
    xy[1:-1, 1:-1] += inner
    xy = xy.reshape(-1, 2)
    positions = torch.cat([xy, torch.zeros(len(xy), 1), torch.ones(len(xy), 1)], 1).unsqueeze(0)
    corner = (torch.arange(size).unsqueeze(1) * (size + 1) + torch.arange(size)).flatten()
    faces = torch.cat(
        [
            torch.stack([corner, corner + 1, corner + size + 2], 1),
            torch.stack([corner, corner + size + 2, corner + size + 1], 1),
        ]
    )
    assert (rasterize(positions, faces, size, size).face_index >= 0).all()


def test_of_equal_depths_the_lower_face_wins():
    positions, faces = random_triangles(views=1, count=3, seed=3)
    doubled = rasterize(positions, torch.cat([faces, faces]), 12, 12)
    assert torch.equal(doubled.face_index, rasterize(positions, faces, 12, 12).face_index)


def test_faces_behind_the_camera_and_outside_the_depth_range_are_dropped():
    corners = torch.tensor([[-1.0, -1, 0, 1], [3, -1, 0, 1], [-1, 3, 0, 1]])
    faces = torch.tensor([[0, 1, 2]])
    assert (rasterize(corners.unsqueeze(0), faces, 4, 4).face_index == 0).all()
    behind = corners.clone()
    behind[1, 3] = -0.5
    assert (rasterize(behind.unsqueeze(0), faces, 4, 4).face_index == -1).all()
    too_near = corners.clone()
    too_near[:, 2] = -1.2
    assert (rasterize(too_near.unsqueeze(0), faces, 4, 4).face_index == -1).all()


def test_interpolated_clip_positions_project_to_their_pixel():
    positions, faces = random_triangles(views=2, count=5, seed=4)
    raster = rasterize(positions, faces, 10, 14)
    image = interpolate(positions, raster, faces)
    seen = raster.face_index >= 0
    assert not image[~seen].any()
    _, row, column = seen.nonzero().unbind(1)
    torch.testing.assert_close(image[seen][:, 0] / image[seen][:, 3], ((2 * column + 1) / 14 - 1).double())
    torch.testing.assert_close(image[seen][:, 1] / image[seen][:, 3], ((2 * row + 1) / 10 - 1).double())
    torch.testing.assert_close(image[seen][:, 2] / image[seen][:, 3], raster.depth[seen])


def test_attributes_may_be_common_to_all_views():
    positions, faces = random_triangles(views=2, count=5, seed=5)
    raster = rasterize(positions, faces, 8, 8)
    colours = torch.rand(positions.shape[1], 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shared = interpolate(colours, raster, faces)
    torch.testing.assert_close(shared, interpolate(colours.expand(2, -1, -1), raster, faces))


def test_gradients_of_visible_pixels_equal_finite_differences():
    positions, faces = random_triangles(views=1, count=3, seed=6)
    colours = torch.rand(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def render(positions, colours):
        raster = rasterize(positions, faces, 6, 5)
        return interpolate(colours, raster, faces), raster.depth

    assert torch.autograd.gradcheck(render, (positions.requires_grad_(), colours.requires_grad_()))


def test_an_empty_mesh_gives_an_empty_picture():
    positions, faces = torch.zeros(2, 0, 4), torch.zeros(0, 3, dtype=torch.long)
    raster = rasterize(positions, faces, 4, 6)
    assert (raster.face_index == -1).all()
    image = interpolate(torch.zeros(0, 3), raster, faces)
    assert image.shape == (2, 4, 6, 3)
    assert torch.equal(antialias(image, raster, positions, faces), image)


@pytest.mark.parametrize("corners", [5, 24, 400])
def test_antialiased_disc_has_the_area_and_its_derivative(corners):
    """400 corners make faces much narrower than a pixel."""
    radius = torch.tensor(0.61, dtype=torch.float64, requires_grad=True)
    centre = torch.tensor([0.013, 0.027], dtype=torch.float64)
    size = 64
    area = coverage(*flat_disc(radius, centre, corners), size, size).sum() * (2 / size) ** 2
    area.backward()
    per_square = corners / 2 * math.sin(2 * math.pi / corners)
    assert area.item() == pytest.approx(per_square * 0.61**2, rel=0.01)
    assert radius.grad.item() == pytest.approx(2 * per_square * 0.61, rel=0.05)


def test_moving_a_disc_moves_its_first_moment_by_its_area():
    centre = torch.tensor([0.05, -0.11], dtype=torch.float64, requires_grad=True)
    positions, faces = flat_disc(torch.tensor(0.5, dtype=torch.float64), centre)
    mask = coverage(positions, faces, 48, 80)[0]
    x = (2 * torch.arange(80) + 1) / 80 - 1
    y = (2 * torch.arange(48) + 1) / 48 - 1
    cell = 4 / (48 * 80)
    (dx,) = torch.autograd.grad((mask * x).sum() * cell, centre, retain_graph=True)
    (dy,) = torch.autograd.grad((mask * y.unsqueeze(1)).sum() * cell, centre)
    area = math.pi * 0.25
    torch.testing.assert_close(dx, torch.tensor([area, 0.0], dtype=torch.float64), rtol=0, atol=0.05 * area)
    torch.testing.assert_close(dy, torch.tensor([0.0, area], dtype=torch.float64), rtol=0, atol=0.05 * area)


@pytest.mark.parametrize("size", [24, 96])
def test_a_sphere_mesh_grows_at_the_rate_of_its_outline(size):
    """In perspective the outline is a disc of radius f r / sqrt(d^2 - r^2); at 24 pixels faces are sub-pixel."""
    vertices, faces = sphere()
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    area = coverage(perspective(vertices * scale), faces, size, size).sum() * (2 / size) ** 2
    area.backward()
    assert area.item() == pytest.approx(math.pi * 9 * 0.25 / (4 - 0.25), rel=0.01)
    derivative = 2 * math.pi * 9 * 0.25 * 4 / (4 - 0.25) ** 2
    assert scale.grad.item() == pytest.approx(derivative, rel=0.05)


def test_colours_inside_a_smooth_surface_are_left_alone():
    vertices, faces = sphere()
    positions = perspective(vertices)
    raster = rasterize(positions, faces, 40, 40)
    image = interpolate(vertices, raster, faces)
    change = (antialias(image, raster, positions, faces) - image).abs().amax(-1)[0]
    x = (2 * torch.arange(40) + 1) / 40 - 1
    radius = (x.square() + x.square().unsqueeze(1)).sqrt()
    outline = 1.5 / math.sqrt(4 - 0.25)
    assert not change[(radius - outline).abs() > 0.05].any()
    assert change.any()


def test_only_what_is_seen_is_blended():
    """A square in front of a larger one: its border blends the two colours; hidden edges do nothing."""
    corners = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    small = torch.cat([corners * 0.53, torch.zeros(4, 1), torch.ones(4, 1)], 1)
    large = torch.cat([corners * 0.91, torch.full((4, 1), 0.5), torch.ones(4, 1)], 1)
    quad = torch.tensor([[0, 1, 2], [0, 2, 3]])
    faces = torch.cat([quad, quad + 4])
    both = coverage_of_front(torch.cat([small, large]).unsqueeze(0), faces)
    alone = coverage_of_front(torch.cat([small, large * torch.tensor([0.1, 0.1, 1, 1])]).unsqueeze(0), faces)
    assert both.sum().item() * (2 / 20) ** 2 == pytest.approx((2 * 0.53) ** 2, rel=0.01)
    torch.testing.assert_close(both, alone)


def test_hidden_edges_blend_nothing():
    """Two faces of different colours fill the picture; a square behind them has its border everywhere among them."""
    corners = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    screen = torch.cat([corners * 3, torch.zeros(4, 1), torch.ones(4, 1)], 1)
    behind = torch.cat([corners * 0.53, torch.full((4, 1), 0.5), torch.ones(4, 1)], 1)
    quad = torch.tensor([[0, 1, 2], [0, 2, 3]])
    positions, faces = torch.cat([screen, behind]).unsqueeze(0), torch.cat([quad, quad + 4])
    raster = rasterize(positions, faces, 20, 20)
    image = raster.face_index.float().unsqueeze(-1)
    assert set(image.flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(antialias(image, raster, positions, faces), image)


def coverage_of_front(positions, faces):
    raster = rasterize(positions, faces, 20, 20)
    front = ((raster.face_index >= 0) & (raster.face_index < 2)).float().unsqueeze(-1)
    return antialias(front, raster, positions, faces)


def test_blending_is_linear_in_the_image():
    vertices, faces = sphere(16)
    positions = perspective(vertices)
    raster = rasterize(positions, faces, 12, 12)
    rng = torch.Generator().manual_seed(0)
    first, second, weight = torch.rand(3, 1, 12, 12, 2, dtype=torch.float64, generator=rng)
    first.requires_grad_()
    blended = antialias(first, raster, positions, faces)
    both = antialias(2 * first + second, raster, positions, faces)
    torch.testing.assert_close(both, 2 * blended + antialias(second, raster, positions, faces))
    (grad,) = torch.autograd.grad((blended * weight).sum(), first)
    torch.testing.assert_close((grad * first).sum(), (blended * weight).sum())


def test_several_meshes_are_drawn_as_each_alone():
    first, second = sphere(10, 0.5), sphere(14, 0.6)
    empty = first[0][:0], first[1][:0]
    views = [torch.cat([perspective(v, 2.0), perspective(v.flip(1), 2.5)]) for v, _ in (first, empty, second)]
    alone_images = []
    for positions, (vertices, faces) in zip(views, (first, empty, second), strict=True):
        raster = rasterize(positions, faces, 12, 16)
        image = interpolate(vertices, raster, faces) + interpolate(positions, raster, faces)[..., :3]
        alone_images.append(antialias(image, raster, positions, faces))
    positions, vertices = torch.cat(views, 1), torch.cat([first[0], second[0]])
    faces = torch.cat([first[1], second[1] + len(first[0])])
    mesh_index = torch.tensor([0] * len(first[1]) + [2] * len(second[1]))
    raster = rasterize(positions, faces, 12, 16, mesh_index, n_meshes=3)
    image = interpolate(vertices, raster, faces) + interpolate(positions, raster, faces)[..., :3]
    together = antialias(image, raster, positions, faces, mesh_index)
    assert together.any()
    torch.testing.assert_close(together, torch.cat(alone_images))
