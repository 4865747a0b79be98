"""Regularisers against numbers worked out by hand or by another route."""

import math

import pytest
import torch

from triplaneturbo.base import parse_config
from triplaneturbo.errors import ConfigError, UnknownNameError
from triplaneturbo.schedule import Progress
from triplaneturbo.systems import losses
from triplaneturbo.systems.losses import LossConfig, regularisation
from triplaneturbo.types import Mesh, Views


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
    torch.testing.assert_close(losses.sparsity(views(0.5)), torch.tensor(math.sqrt(0.26)))


def test_opaque_is_the_entropy_and_pushes_away_from_one_half():
    opacity = torch.full((2, 3, 3, 1), 0.3, requires_grad=True)
    loss = losses.opaque(views(opacity))
    torch.testing.assert_close(loss.detach(), torch.tensor(-0.3 * math.log(0.3) - 0.7 * math.log(0.7)))
    loss.backward()
    torch.testing.assert_close(opacity.grad, torch.full_like(opacity, math.log(0.7 / 0.3) / 18))


def test_z_variance_counts_hit_rays_only():
    opacity = torch.zeros(2, 3, 3, 1)
    opacity[0, 0, 0], opacity[1, 2, 1] = 0.9, 0.6
    variance = torch.full_like(opacity, 100.0)
    variance[0, 0, 0], variance[1, 2, 1] = 1.0, 4.0
    assert losses.z_variance(views(opacity, z_variance=variance)) == 2.5


def test_orient_punishes_normals_along_the_ray_and_leaves_the_weights_alone():
    weights = torch.tensor([[0.5], [0.25]], requires_grad=True)
    normal = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]], requires_grad=True)
    loss = losses.orient(views(1.0, normal=normal, t_dirs=torch.tensor([[0.6, 0.8, 0]]).expand(2, -1), weights=weights))
    torch.testing.assert_close(loss.detach(), torch.tensor(0.5 * 0.36 / 18))
    loss.backward()
    assert weights.grad is None
    assert normal.grad[0].norm() > 0
    assert normal.grad[1].norm() == 0


def test_eikonal_of_a_list_is_the_mean_over_prompts():
    gradients = [torch.tensor([[2.0, 0, 0]]), torch.tensor([[0, 0, 1.0], [0, 4.0, 0], [0, 0, 1.0]])]
    assert losses.eikonal(views(sdf_grad=gradients)) == (1 + 3) / 2
    assert losses.eikonal(views(sdf_grad=torch.cat(gradients))) == (1 + 9) / 4


def test_normal_smoothness_sums_rows_and_columns():
    ramp = torch.arange(3.0).view(1, 3, 1, 1) * 2 + torch.arange(3.0).view(1, 1, 3, 1)
    assert losses.normal_smoothness_2d(views(comp_normal=ramp.expand(2, -1, -1, 3))) == 4 + 1


def octahedron():
    vertices = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
    faces = [[x, y, z] if (x + y + z) % 2 == 0 else [y, x, z] for x in (0, 1) for y in (2, 3) for z in (4, 5)]
    return Mesh(vertices=vertices, faces=torch.tensor(faces))


def test_mesh_terms_of_an_octahedron():
    found = views(meshes=[octahedron(), octahedron()])
    # The four neighbours of a vertex average to the centre; normals at the ends of an edge are perpendicular.
    torch.testing.assert_close(losses.laplacian_smoothness(found), torch.tensor(1.0))
    torch.testing.assert_close(losses.normal_consistency(found), torch.tensor(1.0))


def test_laplacian_smoothness_is_a_length():
    """Of meshes three times as large it is three times as large; angles, and so the consistency, stay."""
    small = octahedron()
    large = views(meshes=[Mesh(vertices=3 * small.vertices, faces=small.faces)])
    torch.testing.assert_close(losses.laplacian_smoothness(large), torch.tensor(3.0))
    torch.testing.assert_close(losses.normal_consistency(large), torch.tensor(1.0))


def test_weights_follow_their_schedule_and_zero_ones_are_not_computed():
    config = parse_config(LossConfig, {"lambda_sparsity_2nd": [0, 1.0, 0.0, 10], "lambda_sdf_abs": 0}, "loss")
    total, values = regularisation(views(0.5), config, "_2nd", Progress(step=5))
    torch.testing.assert_close(total, 0.5 * values["loss_sparsity_2nd"])
    assert set(values) == {"loss_sparsity_2nd"}
    assert regularisation(views(0.5), config, "_2nd", Progress(step=10))[1] == {}
    assert regularisation(views(0.5), config, "", Progress(step=5))[1] == {}


def test_every_option_belongs_to_a_term():
    options = {name.removesuffix("_2nd") for name in vars(LossConfig()) if name.startswith("lambda_")}
    assert options == {f"lambda_{name}" for name in losses.REGULARISERS} | {"lambda_asd"}


def test_errors_say_what_is_missing():
    config = parse_config(LossConfig, {"lambda_eikonal": 1.0}, "loss")
    with pytest.raises(ConfigError, match="sdf_grad"):
        regularisation(views(), config, "", Progress())
    with pytest.raises(UnknownNameError, match="lambda_sparsity"):
        parse_config(LossConfig, {"lambda_sparcity": 1.0}, "loss")
    with pytest.raises(ConfigError, match="weighting_strategy"):
        parse_config(LossConfig, {"weighting_strategy": "v2"}, "loss")
