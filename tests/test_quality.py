"""Figures of merit, against volumes whose figures are known."""

from __future__ import annotations

import numpy as np
import pytest

from firmware_iface.errors import WrongUsage
from reconstruction.decomposition import Matrix
from reconstruction.quality import (
    Vial,
    cross_talk_mg_ml,
    cylinder_mask,
    find_vials,
    k_edge_materials,
    regression,
    total_cross_talk_mg_ml,
    vial_statistics,
)
from reconstruction.volume import Grid, Volume

GRID = Grid(shape=(6, 100, 120), voxel_mm=0.1, centre_mm=(1.0, -1.0, 0.0))
VIALS = (
    Vial(material="water", x_mm=0.0, y_mm=2.0, radius_mm=0.9, concentration_mg_ml=0.0),
    Vial(material="iodine", x_mm=-2.5, y_mm=-3.0, radius_mm=0.9, concentration_mg_ml=9.0),
    Vial(material="iodine", x_mm=4.0, y_mm=1.0, radius_mm=1.2, concentration_mg_ml=18.0),
    Vial(material="gadolinium", x_mm=2.0, y_mm=-3.0, radius_mm=0.9, concentration_mg_ml=8.0),
)


def volume(values, channels=("water", "iodine", "gadolinium"), unit="g/cm3") -> Volume:
    return Volume(values=np.asarray(values, np.float32), channels=channels, unit=unit, grid=GRID)


def phantom(*, slope: float = 1.0, offset_mg_ml: float = 0.0, noise_mg_ml: float = 0.0) -> Volume:
    """Vials that read slope * true + offset, in g/cm3; a tenth of the iodine appears as gadolinium."""
    _, y, x = GRID.axes_mm()
    values = np.zeros((3, *GRID.shape))
    for vial in VIALS:
        inside = np.hypot(y[:, None] - vial.y_mm, x - vial.x_mm) <= vial.radius_mm
        values[0, :, inside] = 1.0
        for channel, name in ((1, "iodine"), (2, "gadolinium")):
            true = vial.concentration_mg_ml if vial.material == name else 0.0
            values[channel, :, inside] = (slope * true + offset_mg_ml) / 1000
        if vial.material == "iodine":
            values[2, :, inside] += 0.1 * vial.concentration_mg_ml / 1000
    values += np.random.default_rng(0).normal(0, noise_mg_ml / 1000, values.shape)
    return volume(values)


def test_the_mask_is_the_cylinder():
    vial = Vial(material="a", x_mm=1.3, y_mm=-0.4, radius_mm=2.0)
    mask = cylinder_mask(GRID, vial, z_range_mm=(-0.1, 0.2), kept_radius=0.5)
    z, y, x = np.nonzero(mask)
    assert sorted(set(z)) == [2, 3, 4]
    _, y_mm, x_mm = GRID.axes_mm()
    assert x_mm[x].mean() == pytest.approx(1.3, abs=0.02)
    assert y_mm[y].mean() == pytest.approx(-0.4, abs=0.02)
    assert mask.sum() * 0.1**2 / 3 == pytest.approx(np.pi * 1.0**2, rel=0.03)


def test_mean_and_spread_are_those_of_the_voxels():
    statistics = vial_statistics(phantom(noise_mg_ml=2.0), VIALS)
    assert statistics[2].mean_mg_ml("iodine") == pytest.approx(18.0, abs=0.2)
    assert statistics[2].sd_mg_ml("iodine") == pytest.approx(2.0, rel=0.1)
    assert statistics[0].mean_mg_ml("water") == pytest.approx(1000, abs=0.5)
    assert statistics[2].n_voxels > statistics[1].n_voxels > 0


def test_the_regression_finds_slope_and_offset():
    fit = regression(vial_statistics(phantom(slope=0.9, offset_mg_ml=0.5), VIALS), "iodine")
    assert fit.slope == pytest.approx(0.9, rel=1e-4)
    assert fit.offset_mg_ml == pytest.approx(0.5, rel=1e-3)
    assert fit.r2 == pytest.approx(1)
    assert fit.worst_mg_ml == pytest.approx(18 - (0.9 * 18 + 0.5), rel=1e-3)
    noisy = regression(vial_statistics(phantom(noise_mg_ml=30.0), VIALS), "iodine")
    assert noisy.r2 < 1


