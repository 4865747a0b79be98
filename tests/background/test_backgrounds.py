import pytest
import torch
import torch.nn.functional as F

from triplaneturbo.background import HashGridEnvironment, SolidColor
from triplaneturbo.errors import ConfigError, UnknownNameError
from triplaneturbo.registry import find

SMALL = {
    "encoding": {"n_levels": 3, "log2_hashmap_size": 10},
    "hypernet": {"text_width": 5, "widths": [7, 3], "n_neurons": 6},
}


def directions(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, 2, 4, 3, generator=generator), dim=-1)


def environment(**options):
    subject = HashGridEnvironment({**SMALL, **options})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in subject.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return subject


def test_registered_names():
    assert find("background", "solid-color") is SolidColor
    assert find("background", "text-environment") is HashGridEnvironment


def test_solid_color_in_training_and_evaluation():
    subject = SolidColor({"color": [0.1, 0.2, 0.3]})
    seen = subject(directions(4), torch.zeros(2, 5))
    assert seen.shape == (4, 2, 4, 3)
    torch.testing.assert_close(seen[1, 1, 2], torch.tensor([0.1, 0.2, 0.3]))
    assert (subject.eval()(directions(4), torch.zeros(2, 5)) == 1).all()
    same = SolidColor({"color": [0.1, 0.2, 0.3], "eval_color": None}).eval()
    torch.testing.assert_close(same(directions(1), torch.zeros(1, 5)), seen[:1])


@pytest.mark.parametrize("activation", ["sigmoid", "sigmoid-mipnerf"])
def test_each_view_sees_the_environment_of_its_prompt(activation):
    subject = environment(color_activation=activation)
    text = torch.randn(2, 5, generator=torch.Generator().manual_seed(2))
    rays = directions(6)
    seen = subject(rays, text)
    for view in range(6):
        state = text[view // 3]
        linear, norm = subject.hypernet.layers[0], subject.hypernet.layers[1]
        hidden = F.silu(F.layer_norm(linear.weight @ state, (6,), norm.weight, norm.bias))
        written = subject.hypernet.layers[3](hidden)
        first, second = written[: 6 * 7].view(6, 7), written[6 * 7 :].view(7, 3)
        code = subject.encoding((rays[view].reshape(-1, 3) + 1) / 2)
        color = torch.sigmoid((code @ first).relu() @ second).view(2, 4, 3)
        if activation == "sigmoid-mipnerf":
            color = color * 1.002 - 0.001
        torch.testing.assert_close(seen[view], color)
    assert (seen[:3].flatten() - subject(rays[:3], text[1:]).flatten()).abs().max() > 0.01


def test_gradients_reach_every_parameter():
    subject = environment()
    subject(directions(2), torch.ones(2, 5)).square().sum().backward()
    for name, parameter in subject.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_start_is_grey():
    seen = HashGridEnvironment(SMALL)(directions(2), torch.ones(2, 5))
    torch.testing.assert_close(seen, torch.full_like(seen, 0.5), atol=2e-3, rtol=0)


def test_start_of_the_hypernet_is_xavier_normal():
    """Deviation sqrt(2 / (inputs + outputs)), and no bias at the end (Glorot and Bengio 2010)."""
    layers = HashGridEnvironment({}).hypernet.layers
    for layer, inputs, outputs in ((layers[0], 1024, 64), (layers[3], 64, 1216)):
        assert layer.weight.std().item() == pytest.approx((2 / (inputs + outputs)) ** 0.5, rel=0.02)
    assert not layers[3].bias.any()


def test_evaluation_color():
    subject = environment(eval_color=[1.0, 0.5, 0.0])
    training = subject(directions(2), torch.ones(1, 5))
    assert training.std(dim=(0, 1, 2)).min() > 0.01
    seen = subject.eval()(directions(2), torch.ones(1, 5))
    torch.testing.assert_close(seen, torch.tensor([1.0, 0.5, 0.0]).expand(2, 2, 4, 3))
    learned = environment().eval()(directions(2), torch.ones(1, 5))
    torch.testing.assert_close(learned, environment()(directions(2), torch.ones(1, 5)))


def test_published_size_and_names():
    state = HashGridEnvironment({"eval_color": [1.0, 1.0, 1.0]}).state_dict()
    assert sum(x.numel() for x in state.values()) == 3432592
    layers = {name: tuple(x.shape) for name, x in state.items() if name.startswith("hypernet")}
    assert layers == {
        "hypernet.layers.0.weight": (64, 1024),
        "hypernet.layers.1.weight": (64,),
        "hypernet.layers.1.bias": (64,),
        "hypernet.layers.3.weight": (1216, 64),
        "hypernet.layers.3.bias": (1216,),
    }


def test_wrong_use_is_explained():
    with pytest.raises(ValueError, match="3 views cannot be divided evenly among 2 prompts"):
        environment()(directions(3), torch.ones(2, 5))
    with pytest.raises(ConfigError, match=r"hypernet\.widths must end with the 3 colour channels"):
        environment(hypernet={"widths": [7, 4]})
    with pytest.raises(ConfigError, match=r"not be \[\]"):
        environment(hypernet={"widths": []})
    with pytest.raises(UnknownNameError, match="n_levels"):
        environment(encoding={"levels": 3})
