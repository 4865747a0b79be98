import pytest
import torch

from triplaneturbo.types import TextStates

pytestmark = pytest.mark.gpu


def test_replayed_generation_equals_eager_for_new_inputs_shapes_and_devices(build):
    """Also after the weights moved away and back: a recording holds addresses."""
    device = torch.device("cuda")
    geometry = build(generator={"network_dtype": "float32"}).to(device)
    geometry.merge()
    generator = torch.Generator(device).manual_seed(0)
    for prompts, steps in ((1, 2), (1, 2), (2, 2), (2, 3), (1, 2)):
        noise = torch.randn(6 * prompts, 4, 8, 8, device=device, generator=generator)
        text = torch.randn(prompts, 3, 12, device=device, generator=generator)
        states = TextStates(tokens=text, pooled=text[:, 0], negative=text[:1], empty=text[:1])
        with torch.no_grad():
            expected = geometry.decode(geometry.space_generator.sample(text, noise, steps)).tensors["planes"]
        first = geometry.generate(states, noise, steps).tensors["planes"]
        second = geometry.generate(states, noise, steps).tensors["planes"]
        torch.testing.assert_close(first, expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(second, first, rtol=1e-5, atol=1e-5)
        geometry.cpu()
        geometry.to(device)
