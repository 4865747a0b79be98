"""Frozen networks that are on the device only while they are used."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class HostCopy:
    """The weights of frozen networks in memory of the host, which is pinned where there is a GPU to copy to.

    Nothing is copied back: the networks must not change.
    """

    def __init__(self, *networks: nn.Module) -> None:
        pinned = torch.cuda.is_available()
        self._host = []
        for network in networks:
            for tensor in (*network.parameters(), *network.buffers()):
                data = tensor.data.cpu()
                self._host.append((tensor, data.pin_memory() if pinned else data))
        self._put_away()

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """A block, backward passes included, in which the networks are on `device`."""
        for tensor, data in self._host:
            tensor.data = data.to(device, non_blocking=True)
        try:
            yield
        finally:
            self._put_away()

    def _put_away(self) -> None:
        for tensor, data in self._host:
            tensor.data = data
