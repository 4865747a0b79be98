import math

import pytest
import torch

from triplaneturbo.ops.volume import compositing_weights, neus_alpha, volsdf_alpha, volsdf_density


def test_neus_alpha_is_the_opacity_ratio_of_the_logistic_cdf():
    sdf = torch.tensor([0.05, 0.0, -0.02], dtype=torch.float64)
    cosine = torch.tensor([-1.0, -0.5, -0.2], dtype=torch.float64)
    alpha = neus_alpha(sdf, cosine, 0.02, 40.0)
    for value, f, c in zip(alpha.tolist(), sdf.tolist(), cosine.tolist(), strict=True):
        before, after = (1 / (1 + math.exp(-40 * (f + side * c * 0.01))) for side in (-1, 1))
        assert value == pytest.approx((before - after + 1e-5) / (before + 1e-5), rel=1e-12)


def test_neus_sees_only_surfaces_that_face_the_ray():
    sdf = torch.zeros(2, dtype=torch.float64)
    leaving, entering = neus_alpha(sdf, torch.tensor([0.7, -0.7], dtype=torch.float64), 0.05, 50.0).tolist()
    assert leaving == pytest.approx(1e-5 / (0.5 + 1e-5))
    assert entering > 0.5


def test_neus_renders_a_wall_at_its_distance():
    edges = torch.linspace(0, 2, 201, dtype=torch.float64)
    middles = (edges[1:] + edges[:-1]) / 2
    weights, opacity = compositing_weights(neus_alpha(1.2 - middles, -1.0, edges.diff(), 200.0))
    assert opacity.item() == pytest.approx(1, abs=1e-3)
    assert (weights * middles).sum().item() == pytest.approx(1.2, abs=2e-3)


def test_volsdf_density_is_the_scaled_laplace_cdf():
    sdf = torch.linspace(-0.4, 0.4, 9, dtype=torch.float64)
    laplace = torch.distributions.Laplace(torch.zeros((), dtype=torch.float64), 1 / 30)
    expected = 30 * laplace.cdf(-sdf)
    torch.testing.assert_close(volsdf_density(sdf, 30.0), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(volsdf_density(sdf, 500.0), volsdf_density(sdf, 80.0))
    intervals = torch.full_like(sdf, 0.01, requires_grad=True)
    alpha = volsdf_alpha(sdf, intervals, 30.0)
    torch.testing.assert_close(alpha, 0.01 * expected)
    assert not alpha.requires_grad


def test_compositing_weights_and_gradients_equal_the_explicit_product():
    rng = torch.Generator().manual_seed(0)
    alpha = torch.rand(3, 12, dtype=torch.float64, generator=rng)
    alpha[0, 4] = 1.7  # VolSDF opacities may exceed one
    alpha.requires_grad_()
    factors = torch.ones(3, dtype=torch.float64)
    columns = []
    for i in range(alpha.shape[1]):
        columns.append(alpha[:, i] * factors)
        factors = factors * (1 - alpha[:, i])
    expected = torch.stack(columns, 1)
    weights, opacity = compositing_weights(alpha)
    torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(opacity, 1 - factors)
    scale = torch.randn(3, 12, dtype=torch.float64, generator=rng)
    (grad,) = torch.autograd.grad((weights * scale).sum(), alpha)
    (reference,) = torch.autograd.grad((expected * scale).sum(), alpha)
    torch.testing.assert_close(grad, reference, rtol=1e-10, atol=1e-12)


def test_an_opaque_sample_hides_the_rest_with_finite_gradients():
    alpha = torch.tensor([0.3, 1.0, 0.5], requires_grad=True)
    weights, opacity = compositing_weights(alpha)
    torch.testing.assert_close(weights, torch.tensor([0.3, 0.7, 0.0]))
    opacity.backward()
    assert alpha.grad.isfinite().all()
