"""What was not measured is filled as well as what is around it allows, and nothing else is touched."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration import pixels
from firmware_iface.errors import WrongUsage
from reconstruction.artefacts import inpainting
from tests import striped_scans as scans

SCAN = scans.geometry(rows=14, cols=160)
ANGLES = scans.angles_rad(180)


@cache
def exact() -> NDArray[np.float32]:
    return scans.views_of(scans.the_object("rods"), SCAN, ANGLES)


def cubic() -> NDArray[np.float32]:
    """Polynomials of third degree that bend as a plate without load does."""
    y, x = np.mgrid[:24, :30] / 10.0
    return np.stack([x**3 - x * y**2 + 3 * x * y - y + 2, x * x - 2 * y * y, x + y])[None].astype(np.float32)


def rms(values: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def test_polynomials_of_third_degree_are_continued_exactly() -> None:
    is_bad = np.zeros((24, 30), dtype=bool)
    is_bad[6:11, 12:20] = is_bad[18, 5] = True
    values = cubic()
    broken = np.where(is_bad, np.nan, values)
    filled, words = inpainting.fill(broken, is_bad, method="smooth")
    assert filled is broken
    assert words == "41 bad pixels filled by the smoothest surface"
    np.testing.assert_allclose(filled, values, atol=2e-5)


def test_a_plane_goes_on_past_the_edge_of_the_image() -> None:
    is_bad = np.zeros((24, 30), dtype=bool)
    is_bad[:, :3] = is_bad[-1] = True
    values = cubic()[:, 2:]
    np.testing.assert_allclose(
        inpainting.fill(np.where(is_bad, 0, values), is_bad, method="smooth")[0], values, atol=1e-3
    )


def test_neighbours_are_those_of_the_calibration() -> None:
    is_bad = np.random.default_rng(1).random((24, 30)) < 0.1
    values = cubic()
    expected = pixels.fill(np.where(is_bad, 0, values), is_bad)
    np.testing.assert_array_equal(inpainting.fill(values.copy(), is_bad, method="neighbours")[0], expected)


def test_lost_values_lie_between_their_own_views() -> None:
    """Around the circle: the last view and the first one are neighbours."""
    rate = np.arange(8.0) * np.array([1.0, 2.0])[:, None]
    values = np.broadcast_to(rate[:, :, None, None], (2, 8, 3, 3)).astype(np.float32).copy()
    is_bad = np.zeros(values.shape, dtype=bool)
    is_bad[0, [2, 3], 1, 1] = is_bad[1, 7, 0, 0] = True
    filled, words = inpainting.fill(np.where(is_bad, np.nan, values), is_bad)
    assert words == "3 values filled from the views beside them"
    assert filled[0, 2, 1, 1] == pytest.approx(2)
    assert filled[0, 3, 1, 1] == pytest.approx(3)
    assert filled[1, 7, 0, 0] == pytest.approx((12 + 0) / 2)
    np.testing.assert_array_equal(filled[~is_bad], values[~is_bad])


@pytest.mark.parametrize("width", [2, 6, 12])
def test_a_gap_of_columns_is_filled_from_behind(width: int) -> None:
    """In a dead strip the smoothest surface loses the small rods that opposing rays still see."""
    is_bad = np.zeros((14, 160), dtype=bool)
    is_bad[:, 50 : 50 + width] = True
    error = {}
    for method in ("neighbours", "smooth", "auto"):
        broken = np.where(is_bad, np.nan, exact())
        filled, _ = inpainting.fill(broken, is_bad, method=method, angles_rad=ANGLES, geometry=SCAN)
        np.testing.assert_array_equal(filled[..., ~is_bad], exact()[..., ~is_bad])
        error[method] = rms((filled - exact())[..., is_bad])
    assert error["auto"] < 0.005 * exact().max()
    assert error["auto"] < 0.5 * error["smooth"]
    assert error["smooth"] < error["neighbours"]


def test_noise_does_not_grow_in_a_gap() -> None:
    is_bad = np.zeros((14, 160), dtype=bool)
    is_bad[:, 50:62] = True
    noisy = exact() + 0.01 * np.random.default_rng(3).standard_normal(exact().shape, dtype=np.float32)
    filled, _ = inpainting.fill(noisy, is_bad, angles_rad=ANGLES, geometry=SCAN)
    assert rms((filled - exact())[..., is_bad]) < 0.011


def test_a_gap_that_crosses_the_axis_is_closed_smoothly() -> None:
    """There a bad pixel's opposing ray falls on a bad one too."""
    is_bad = np.zeros((14, 160), dtype=bool)
    is_bad[:, 78:82] = is_bad[6] = True
    filled, _ = inpainting.fill(np.where(is_bad, np.nan, exact()), is_bad, angles_rad=ANGLES, geometry=SCAN)
    assert np.isfinite(filled).all()
    assert rms((filled - exact())[..., is_bad]) < 0.02 * exact().max()


def test_every_bin_has_its_own_mask() -> None:
    values = np.concatenate([cubic(), cubic()])
    is_bad = np.zeros((2, 24, 30), dtype=bool)
    is_bad[0, 5, 5] = is_bad[1, 9:12, 9:12] = True
    broken = np.where(is_bad[:, None], np.nan, values)
    np.testing.assert_allclose(inpainting.fill(broken, is_bad)[0], values, atol=1e-5)


def test_what_cannot_be_filled_is_refused() -> None:
    values = cubic()
    none = np.zeros((24, 30), dtype=bool)
    assert inpainting.fill(values, none)[1] == "nothing to fill"
    with pytest.raises(ValueError, match="at least one good pixel"):
        inpainting.fill(values, ~none)
    with pytest.raises(ValueError, match="the mask has shape"):
        inpainting.fill(values, none[1:])
    with pytest.raises(WrongUsage, match="allowed: auto, neighbours"):
        inpainting.fill(values, none, method="magic")
    none[3, 3] = True
    with pytest.raises(WrongUsage, match="no opposing rays"):
        inpainting.fill(values, none, method="opposing")
