"""The three generators with a few thousand parameters, and texts for them."""

from typing import Any

import torch

from custom.scaledreamer import Conv3dNet, HyperIngp, TriplaneTransformer
from triplaneturbo.geometry import Geometry
from triplaneturbo.types import TextStates

TEXT_WIDTH, TOKENS = 8, 5
GRID = {"n_levels": 3, "base_resolution": 4, "log2_hashmap_size": 8}
GENERATORS = {
    "hyper-ingp": (HyperIngp, {"hypernet": {"text_width": TEXT_WIDTH, "n_neurons": 6}, "field": {"encoding": GRID}}),
    "conv3d-net": (
        Conv3dNet,
        {
            "space_generator": {
                "text_width": TEXT_WIDTH,
                "noise_width": 4,
                "style_width": 5,
                "widths": [6, 4, 4],
                "channels": 3,
                "constants_until": 8,
            }
        },
    ),
    "triplane-transformer": (
        TriplaneTransformer,
        {
            "space_generator": {
                "text_width": TEXT_WIDTH,
                "width": 12,
                "n_heads": 2,
                "n_layers": 2,
                "token_resolution": 3,
                "channels": 4,
            }
        },
    ),
}


def build(name: str, **more: Any) -> Geometry:
    """A generator in which everything has an effect: noise and hash grids, too, which start at 0."""
    cls, options = GENERATORS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        geometry = cls({**options, **more})
        for key, parameter in geometry.named_parameters():
            if key.endswith(("noise_strength", "encoding.params")):
                parameter.data.uniform_(-0.5, 0.5)
    return geometry


def texts(prompts: int) -> TextStates:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(prompts, TOKENS, TEXT_WIDTH, generator=generator)
    return TextStates(tokens, tokens[:, -1], tokens[:1], tokens[:1])


def text_of(states: TextStates, prompt: int) -> TextStates:
    """The states of one prompt."""
    row = slice(prompt, prompt + 1)
    return TextStates(states.tokens[row], states.pooled[row], states.negative, states.empty)
