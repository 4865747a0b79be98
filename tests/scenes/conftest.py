import pytest
import torch

from triplaneturbo.scenes import FieldScene, PlaneField


@pytest.fixture
def build():
    """build(**options) -> a plane field with random networks."""

    def make(**options):
        recipe = {
            "bias": "sphere",
            "bias_size": 0.5,
            "deformable": True,
            "network": {"n_neurons": 8},
        }
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return PlaneField({**recipe, **options}, channels=4)

    return make


@pytest.fixture
def scene_of():
    """scene_of(field, planes) -> the scene that they are."""
    return lambda field, planes: FieldScene(field, {"planes": planes})
