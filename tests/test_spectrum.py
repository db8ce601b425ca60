"""Laws of the source: the tube against SpekPy's own figures, conservation of photons, filters, and lines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.attenuation import linear_attenuation_per_mm
from calibration.spectrum import (
    _energy_transfer_cm2_g,
    emission,
    fluorescence_lines,
    half_value_layer_mm,
    radioactive_lines,
    transmission,
    tube_spectrum,
)
from firmware_iface.errors import WrongUsage

MODEL_KEV = np.arange(1.5, 150)
KVP = st.floats(20, 150)


@pytest.mark.parametrize(
    ("kvp", "anode_deg", "aluminium_mm", "hvl_mm", "mean_kev", "per_cm2"),
    [
        (120, 10.5, 5.5, 6.209, 59.29, 2.433e8),
        (80, 12, 2.5, 2.734, 42.90, 1.524e8),
        (120.5, 12, 2.5, 4.238, 54.56, 3.643e8),
        (50, 7, 1.0, 1.113, 29.57, 7.374e7),
        (140, 20, 8.0, 7.778, 65.65, 2.838e8),
    ],
)
def test_the_tube_is_spekpys(
    kvp: float, anode_deg: float, aluminium_mm: float, hvl_mm: float, mean_kev: float, per_cm2: float
) -> None:
    """SpekPy 2.5.4 in 0.5 keV bins, with its own attenuation of aluminium and its own kerma."""
    photons = tube_spectrum(kvp, MODEL_KEV, {"aluminium": aluminium_mm}, anode_deg)
    assert photons.sum() * 100 == pytest.approx(per_cm2, rel=0.01)
    assert photons @ MODEL_KEV / photons.sum() == pytest.approx(mean_kev, abs=0.1)
    assert half_value_layer_mm(photons, MODEL_KEV) == pytest.approx(hvl_mm, rel=0.006)


@settings(max_examples=30)
@given(kvp=KVP, width_kev=st.floats(0.1, 20))
def test_photons_are_conserved_on_any_grid(kvp: float, width_kev: float) -> None:
    filters = {"aluminium": 2.0}
    grid_kev = np.arange(1 + width_kev / 2, 151 + width_kev, width_kev)
    rebinned = tube_spectrum(kvp, grid_kev, filters)
    assert rebinned.min() >= 0
    assert rebinned.sum() == pytest.approx(tube_spectrum(kvp, MODEL_KEV, filters).sum(), rel=1e-9)


def test_a_coarser_grid_adds_up_the_finer_ones_bins() -> None:
    fine = tube_spectrum(90.0, np.arange(10.25, 100, 0.5))
    coarse = tube_spectrum(90.0, np.arange(10.5 + 0.5, 100, 2.0))
    np.testing.assert_allclose(fine[: 4 * len(coarse)].reshape(-1, 4).sum(axis=1), coarse, rtol=1e-9)


@given(kvp=KVP)
def test_no_photon_has_more_energy_than_the_tube_gives(kvp: float) -> None:
    grid_kev = np.arange(1.05, 160, 0.1)
    photons = tube_spectrum(kvp, grid_kev)
    assert not photons[grid_kev - 0.05 > kvp].any()
    assert photons[(grid_kev > 0.9 * kvp) & (grid_kev + 0.05 < kvp)].all()


@given(kvp=st.floats(20, 149))
def test_more_voltage_gives_more_photons(kvp: float) -> None:
    filters = {"aluminium": 1.0}
    assert tube_spectrum(kvp + 1, MODEL_KEV, filters).sum() > tube_spectrum(kvp, MODEL_KEV, filters).sum()


def test_between_two_voltages_the_tube_is_between_them() -> None:
    low, between, high = (tube_spectrum(kvp, MODEL_KEV)[:80] for kvp in (90.0, 90.25, 91.0))
    np.testing.assert_allclose(between, 0.75 * low + 0.25 * high, rtol=1e-12)


def test_filters_multiply_and_divide_into_layers() -> None:
    bare = tube_spectrum(100.0, MODEL_KEV)
    layers = {"copper": 0.1, "air": 1000.0}
    expected = bare * np.exp(-sum(t * linear_attenuation_per_mm(name, MODEL_KEV) for name, t in layers.items()))
    np.testing.assert_allclose(tube_spectrum(100.0, MODEL_KEV, layers), expected, rtol=1e-9, atol=bare.max() * 1e-12)
    whole = transmission({"aluminium": 3.0}, MODEL_KEV)
    np.testing.assert_allclose(
        transmission({"aluminium": 1.0}, MODEL_KEV) * transmission({"Al": 2.0}, MODEL_KEV), whole
    )
    np.testing.assert_array_equal(transmission({}, MODEL_KEV), 1.0)


def test_tungsten_lines_stand_out_above_their_edge_only() -> None:
    def excess_at_k_alpha(kvp: float) -> float:
        photons = tube_spectrum(kvp, MODEL_KEV)
        return float(photons[58] / photons[[54, 61]].mean())  # bin 58 is 59-60 keV and holds W Ka1, 59.318 keV

    assert excess_at_k_alpha(120.0) > 2
    assert excess_at_k_alpha(69.0) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("energy_kev", [20.5, 60.5, 100.5])
def test_the_half_value_layer_of_one_energy_is_that_of_its_attenuation(energy_kev: float) -> None:
    expected_mm = np.log(2) / linear_attenuation_per_mm("copper", [energy_kev])[0]
    assert half_value_layer_mm([3.0], [energy_kev], "copper") == pytest.approx(expected_mm, rel=1e-6)


def test_a_filter_hardens_the_beam() -> None:
    thin, thick = (tube_spectrum(100.0, MODEL_KEV, {"aluminium": mm}) for mm in (1.0, 6.0))
    assert half_value_layer_mm(thick, MODEL_KEV) > half_value_layer_mm(thin, MODEL_KEV) * 1.5


# Ref: decay and fluorescence lines as measured: 59.541 keV (35.9 %), 26.345 keV (2.4 %), 88.04 keV (3.6 %),
#      122.061 keV (85.6 %), 136.474 keV (10.7 %), 14.413 keV (9.2 %).
@pytest.mark.parametrize(
    ("name", "energy_kev", "per_decay"),
    [
        ("Am-241", 59.541, 0.359),
        ("Am-241", 26.345, 0.024),
        ("Cd-109", 88.04, 0.036),
        ("Co-57", 122.061, 0.856),
        ("Co-57", 136.474, 0.107),
        ("Co-57", 14.413, 0.092),
    ],
)
def test_radionuclides_have_their_gamma_lines(name: str, energy_kev: float, per_decay: float) -> None:
    shares = [line.fraction for line in radioactive_lines(name) if abs(line.energy_kev - energy_kev) < 0.002]
    assert shares == pytest.approx([per_decay], abs=6e-4)
    assert emission(name) == radioactive_lines(name)


@pytest.mark.parametrize(("name", "daughter"), [("Cd-109", "Ag"), ("Co-57", "Fe"), ("Fe-55", "Mn")])
def test_k_lines_of_a_decay_are_those_of_its_daughter(name: str, daughter: str) -> None:
    """Two sources that know nothing of each other: decay tables, and Elam's K lines."""
    lines = fluorescence_lines(daughter)
    low, high = lines[0].energy_kev - 0.05, lines[-1].energy_kev + 0.05
    decayed = [line for line in radioactive_lines(name) if low < line.energy_kev < high]

    def mean_kev(chosen: list) -> float:
        return sum(line.energy_kev * line.fraction for line in chosen) / sum(line.fraction for line in chosen)

    assert mean_kev(decayed) == pytest.approx(mean_kev(list(lines)), rel=0.003)


