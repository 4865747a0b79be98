"""The gated unit's kernel against torch in float64."""

import pytest
import torch
from torch.nn import functional as F
from triton_process import BACKEND, DEVICE, run_with_triton

from triplaneturbo.ops.gated import geglu


def outcome(x, weight):
    x = x.detach().requires_grad_()
    y = geglu(x)
    (y * weight.to(y)).sum().backward()
    return y.detach(), x.grad


def test_is_the_product_of_values_and_gelu_of_gates():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(geglu(x), x[..., :4] * F.gelu(x[..., 4:]))


if BACKEND == "triton":  # in the process of the last test

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 5e-4)])
    def test_kernel_agrees_with_float64(dtype, tolerance):
        torch.manual_seed(0)
        x, weight = 3 * torch.randn(3, 50, 24), torch.randn(3, 50, 12)
        x = x.to(DEVICE, dtype)
        found = outcome(x, weight.to(DEVICE, dtype))
        # Not contiguous: by torch's own operations.
        true = outcome(x.double().cpu().transpose(0, 1).contiguous().transpose(0, 1), weight.to(dtype))
        for a, b in zip(found, true, strict=True):
            assert (a.double().cpu() - b).norm() <= tolerance * b.norm()


def test_kernels_pass_the_tests_of_this_file():
    assert "2 passed" in run_with_triton(__file__, "kernel and not kernels")
