import pytest
import torch

from triplaneturbo.errors import ConfigError
from triplaneturbo.materials import Unlit
from triplaneturbo.registry import find

LOGITS = torch.tensor([[-100.0, 0.0, 100.0]])


def test_is_registered():
    assert find("material", "unlit") is Unlit


@pytest.mark.parametrize(
    ("activation", "expected"), [("sigmoid", (0.0, 0.5, 1.0)), ("sigmoid-mipnerf", (-0.001, 0.5, 1.001))]
)
def test_activations(activation, expected):
    colours = Unlit({"color_activation": activation})(LOGITS)
    torch.testing.assert_close(colours, torch.tensor([expected]))


def test_network_reads_features():
    options = {"input_feature_dims": 5, "network": {"n_neurons": 4, "n_hidden_layers": 1}}
    material = Unlit(options)
    features = torch.randn(2, 7, 5)
    first, second = material.network.layers[0].weight, material.network.layers[2].weight
    torch.testing.assert_close(material(features), torch.sigmoid(torch.relu(features @ first.T) @ second.T))


def test_mistakes_are_explained():
    with pytest.raises(ConfigError, match="sigmoid-mipnerf"):
        Unlit({"color_activation": "relu"})
    with pytest.raises(ConfigError, match="need each other"):
        Unlit({"input_feature_dims": 5})
    with pytest.raises(ValueError, match="n_feature_dims"):
        Unlit()(torch.zeros(1, 4))
