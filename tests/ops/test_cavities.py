"""Cavities on grids, against a search that visits one point after the other."""

import pytest
import torch
from torch import Tensor

from triplaneturbo.ops.cavities import cavities


def visited(empty: Tensor) -> Tensor:
    """Empty points that a walk from outside the grid reaches."""
    found = torch.zeros_like(empty)
    sizes = empty.shape
    waiting = [
        place
        for place in torch.cartesian_prod(*map(torch.arange, sizes)).tolist()
        if any(x in (0, size - 1) for x, size in zip(place, sizes, strict=True))
    ]
    while waiting:
        place = tuple(waiting.pop())
        if not empty[place] or found[place]:
            continue
        found[place] = True
        for axis in range(3):
            for step in (-1, 1):
                other = [*place]
                other[axis] += step
                if 0 <= other[axis] < sizes[axis]:
                    waiting.append(other)
    return found


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_what_no_walk_from_outside_reaches_is_a_cavity(share: float) -> None:
    empty = torch.rand(9, 12, 7, generator=torch.Generator().manual_seed(3)) < share
    expected = empty & ~visited(empty)
    assert torch.equal(cavities(empty), expected)
    assert expected.any() or share > 0.6


def test_a_winding_tunnel_is_no_cavity_until_it_is_closed() -> None:
    empty = torch.zeros(7, 7, 7, dtype=torch.bool)
    tunnel = [(3, 3, 3), (3, 3, 4), (3, 4, 4), (2, 4, 4), (2, 4, 5), (2, 5, 5), (1, 5, 5), (1, 5, 6)]
    for place in tunnel:
        empty[place] = True
    assert not cavities(empty).any()
    empty[1, 5, 6] = False
    assert cavities(empty).sum() == len(tunnel) - 1


@pytest.mark.parametrize("full", [True, False])
def test_all_of_one_kind_has_no_cavity(full: bool) -> None:
    assert not cavities(torch.full((4, 4, 4), not full)).any()
