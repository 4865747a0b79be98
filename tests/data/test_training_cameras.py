"""Random cameras as a function of their random numbers."""

import math

import torch

from triplaneturbo.base import build
from triplaneturbo.data.cameras import Ring
from triplaneturbo.draws import Draws

RANGES = {"elevation": [0, 30], "azimuth": [-180, 180], "fovy": [40, 60], "distance": [0.8, 1.0]}


def test_views_of_a_prompt_share_all_but_the_azimuth():
    cameras = Ring(RANGES).place(torch.tensor([[0.5, 0.0, 1.0, 0.25], [0.0, 0.5, 0.0, 1.0]]))
    assert cameras.n_view == 4
    torch.testing.assert_close(cameras.elevation_deg, torch.tensor([15.0] * 4 + [0.0] * 4))
    torch.testing.assert_close(cameras.azimuth_deg, torch.tensor([-180.0, -90, 0, 90, -135, -45, 45, 135]))
    torch.testing.assert_close(cameras.fovy, torch.tensor([math.radians(60)] * 4 + [math.radians(40)] * 4))
    torch.testing.assert_close(cameras.distance_relative, torch.tensor([0.85] * 4 + [1.0] * 4))
    expected = torch.tensor([0.85 * math.sqrt(3)] * 4 + [1 / math.tan(math.radians(20))] * 4)
    torch.testing.assert_close(cameras.distance, expected)


def test_azimuths_stay_in_their_range_and_cover_it_evenly():
    ring = Ring({"azimuth": [10, 50], "relative_distance": False})
    uniform = torch.rand(2000, 4, generator=torch.Generator().manual_seed(0))
    azimuth = ring.place(uniform).azimuth_deg.view(-1, 4)
    for view in range(4):
        low, high = 10 + 10 * view, 20 + 10 * view
        assert azimuth[:, view].min() >= low
        assert azimuth[:, view].max() <= high
        assert abs(azimuth[:, view].mean() - (low + high) / 2) < 0.3
    torch.testing.assert_close(azimuth.diff(dim=1), torch.full((2000, 3), 10.0))


def test_cameras_belong_to_the_sample_and_the_stream():
    ring = build("cameras", {"type": "ring", **RANGES, "n_view": 3})

    def place(*samples, stream="cameras/0"):
        return ring(Draws(seed=1, samples=samples, device=torch.device("cpu")), stream)

    both = place(4, 9)
    assert (both.n_view, len(both)) == (3, 6)
    assert torch.equal(both.c2w[3:], place(9).c2w)
    assert not torch.equal(place(9, stream="cameras/1").c2w, place(9).c2w)
