"""Recorded computations, on a GPU only."""

import pytest
import torch
from torch import nn

from triplaneturbo.graphs import TrainingReplay

pytestmark = pytest.mark.gpu


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 4)).cuda()


def inputs(count):
    generator = torch.Generator("cuda").manual_seed(1)
    return [torch.randn(5, 8, device="cuda", generator=generator).requires_grad_() for _ in range(count)]


def test_passes_accumulate_as_without_recording(layers):
    """The first pass records, the second is replayed; then gradients are dropped, and the third starts anew."""
    replay, parameters = TrainingReplay(), list(layers.parameters())

    def function(x):
        return x.mean(), layers(x)

    for passes in ([0, 1], [2, 0]):
        expected, found = [], []
        for grads, call in ((expected, function), (found, lambda x: replay(function, (x,), parameters, key=0))):
            layers.zero_grad()
            for x in (inputs(3)[number] for number in passes):
                other, last = call(x)
                assert (call is function) == other.requires_grad
                last.square().sum().backward()
                grads.append(x.grad)
                del other, last  # a graph that is alive would bring its stream into the recording
            grads += [p.grad.clone() for p in parameters]
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_a_pass_that_was_recorded_over_cannot_go_backward(layers):
    replay, parameters = TrainingReplay(), list(layers.parameters())
    results = [replay(lambda x: (layers(x),), (x,), parameters, key=0)[0] for x in inputs(3)]
    results[2].sum().backward()
    with pytest.raises(RuntimeError, match="recorded over by a later one"):
        results[1].sum().backward()
