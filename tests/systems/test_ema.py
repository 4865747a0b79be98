"""The running average of the trained parameters."""

import pytest
import torch

from triplaneturbo.systems.ema import ParameterAverage


def test_averaged_weights_follow_their_definition():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    average = ParameterAverage({"weight": weight}, decay=0.5)
    expected = 1.0
    for step in range(1, 12):  # from step 8 on the decay of the start is larger than the option
        with torch.no_grad():
            weight.fill_(step**2)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step**2
    average.swap()
    assert weight.item() == pytest.approx(expected)
    average.swap()
    assert weight.item() == 121.0