@pytest.mark.parametrize(
    ("element", "alpha_kev"),
    [("Mo", 17.480), ("Ag", 22.163), ("In", 24.210), ("Sn", 25.271), ("Gd", 42.996), ("W", 59.318), ("Pb", 74.970)],
)
def test_a_target_fluoresces_most_in_its_k_alpha_line(element: str, alpha_kev: float) -> None:
    lines = emission(element)
    assert max(lines, key=lambda line: line.fraction).energy_kev == pytest.approx(alpha_kev, abs=1e-3)
    assert sum(line.fraction for line in lines) == pytest.approx(1)


@pytest.mark.parametrize("name", ["Am-242", "americium-241", "Xx", "", "H", "water"])
def test_unknown_sources_are_refused_and_the_known_ones_told(name: str) -> None:
    with pytest.raises(WrongUsage) as refused:
        emission(name)
    assert "Am-241, Cd-109, Co-57, Fe-55" in refused.value.hint


@pytest.mark.parametrize(
    ("kvp", "grid_kev", "filters", "anode_deg", "message"),
    [
        (19.9, MODEL_KEV, {}, 12, "20 to 150"),
        (151, MODEL_KEV, {}, 12, "20 to 150"),
        (np.nan, MODEL_KEV, {}, 12, "20 to 150"),
        (100, MODEL_KEV, {}, 5, "6 to 22"),
        (100, MODEL_KEV, {"aluminium": -1.0}, 12, "0 mm or more"),
        (100, MODEL_KEV, {"kryptonite": 1.0}, 12, "kryptonite"),
        (100, [60.0], {}, 12, "evenly spaced"),
        (100, [60.0, 50.0], {}, 12, "evenly spaced"),
        (100, [60.0, 61.0, 63.0], {}, 12, "evenly spaced"),
        (100, [[60.0, 61.0]], {}, 12, "evenly spaced"),
        (100, [np.nan, np.nan], {}, 12, "evenly spaced"),
    ],
)
def test_tubes_that_cannot_be_are_refused(kvp, grid_kev, filters, anode_deg, message) -> None:
    with pytest.raises(WrongUsage, match=message):
        tube_spectrum(kvp, grid_kev, filters, anode_deg)


def test_an_empty_spectrum_has_no_half_value_layer() -> None:
    with pytest.raises(WrongUsage, match="without photons"):
        half_value_layer_mm(np.zeros(2), [60.0, 61.0])


def test_air_takes_up_the_energy_that_nist_says() -> None:
    """The weight of the kerma; Ref: NIST, mass energy-absorption coefficient of dry air near sea level."""
    energies_kev = np.array([20.0, 30.0, 60.0, 100.0, 150.0])
    np.testing.assert_allclose(
        _energy_transfer_cm2_g(energies_kev), [0.5389, 0.1537, 0.03041, 0.02325, 0.02496], rtol=0.006
    )


def test_fluence_falls_with_the_square_of_the_distance() -> None:
    near, far = (tube_spectrum(100, MODEL_KEV, {"aluminium": 2.0}, distance_mm=mm) for mm in (250.0, 1000.0))
    np.testing.assert_allclose(near, 16 * far)
    with pytest.raises(WrongUsage, match="above 0"):
        tube_spectrum(100, MODEL_KEV, distance_mm=0)
