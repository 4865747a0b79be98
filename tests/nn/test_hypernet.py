"""Networks written from a text."""

import torch
from torch import nn

from triplaneturbo.nn.hypernet import Hypernet, HypernetConfig, apply_written

CONFIG = HypernetConfig(text_width=5, n_neurons=6, n_hidden_layers=3)


def test_every_prompt_has_its_own_networks():
    """What is applied to several prompts at once is what each one's written network, as a module, says."""
    torch.manual_seed(0)
    hypernet = Hypernet(CONFIG, {"value": [4, 7, 1], "color": [4, 3]})
    text, x = torch.randn(3, 5), torch.randn(3, 10, 4)
    written = hypernet(text)
    assert {name: tuple(weight.shape) for name, weight in written.items()} == {
        "value_0": (3, 4, 7),
        "value_1": (3, 7, 1),
        "color_0": (3, 4, 3),
    }
    found = apply_written([written["value_0"], written["value_1"]], x)
    for prompt in range(3):
        alone = hypernet(text[prompt : prompt + 1])
        network = nn.Sequential(nn.Linear(4, 7, bias=False), nn.ReLU(), nn.Linear(7, 1, bias=False))
        with torch.no_grad():
            network[0].weight.copy_(alone["value_0"][0].T)
            network[2].weight.copy_(alone["value_1"][0].T)
        torch.testing.assert_close(found[prompt], network(x[prompt]))


def test_numbers_go_to_networks_and_layers_in_their_order():
    hypernet = Hypernet(CONFIG, {"value": [4, 7, 1], "color": [4, 3]})
    with torch.no_grad():
        hypernet.layers[-1].weight.zero_()
        hypernet.layers[-1].bias.copy_(torch.arange(4 * 7 + 7 + 4 * 3))
    written = hypernet(torch.ones(1, 5))
    assert torch.cat([weight.flatten() for weight in written.values()]).tolist() == list(range(47))
    assert written["value_0"][0, 1, 0] == 7


def test_the_first_layer_alone_has_no_bias():
    names = [name for name, _ in Hypernet(CONFIG, {"value": [4, 1]}).named_parameters()]
    linear = [name for name in names if name.split(".")[1] in ("0", "3", "6", "9")]
    assert linear == [
        "layers.0.weight", "layers.3.weight", "layers.3.bias", "layers.6.weight", "layers.6.bias", "layers.9.weight",
        "layers.9.bias",
    ]  # fmt: skip


def test_building_leaves_the_options_as_they_are():
    networks = {"value": [4, 7, 1]}
    Hypernet(CONFIG, networks)
    assert networks == {"value": [4, 7, 1]}
