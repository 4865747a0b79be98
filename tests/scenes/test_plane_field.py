import pytest
import torch
import torch.nn.functional as F

from triplaneturbo.errors import ConfigError
from triplaneturbo.nn.mlp import Mlp
from triplaneturbo.scenes.bias import SdfBias

OPTIONS = [
    {},
    {"shape_features": "concat", "color_features": "sum", "radius": 1.25},
    {"shape_features": "mean", "color_features": "mean", "axes": "plain"},
    {"bias": "ellipsoid", "bias_size": [0.6, 0.8, 0.5], "axes": "xy"},
    {"bias": -0.2, "bias_size": None, "dual": False},
]
JOINED = {
    "sum": sum,
    "mean": lambda parts: sum(parts) / 3,
    "concat": lambda parts: torch.cat(list(parts), dim=-1),
}


def bilinear(plane, u, v):
    """Naive lookup in [C, H, W] at N points, zero outside, written with index arithmetic only."""
    _, height, width = plane.shape
    padded = F.pad(plane, (2, 2, 2, 2))
    x = (((u + 1) * width - 1) / 2).clamp(-1.5, width + 0.5) + 2
    y = (((v + 1) * height - 1) / 2).clamp(-1.5, height + 0.5) + 2
    i, j = y.detach().floor().long(), x.detach().floor().long()
    a, b = y - i, x - j
    upper = padded[:, i, j] * (1 - b) + padded[:, i, j + 1] * b
    lower = padded[:, i + 1, j] * (1 - b) + padded[:, i + 1, j + 1] * b
    return (upper * (1 - a) + lower * a).T


def reference(field, planes, points):
    """sdf, colour features and d sdf / d point by autograd through the naive lookup, one prompt."""
    cfg = field.cfg
    x, y, z = (points / cfg.radius).unbind(-1)
    coords = {
        "yx": [(y, x), (-x, -z), (y, -z)],
        "xy": [(-x, y), (-x, -z), (y, -z)],
        "plain": [(x, y), (x, z), (z, y)],
    }[cfg.axes]
    shape, color = (planes[:3], planes[3:]) if cfg.dual else (planes, planes)
    shape, color = ([bilinear(p, u, v) for p, (u, v) in zip(part, coords, strict=True)] for part in (shape, color))
    raw = field.sdf_network(JOINED[cfg.shape_features](shape))
    if cfg.bias == "sphere":
        bias = points.norm(dim=-1, keepdim=True) - cfg.bias_size
    elif cfg.bias == "ellipsoid":
        bias = (points / torch.tensor(cfg.bias_size, dtype=points.dtype)).norm(dim=-1, keepdim=True) - 1
    else:
        bias = cfg.bias
    sdf = raw + bias
    colour = field.feature_network(JOINED[cfg.color_features](color))
    gradient = torch.autograd.grad(sdf.sum(), points, create_graph=True)[0]
    return sdf, colour, gradient


def example(field, n_points=40):
    generator = torch.Generator().manual_seed(7)
    n_planes = 6 if field.cfg.dual else 3
    planes = torch.randn(2, n_planes, 4, 9, 9, generator=generator, dtype=torch.float64).requires_grad_()
    points = torch.rand(2, n_points, 3, generator=generator, dtype=torch.float64) * 2.4 - 1.2
    return planes, (points * field.cfg.radius).requires_grad_()


@pytest.mark.parametrize("options", OPTIONS)
def test_query_values_and_gradients_to_second_order(build, options):
    """Against float64 autograd with create_graph; the loss reads sdf, colour, gradient and normal."""
    field = build(**options).double()
    planes, points = example(field)
    sample = field.query({"planes": planes}, points, normals=True)
    results = [reference(field, *part) for part in zip(planes, points, strict=True)]
    sdf, colour, gradient = (torch.stack(parts) for parts in zip(*results, strict=True))
    torch.testing.assert_close(sample.value, sdf)
    torch.testing.assert_close(sample.features, colour)
    torch.testing.assert_close(sample.gradient, gradient)
    torch.testing.assert_close(sample.normal, F.normalize(gradient, dim=-1))

    def loss(sdf, colour, gradient):
        eikonal = (gradient.norm(dim=-1) - 1).square().sum()
        return sdf.sin().sum() + colour.square().sum() + eikonal + F.normalize(gradient, dim=-1)[..., 0].sum()

    weights = [*field.sdf_network.parameters(), *field.feature_network.parameters()]
    leaves = [planes, points, *weights]
    ours = torch.autograd.grad(loss(sample.value, sample.features, sample.gradient), leaves)
    truth = torch.autograd.grad(loss(sdf, colour, gradient), leaves)
    torch.testing.assert_close(ours, truth)


