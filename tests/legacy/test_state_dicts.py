"""Names of tensors of the original and of this project's first version, in checkpoints, in ours."""

import pytest
import torch

from triplaneturbo.legacy import state_dicts
from triplaneturbo.legacy.state_dicts import (
    is_original,
    register_layout,
    translate_checkpoint,
    translate_names,
    translate_state,
)

OWN = (
    "geometry.bbox",
    "geometry.field.sdf_network.layers.0.weight",
    "renderers.sharp.base_renderer.variance._inv_std",
    "renderers.blurred.variance._inv_std",
)


def numbered(*names):
    return {name: torch.tensor(float(i)) for i, name in enumerate(names)}


def test_first_renderers_are_those_of_ours_that_have_tensors_in_their_order():
    given = numbered(
        "renderer_2nd.variance._inv_std",
        "renderer.base_renderer.variance._inv_std",
        "geometry.sdf_network.layers.0.weight",
        "geometry.bbox",
    )
    renamed = translate_names(given, numbered(*OWN))
    assert {name: float(value) for name, value in renamed.items()} == {
        "renderers.blurred.variance._inv_std": 0,
        "renderers.sharp.base_renderer.variance._inv_std": 1,
        "geometry.field.sdf_network.layers.0.weight": 2,
        "geometry.bbox": 3,
    }


def test_a_second_renderer_alone_is_the_only_one_with_tensors():
    """A rasteriser has none: the first renderer does not show in a checkpoint."""
    own = numbered("geometry.bbox", "renderers.volume.base_renderer.variance._inv_std")
    renamed = translate_names(numbered("renderer_2nd.base_renderer.variance._inv_std"), own)
    assert list(renamed) == ["renderers.volume.base_renderer.variance._inv_std"]


def test_our_names_stay():
    assert translate_names(numbered(*OWN), numbered(*OWN)) == numbered(*OWN)


def test_every_part_of_a_checkpoint_of_the_first_version_is_renamed():
    old = ("renderer_2nd.variance._inv_std", "geometry.feature_network.layers.2.weight")
    checkpoint = {
        "state_dict": numbered(*old),
        "ema": numbered(*old),
        "MultipromptDataModule": {"batches": 3},
        "global_step": 7,
    }
    own = numbered("renderers.volume.variance._inv_std", "geometry.field.feature_network.layers.2.weight")
    translate_checkpoint(checkpoint, own)
    assert checkpoint == {
        "state_dict": own,
        "ema": own,
        "PromptsAndCameras": {"batches": 3},
        "global_step": 7,
    }
    again = dict(checkpoint)
    translate_checkpoint(checkpoint, own)
    assert checkpoint == again


def test_files_of_the_original_are_told_by_their_numbered_layers():
    assert is_original(["geometry.space_generator.peft_layers.layers.0.to_q_lora.down.weight"])
    assert not is_original(["geometry.space_generator.unet.conv_in.weight", "peft_layers.layers.0"])


def test_an_extension_may_register_a_layout(monkeypatch):
    monkeypatch.setattr(state_dicts, "_LAYOUTS", {})
    own = numbered("geometry.field.sdf_network.layers.0.weight")
    given = {"net.0": torch.tensor(5.0)}
    register_layout("nets", lambda names: "net.0" in names, lambda tensors, own: {next(iter(own)): tensors["net.0"]})
    assert translate_state(given, own, "a file") == {next(iter(own)): torch.tensor(5.0)}
    assert translate_state(own, own, "a file") == own
    with pytest.raises(ValueError, match="there is a layout 'nets' already"):
        register_layout("nets", bool, dict)
