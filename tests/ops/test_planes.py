import pytest
import torch
import torch.nn.functional as F
from triton_process import BACKEND, DEVICE, run_with_triton

from triplaneturbo.ops.planes import sample_planes, sample_planes_with_jacobian


def lookup(planes, coords):
    return sample_planes(planes, coords, backend=BACKEND)


def lookup_with_jacobian(planes, coords):
    return sample_planes_with_jacobian(planes, coords, backend=BACKEND)


def slow_lookup(planes, coords):
    """Bilinear interpolation with a tent weight for every texel: zero outside by construction."""
    height, width = planes.shape[-2:]
    column = ((coords[..., 0] + 1) * width - 1) / 2
    row = ((coords[..., 1] + 1) * height - 1) / 2
    wx = (1 - (column[..., None] - torch.arange(width, device=DEVICE)).abs()).clamp_min(0)
    wy = (1 - (row[..., None] - torch.arange(height, device=DEVICE)).abs()).clamp_min(0)
    return torch.einsum("bpchw,bpnh,bpnw->bpnc", planes, wy, wx)


@pytest.fixture
def inputs():
    rng = torch.Generator().manual_seed(0)
    planes = torch.randn(2, 3, 4, 5, 7, dtype=torch.float64, generator=rng)
    coords = torch.rand(2, 3, 40, 2, dtype=torch.float64, generator=rng) * 2.6 - 1.3
    coords[0, 0, :4] = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [50.0, 0.1], [0.0, -1e9]], dtype=torch.float64)
    return planes.to(DEVICE).requires_grad_(), coords.to(DEVICE).requires_grad_()


def test_value_and_gradients_are_bilinear_interpolation(inputs):
    planes, coords = inputs
    weight = torch.randn(2, 3, 40, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    expected = slow_lookup(planes, coords)
    expected_grads = torch.autograd.grad((expected * weight).sum(), inputs)
    for value in (lookup(planes, coords), lookup_with_jacobian(planes, coords)[0]):
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
        grads = torch.autograd.grad((value * weight).sum(), inputs)
        for grad, reference in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(grad, reference, rtol=0, atol=1e-11)


def test_jacobian_is_the_derivative_of_the_value(inputs):
    planes, coords = inputs
    jacobian = lookup_with_jacobian(planes, coords)[1]
    value = slow_lookup(planes, coords)
    for channel in range(planes.shape[2]):
        (reference,) = torch.autograd.grad(value[..., channel].sum(), coords, retain_graph=True)
        torch.testing.assert_close(jacobian[..., channel], reference, rtol=0, atol=1e-11)


def test_gradients_through_the_jacobian_equal_the_double_backward(inputs):
    planes, coords = inputs
    rng = torch.Generator().manual_seed(2)
    wv = torch.randn(2, 3, 40, 4, dtype=torch.float64, generator=rng).to(DEVICE)
    wj = torch.randn(2, 3, 40, 2, 4, dtype=torch.float64, generator=rng).to(DEVICE)
    value, jacobian = lookup_with_jacobian(planes, coords)
    grads = torch.autograd.grad((value * wv).sum() + (jacobian * wj).sin().sum(), inputs)

    reference = slow_lookup(planes, coords)
    columns = [
        torch.autograd.grad(reference[..., c].sum(), coords, create_graph=True)[0] for c in range(planes.shape[2])
    ]
    loss = (reference * wv).sum() + (torch.stack(columns, -1) * wj).sin().sum()
    for grad, expected in zip(grads, torch.autograd.grad(loss, inputs), strict=True):
        torch.testing.assert_close(grad, expected, rtol=0, atol=1e-10)


def test_many_points_in_float32_agree_with_grid_sample():
    rng = torch.Generator().manual_seed(3)
    planes = torch.randn(1, 2, 16, 32, 32, generator=rng)
    coords = torch.rand(1, 2, 40_000, 2, generator=rng) * 2.2 - 1.1
    value, jacobian = sample_planes_with_jacobian(planes, coords)
    grid = F.grid_sample(planes[0], coords[0].unsqueeze(2), align_corners=False)[..., 0].transpose(1, 2)
    torch.testing.assert_close(value[0], grid, rtol=0, atol=1e-5)
    assert jacobian.shape == (1, 2, 40_000, 2, 16)


def test_only_the_wanted_gradient_is_computed(inputs):
    planes, coords = inputs
    value, _ = lookup_with_jacobian(planes.detach(), coords)
    assert torch.autograd.grad(value.sum(), coords)[0].shape == coords.shape
    value, _ = lookup_with_jacobian(planes, coords.detach())
    assert torch.autograd.grad(value.sum(), planes)[0].shape == planes.shape


def test_no_points_give_no_rows():
    value, jacobian = lookup_with_jacobian(
        torch.ones(1, 3, 4, 2, 2, device=DEVICE), torch.zeros(1, 3, 0, 2, device=DEVICE)
    )
    assert value.shape == (1, 3, 0, 4)
    assert jacobian.shape == (1, 3, 0, 2, 4)


if BACKEND == "triton":  # in the process of the next test

    def test_order_of_points_does_not_matter_where_every_run_must_be_the_same(inputs):
        planes, coords = inputs
        weight = torch.randn(2, 3, 40, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).to(DEVICE)

        def gradient(order):
            value, jacobian = lookup_with_jacobian(planes, coords[:, :, order])
            loss = value.sin().sum() + (jacobian * weight[:, :, order]).sum()
            return torch.autograd.grad(loss, planes)[0]

        expected, *others = (gradient(torch.randperm(40, generator=torch.Generator().manual_seed(s))) for s in range(4))
        assert not all(torch.equal(expected, other) for other in others)
        torch.use_deterministic_algorithms(True)
        try:
            exact, *others = (
                gradient(torch.randperm(40, generator=torch.Generator().manual_seed(s))) for s in range(4)
            )
        finally:
            torch.use_deterministic_algorithms(False)
        assert all(torch.equal(exact, other) for other in others)
        torch.testing.assert_close(exact, expected, rtol=0, atol=1e-11)


def test_triton_kernels_pass_the_tests_of_this_file():
    assert "6 passed" in run_with_triton(__file__, "not triton and not many")


def test_triton_on_the_cpu_is_refused_with_advice():
    with pytest.raises(ValueError, match="backend='auto'"):
        sample_planes(torch.ones(1, 1, 1, 2, 2), torch.zeros(1, 1, 1, 2), backend="triton")
