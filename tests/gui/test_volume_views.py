"""What can be shown of volumes and what stands under the cursor, without a window."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibration.attenuation import linear_attenuation_per_mm, mass_attenuation_cm2_g
from firmware_iface.errors import WrongUsage
from gui.volume.cursor import is_error_of, reading
from gui.volume.looks import GreyLook
from gui.volume.painting import Painter
from gui.volume.slicing import Orientation, along, point_of
from gui.volume.views import Shown, View, auto_levels, bin_name, k_edges, recipe, why_not
from reconstruction.volume import PURE_NUMBER
from tests.gui.volume_samples import BASIS, GRID, KEV, MATRIX, bins, materials

AIR, WATER, ROD = (0, 0, 0), (0, 12, 12), (5, 5, 12)


def shown(view: View, voxel: tuple[int, int, int]) -> float:
    made = recipe(view, bins(), materials())
    assert made.make is not None
    first, last = made.channels[0], made.channels[-1] + 1
    return float(made.make(made.volume.values[first:last])[voxel])


def test_bins_in_hounsfield_units() -> None:
    view = View(shown=Shown.BIN, channel="bin 2", is_hu=True)
    assert shown(view, AIR) == pytest.approx(-1000)
    assert shown(view, WATER) == pytest.approx(0, abs=1e-3)
    assert shown(view, ROD) == pytest.approx(1000 * 0.005 * 2.8 / 0.032, rel=1e-4)
    assert shown(replace(view, is_hu=False), ROD) == pytest.approx(0.032 + 0.005 * 2.8, rel=1e-5)


def test_one_energy_is_the_sum_over_materials() -> None:
    per_mm = 0.1 * (mass_attenuation_cm2_g("water", 60.0)[0] + 0.005 * mass_attenuation_cm2_g("iodine", 60.0)[0])
    assert shown(View(shown=Shown.MONO, energy_kev=60), ROD) == pytest.approx(per_mm, rel=1e-5)
    hu = shown(View(shown=Shown.MONO, energy_kev=60, is_hu=True), ROD)
    assert hu == pytest.approx(1000 * (per_mm / linear_attenuation_per_mm("water", 60.0)[0] - 1), rel=1e-4)


def test_the_k_edge_of_iodine_shows_iodine_and_no_water() -> None:
    view = View(shown=Shown.K_EDGE, element="I")
    assert shown(view, WATER) == pytest.approx(0, abs=1e-8)
    assert shown(view, ROD) == pytest.approx(0.005 * (2.8 - 3.0 * 0.032 / 0.055), rel=1e-4)
    assert shown(view, ROD) > 0


def test_k_edges_are_those_a_threshold_stands_at() -> None:
    assert [(edge.element, edge.below) for edge in k_edges(bins(), materials())] == [("I", 0), ("Gd", 1)]
    assert k_edges(replace(bins(), thresholds_kev=(20.0, 40.0, 42.0, 80.0)), materials()) == ()
    two_passes = replace(bins(), thresholds_kev=(20.0, 50.0, 33.0, 60.0))
    assert [edge.element for edge in k_edges(two_passes, materials())] == ["Gd"]


def test_electrons_and_z_of_water_are_waters() -> None:
    assert shown(View(shown=Shown.ELECTRONS), WATER) == pytest.approx(1, rel=2e-3)
    assert 7.0 < shown(View(shown=Shown.Z), WATER) < 8.0
    assert shown(View(shown=Shown.Z), AIR) == 0


def test_what_cannot_be_shown_says_why() -> None:
    assert "no volume of energy bins" in why_not(View(shown=Shown.BIN), None, materials())
    assert "no volume of materials" in why_not(View(shown=Shown.MONO), bins(), None)
    assert "water" in why_not(View(shown=Shown.BIN, channel="bin 1", is_hu=True), replace(bins(), basis=None), None)
    assert "threshold" in why_not(View(shown=Shown.K_EDGE), replace(bins(), thresholds_kev=(), basis=None), None)
    odd = replace(materials(), channels=("water", "stuff", "iodine", "gadolinium"))
    assert "'stuff'" in why_not(View(shown=Shown.MONO), None, odd)
    assert why_not(View(shown=Shown.MATERIALS), None, odd) == ""
    with pytest.raises(WrongUsage, match="energy bins"):
        recipe(View(shown=Shown.BIN), None, materials())


def test_bins_are_named_with_their_edges() -> None:
    assert bin_name(bins(), "bin 2") == "bin 2, 33-50 keV"
    assert bin_name(bins(), "bin 4") == "bin 4, from 65 keV"
    named = replace(bins(), channels=("20-33", "33-50 keV", "c", "d"))
    assert bin_name(named, "33-50 keV") == "33-50 keV"
    assert bin_name(replace(bins(), thresholds_kev=()), "bin 2") == "bin 2"


def test_levels_for_values() -> None:
    values = np.linspace(-1, 3, 1001)
    low, high = auto_levels(values, "1/mm")
    assert -1 < low < -0.95
    assert 2.95 < high <= 3
    assert auto_levels(values, PURE_NUMBER)[0] == 0
    far = auto_levels(values, "1/mm", is_difference=True)
    assert far == (-far[1], far[1])
    low, high = auto_levels(np.full(5, 7.0), "1/mm")
    assert low < 7 < high
    assert auto_levels(np.full(5, np.nan), "1/mm") == (0.0, 1.0)


def test_the_painter_shows_the_cut_and_keeps_it() -> None:
    painter, made = Painter(), recipe(View(shown=Shown.BIN, channel="bin 1"), bins(), None)
    cut = along(Orientation.AXIAL, point_of(GRID, ROD))
    bright = painter.paint("axial", made, cut, GreyLook(levels=(0.0, 0.0550)))
    dark = painter.paint("axial", made, cut, GreyLook(levels=(0.0, 10.0)))
    assert bright.picture.shape == (*GRID.shape[1:], 3)
    assert bright.picture[12, 12, 0] == 255
    assert dark.picture.max() < 10
    suggestion = painter.suggest(made, Shown.BIN)
    assert suggestion.grey is not None
    assert suggestion.spans[0][1] >= suggestion.grey.levels[1]


def test_the_painter_suggests_colours_for_materials() -> None:
    suggestion = Painter().suggest(recipe(View(shown=Shown.MATERIALS), None, materials()), Shown.MATERIALS)
    assert [look.material for look in suggestion.looks] == list(BASIS.materials)
    assert all(high >= look.high_g_cm3 for (_, high), look in zip(suggestion.spans, suggestion.looks, strict=True))


def test_a_reading_tells_everything_at_a_point() -> None:
    sigma = replace(materials(), values=np.full_like(materials().values, 0.0004))
    found = reading(point_of(GRID, ROD), bins(), materials(), sigma)
    assert found.voxel == ROD
    rows = {name: (value, unit) for name, value, unit in found.rows}
    assert rows["iodine"] == ("5.000 ± 0.40", "mg/mL")
    assert rows["bin 1"] == ("0.07000", "1/mm")
    assert found.spectrum is not None
    assert found.spectrum.edges_kev.tolist() == [*KEV, 80.0]
    assert found.spectrum.measured_per_mm == pytest.approx(MATRIX @ [1, 0, 0.005, 0], rel=1e-5)
    assert found.spectrum.fitted_per_mm == pytest.approx(found.spectrum.measured_per_mm, rel=1e-5)


def test_a_reading_outside_says_so() -> None:
    found = reading((99.0, 0.0, 0.0), bins(), materials())
    assert found.voxel is None
    assert found.spectrum is None
    assert {value for _, value, _ in found.rows} == {"outside"}


def test_readings_of_two_grids_are_of_one_point() -> None:
    """The bins may have other voxels than the materials."""
    half = replace(bins(), values=bins().values[:, ::2, ::2, ::2].copy(),
                   grid=replace(GRID, shape=(6, 8, 10), voxel_mm=1.0))  # fmt: skip
    point = point_of(GRID, (4, 4, 12))
    rows = {name: value for name, value, _ in reading(point, half, materials()).rows}
    assert rows["iodine"] == "5.000"
    assert float(rows["bin 1"]) == pytest.approx(0.07, rel=1e-3)


def test_errors_belong_to_their_materials() -> None:
    assert is_error_of(materials(), materials())
    assert not is_error_of(bins(), materials())
