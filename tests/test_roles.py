"""Names are registered by role: one may mean a renderer and an exporter, and a wrong slot says what it wants."""

from dataclasses import dataclass

import pytest

from triplaneturbo import registry
from triplaneturbo.base import Chosen, Component, Part, build
from triplaneturbo.errors import ConfigError, UnknownNameError
from triplaneturbo.exporters.base import Exporter
from triplaneturbo.guidance import Rule, Shaping
from triplaneturbo.materials.base import Material


@pytest.fixture(autouse=True)
def own_table(monkeypatch):
    """What a test registers is gone after it."""
    registry.import_rooms()
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))


def test_a_name_belongs_to_one_class_of_a_role():
    @registry.register("mesh")
    class Writer(Exporter):
        def __call__(self, meshes, prompts, folder, origins):
            return []

    assert registry.find("exporter", "mesh") is Writer
    assert registry.find("renderer", "mesh") is not Writer
    with pytest.raises(ValueError, match=r"cannot register .*Another as the exporter 'mesh': .*Writer in .*test_roles"):

        @registry.register("mesh")
        class Another(Writer):
            pass


def test_a_class_without_a_role_is_refused():
    with pytest.raises(TypeError, match=r"Nothing plays no role.*extend the base class of one: .*renderer"):

        @registry.register("nothing")
        class Nothing:
            pass

    with pytest.raises(TypeError, match="plays no role"):
        registry.register("nothing")(Component)
    with pytest.raises(TypeError, match="plays no role \\(tables\\)"):
        registry.register("nothing")(type("Odd", (Component,), {"role": "tables"}))


def test_modules_of_lightning_are_systems_and_data():
    import pytorch_lightning as pl

    assert registry.role_of(type("Own", (pl.LightningModule,), {})) == "system"
    assert registry.role_of(type("Own", (pl.LightningDataModule,), {})) == "data"


def test_a_wrong_slot_says_what_kind_was_wanted():
    with pytest.raises(
        UnknownNameError, match=r"system\.geometry\.type is 'mesh', which is a renderer; wanted is a geom"
    ):
        build("geometry", "mesh", "system.geometry")
    with pytest.raises(UnknownNameError, match="no shaping has that name; did you mean 'clip-pixels'"):
        build("shaping", {"type": "clip-pixel"}, "shaping")
    with pytest.raises(ConfigError, match="there is no role 'renderers'; there are data, cameras"):
        registry.names("renderers")


@pytest.mark.parametrize("value", [3, ["clip"], {}, {"limit": 1.0}, {"type": 3}])
def test_a_component_is_a_name_or_a_block_with_its_type(value):
    with pytest.raises(ConfigError, match=r"system\.x must name a shaping: \{type: NAME.*there are clip, clip-pixels"):
        Part("shaping")(value, "system.x")


def test_a_name_alone_and_a_usual_one():
    for value in ("clip", {"type": "clip"}, Part("shaping")("clip", "x")):
        chosen = Part("shaping")(value, "x")
        assert isinstance(chosen, Chosen)
        assert chosen.type == "clip"
        assert isinstance(chosen.build(), Shaping)
    assert Part("rule", "sds")({"weighting": "uniform"}, "x").cls is registry.find("rule", "sds")
    assert issubclass(registry.find("rule", "sds"), Rule)


def test_options_reach_the_component_that_they_are_written_in_and_no_other():
    @registry.register("tinted")
    class Tinted(Material):
        @dataclass(kw_only=True)
        class Config(Material.Config):
            seed: int = -1
            compat: str = "none"

        def forward(self, features):
            return features

    assert vars(build("material", "tinted").cfg) == {"seed": -1, "compat": "none"}
    with pytest.raises(UnknownNameError, match="x has no option 'sede'; did you mean 'seed'"):
        build("material", {"type": "tinted", "sede": 1}, "x")
