import math

import pytest
import torch
from analytic_scenes import cameras

from triplaneturbo.renderers.shading import disparity, normals_as_colors, over, shrink_gradient


def picture(*values):
    return torch.tensor(values).view(1, -1, 1, 1)


def test_disparity_runs_from_the_near_plane_to_the_background():
    distance = torch.tensor([3.0])
    depth = picture(3 - math.sqrt(3), 3.0, 3 + math.sqrt(3), 0.5, 9.0)
    found = disparity(depth, torch.ones_like(depth), distance)
    torch.testing.assert_close(found, picture(1.0, 0.5, 0.0, 1.0, 0.0))
    assert disparity(picture(0.0), picture(0.0), distance).item() == 0
    # A half-covered pixel: depth is already a weighted sum and is weighted once more.
    half = disparity(picture(1.5), picture(0.5), distance)
    blended = 1.5 * 0.5 + 0.5 * (3 + math.sqrt(3))
    torch.testing.assert_close(half, picture((3 + math.sqrt(3) - blended) / (2 * math.sqrt(3))))


def test_camera_normals_are_right_up_backward_with_x_flipped():
    views = cameras(0.0, 130.0)
    right, up, backward = views.c2w[:, :3, :3].unbind(-1)
    normals = torch.stack([backward, right, up], 1)[:, :, None]
    colors = normals_as_colors(normals, views)[:, :, 0]
    expected = torch.tensor([[0.5, 0.5, 1.0], [0.0, 0.5, 0.5], [0.5, 1.0, 0.5]])
    torch.testing.assert_close(colors, expected.expand(2, 3, 3))


def test_front_and_world_normals():
    views = cameras(10.0, 100.0, 200.0, 290.0, n_view=2)
    generator = torch.Generator().manual_seed(0)
    normal = torch.nn.functional.normalize(torch.randn(4, 5, 6, 3, generator=generator), dim=-1)
    torch.testing.assert_close(normals_as_colors(normal, views, "world"), (normal + 1) / 2)
    front = normals_as_colors(normal, views, "front")
    for row, first in enumerate((0, 0, 2, 2)):
        expected = (normal[row] @ views.c2w[first, :3, :3] + 1) / 2
        torch.testing.assert_close(front[row], expected)
    with pytest.raises(ValueError, match="allowed: 'camera', 'front', 'world'"):
        normals_as_colors(normal, views, "sideways")


def test_over():
    color, opacity = torch.full((1, 1, 2, 3), 0.8), torch.tensor([0.25, 1.0]).view(1, 1, 2, 1)
    blended = over(color, opacity, (0.0, 0.4, 1.0))[0, 0]
    torch.testing.assert_close(blended, torch.tensor([[0.2, 0.5, 0.95], [0.8, 0.8, 0.8]]))
    torch.testing.assert_close(over(color, opacity, torch.zeros_like(color))[0, 0, 0], torch.full((3,), 0.2))


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_shrink_gradient(share):
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    y = shrink_gradient(x, share)
    torch.testing.assert_close(y, x)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(gradient, share * 2 * x.detach())
    assert not shrink_gradient(x, 0.0).requires_grad
