"""Clouds shared among pixels: products of one-dimensional shares, conservation, and what falls beside the sensor."""

import numpy as np
import pytest
from numba import njit

from sim import landing

share = njit(landing.share.py_func)
LEAST_KEV = 0.1


def shared(left, right, below, above, charge_kev=60.0, at=(1, 1), shape=(3, 3)):
    """What one cloud leaves on a sensor: (rows, cols), and how many places got something."""
    rows, cols = shape
    lefts, rights, belows, aboves = np.array([[left], [right], [below], [above]], dtype=np.float32)
    nothing = np.zeros(1)
    col, row = (np.array([one], dtype=np.int32) for one in (at[1], at[0]))
    cloud = landing.Clouds(
        nothing, nothing, np.array([charge_kev]), nothing, nothing, nothing, col, row, lefts, rights, belows, aboves
    )
    onto = landing.landing(cols * np.arange(rows), 1 + np.arange(cols), rows * cols + 1, 1)
    n = share(cloud, np.uint64(0), onto, 0)
    assert set(onto.places[:n]) == set(np.flatnonzero(onto.charges_kev[1:]) + 1)
    return onto.charges_kev[1:].reshape(shape), n


@pytest.mark.parametrize(
    "shares",
    [(0, 0, 0, 0), (0.3, 0, 0.2, 0), (0, 0.3, 0, 0.4), (0.3, 0, 0, 0), (0.1, 0.2, 0.3, 0.05), (0.1, 0.1, 0, 0.2)],
)
def test_shares_are_products_and_all_charge_arrives(shares):
    left, right, below, above = np.array(shares, dtype=np.float32)
    found, n = shared(*shares)
    whole = 60.0 * np.outer([below, 1 - below - above, above], [left, 1 - left - right, right])
    np.testing.assert_allclose(found, whole, atol=1e-5)
    assert found.sum() == pytest.approx(60.0, rel=1e-12)
    assert n == np.count_nonzero(whole)


@pytest.mark.parametrize("shares", [(0.01, 0, 0.2, 0), (0.01, 0.02, 0.2, 0.1)])
def test_small_parts_stay_where_the_cloud_fell(shares):
    charge_kev = 0.9 * LEAST_KEV / 0.02
    found, n = shared(shares[0], shares[1], 0, 0, charge_kev)
    assert n == 1
    assert found[1, 1] == pytest.approx(charge_kev, rel=1e-12)
    assert shared(*shares, charge_kev=charge_kev)[0].sum() == pytest.approx(charge_kev, rel=1e-12)


@pytest.mark.parametrize("shares", [(0.3, 0, 0.2, 0), (0.1, 0.2, 0.3, 0.05)])
def test_what_falls_beside_the_sensor_is_lost(shares):
    whole = shared(*shares, at=(1, 1))[0]
    np.testing.assert_allclose(shared(*shares, at=(0, 0))[0][:2, :2], whole[1:, 1:], rtol=1e-12)
    assert shared(*shares, at=(0, 0))[1] == np.count_nonzero(whole[1:, 1:])
    assert not shared(*shares, at=(-5, 1))[0].any()
    assert not shared(*shares, at=(1, 900))[0].any()
