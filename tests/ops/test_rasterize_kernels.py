"""The kernels of the rasteriser against their torch reference: the same faces, the same numbers, the same gradients."""

import pytest
import torch
from triton_process import BACKEND, DEVICE, run_with_triton

from triplaneturbo.ops.marching_cubes import marching_cubes
from triplaneturbo.ops.rasterize import antialias, interpolate, rasterize

# Larger ones have boxes that are drawn in tiles; the picture is not square and no multiple of a tile or a block.
HEIGHT, WIDTH = 17, 21


def random(*shape, seed):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def scenes(kind):
    """Two meshes with two views each, and an empty one between them: a ball of small faces, large triangles that go
    through each other. One triangle is behind the camera."""
    line = torch.linspace(-1, 1, 6, dtype=torch.float64)
    ball, ball_faces = marching_cubes(
        torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).norm(dim=-1) - 0.5
    )
    ball = ball / 2.5 - 1
    depth = 2 - ball[:, 2]
    view = torch.stack([3 * ball[:, 0], -3 * ball[:, 1], (10.1 * depth - 2) / 9.9, depth], 1)
    other = torch.stack([3 * ball[:, 1], -2 * ball[:, 0] + 0.3, (10.1 * depth - 2) / 9.9, depth], 1)
    w = 1 + 2 * random(2, 24, 1, seed=0)
    triangles = torch.cat(
        [(2.4 * random(2, 24, 2, seed=1) - 1.2) * w, (1.6 * random(2, 24, 1, seed=2) - 0.8) * w, w], -1
    )
    triangles[:, 4, 3] = -1
    positions = torch.cat([torch.stack([view, other]), triangles], 1).to(kind)
    faces = torch.cat([ball_faces, len(ball) + torch.arange(24).view(-1, 3)])
    mesh_index = torch.tensor([0] * len(ball_faces) + [2] * 8)
    return positions.to(DEVICE), faces.to(DEVICE), mesh_index.to(DEVICE)


def drawn(positions, faces, mesh_index, attributes, backend):
    raster = rasterize(positions, faces, HEIGHT, WIDTH, mesh_index, 3, backend=backend)
    values = interpolate(attributes, raster, faces, backend=backend)
    channels = torch.cat([values, raster.depth.unsqueeze(-1)], -1)
    return raster, values, antialias(channels, raster, positions, faces, mesh_index, backend=backend)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
@pytest.mark.parametrize("per_view", [True, False])
def test_kernels_draw_what_the_reference_draws(kind, per_view):
    positions, faces, mesh_index = scenes(kind)
    count = positions.shape[1]
    attributes = random(*((2, count, 5) if per_view else (count, 5)), seed=3).to(DEVICE, kind)
    results = []
    for backend in ("torch", BACKEND):
        leaves = positions.clone().requires_grad_(), attributes.clone().requires_grad_()
        raster, values, smooth = drawn(leaves[0], faces, mesh_index, leaves[1], backend)
        weights = [random(*x.shape, seed=4 + i).to(x) - 0.5 for i, x in enumerate((raster.barycentric, smooth))]
        loss = (raster.barycentric * weights[0]).sum() + (smooth * weights[1]).sum()
        results.append((raster, values, smooth, torch.autograd.grad(loss, leaves)))
    (expected, *pictures, gradients), (found, *own_pictures, own_gradients) = results
    images_with_faces = (expected.face_index >= 0).flatten(1).any(1)
    assert images_with_faces.tolist() == [True, True, False, False, True, True]
    assert torch.equal(found.face_index, expected.face_index)
    tolerance = 1e-12 if kind == torch.float64 else 1e-6
    for name in ("barycentric", "depth"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=tolerance)
    for own, picture in zip(own_pictures, pictures, strict=True):
        torch.testing.assert_close(own, picture, rtol=0, atol=tolerance)
    # Something was blended.
    assert (pictures[1][..., :5] != pictures[0]).any(-1).sum() > 20
    for own, gradient in zip(own_gradients, gradients, strict=True):
        scale = gradient.abs().max().item()
        assert scale > 0.1
        torch.testing.assert_close(own, gradient, rtol=1e-4, atol=1e-5 * scale)


def test_the_lower_of_equal_faces_and_the_depth_range_are_the_references():
    positions, faces, _ = scenes(torch.float32)
    twice = torch.cat([faces, faces])
    single = rasterize(positions, faces, 9, 21, backend=BACKEND)
    assert torch.equal(rasterize(positions, twice, 9, 21, backend=BACKEND).face_index, single.face_index)
    beyond = positions * torch.tensor([1, 1, 3, 1], device=DEVICE)
    expected, found = (rasterize(beyond, faces, 9, 21, backend=backend).face_index for backend in ("torch", BACKEND))
    assert torch.equal(found, expected)
    assert not torch.equal(found, single.face_index)


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_only_the_wanted_gradients_are_computed(wanted):
    positions, faces, _ = scenes(torch.float64)
    image = random(2, HEIGHT, WIDTH, 1, seed=1).to(DEVICE)
    inputs = [positions.clone(), random(positions.shape[1], 2, seed=0).to(DEVICE), image]
    inputs[wanted].requires_grad_()
    gradients = []
    for backend in ("torch", BACKEND):
        raster = rasterize(inputs[0], faces, HEIGHT, WIDTH, backend=backend)
        values = interpolate(inputs[1], raster, faces, backend=backend)
        smooth = antialias(inputs[2], raster, inputs[0], faces, backend=backend)
        gradients += torch.autograd.grad((values**2).sum() + (smooth**2).sum(), inputs[wanted])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-9)


def test_an_empty_mesh_gives_an_empty_picture():
    positions, faces = torch.zeros(2, 0, 4, device=DEVICE), torch.zeros(0, 3, dtype=torch.long, device=DEVICE)
    positions.requires_grad_()
    raster = rasterize(positions, faces, 4, 6, backend=BACKEND)
    assert (raster.face_index == -1).all()
    colours = torch.zeros(0, 3, device=DEVICE).requires_grad_()
    image = interpolate(colours, raster, faces, backend=BACKEND)
    assert image.shape == (2, 4, 6, 3)
    smooth = antialias(image, raster, positions, faces, backend=BACKEND)
    assert torch.equal(smooth, image)
    (smooth.sum() + raster.depth.sum()).backward()
    assert positions.grad.shape == (2, 0, 4)
    assert colours.grad.shape == (0, 3)


if BACKEND == "triton":  # in the process of the next test

    def test_gradients_do_not_depend_on_the_order_where_every_run_must_be_the_same():
        positions, faces, mesh_index = scenes(torch.float32)
        attributes = random(positions.shape[1], 3, seed=5).to(DEVICE, torch.float32)

        def gradients(images_first):
            """Meshes in another order are pictures in another order, and their sums, too."""
            order = mesh_index.argsort(descending=not images_first, stable=True)
            leaves = positions.clone().requires_grad_(), attributes.clone().requires_grad_()
            owner = mesh_index if images_first else 2 - mesh_index
            _, _, smooth = drawn(leaves[0], faces[order], owner[order], leaves[1], BACKEND)
            return torch.autograd.grad(smooth.square().sum(), leaves)

        plain = gradients(True)
        torch.use_deterministic_algorithms(True)
        try:
            exact, others = gradients(True), gradients(False)
        finally:
            torch.use_deterministic_algorithms(False)
        for expected, found, other in zip(plain, exact, others, strict=True):
            assert torch.equal(found, other)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_triton_kernels_pass_the_tests_of_this_file():
    assert "10 passed" in run_with_triton(__file__, "not triton")
