"""The kernel of a whole field against its composition of plain operations in float64."""

import pytest
import torch
from triton_process import BACKEND, DEVICE, run_with_triton

from triplaneturbo.performance import Performance, using
from triplaneturbo.scenes import PlaneField


def example(channels=16, neurons=32, n_points=80):
    torch.manual_seed(0)
    options = {"network": {"n_neurons": neurons}, "radius": 1.25, "bias": "sphere", "bias_size": 0.5}
    field = PlaneField(options, channels=channels).to(DEVICE)
    planes = torch.randn(2, 6, channels, 9, 7, device=DEVICE)
    points = torch.rand(2, n_points, 3, device=DEVICE) * 3 - 1.5  # some of them outside of all planes
    return field, planes, points


def outcome(field, planes, points, fused):
    """What a query finds, and the gradients of a loss on all of it."""
    planes = planes.detach().requires_grad_()
    with using(Performance("fast" if fused else "reference")):
        assert field._has_kernel({"planes": planes}, points) == fused
        found = field.query({"planes": planes}, points, normals=True)
    results = [found.value, found.gradient, found.features]
    torch.manual_seed(1)
    cotangents = [torch.randn(x.shape, dtype=torch.float64).to(x) for x in results]
    wanted = [planes, *(w for n in (field.sdf_network, field.feature_network) for w in n.parameters())]
    gradients = torch.autograd.grad(results, wanted, cotangents)
    return [x.detach() for x in results], gradients


if BACKEND == "triton":  # in the process of the last test

    @pytest.mark.parametrize(("channels", "neurons"), [(16, 32), (32, 64)])
    def test_kernel_agrees_with_float64(channels, neurons):
        field, planes, points = example(channels, neurons)
        results, gradients = outcome(field, planes, points, fused=True)
        double = outcome(field.double(), planes.double(), points.double(), fused=False)
        # The matrix units of a GPU take factors of 10 bits in the backward pass.
        shares = [2e-6] * len(results) + [2e-6 if DEVICE == "cpu" else 5e-3] * len(gradients)
        for given, true, share in zip((*results, *gradients), (*double[0], *double[1]), shares, strict=True):
            assert (given - true).norm() <= share * true.norm(), (given.shape, (given - true).norm() / true.norm())

    def test_value_alone_is_that_of_the_query():
        field, planes, points = example()
        with torch.no_grad():
            alone = field.value({"planes": planes}, points)
            together = field.query({"planes": planes}, points, normals=True).value
        torch.testing.assert_close(alone, together)

    @torch.no_grad()
    def test_grid_is_that_of_the_plain_operations():
        _, planes, _ = example()
        field = PlaneField({"network": {"n_neurons": 32}}, channels=16).to(DEVICE)
        value = field.grid({"planes": planes}, 9, 2)
        with using(Performance("reference")):
            true_value = field.grid({"planes": planes}, 9, 2)
        torch.testing.assert_close(value, true_value, rtol=1e-5, atol=1e-6)

    def test_parts_that_the_loss_leaves_out_get_no_gradient():
        field, planes, points = example()
        planes.requires_grad_()
        found = field.query({"planes": planes}, points, normals=True)
        found.features.sum().backward()
        assert field.sdf_network.linears[0].weight.grad is None
        assert planes.grad[:, :3].abs().max() == 0
        assert planes.grad[:, 3:].abs().max() > 0


def test_reference_level_and_order_of_sums_and_gradients_of_points_forbid_the_kernel():
    field, planes, points = example()
    assert not field._has_kernel({"planes": planes}, points.requires_grad_())
    with using(Performance("reference")):
        assert not field._has_kernel({"planes": planes}, points.detach())


def test_kernels_pass_the_tests_of_this_file():
    assert "5 passed" in run_with_triton(__file__, "kernel_agrees or value_alone or parts_that or grid_is")
