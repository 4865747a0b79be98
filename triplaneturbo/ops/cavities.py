"""Cavities of solids on a grid: what is empty, and cut off from the outside."""

import torch
from jaxtyping import Bool
from torch import Tensor


def cavities(empty: Bool[Tensor, "X Y Z"]) -> Bool[Tensor, "X Y Z"]:
    """The empty points that no path along the axes through empty points joins to the outside of the grid."""
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
            return empty & ~open_


def _along(empty: Tensor, open_: Tensor, axis: int) -> Tensor:
    """The open points, and those empty ones that are joined to one of them by empty points along the axis."""
    empty, open_ = empty.transpose(axis, 2), open_.transpose(axis, 2)
    runs = torch.cumsum(~empty, dim=2)  # points of a line between the same two full ones have the same number
    reached = torch.zeros(*runs.shape[:2], runs.shape[2] + 1, dtype=torch.uint8, device=empty.device)
    reached.scatter_reduce_(2, runs, open_.to(torch.uint8), "amax")
    return (empty & reached.gather(2, runs).bool()).transpose(axis, 2)
