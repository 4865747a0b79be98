"""Cavities of solids on a grid: what is empty, and cut off from the outside."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor


def cavities(empty: Bool[Tensor, "X Y Z"], opening: int = 0) -> Bool[Tensor, "X Y Z"]:
    """The empty points that no path along the axes through empty points joins to the outside of the grid.

    opening: paths may be cut where walls around them, grown by so many points, meet: through walls with small holes.
    A hollow that is that narrow everywhere is none.
    """
    found = torch.zeros_like(empty)
    for reach in range(opening + 1):
        left = empty & ~found
        wide = left & ~_grown(~left, reach)
        found |= left & _grown(wide & ~_outside(wide), reach)
    return found


def _grown(full: Tensor, reach: int) -> Tensor:
    """With all points that are so near along each axis."""
    return full if not reach else F.max_pool3d(full[None].float(), 2 * reach + 1, 1, reach)[0] > 0


def _outside(empty: Tensor) -> Tensor:
    """The empty points that are joined to the border of the grid."""
    open_ = torch.zeros_like(empty)
    for axis in range(3):
        ends = torch.zeros_like(empty)
        ends.index_fill_(axis, torch.tensor([0, empty.shape[axis] - 1], device=empty.device), True)
        open_ |= empty & ends
    while True:
        before = open_
        for axis in range(3):
            open_ = _along(empty, open_, axis)
        if torch.equal(open_, before):
            return open_


def _along(empty: Tensor, open_: Tensor, axis: int) -> Tensor:
    """The open points, and those empty ones that are joined to one of them by empty points along the axis."""
    empty, open_ = empty.transpose(axis, 2), open_.transpose(axis, 2)
    runs = torch.cumsum(~empty, dim=2)  # points of a line between the same two full ones have the same number
    reached = torch.zeros(*runs.shape[:2], runs.shape[2] + 1, dtype=torch.uint8, device=empty.device)
    reached.scatter_reduce_(2, runs, open_.to(torch.uint8), "amax")
    return (empty & reached.gather(2, runs).bool()).transpose(axis, 2)
