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


def box(size: int, wall: int) -> Tensor:
    """A hollow box, `wall` points thick, in the middle of an empty grid; its walls are full."""
    full = torch.zeros(3 * [size], dtype=torch.bool)
    full[4:-4, 4:-4, 4:-4] = True
    inner = slice(4 + wall, -4 - wall)
    full[inner, inner, inner] = False
    return full


@pytest.mark.parametrize("wall", [1, 3])
def test_small_holes_in_a_wall_can_count_as_closed(wall: int) -> None:
    full = box(24, wall)
    inside = cavities(~full)
    assert inside.sum() == (16 - 2 * wall) ** 3
    full[4 : 4 + wall, 9:11, 12] = False
    assert not cavities(~full).any()
    found = cavities(~full, opening=1)
    assert found[inside].all()
    assert (found & ~inside).sum() <= 2 * wall  # of the hole itself
    full[4 : 4 + wall, 8:12, 11:15] = False
    assert not cavities(~full, opening=1).any()
    assert cavities(~full, opening=2)[inside].all()


def test_a_hole_through_a_solid_stays_open() -> None:
    full = torch.zeros(20, 20, 20, dtype=torch.bool)
    full[5:15, 5:15, 5:15] = True
    full[:, 9:11, 9:11] = False
    for opening in range(4):
        assert not cavities(~full, opening).any()


@pytest.mark.parametrize("full", [True, False])
def test_all_of_one_kind_has_no_cavity(full: bool) -> None:
    assert not cavities(torch.full((4, 4, 4), not full)).any()
