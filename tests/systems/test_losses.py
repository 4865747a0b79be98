"""Regularisers against numbers worked out by hand or by another route."""

import math
from dataclasses import dataclass

import pytest
import torch

from triplaneturbo.base import as_tree, build
from triplaneturbo.errors import ConfigError, UnknownNameError
from triplaneturbo.losses import LossConfig, LossTerm, Objective
from triplaneturbo.registry import find, names, register
from triplaneturbo.schedule import Progress
from triplaneturbo.types import Mesh, Views


def value(name, seen, **options):
    """The term `name` of what is seen."""
    return build("loss", {"type": name, **options})(seen)


def views(opacity=0.5, **extras):
    ones = torch.ones(2, 3, 3, 1)
    return Views(
        rgb=ones.expand(-1, -1, -1, 3),
        normal=ones.expand(-1, -1, -1, 3),
        disparity=ones,
        opacity=opacity if isinstance(opacity, torch.Tensor) else opacity * ones,
        depth=ones,
        extras=extras,
    )


def test_sparsity_is_the_smoothed_opacity():
    torch.testing.assert_close(value("sparsity", views(0.5)), torch.tensor(math.sqrt(0.26)))


def test_opaque_is_the_entropy_and_pushes_away_from_one_half():
    opacity = torch.full((2, 3, 3, 1), 0.3, requires_grad=True)
    loss = value("opaque", views(opacity))
    torch.testing.assert_close(loss.detach(), torch.tensor(-0.3 * math.log(0.3) - 0.7 * math.log(0.7)))
    loss.backward()
    torch.testing.assert_close(opacity.grad, torch.full_like(opacity, math.log(0.7 / 0.3) / 18))


def test_z_variance_counts_hit_rays_only():
    opacity = torch.zeros(2, 3, 3, 1)
    opacity[0, 0, 0], opacity[1, 2, 1] = 0.9, 0.6
    variance = torch.full_like(opacity, 100.0)
    variance[0, 0, 0], variance[1, 2, 1] = 1.0, 4.0
    assert value("z_variance", views(opacity, z_variance=variance)) == 2.5


def test_orient_punishes_normals_along_the_ray_and_leaves_the_weights_alone():
    weights = torch.tensor([[0.5], [0.25]], requires_grad=True)
    normal = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]], requires_grad=True)
    loss = value(
        "orient", views(1.0, normal=normal, t_dirs=torch.tensor([[0.6, 0.8, 0]]).expand(2, -1), weights=weights)
    )
    torch.testing.assert_close(loss.detach(), torch.tensor(0.5 * 0.36 / 18))
    loss.backward()
    assert weights.grad is None
    assert normal.grad[0].norm() > 0
    assert normal.grad[1].norm() == 0


def test_eikonal_of_a_list_is_the_mean_over_prompts():
    gradients = [torch.tensor([[2.0, 0, 0]]), torch.tensor([[0, 0, 1.0], [0, 4.0, 0], [0, 0, 1.0]])]
    assert value("eikonal", views(sdf_grad=gradients)) == (1 + 3) / 2
    assert value("eikonal", views(sdf_grad=torch.cat(gradients))) == (1 + 9) / 4


def test_normal_smoothness_sums_rows_and_columns():
    ramp = torch.arange(3.0).view(1, 3, 1, 1) * 2 + torch.arange(3.0).view(1, 1, 3, 1)
    assert value("normal_smoothness_2d", views(comp_normal=ramp.expand(2, -1, -1, 3))) == 4 + 1


def octahedron():
    vertices = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
    faces = [[x, y, z] if (x + y + z) % 2 == 0 else [y, x, z] for x in (0, 1) for y in (2, 3) for z in (4, 5)]
    return Mesh(vertices=vertices, faces=torch.tensor(faces))


def test_mesh_terms_of_an_octahedron():
    found = views(meshes=[octahedron(), octahedron()])
    # The four neighbours of a vertex average to the centre; normals at the ends of an edge are perpendicular.
    torch.testing.assert_close(value("laplacian_smoothness", found), torch.tensor(1.0))
    torch.testing.assert_close(value("normal_consistency", found), torch.tensor(1.0))


