"""Colour differences against published values."""

import pytest
import torch

from triplaneturbo.evaluation.color import delta_e, lab

# Sharma, Wu and Dalal (2005), table 1: L1 a1 b1 L2 a2 b2 and the difference.
PUBLISHED = """
50 2.6772 -79.7751 50 0 -82.7485 2.0425
50 3.1571 -77.2803 50 0 -82.7485 2.8615
50 2.8361 -74.0200 50 0 -82.7485 3.4412
50 -1.3802 -84.2814 50 0 -82.7485 1.0000
50 -1.1848 -84.8006 50 0 -82.7485 1.0000
50 -0.9009 -85.5211 50 0 -82.7485 1.0000
50 0 0 50 -1 2 2.3669
50 -1 2 50 0 0 2.3669
50 2.4900 -0.0010 50 -2.4900 0.0009 7.1792
50 2.4900 -0.0010 50 -2.4900 0.0010 7.1792
50 2.4900 -0.0010 50 -2.4900 0.0011 7.2195
50 2.4900 -0.0010 50 -2.4900 0.0012 7.2195
50 -0.0010 2.4900 50 0.0009 -2.4900 4.8045
50 -0.0010 2.4900 50 0.0010 -2.4900 4.8045
50 -0.0010 2.4900 50 0.0011 -2.4900 4.7461
50 2.5 0 50 0 -2.5 4.3065
50 2.5 0 73 25 -18 27.1492
50 2.5 0 61 -5 29 22.8977
50 2.5 0 56 -27 -3 31.9030
50 2.5 0 58 24 15 19.4535
50 2.5 0 50 3.1736 0.5854 1.0000
50 2.5 0 50 3.2972 0 1.0000
50 2.5 0 50 1.8634 0.5757 1.0000
50 2.5 0 50 3.2592 0.3350 1.0000
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630
61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082
"""


def test_differences_are_the_published_ones_both_ways():
    """The table has the pairs at which hues turn and means of hues jump; its values have four decimals."""
    table = torch.tensor([[float(x) for x in line.split()] for line in PUBLISHED.strip().splitlines()]).double()
    assert len(table) == 34
    a, b, expected = table[:, :3], table[:, 3:6], table[:, 6]
    torch.testing.assert_close(delta_e(a, b), expected, atol=5.1e-5, rtol=0)
    torch.testing.assert_close(delta_e(b, a), expected, atol=5.1e-5, rtol=0)


@pytest.mark.parametrize(
    ("display", "expected"),
    [  # of the sRGB primaries under D65 (Lindbloom)
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        ((1.0, 1.0, 1.0), (100.0, 0.0, 0.0)),
        ((1.0, 0.0, 0.0), (53.2408, 80.0925, 67.2032)),
        ((0.0, 1.0, 0.0), (87.7347, -86.1827, 83.1793)),
        ((0.0, 0.0, 1.0), (32.2970, 79.1875, -107.8602)),
        ((0.02, 0.02, 0.02), (1.3983, 0.0, 0.0)),  # the straight parts of both curves: 903.3 * 0.02 / 12.92
    ],
)
def test_display_colours_as_lab(display, expected):
    found = lab(torch.tensor(display, dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=0.01, rtol=0)


def test_equal_colours_do_not_differ_and_black_is_100_from_white():
    colors = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
    assert (delta_e(lab(colors), lab(colors)) == 0).all()
    ends = lab(torch.tensor([[0.0, 0, 0], [1.0, 1, 1]]))
    assert delta_e(ends[0], ends[1]).item() == pytest.approx(100, abs=0.01)
