"""Networks of diffusers compute the same with either attention."""

import sys
from pathlib import Path

import pytest
import torch
from diffusers.models import attention_processor
from diffusers.models.attention_processor import AttnProcessor2_0, XFormersAttnProcessor
from miniature import unet, vae

sys.path.append(str(Path(__file__).parent / "ops"))

from packages import stand_in

from triplaneturbo import attention
from triplaneturbo.geometry.adapters import CrossPlaneAttention, Ranks, adapt_unet
from triplaneturbo.guidance.multiview import CrossViewAttnProcessor, install_cross_view_attention
from triplaneturbo.ops.backends import Backends, using
from triplaneturbo.weights.folders import load_unet, load_vae


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
        monkeypatch.setattr(attention_processor, "xformers", package)
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


@pytest.mark.parametrize(
    ("change", "kind"), [(across_views, CrossViewAttnProcessor), (across_planes, CrossPlaneAttention)]
)
def test_attention_across_views_and_planes(xformers, change, kind):
    with using(Backends()):
        expected = output(change(built(0, lambda: unet(False))))
    assert not xformers
    network = built(0, lambda: unet(False))
    attention.install(network)
    found = output(change(network))
    torch.testing.assert_close(found, expected)
    processors = list(network.attn_processors.values())
    assert {type(each) for each in processors} == {kind, XFormersAttnProcessor}
    assert len(xformers) == len(processors)


def test_folders_are_loaded_with_what_is_wanted(xformers, tmp_path):
    built(0, lambda: unet(False)).save_pretrained(tmp_path / "unet")
    built(0, vae).save_pretrained(tmp_path / "vae")
    loaded = load_unet(tmp_path), load_vae(tmp_path)
    for network in loaded:
        assert {type(each) for each in network.attn_processors.values()} == {XFormersAttnProcessor}
    found = output(loaded[0])
    pictures = torch.ones(1, 3, 16, 16)
    latents = loaded[1].encode(pictures).latent_dist.mean
    with using(Backends()):
        for network in (load_unet(tmp_path), load_vae(tmp_path)):
            assert {type(each) for each in network.attn_processors.values()} == {AttnProcessor2_0}
        torch.testing.assert_close(found, output(load_unet(tmp_path)))
        torch.testing.assert_close(latents, load_vae(tmp_path).encode(pictures).latent_dist.mean)