def test_laplacian_smoothness_is_a_length():
    """Of meshes three times as large it is three times as large; angles, and so the consistency, stay."""
    small = octahedron()
    large = views(meshes=[Mesh(vertices=3 * small.vertices, faces=small.faces)])
    torch.testing.assert_close(value("laplacian_smoothness", large), torch.tensor(3.0))
    torch.testing.assert_close(value("normal_consistency", large), torch.tensor(1.0))


def objective(options):
    return Objective(LossConfig.parse(options, "losses.mesh"))


def test_weights_follow_their_schedule_and_zero_ones_are_not_computed():
    given = objective({"sparsity": [0, 1.0, 0.0, 10], "sdf_abs": 0})
    total, values = given(views(0.5), Progress(step=5))
    torch.testing.assert_close(total, 0.5 * values["sparsity"])
    torch.testing.assert_close(values["sparsity"], torch.tensor(math.sqrt(0.26)))
    assert set(values) == {"sparsity"}
    assert given(views(0.5), Progress(step=10))[1] == {}
    assert objective({})(views(0.5), Progress(step=5)) == (0, {})


def test_the_weight_of_the_teachers_is_no_term():
    given = objective({"score": [0, 1.0, 0.5, 10], "sparsity": 1})
    assert list(given.terms) == ["sparsity"]
    assert given.score(Progress(step=10)) == 0.5
    assert objective({}).score(Progress()) == 1.0


@register("test-brightness")
class Brightness(LossTerm):
    """mean |colour - target|: a term of a stranger, with an option."""

    @dataclass(kw_only=True)
    class Config(LossTerm.Config):
        target: float = 0.0

    def __call__(self, views):
        return (views.rgb - self.cfg.target).abs().mean()


def test_a_term_is_a_weight_or_its_options_under_its_name_or_another():
    options = {
        "test-brightness": 2.0,
        "dark": {"type": "test-brightness", "target": 0.25, "weight": [0, 0.0, 4.0, 10]},
        "opaque": None,
    }
    total, values = objective(options)(views(), Progress(step=5))
    assert values == {"test-brightness": 1.0, "dark": 0.75}
    assert total == 2 * 1.0 + 2 * 0.75
    written = as_tree(LossConfig.parse(options, "losses.mesh"))
    assert written["dark"] == {"type": "test-brightness", "target": 0.25, "weight": [0, 0.0, 4.0, 10]}
    assert as_tree(LossConfig.parse(written, "losses.mesh")) == written


def test_every_term_has_a_test():
    """Those of this project; tests register others."""
    ours = {name for name in names("loss") if find("loss", name).__module__.startswith("triplaneturbo.")}
    assert ours == {
        "sparsity", "opaque", "z_variance", "orient", "eikonal", "sdf_abs", "normal_smoothness_2d",
        "normal_consistency", "laplacian_smoothness",
    }  # fmt: skip


def test_the_distance_at_samples_is_averaged():
    assert value("sdf_abs", views(sdf=torch.tensor([[1.0], [-3.0]]))) == 2
    assert value("sdf_abs", views(sdf=[torch.tensor([[1.0], [-3.0]]), torch.tensor([[4.0]])])) == 3


def test_errors_say_what_is_missing():
    with pytest.raises(ConfigError, match=r"needs 'sdf_grad'.*it gives: nothing.*losses\.RENDERER\.TERM=null"):
        objective({"eikonal": 1.0})(views(), Progress())
    with pytest.raises(UnknownNameError, match=r"losses\.mesh\.sparcity\.type is 'sparcity'.*did you mean 'sparsity'"):
        objective({"sparcity": 1.0})
    with pytest.raises(ConfigError, match=r"losses\.mesh\.sparsity\.weight"):
        objective({"sparsity": -1.0})
    with pytest.raises(ConfigError, match=r"losses\.mesh must be a mapping of loss terms to weights"):
        objective([1.0])
