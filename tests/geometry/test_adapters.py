import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import Attention

from triplaneturbo.geometry import FewStepTriplanes, sd_configs
from triplaneturbo.geometry.adapters import (
    CrossPlaneAttention,
    LoraConv,
    LoraLinear,
    PlaneLoraConv,
    PlaneLoraLinear,
    Ranks,
    adapt_decoder,
    adapt_unet,
    merge_adapters,
)


def randomise(module):
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return module.double()


@pytest.mark.parametrize("on_output", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_plane_linear_equals_a_loop_over_planes(on_output, with_bias):
    layer = randomise(PlaneLoraLinear(nn.Linear(5, 5), 2, with_bias, on_output))
    x = torch.randn(12, 7, 5, dtype=torch.float64)
    expected = layer.base(x)
    for row in range(12):
        plane = row % 6
        read = layer.base(x)[row] if on_output else x[row]
        expected[row] += read @ layer.down[plane].T @ layer.up[plane].T
        if with_bias:
            expected[row] += layer.bias[plane]
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.merged()(x), expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_plane_convolution_equals_a_loop_over_planes(stride):
    layer = randomise(PlaneLoraConv(nn.Conv2d(3, 4, 3, stride, 1), 2, with_bias=True))
    x = torch.randn(12, 3, 6, 6, dtype=torch.float64)
    expected = layer.base(x)
    for row in range(12):
        plane = row % 6
        narrow = F.conv2d(x[row : row + 1], layer.down[plane], stride=stride, padding=1)
        expected[row] += F.conv2d(narrow, layer.up[plane], layer.bias[plane])[0]
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ("adapter", "base", "shape"),
    [(LoraLinear, nn.Linear(5, 4, bias=False), (6, 7, 5)), (LoraConv, nn.Conv2d(5, 4, 3, 2, 1), (6, 5, 8, 8))],
)
@pytest.mark.parametrize("with_bias", [False, True])
def test_shared_adapter_starts_as_its_base_and_folds_into_it(adapter, base, shape, with_bias):
    layer = adapter(copy.deepcopy(base), 2, with_bias).double()
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer.base(x), rtol=0, atol=0)
    randomise(layer)
    expected = layer(x)
    merged = layer.merged()
    assert type(merged) is type(base)
    torch.testing.assert_close(merged(x), expected, rtol=1e-6, atol=1e-6)


def test_down_factors_have_the_spread_of_one_over_rank():
    layer = PlaneLoraLinear(nn.Linear(400, 3), 8)
    assert layer.down.std().item() == pytest.approx(1 / 8, rel=0.03)
    assert not layer.up.any()


@pytest.mark.parametrize("image", [False, True])
def test_cross_plane_attention_is_softmax_over_all_planes_of_a_prompt(image):
    attention = Attention(8, heads=2, dim_head=4, norm_num_groups=4 if image else None, residual_connection=image)
    attention = randomise(attention)
    attention.set_processor(CrossPlaneAttention())
    x = torch.randn((12, 8, 2, 3) if image else (12, 6, 8), dtype=torch.float64)
    tokens = x.flatten(2).transpose(1, 2) if image else x
    if image:
        tokens = attention.group_norm(tokens.transpose(1, 2)).transpose(1, 2)
    rows = []
    for prompt in tokens.split(6):
        everything = prompt.reshape(1, 36, 8)
        heads = []
        for head in (slice(0, 4), slice(4, 8)):
            query, key, value = (f(everything)[..., head] for f in (attention.to_q, attention.to_k, attention.to_v))
            heads.append(torch.softmax(query @ key.transpose(1, 2) / 2, dim=-1) @ value)
        rows.append(attention.to_out[0](torch.cat(heads, -1)).view(6, 6, 8))
    expected = torch.cat(rows)
    if image:
        expected = expected.transpose(1, 2).reshape(x.shape) + x
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize("given", ["encoder_hidden_states", "attention_mask"])
def test_cross_plane_attention_refuses_what_it_would_ignore(given):
    attention = Attention(query_dim=4, heads=1, dim_head=4)
    attention.set_processor(CrossPlaneAttention())
    with pytest.raises(ValueError, match="takes neither other states nor a mask"):
        attention(torch.zeros(6, 2, 4), **{given: torch.zeros(6, 2, 4)})


