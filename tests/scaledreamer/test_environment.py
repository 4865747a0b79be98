"""The environment map that all prompts share."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from custom.scaledreamer.environment import Environment, harmonics
from triplaneturbo.ops.hashgrid import HashGrid

GRID = {"n_levels": 2, "base_resolution": 4, "log2_hashmap_size": 8}


def directions(rows: int) -> Tensor:
    return F.normalize(torch.randn(rows, 2, 3, 3, generator=torch.Generator().manual_seed(0)), dim=-1)


def test_harmonics_are_orthonormal_on_the_sphere() -> None:
    """By quadrature that is exact for their products: evenly in azimuth, Gauss-Legendre in z (roots of P_3)."""
    z = torch.tensor([-math.sqrt(0.6), 0.0, math.sqrt(0.6)], dtype=torch.float64)
    weights = torch.tensor([5.0, 8.0, 5.0], dtype=torch.float64) / 9 * 2 * math.pi / 5
    azimuth = torch.arange(5, dtype=torch.float64) * 2 * math.pi / 5
    r = (1 - z.square()).sqrt()
    x, y = r[:, None] * azimuth.cos(), r[:, None] * azimuth.sin()
    points = torch.stack([x, y, z[:, None].expand_as(x)], dim=-1)
    values = harmonics(points)
    products = torch.einsum("zap,zaq,z->pq", values, values, weights)
    torch.testing.assert_close(products, torch.eye(9, dtype=torch.float64))


def test_harmonics_have_the_signs_of_tiny_cuda_nn() -> None:
    towards_x, towards_y, towards_z = harmonics(torch.eye(3))
    assert towards_x[3] < 0 < towards_x[8]
    assert towards_y[1] < 0
    assert towards_z[2] > 0
    assert harmonics(torch.tensor([1.0, 1.0, 1.0]) / 3**0.5)[[4, 5, 7]].sign().tolist() == [1, -1, -1]


def test_the_text_changes_nothing_and_the_direction_does() -> None:
    environment = Environment({})
    seen = environment(directions(4), torch.zeros(2, 5))
    torch.testing.assert_close(seen, environment(directions(4), torch.ones(4, 7)))
    assert seen.shape == (4, 2, 3, 3)
    assert seen.std() > 1e-3


def test_a_hash_grid_reads_directions_moved_into_the_unit_cube() -> None:
    environment = Environment({"encoding": GRID, "network": {"n_hidden_layers": 1}})
    assert isinstance(environment.encoding, HashGrid)
    environment.encoding.params.data.uniform_(-1, 1)
    rays = directions(1)
    code = environment.encoding((rays.view(-1, 3) + 1) / 2)
    first, second = environment.network.linears
    expected = torch.sigmoid((code @ first.weight.T).relu() @ second.weight.T).view_as(rays)
    torch.testing.assert_close(environment(rays, torch.zeros(1, 5)), expected)