def test_parts_agree_and_unasked_parts_are_absent(build):
    field = build().double()
    planes, points = example(field)
    tensors = {"planes": planes}
    sample = field.query(tensors, points)
    assert sample.normal is None
    assert sample.gradient is None
    torch.testing.assert_close(field.value(tensors, points), sample.value)
    torch.testing.assert_close(field.features(tensors, points), sample.features)
    value, offset = field.level_set(tensors, points, resolution=16)
    torch.testing.assert_close(value, sample.value)
    assert offset.shape == points.shape
    assert field.query(tensors, points, features=False).features is None
    rigid = build(deformable=False).double()
    assert rigid.level_set(tensors, points, resolution=16)[1] is None


def test_shape_planes_never_touch_colour_and_the_reverse(build):
    field = build().double()
    planes, points = example(field)
    sample = field.query({"planes": planes}, points)
    of_sdf = torch.autograd.grad(sample.value.sum(), planes, retain_graph=True)[0]
    of_colour = torch.autograd.grad(sample.features.sum(), planes)[0]
    assert of_sdf[:, :3].any()
    assert not of_sdf[:, 3:].any()
    assert of_colour[:, 3:].any()
    assert not of_colour[:, :3].any()


@pytest.mark.parametrize(
    ("plane", "point"),
    [  # the texel in row 1, column 6 of 8: u = 5/8, v = -5/8
        (3, (-0.625, 0.625, 0.1)),  # xy: u = y, v = x
        (4, (-0.625, 0.1, 0.625)),  # xz: u = -x, v = -z
        (5, (0.1, 0.625, 0.625)),  # yz: u = y, v = -z
    ],
)
def test_planes_lie_where_the_convention_says(build, plane, point):
    field = build()
    planes = torch.zeros(1, 6, 4, 8, 8)
    background = field.features({"planes": planes}, torch.tensor([[point]]))
    planes[0, plane, :, 1, 6] = 1
    lit = field.features({"planes": planes}, torch.tensor([[point]]))
    elsewhere = field.features({"planes": planes}, -torch.tensor([[point]]))
    assert not torch.equal(lit, background)
    torch.testing.assert_close(elsewhere, background)


def test_outside_all_planes_the_sdf_is_the_start_shape(build):
    planes, points = torch.randn(1, 6, 4, 8, 8), torch.tensor([[[1.5, 1.3, 0.0], [0.0, -2.0, 1.3]]])
    expected = points.norm(dim=-1, keepdim=True) - 0.5
    torch.testing.assert_close(build().value({"planes": planes}, points), expected, rtol=0, atol=0)


def test_finite_differences_approach_the_exact_gradient(build):
    exact = build().double()
    approximate = build(normals="finite_difference", finite_difference_step=1e-6).double()
    planes, points = example(exact)
    truth, found = (f.query({"planes": planes}, points, normals=True).gradient for f in (exact, approximate))
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-4)


def test_network_gradient_matches_autograd():
    network = Mlp(5, 1, 7, 3).double()
    x = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    value, gradient = network.value_and_gradient(x)
    torch.testing.assert_close(value, network(x))
    torch.testing.assert_close(gradient, torch.autograd.grad(network(x).sum(), x)[0])
    assert [name for name, _ in network.named_parameters()] == [f"layers.{i}.weight" for i in (0, 2, 4, 6)]


def test_start_shape_has_no_gradient_at_its_centre_and_never_nan():
    for size in ((0.5,), (0.5, 0.6, 0.7)):
        bias = SdfBias(size)
        points = torch.zeros(1, 3, requires_grad=True)
        assert torch.equal(bias.gradient(points), torch.zeros(1, 3))
        (gradient,) = torch.autograd.grad(bias.value(points).sum() + bias.gradient(points).sum(), points)
        assert gradient.isfinite().all()
    constant = SdfBias(None, 0.25)
    assert constant.value(torch.ones(1, 3)).item() == 0.25
    assert not constant.gradient(torch.ones(1, 3)).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bias_size": None}, "positive radius"),
        ({"bias": "ellipsoid", "bias_size": [1.0, -1.0, 1.0]}, r"bias_size\[1\] must be in"),
        ({"bias": "cube"}, "'sphere', 'ellipsoid'"),
        ({"radius": 0.0}, "radius must be in"),
        ({"n_feature_dims": 0}, "n_feature_dims"),
        ({"axes": "v3"}, "'yx', 'xy', 'plain'"),
        ({"network": {"n_neurons": 0}}, "n_neurons"),
    ],
)
def test_bad_options_are_explained(build, options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)
