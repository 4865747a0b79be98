"""Random cameras as a function of their random numbers."""

import math

import torch

from triplaneturbo.data.cameras import CameraRanges, training_cameras

RANGES = CameraRanges(
    elevation=(0.0, 30.0), azimuth=(-180.0, 180.0), fovy=(40.0, 60.0), distance=(0.8, 1.0), relative=True
)


def test_views_of_a_prompt_share_all_but_the_azimuth():
    cameras = training_cameras(torch.tensor([[0.5, 0.0, 1.0, 0.25], [0.0, 0.5, 0.0, 1.0]]), RANGES, 4)
    assert cameras.n_view == 4
    torch.testing.assert_close(cameras.elevation_deg, torch.tensor([15.0] * 4 + [0.0] * 4))
    torch.testing.assert_close(cameras.azimuth_deg, torch.tensor([-180.0, -90, 0, 90, -135, -45, 45, 135]))
    torch.testing.assert_close(cameras.fovy, torch.tensor([math.radians(60)] * 4 + [math.radians(40)] * 4))
    torch.testing.assert_close(cameras.distance_relative, torch.tensor([0.85] * 4 + [1.0] * 4))
    expected = torch.tensor([0.85 * math.sqrt(3)] * 4 + [1 / math.tan(math.radians(20))] * 4)
    torch.testing.assert_close(cameras.distance, expected)


def test_azimuths_stay_in_their_range_and_cover_it_evenly():
    ranges = CameraRanges(
        elevation=(0.0, 0.0), azimuth=(10.0, 50.0), fovy=(60.0, 60.0), distance=(2.0, 2.0), relative=False
    )
    uniform = torch.rand(2000, 4, generator=torch.Generator().manual_seed(0))
    azimuth = training_cameras(uniform, ranges, 4).azimuth_deg.view(-1, 4)
    for view in range(4):
        low, high = 10 + 10 * view, 20 + 10 * view
        assert azimuth[:, view].min() >= low
        assert azimuth[:, view].max() <= high
        assert abs(azimuth[:, view].mean() - (low + high) / 2) < 0.3
    torch.testing.assert_close(azimuth.diff(dim=1), torch.full((2000, 3), 10.0))
