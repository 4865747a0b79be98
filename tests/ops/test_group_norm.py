"""Norm, shift and SiLU as one kernel, and sums with a bias, against torch in float64."""

import pytest
import torch
from triton_process import BACKEND, DEVICE, run_with_triton

from triplaneturbo.ops.group_norm import group_norm_silu
from triplaneturbo.ops.sums import add_with_bias


def example(shape, groups, dtype=torch.float32, offset=0.0):
    torch.manual_seed(0)
    x = torch.randn(shape) * 2 + offset
    weight, bias, shift = torch.randn(shape[1]), torch.randn(shape[1]), torch.randn(shape[:2])
    return [t.to(DEVICE, dtype).requires_grad_() for t in (x, weight, bias, shift)]


def with_kernels(*args, **kwargs):
    return group_norm_silu(*args, **kwargs, backend="triton")


def reference(*args, **kwargs):
    return group_norm_silu(*args, **kwargs, backend="torch")


def outcome(function, tensors, groups, shifted, silu):
    x, weight, bias, shift = (t.detach().requires_grad_() for t in tensors)
    y = function(x, groups, weight, bias, 1e-5, shift=shift if shifted else None, silu=silu)
    torch.manual_seed(1)
    (y * torch.randn(y.shape, dtype=torch.float64).to(y)).sum().backward()
    return [t for t in (y.detach(), x.grad, weight.grad, bias.grad, shift.grad) if t is not None]


if BACKEND == "triton":  # in the process of the last test

    @pytest.mark.parametrize(
        ("shape", "groups", "shifted", "silu", "channels_last"),
        [
            ((2, 20, 9, 15), 2, True, True, True),  # groups of 10 channels
            ((2, 72, 17, 8), 4, False, True, True),  # more channels than a tile has
            ((1, 32, 5, 3), 16, True, False, False),
            ((2, 64, 130), 8, False, False, False),  # tokens, as attention has them
        ],
    )
    def test_kernel_agrees_with_float64(shape, groups, shifted, silu, channels_last):
        tensors = example(shape, groups)
        if channels_last:
            tensors[0] = tensors[0].detach().to(memory_format=torch.channels_last).requires_grad_()
        given = outcome(with_kernels, tensors, groups, shifted, silu)
        double = [t.detach().double() for t in tensors]
        true = outcome(reference, double, groups, shifted, silu)
        for a, b in zip(given, true, strict=True):
            assert (a - b).norm() <= 3e-6 * b.norm()
        if channels_last:
            assert given[0].is_contiguous(memory_format=torch.channels_last)
            assert given[1].is_contiguous(memory_format=torch.channels_last)

    def test_a_mean_far_from_zero_costs_the_kernel_no_digits():
        tensors = example((1, 8, 33, 40), 2, offset=1000.0)
        given = outcome(with_kernels, tensors, 2, False, False)[0]
        true = outcome(reference, [t.detach().double() for t in tensors], 2, False, False)[0]
        assert (given - true).norm() <= 1e-4 * true.norm()  # x itself has 6e-8 * 1000 / 2

    def test_kernel_in_half_precision_rounds_its_result_alone():
        tensors = [t.detach() for t in example((2, 32, 12, 12), 8, torch.float16)]
        given = outcome(with_kernels, tensors, 8, True, True)
        true = outcome(reference, [t.double() for t in tensors], 8, True, True)
        for a, b in zip(given[:2], true[:2], strict=True):
            assert (a.double() - b).norm() <= 5e-4 * b.norm()

    @pytest.mark.parametrize("count", [1, 2, 3])
    @pytest.mark.parametrize("biased", [True, False])
    def test_kernel_of_sums_agrees_with_float64(count, biased):
        torch.manual_seed(0)
        parts = [torch.randn(2, 12, 9, 11).to(DEVICE, memory_format=torch.channels_last) for _ in range(count)]
        parts = [part.requires_grad_() for part in parts]
        bias = torch.randn(12, device=DEVICE, requires_grad=True) if biased else None
        total = add_with_bias(parts, bias)
        true = sum(part.double() for part in parts) + (0 if bias is None else bias.double()[:, None, None])
        torch.testing.assert_close(total, true.float())
        assert total.is_contiguous(memory_format=torch.channels_last)
        weight = torch.randn_like(total)
        (total * weight).sum().backward()
        assert all(torch.equal(part.grad, weight) for part in parts)
        if bias is not None:
            torch.testing.assert_close(bias.grad, weight.sum((0, 2, 3)))


def test_reference_is_torchs_own():
    x, weight, bias, shift = example((2, 12, 5, 5), 3)
    module = torch.nn.GroupNorm(3, 12).to(x)
    with torch.no_grad():
        module.weight.copy_(weight)
        module.bias.copy_(bias)
    expected = torch.nn.functional.silu(module(x + shift[:, :, None, None]))
    given = reference(x, 3, weight, bias, 1e-5, shift=shift, silu=True)
    torch.testing.assert_close(given, expected)


def test_kernels_pass_the_tests_of_this_file():
    assert "12 passed" in run_with_triton(__file__, "kernel and not kernels")
