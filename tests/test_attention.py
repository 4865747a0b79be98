"""Networks of diffusers compute the same with either attention."""

import sys
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import Attention
from miniature import unet

sys.path.append(str(Path(__file__).parent / "ops"))

from packages import stand_in

from triplaneturbo.attention import PlainAttention
from triplaneturbo.geometry.adapters import CrossPlaneAttention, Ranks, adapt_unet
from triplaneturbo.guidance.multiview import CrossViewAttnProcessor, install_cross_view_attention
from triplaneturbo.nn.fused import WideHeadAttention, streamline
from triplaneturbo.ops.backends import Backends, using


@pytest.fixture
def xformers(monkeypatch):
    """What is built within wants xFormers, which counts how often it is asked."""
    with stand_in("xformers"), using(Backends(attention="xformers")):
        asked = []
        package = sys.modules["xformers"]
        right = package.ops.memory_efficient_attention
        monkeypatch.setattr(
            package.ops, "memory_efficient_attention", lambda *a, **b: asked.append(1) or right(*a, **b)
        )
        yield asked


def built(seed, make):
    torch.manual_seed(seed)
    return make()


def output(network):
    rows, text = built(1, lambda: (torch.randn(6, 4, 8, 8), torch.randn(6, 5, network.config["cross_attention_dim"])))
    return network(rows, 10, text).sample.detach()


def across_views(network):
    install_cross_view_attention(network, 3)
    return network


def across_planes(network):
    adapt_unet(network, Ranks(2, 2), "plane_lora", "none", "none")
    return network


def alone(network):
    return network


@pytest.mark.parametrize(
    ("change", "kind"),
    [(across_views, CrossViewAttnProcessor), (across_planes, CrossPlaneAttention), (alone, PlainAttention)],
)
def test_attention_is_by_what_the_process_wants(xformers, change, kind):
    with using(Backends()):
        untouched = built(0, lambda: unet(False))
        expected = output(change(untouched))
        network = change(built(0, lambda: unet(False)))
        streamline(network)
        torch.testing.assert_close(output(network), expected)
    assert not xformers
    network = change(built(0, lambda: unet(False)))
    streamline(network)
    torch.testing.assert_close(output(network), expected)
    processors = list(network.attn_processors.values())
    assert {type(each) for each in processors} == {kind, PlainAttention}
    assert len(xformers) == len(processors)


def test_one_wide_head_is_two_products():
    torch.manual_seed(0)
    parts = {"heads": 1, "dim_head": 320, "norm_num_groups": 8, "residual_connection": True, "bias": True}
    attention = Attention(320, rescale_output_factor=1, _from_deprecated_attn_block=True, **parts)
    pictures = torch.randn(2, 320, 5, 7).to(memory_format=torch.channels_last).requires_grad_()
    expected = attention(pictures)
    (gradient,) = torch.autograd.grad(expected.square().sum(), pictures)
    streamline(network := torch.nn.Sequential(attention))
    assert type(network[0].processor) is WideHeadAttention
    found = network(pictures)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), pictures)[0], gradient, rtol=1e-4, atol=1e-4)
    assert found.is_contiguous(memory_format=torch.channels_last)
