"""Exponential moving average of the trained parameters."""

import torch
from torch import Tensor, nn


class ParameterAverage:
    """average <- d average + (1 - d) parameter, with d = min(decay, (1 + step) / (10 + step)) so that the start is
    forgotten."""

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float) -> None:
        self.parameters = parameters
        self.decay = decay
        self._averages = {name: p.detach().clone() for name, p in parameters.items()}

    @property
    def averages(self) -> dict[str, Tensor]:
        """By parameter name, on the devices of the parameters."""
        for name, parameter in self.parameters.items():
            self._averages[name] = self._averages[name].to(parameter.device)
        return self._averages

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after optimizer step `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.averages.values()), list(self.parameters.values()), 1 - decay)

    def load(self, averages: dict[str, Tensor]) -> None:
        """Continue from saved averages."""
        for name, average in self.averages.items():
            average.copy_(averages[name])

    def swap(self) -> None:
        """Exchange parameters and averages; a second call undoes it."""
        averages = self.averages
        for name, parameter in self.parameters.items():
            parameter.data, averages[name] = averages[name], parameter.data
