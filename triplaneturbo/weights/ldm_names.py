"""Names and shapes of the tensors in latent diffusion checkpoints (MVDream, RichDreamer), for any widths."""

from collections.abc import Iterator, Mapping
from typing import Any

from triplaneturbo.weights.ldm import UNET_PREFIX, VAE_PREFIX

Named = Iterator[tuple[str, tuple[int, ...]]]

# Buffers of the noise schedule, which nothing here reads.
SCHEDULE = dict.fromkeys(
    (
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
    ),
    (1000,),
)


def unet_shapes(model: Mapping[str, Any], *, linear: bool, camera_dim: int = 16, channels: int = 4) -> dict:
    """Of the U-Net. linear: the transformers' projections are matrices, not 1 x 1 convolutions."""
    return {UNET_PREFIX + name: shape for name, shape in _unet(model, linear, camera_dim, channels)}


def vae_shapes(model: Mapping[str, Any], *, latent: int = 4, picture: int = 3) -> dict[str, tuple[int, ...]]:
    """Of the first stage."""
    return {VAE_PREFIX + name: shape for name, shape in _vae(model, latent, picture)}


def _unet(model: Mapping[str, Any], linear: bool, camera_dim: int, channels: int) -> Named:
    width, mult, depth = model["model_channels"], model["channel_mult"], model["num_res_blocks"]
    emb, text = 4 * width, model["context_dim"]
    for name, fan_in in (("time_embed", width), ("camera_embed", camera_dim)):
        yield from _affine(f"{name}.0", emb, fan_in)
        yield from _affine(f"{name}.2", emb, emb)
    yield from _affine("input_blocks.0.0", width, channels, 3, 3)

    def block(place: str, n_in: int, n_out: int, attends: bool) -> Named:
        yield from _residual(f"{place}.0", n_in, n_out, emb)
        if attends:
            yield from _transformer(f"{place}.1", n_out, text, linear)

    skips, now, number = [width], width, 1
    for level, factor in enumerate(mult):
        for _ in range(depth):
            yield from block(f"input_blocks.{number}", now, factor * width, _attends(model, level))
            now = factor * width
            skips.append(now)
            number += 1
        if level + 1 < len(mult):
            yield from _affine(f"input_blocks.{number}.0.op", now, now, 3, 3)
            skips.append(now)
            number += 1
    yield from _residual("middle_block.0", now, now, emb)
    yield from _transformer("middle_block.1", now, text, linear)
    yield from _residual("middle_block.2", now, now, emb)
    number = 0
    for level, factor in reversed(list(enumerate(mult))):
        attends = _attends(model, level)
        for i in range(depth + 1):
            yield from block(f"output_blocks.{number}", now + skips.pop(), factor * width, attends)
            now = factor * width
            if level and i == depth:
                yield from _affine(f"output_blocks.{number}.{1 + attends}.conv", now, now, 3, 3)
            number += 1
    yield from _affine("out.0", now)
    yield from _affine("out.2", channels, now, 3, 3)


def _vae(model: Mapping[str, Any], latent: int, picture: int) -> Named:
    width, mult, depth = model["ch"], model["channel_mult"], model["num_res_blocks"]
    deepest = width * mult[-1]
    yield from _affine("encoder.conv_in", width, picture, 3, 3)
    now = width
    for level, factor in enumerate(mult):
        for i in range(depth):
            yield from _vae_block(f"encoder.down.{level}.block.{i}", now, factor * width)
            now = factor * width
        if level + 1 < len(mult):
            yield from _affine(f"encoder.down.{level}.downsample.conv", now, now, 3, 3)
    yield from _vae_ends("encoder", deepest, deepest, 2 * latent)
    yield from _affine("decoder.conv_in", deepest, latent, 3, 3)
    for level, factor in reversed(list(enumerate(mult))):
        for i in range(depth + 1):
            yield from _vae_block(f"decoder.up.{level}.block.{i}", now, factor * width)
            now = factor * width
        if level:
            yield from _affine(f"decoder.up.{level}.upsample.conv", now, now, 3, 3)
    yield from _vae_ends("decoder", deepest, now, picture)
    yield from _affine("quant_conv", 2 * latent, 2 * latent, 1, 1)
    yield from _affine("post_quant_conv", latent, latent, 1, 1)


def _attends(model: Mapping[str, Any], level: int) -> bool:
    return 2**level in model["attention_resolutions"]


def _affine(name: str, *shape: int) -> Named:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _residual(name: str, n_in: int, n_out: int, emb: int) -> Named:
    yield from _affine(f"{name}.in_layers.0", n_in)
    yield from _affine(f"{name}.in_layers.2", n_out, n_in, 3, 3)
    yield from _affine(f"{name}.emb_layers.1", n_out, emb)
    yield from _affine(f"{name}.out_layers.0", n_out)
    yield from _affine(f"{name}.out_layers.3", n_out, n_out, 3, 3)
    if n_in != n_out:
        yield from _affine(f"{name}.skip_connection", n_out, n_in, 1, 1)


def _transformer(name: str, width: int, text: int, linear: bool) -> Named:
    kernel = () if linear else (1, 1)
    yield from _affine(f"{name}.norm", width)
    yield from _affine(f"{name}.proj_in", width, width, *kernel)
    inner = f"{name}.transformer_blocks.0"
    for attention, source in (("attn1", width), ("attn2", text)):
        yield f"{inner}.{attention}.to_q.weight", (width, width)
        yield f"{inner}.{attention}.to_k.weight", (width, source)
        yield f"{inner}.{attention}.to_v.weight", (width, source)
        yield from _affine(f"{inner}.{attention}.to_out.0", width, width)
    yield from _affine(f"{inner}.ff.net.0.proj", 8 * width, width)
    yield from _affine(f"{inner}.ff.net.2", width, 4 * width)
    for i in (1, 2, 3):
        yield from _affine(f"{inner}.norm{i}", width)
    yield from _affine(f"{name}.proj_out", width, width, *kernel)


def _vae_block(name: str, n_in: int, n_out: int) -> Named:
    yield from _affine(f"{name}.norm1", n_in)
    yield from _affine(f"{name}.conv1", n_out, n_in, 3, 3)
    yield from _affine(f"{name}.norm2", n_out)
    yield from _affine(f"{name}.conv2", n_out, n_out, 3, 3)
    if n_in != n_out:
        yield from _affine(f"{name}.nin_shortcut", n_out, n_in, 1, 1)


def _vae_ends(name: str, deepest: int, last: int, n_out: int) -> Named:
    """The middle, and the layers before the output."""
    yield from _vae_block(f"{name}.mid.block_1", deepest, deepest)
    yield from _affine(f"{name}.mid.attn_1.norm", deepest)
    for part in ("q", "k", "v", "proj_out"):
        yield from _affine(f"{name}.mid.attn_1.{part}", deepest, deepest, 1, 1)
    yield from _vae_block(f"{name}.mid.block_2", deepest, deepest)
    yield from _affine(f"{name}.norm_out", last)
    yield from _affine(f"{name}.conv_out", n_out, last, 3, 3)
