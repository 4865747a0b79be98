"""Sums of rows: the same as torch's, and with Triton the same in any order."""

import pytest
import torch
from triton_process import BACKEND, DEVICE, run_with_triton

from triplaneturbo.ops import rows
from triplaneturbo.ops.rows import add_rows, fixed_point_unit, gather_rows


@pytest.fixture(autouse=True)
def fixed_point(monkeypatch):
    if BACKEND == "triton":
        monkeypatch.setattr(rows, "_in_fixed_point", lambda table: True)


def numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(DEVICE).requires_grad_()


def places(count, size, seed=1):
    return torch.randint(count, (size,), generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
def test_gathered_rows_send_their_gradients_back(shape):
    table, index, weight = numbers(7, *shape), places(7, 3000), numbers(3000, *shape, seed=2).detach()
    found = gather_rows(table, index)
    assert torch.equal(found, table[index])
    (gradient,) = torch.autograd.grad((found * weight).sum(), table)
    expected = torch.zeros_like(table).index_put((index,), weight, accumulate=True)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
def test_added_rows_are_sums_with_gradients(shape):
    table, index, more = numbers(7, *shape), places(7, 3000), numbers(3000, *shape, seed=2)
    found = add_rows(table, index, more)
    expected = table.index_put((index,), more, accumulate=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    weight = numbers(7, *shape, seed=3).detach()
    for a, b in zip(*(torch.autograd.grad((r * weight).sum(), (table, more)) for r in (found, expected)), strict=True):
        assert torch.equal(a, b)


def test_no_rows_leave_a_table_as_it_is():
    table, index = numbers(7, 3), places(7, 0)
    assert torch.equal(add_rows(table, index, numbers(0, 3)), table)
    (gradient,) = torch.autograd.grad(gather_rows(table, index).sum(), table)
    assert torch.equal(gradient, torch.zeros_like(table))


def test_unit_keeps_sums_within_64_bits():
    for bound, count in ((1.0, 1), (3e20, 5), (1e-30, 1 << 40), (0.0, 9)):
        unit = fixed_point_unit(torch.tensor(bound, dtype=torch.float64), count)
        assert 2**60 <= max(bound, 1e-200) * count * unit.item() <= 2**61
    assert fixed_point_unit(torch.tensor(torch.inf), 3).isnan()


if BACKEND == "triton":  # in the process of the next test

    def test_order_of_rows_does_not_matter():
        index, more = places(7, 3000), numbers(3000, 3)
        orders = [torch.randperm(3000, generator=torch.Generator().manual_seed(s)).to(DEVICE) for s in range(4)]
        zeros = torch.zeros(7, 3, dtype=torch.float64, device=DEVICE)
        exact, *others = (add_rows(zeros, index[order], more[order]) for order in orders)
        assert all(torch.equal(exact, other) for other in others)
        plain, *others = (zeros.cpu().index_add(0, index[order].cpu(), more[order].cpu()) for order in orders)
        assert not all(torch.equal(plain, other) for other in others)

    def test_what_is_not_finite_stays_so():
        more = torch.tensor([[1.0, torch.inf]], device=DEVICE)
        assert add_rows(torch.zeros(2, 2, device=DEVICE), places(1, 1), more).isnan().all()


def test_triton_kernel_passes_the_tests_of_this_file():
    assert "10 passed" in run_with_triton(__file__, "not triton")
