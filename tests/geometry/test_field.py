import pytest
import torch
import torch.nn.functional as F

from triplaneturbo.errors import ConfigError
from triplaneturbo.geometry.field import Mlp, SdfBias

OPTIONS = [
    {},
    {"geo_interpolate": "v2", "tex_interpolate": "v1", "radius": 1.25},
    {"sdf_bias": "ellipsoid", "sdf_bias_params": [0.6, 0.8, 0.5], "rotate_planes": "v2"},
    {"sdf_bias": -0.2, "sdf_bias_params": None},
]


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


def reference(geometry, planes, points):
    """sdf, colour features and d sdf / d point by autograd through the naive lookup, one prompt."""
    cfg = geometry.cfg
    x, y, z = (points / cfg.radius).unbind(-1)
    on_xy = (y, x) if cfg.rotate_planes == "v1" else (-x, y)
    coords = [on_xy, (-x, -z), (y, -z)] * 2
    values = [bilinear(plane, u, v) for plane, (u, v) in zip(planes, coords, strict=True)]
    join = {"v1": sum, "v2": lambda parts: torch.cat(list(parts), dim=-1)}
    raw = geometry.sdf_network(join[cfg.geo_interpolate](values[:3]))
    if cfg.sdf_bias == "sphere":
        bias = points.norm(dim=-1, keepdim=True) - cfg.sdf_bias_params
    elif cfg.sdf_bias == "ellipsoid":
        bias = (points / torch.tensor(cfg.sdf_bias_params, dtype=points.dtype)).norm(dim=-1, keepdim=True) - 1
    else:
        bias = cfg.sdf_bias
    sdf = raw + bias
    colour = geometry.feature_network(join[cfg.tex_interpolate](values[3:]))
    gradient = torch.autograd.grad(sdf.sum(), points, create_graph=True)[0]
    return sdf, colour, gradient


def scene(geometry, n_points=40):
    generator = torch.Generator().manual_seed(7)
    planes = torch.randn(2, 6, 4, 9, 9, generator=generator, dtype=torch.float64).requires_grad_()
    points = torch.rand(2, n_points, 3, generator=generator, dtype=torch.float64) * 2.4 - 1.2
    return planes, (points * geometry.cfg.radius).requires_grad_()


@pytest.mark.parametrize("options", OPTIONS)
def test_query_values_and_gradients_to_second_order(build, options):
    """Against float64 autograd with create_graph; the loss reads sdf, colour, gradient and normal."""
    geometry = build(**options).double()
    planes, points = scene(geometry)
    sample = geometry.query(planes, points, normals=True)
    results = [reference(geometry, *scene_part) for scene_part in zip(planes, points, strict=True)]
    sdf, colour, gradient = (torch.stack(parts) for parts in zip(*results, strict=True))
    torch.testing.assert_close(sample.sdf, sdf)
    torch.testing.assert_close(sample.features, colour)
    torch.testing.assert_close(sample.sdf_grad, gradient)
    torch.testing.assert_close(sample.normal, F.normalize(gradient, dim=-1))

    def loss(sdf, colour, gradient):
        eikonal = (gradient.norm(dim=-1) - 1).square().sum()
        return sdf.sin().sum() + colour.square().sum() + eikonal + F.normalize(gradient, dim=-1)[..., 0].sum()

    weights = [*geometry.sdf_network.parameters(), *geometry.feature_network.parameters()]
    leaves = [planes, points, *weights]
    ours = torch.autograd.grad(loss(sample.sdf, sample.features, sample.sdf_grad), leaves)
    truth = torch.autograd.grad(loss(sdf, colour, gradient), leaves)
    torch.testing.assert_close(ours, truth)


def test_parts_agree_and_unasked_parts_are_absent(build):
    geometry = build().double()
    planes, points = scene(geometry)
    sample = geometry.query(planes, points)
    assert sample.normal is None
    assert sample.sdf_grad is None
    torch.testing.assert_close(geometry.sdf(planes, points), sample.sdf)
    torch.testing.assert_close(geometry.features(planes, points), sample.features)
    sdf, deformation = geometry.sdf_and_deformation(planes, points)
    torch.testing.assert_close(sdf, sample.sdf)
    assert deformation.shape == points.shape
    assert geometry.query(planes, points, features=False).features is None
    rigid = build(isosurface_deformable_grid=False).double()
    assert rigid.sdf_and_deformation(planes, points)[1] is None


def test_shape_planes_never_touch_colour_and_the_reverse(build):
    geometry = build().double()
    planes, points = scene(geometry)
    sample = geometry.query(planes, points)
    of_sdf = torch.autograd.grad(sample.sdf.sum(), planes, retain_graph=True)[0]
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
    geometry = build()
    planes = torch.zeros(1, 6, 4, 8, 8)
    background = geometry.features(planes, torch.tensor([[point]]))
    planes[0, plane, :, 1, 6] = 1
    lit = geometry.features(planes, torch.tensor([[point]]))
    elsewhere = geometry.features(planes, -torch.tensor([[point]]))
    assert not torch.equal(lit, background)
    torch.testing.assert_close(elsewhere, background)


def test_outside_all_planes_the_sdf_is_the_start_shape(build):
    geometry = build()
    planes, points = torch.randn(1, 6, 4, 8, 8), torch.tensor([[[1.5, 1.3, 0.0], [0.0, -2.0, 1.3]]])
    expected = points.norm(dim=-1, keepdim=True) - 0.5
    torch.testing.assert_close(geometry.sdf(planes, points), expected, rtol=0, atol=0)


def test_finite_differences_approach_the_exact_gradient(build):
    exact = build().double()
    approximate = build(normal_type="finite_difference", finite_difference_normal_eps=1e-6).double()
    planes, points = scene(exact)
    truth = exact.query(planes, points, normals=True).sdf_grad
    torch.testing.assert_close(approximate.query(planes, points, normals=True).sdf_grad, truth, rtol=1e-4, atol=1e-4)


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
        ({"sdf_bias_params": None}, "positive radius"),
        ({"sdf_bias": "ellipsoid", "sdf_bias_params": [1.0, -1.0, 1.0]}, r"params\[1\] must be in \(0, 1000\]"),
        ({"sdf_bias": "cube"}, "'sphere', 'ellipsoid'"),
        ({"radius": 0.0}, r"radius must be in \(0, 1000\]"),
        ({"n_feature_dims": 0}, "n_feature_dims"),
        ({"rotate_planes": "v3"}, "'v1', 'v2'"),
        ({"weights": "x.ckpt"}, "system.weights"),
        ({"mlp_network_config": {"n_neurons": 0}}, "n_neurons"),
    ],
)
def test_bad_options_are_explained(build, options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)