def test_r2_is_the_squared_correlation():
    statistics = vial_statistics(phantom(offset_mg_ml=20.0, noise_mg_ml=60.0), VIALS)
    measured = [s.mean_mg_ml("iodine") for s in statistics[:3]]
    expected = np.corrcoef([0.0, 9.0, 18.0], measured)[0, 1] ** 2
    assert expected < 0.999
    assert regression(statistics, "iodine").r2 == pytest.approx(expected, rel=1e-6)


def test_a_regression_of_one_concentration_is_refused():
    with pytest.raises(WrongUsage, match="allowed: at least 2"):
        regression(vial_statistics(phantom(), VIALS[1:2]), "iodine")


def test_cross_talk_is_the_root_mean_square_where_there_is_none():
    statistics = vial_statistics(phantom(), VIALS)
    cross_talk = cross_talk_mg_ml(statistics)
    assert cross_talk["iodine"] == pytest.approx(0, abs=1e-6)
    assert cross_talk["gadolinium"] == pytest.approx(np.sqrt((0.0 + 0.9**2 + 1.8**2) / 3), rel=1e-4)
    assert set(cross_talk) == {"iodine", "gadolinium"}
    # Iodine has none in 2 vials (0, 0), gadolinium none in 3 (0, 0.9, 1.8).
    assert total_cross_talk_mg_ml(statistics) == pytest.approx(np.sqrt((0.9**2 + 1.8**2) / 5), rel=1e-4)


def test_vials_are_found_where_they_stand():
    found = find_vials(phantom(noise_mg_ml=2.0), ("iodine", "gadolinium"))
    assert [vial.material for vial in found] == ["iodine", "gadolinium"]
    for vial, true in zip(found, (VIALS[2], VIALS[3]), strict=True):
        assert (vial.x_mm, vial.y_mm) == pytest.approx((true.x_mm, true.y_mm), abs=0.08)
        assert vial.radius_mm == pytest.approx(true.radius_mm, abs=0.15)


def test_several_vials_of_an_agent_come_largest_first():
    found = find_vials(phantom(noise_mg_ml=1.0), ("iodine",), n_per_agent=5)
    assert [vial.x_mm for vial in found] == pytest.approx([4.0, -2.5], abs=0.1)


def test_what_is_not_round_is_no_vial():
    values = np.zeros((3, *GRID.shape))
    values[1, :, 40:48, 10:90] = 0.01  # a bar
    values[2, :, 20:50, 60:90] = 0.01
    _, y, x = GRID.axes_mm()
    round_ = np.hypot(y[:, None] - 3.0, x + 3.0) <= 0.8
    values[1, :, round_] = 0.01
    found = find_vials(volume(values), ("iodine",))
    assert (found[0].x_mm, found[0].y_mm) == pytest.approx((-3.0, 3.0), abs=0.1)
    values[1, :, round_] = 0
    assert find_vials(volume(values), ("iodine",)) == ()
    assert find_vials(volume(np.zeros_like(values)), ("iodine",)) == ()


def test_agents_are_the_materials_that_rise_from_bin_to_bin():
    matrix = Matrix(
        materials=("water", "iodine", "bone"),
        bins=("1", "2", "3"),
        attenuation_per_mm_per_g_cm3=np.array([[0.03, 1.2, 0.1], [0.031, 2.0, 0.09], [0.02, 1.6, 0.07]]),
    )
    assert k_edge_materials(matrix) == ("iodine",)


def test_statistics_need_materials_and_vials_inside():
    with pytest.raises(WrongUsage, match="the volume is in 1/mm"):
        vial_statistics(volume(np.zeros((3, *GRID.shape)), unit="1/mm"), VIALS)
    with pytest.raises(WrongUsage, match="no voxel lies inside the iodine vial"):
        vial_statistics(phantom(), [Vial(material="iodine", x_mm=50.0, y_mm=0.0, radius_mm=1.0)])
    with pytest.raises(ValueError, match="radius_mm of the a vial is 0"):
        Vial(material="a", x_mm=0, y_mm=0, radius_mm=0)