@pytest.mark.parametrize(
    "kinds", [("plane_lora", "shared_lora", "shared_lora"), ("shared_lora", "plane_lora", "plane_lora")]
)
def test_merged_network_computes_the_same(build, kinds):
    keys = ("self_attention", "cross_attention", "convolutions")
    geometry = build(generator=dict(zip(keys, kinds, strict=True)) | {"decoder_attention": "plane_lora"})
    generator = geometry.space_generator
    noisy, text, t = torch.randn(6, 4, 8, 8), torch.randn(1, 3, 12), torch.full((6,), 500)
    with torch.no_grad():
        before = generator.denoise(noisy, t, text), geometry.decode(noisy).tensors["planes"]
        merge_adapters(generator.unet)
        merge_adapters(generator.decoder)
        after = generator.denoise(noisy, t, text), geometry.decode(noisy).tensors["planes"]
    names = [name for name, p in generator.unet.named_parameters() if p.requires_grad]
    assert all("conv" in name for name in names)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_per_plane_kinds_leave_planes_independent_until_they_share_attention(build):
    """separate_planes: changing one plane's latents changes no other plane; plane_lora: it does."""
    noisy, text, t = torch.randn(6, 4, 8, 8), torch.randn(1, 3, 12), torch.full((6,), 500)
    changed = noisy.clone()
    changed[0] += 1
    for kind, shared in (("separate_planes", False), ("none", False), ("shared_lora", True), ("plane_lora", True)):
        generator = build(generator={"self_attention": kind}).space_generator
        with torch.no_grad():
            difference = (generator.denoise(noisy, t, text) - generator.denoise(changed, t, text)).abs()
        assert (difference[1:].max() > 1e-6).item() is shared, kind


def test_untrained_adapters_leave_the_network_as_it_was(build):
    geometry = build(generator={"self_attention": "separate_planes"})
    plain = build(generator={"full": True})
    for name, parameter in geometry.named_parameters():
        if name.endswith(".up"):
            parameter.data.zero_()
    geometry.space_generator.decoder.conv_out.load_state_dict(plain.space_generator.decoder.conv_out.state_dict())
    noisy, text, t = torch.randn(6, 4, 8, 8), torch.randn(1, 3, 12), torch.full((6,), 500)
    with torch.no_grad():
        torch.testing.assert_close(
            geometry.space_generator.denoise(noisy, t, text), plain.space_generator.denoise(noisy, t, text)
        )
        torch.testing.assert_close(geometry.decode(noisy).tensors["planes"], plain.decode(noisy).tensors["planes"])


def count(named, *parts):
    return sum(p.numel() for name, p in named if all(part in name for part in parts))


def test_parameter_counts_of_the_published_recipe():
    with torch.device("meta"):
        geometry = FewStepTriplanes(
            {
                "split_channels": True,
                "field": {"deformable": True},
                "space_generator": {
                    "output_dim": 64,
                    "cross_attention": "shared_lora",
                    "convolutions": "shared_lora",
                    "decoder_attention": "separate_planes",
                },
            }
        )
    trained = [(n, p) for n, p in geometry.named_parameters() if p.requires_grad]
    frozen = [(n, p) for n, p in geometry.named_parameters() if not p.requires_grad]
    assert count(trained, "attn1") == 9_584_640
    assert count(trained, "attn2") == 1_722_368
    assert count(trained, "decoder.mid_block.attentions") == 65_536
    assert count(trained, "unet", "conv") == 9_256_960
    assert count(trained, "decoder.conv_out") == 73_792
    assert count(trained, "decoder", "conv") - 73_792 == 1_957_888
    assert count(trained, "space_generator") == 22_661_184
    assert count(trained) == 22_684_160
    assert count(frozen, "unet") == 865_910_724


def test_rank_zero_leaves_a_kind_of_layer_alone():
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(sd_configs.UNET)
        decoder = AutoencoderKL.from_config(sd_configs.VAE).decoder
    adapt_unet(unet, Ranks(self_attention=4), "shared_lora", "shared_lora", "shared_lora")
    adapt_decoder(decoder, Ranks(self_attention=4), "none")
    assert sum(isinstance(m, LoraLinear) for m in unet.modules()) == 64
    assert not any(isinstance(m, LoraConv) for m in unet.modules())
    assert not any(isinstance(m, (LoraLinear, LoraConv)) for m in decoder.modules())
