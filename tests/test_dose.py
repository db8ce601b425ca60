"""Laws of dose: kerma of known beams, conservation of energy, chords against photons thrown one by one."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.attenuation import linear_attenuation_per_mm, mass_attenuation_cm2_g, material
from calibration.geometry import Geometry
from calibration.spectrum import air_kerma_mgy, klein_nishina_cm2, tube_spectrum
from firmware_iface.errors import WrongUsage
from reconstruction.spectral.dose import (
    dose_by_chords_mgy,
    dose_by_photons,
    dose_mgy_per_fluence,
    half_fan_rad,
)
from reconstruction.spectral.sample import Rod, Sample, ring_of

GEOMETRY = Geometry(source_to_detector_mm=250.0, source_to_object_mm=200.0, pitch_mm=0.5, rows=60, cols=300)
WATER = Sample(diameter_mm=30.0, height_mm=60.0)
ENERGIES_KEV = np.arange(5.25, 150, 0.5)


def run(work):
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


# Ref: mu_en / rho of dry air, NIST X-Ray Mass Attenuation Coefficients (NISTIR 5632), table 4.
@pytest.mark.parametrize(
    ("energy_kev", "cm2_g"), [(20.0, 0.5389), (30.0, 0.1537), (40.0, 0.06833), (60.0, 0.03041), (100.0, 0.02325)]
)
def test_kerma_of_one_energy_is_that_of_the_tables(energy_kev: float, cm2_g: float) -> None:
    """1 photon per mm2 is 100 per cm2; 1 keV/g is 1.602e-13 Gy."""
    assert air_kerma_mgy([1.0], [energy_kev]) == pytest.approx(100 * energy_kev * cm2_g * 1.602177e-10, rel=0.01)


def test_kerma_of_a_tube() -> None:
    """SpekPy's 120 kV beam behind 5.5 mm of aluminium, by hand in 5 keV bins and by the tables' coefficients."""
    # Ref: NIST mu_en / rho of air, table 4, interpolated in log-log.
    nodes_kev = np.array([10, 15, 20, 30, 40, 50, 60, 80, 100, 150.0])
    nodes_cm2_g = np.array([4.742, 1.334, 0.5389, 0.1537, 0.06833, 0.04098, 0.03041, 0.02407, 0.02325, 0.02496])
    energies_kev = np.arange(12.5, 120, 5.0)
    photons = tube_spectrum(120.0, energies_kev, {"aluminium": 5.5}, 10.5)
    cm2_g = np.exp(np.interp(np.log(energies_kev), np.log(nodes_kev), np.log(nodes_cm2_g)))
    expected = (photons * energies_kev * cm2_g).sum() * 100 * 1.602177e-10
    fine_kev = np.arange(5.25, 120, 0.5)
    found = air_kerma_mgy(tube_spectrum(120.0, fine_kev, {"aluminium": 5.5}, 10.5), fine_kev)
    assert photons.sum() * 100 == pytest.approx(2.43e8, rel=0.01)
    assert found == pytest.approx(expected, rel=0.02)
    assert 0.05 < found < 0.12, "some 0.08 mGy per mAs at 1 m"


def test_scattering_turns_into_thomsons_at_low_energy() -> None:
    total, transferred = klein_nishina_cm2([0.1, 60.0, 511.0])
    assert total[0] == pytest.approx(6.6524587e-25, rel=1e-3)
    assert total[1] == pytest.approx(5.460e-25, rel=2e-3)
    assert total[2] / total[0] == pytest.approx(0.4307, abs=2e-3)
    assert (transferred[1] / total[1]) == pytest.approx(0.092, abs=0.002)


@pytest.mark.parametrize("energy_kev", [15.0, 60.0, 120.0])
def test_no_energy_is_lost_or_made(energy_kev: float) -> None:
    found = dose_by_photons(WATER, GEOMETRY, np.ones(1), np.array([energy_kev]), n_photons=40_000)
    assert found.left_kev + found.escaped_kev + found.missed_kev == pytest.approx(found.thrown_kev, rel=1e-9)
    assert found.thrown_kev == pytest.approx(40_000 * energy_kev, rel=1e-9)
    assert 0 < found.left_kev < found.thrown_kev


@pytest.mark.parametrize("energy_kev", [12.0, 30.0, 80.0])
def test_first_collisions_leave_what_chords_say(energy_kev: float) -> None:
    sample = ring_of([("iodine", 20.0), ("gadolinium", 20.0)], 30.0, "pmma", 200.0)
    at = np.array([energy_kev])
    found = dose_by_photons(sample, GEOMETRY, np.ones(1), at, n_photons=200_000)
    expected = dose_by_chords_mgy(sample, GEOMETRY, at)[0]
    n_first = found.thrown_kev / energy_kev
    assert found.primary_mgy == pytest.approx(expected, rel=8 / np.sqrt(n_first) + 0.003)


def test_at_low_energies_all_is_left_by_first_collisions() -> None:
    """In water scattering is 1 % of the collisions at 7 keV, and 6 % at 12 keV."""
    at = np.array([7.0])
    found = dose_by_photons(WATER, GEOMETRY, np.ones(1), at, n_photons=200_000)
    assert found.everywhere_mgy == pytest.approx(dose_by_chords_mgy(WATER, GEOMETRY, at)[0], rel=0.015)


def test_at_high_energies_scattered_photons_add_to_it() -> None:
    wide = Sample(diameter_mm=120.0, height_mm=200.0)
    at = np.array([80.0])
    found = dose_by_photons(wide, GEOMETRY, np.ones(1), at, n_photons=100_000)
    assert found.everywhere_mgy > 1.5 * found.primary_mgy


@pytest.mark.parametrize("energy_kev", [25.0, 60.0, 100.0])
def test_a_thin_sample_gets_the_fluence_times_its_coefficient(energy_kev: float) -> None:
    """Energy absorption of water, NIST table 4: every point of a thread sees the open beam."""
    # Ref: NIST mu_en / rho of water: 0.2889 (25 keV, interpolated), 0.03190 (60 keV), 0.02546 (100 keV).
    expected_cm2_g = {25.0: 0.277, 60.0: 0.03190, 100.0: 0.02546}[energy_kev]
    thread = Sample(diameter_mm=0.1, height_mm=60.0)
    at = np.array([energy_kev])
    expected = energy_kev * expected_cm2_g * 100 * 1.602177e-10
    assert dose_by_chords_mgy(thread, GEOMETRY, at)[0] == pytest.approx(expected, rel=0.03)


def test_a_thick_sample_takes_all() -> None:
    """Lead stops 30 keV at once: what arrives within its shadow, by mass."""
    lead = Sample(diameter_mm=20.0, body="lead", height_mm=60.0)
    at = np.array([30.0])
    arrives_kev = 30.0 * 2 * half_fan_rad(lead, GEOMETRY) * GEOMETRY.source_to_object_mm
    expected = arrives_kev / (np.pi * 10.0**2 * material("lead").density_g_cm3 / 1000) * 1.602177e-10
    assert dose_by_chords_mgy(lead, GEOMETRY, at)[0] == pytest.approx(expected, rel=0.01)


def test_a_camera_that_is_narrower_collimates_the_beam() -> None:
    narrow = Geometry(source_to_detector_mm=250.0, source_to_object_mm=200.0, pitch_mm=0.05, rows=60, cols=300)
    at = np.array([60.0])
    whole, part = (dose_by_chords_mgy(WATER, geometry, at)[0] for geometry in (GEOMETRY, narrow))
    assert part < 0.6 * whole


def test_between_its_energies_the_dose_is_what_photons_leave() -> None:
    per_fluence = run(dose_mgy_per_fluence(WATER, GEOMETRY, ENERGIES_KEV))
    spectrum = tube_spectrum(100.0, ENERGIES_KEV, {"aluminium": 3.0})
    found = dose_by_photons(WATER, GEOMETRY, spectrum, ENERGIES_KEV, n_photons=400_000)
    assert spectrum @ per_fluence / spectrum.sum() == pytest.approx(found.dose_mgy, rel=0.015)
    assert found.error_mgy < 0.005 * found.dose_mgy


def test_rods_of_heavy_agents_get_more() -> None:
    rods = (
        Rod(contents_mg_ml={"iodine": 20.0}, x_mm=8.0, y_mm=0.0, radius_mm=2.5),
        Rod(contents_mg_ml={}, x_mm=-8.0, y_mm=0.0, radius_mm=2.5),
    )
    found = dose_by_photons(
        Sample(diameter_mm=30.0, rods=rods), GEOMETRY, np.ones(1), np.array([50.0]), n_photons=200_000
    )
    photo = [mass_attenuation_cm2_g(m, [50.0], "photo")[0] for m in Sample(diameter_mm=30.0, rods=rods).matter]
    assert photo[1] > 2 * photo[2]
    assert found.matter_mgy[1] > 2 * found.matter_mgy[2]
    assert found.matter_mgy[2] == pytest.approx(found.matter_mgy[0], rel=0.15)


def test_a_sample_that_reaches_the_source_is_refused() -> None:
    with pytest.raises(WrongUsage, match="reaches the source"):
        half_fan_rad(Sample(diameter_mm=400.0), GEOMETRY)


def test_rays_are_cut_where_matter_changes() -> None:
    from reconstruction.spectral.sample import segments

    rods = (Rod(contents_mg_ml={"iodine": 5.0}, x_mm=5.0, y_mm=0.0, radius_mm=2.0),)
    sample = Sample(diameter_mm=30.0, body="pmma", rods=rods)
    cut = segments(
        sample, np.array([[0.0, 0.0], [5.0, 1.0], [0.0, 20.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    )
    per_mm = np.array([[linear_attenuation_per_mm(m, [40.0])[0]] for m in sample.matter])
    chord = 2 * np.sqrt(15.0**2 - 5.0**2)
    expected = [26 * per_mm[0, 0] + 4 * per_mm[1, 0], (chord - 4) * per_mm[0, 0] + 4 * per_mm[1, 0], 0.0]
    np.testing.assert_allclose(cut.depths(per_mm)[:, 0], expected, rtol=1e-12, atol=1e-12)
