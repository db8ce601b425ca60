"""Laws of the parametric response, and its merit: it foretells what it was not fitted to, on the simulated sensor."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from scipy.special import ndtr

from calibration.attenuation import linear_attenuation_per_mm, solution
from calibration.progress import finished
from calibration.response import (
    PARAMETERS,
    PlateMeasurement,
    Response,
    SensorModel,
    counts_above,
    fit_response,
)
from firmware_iface.errors import CalibrationMissing, WrongUsage
from tests.beam_bench import THRESHOLDS_KEV, Layers, SimulatedBench

STARTS = {name: start for name, (start, *_) in PARAMETERS.items()}
SHARP = STARTS | {"noise_kev": 0.05, "width_relative": 0.0, "tail_share": 0.0}


def test_silicon_sums_to_its_absorption_below_the_compton_region() -> None:
    sensor = SensorModel(material="silicon", thickness_mm=0.5, pitch_mm=0.055)
    found = counts_above([6.0], [10.0, 15.0, 20.0], sensor, SHARP)[0]
    photo = -np.expm1(-linear_attenuation_per_mm("silicon", [10.0, 15.0, 20.0]) * 0.5)
    # Coherent scattering takes part in the total attenuation and counts nothing.
    assert (found < photo).all()
    np.testing.assert_allclose(found, photo, rtol=0.12)


@pytest.mark.parametrize(
    ("energy_kev", "pitch_mm", "lost"), [(20.0, 0.110, 0.04), (25.0, 0.110, 0.04), (20.0, 0.055, 0.15)]
)
def test_a_threshold_at_half_the_energy_counts_each_absorbed_photon_once_but_for_corners(
    energy_kev: float, pitch_mm: float, lost: float
) -> None:
    """In a corner four pixels share; it is as large as the cloud's area, of 10 um squared."""
    sensor = SensorModel(pitch_mm=pitch_mm, is_csm=False)
    found = counts_above([energy_kev / 2], [energy_kev], sensor, SHARP)[0, 0]
    absorbed = counts_above([3.0], [energy_kev], SensorModel(pitch_mm=pitch_mm), SHARP)[0, 0]
    assert 1 - lost < found / absorbed < 1.0


def test_sharing_agrees_with_clouds_thrown_at_random() -> None:
    rng = np.random.default_rng(1)
    pitch, cloud, energy = 0.055, 0.009, 20.0
    place = rng.uniform(0, pitch, (200_000, 2))
    near = np.arange(-1, 3) * pitch
    along = np.diff(ndtr((near[None, :, None] - place[:, None, :]) / cloud), axis=1)
    charges = energy * along[:, :, None, 0] * along[:, None, :, 1]
    values = SHARP | {"cloud_mm": cloud, "cloud_growth_relative": 0.0}
    sensor = SensorModel(pitch_mm=pitch, is_csm=False, material="silicon", thickness_mm=0.3)
    thresholds = np.array([3.0, 5.0, 8.0, 12.0, 16.0])
    expected = np.array([(charges > t).sum(axis=(1, 2)).mean() for t in thresholds])
    found = counts_above(thresholds, [energy], sensor, values)[:, 0]
    np.testing.assert_allclose(found / found[2], expected / expected[2], rtol=0.015)


def test_lines_escape_by_their_energy_and_may_count_apart() -> None:
    sensor = SensorModel()
    thresholds = np.array([8.0, 30.0, 38.0, 50.0])
    near, far = (counts_above(thresholds, [60.0], sensor, SHARP | {"capture_mm": d})[:, 0] for d in (1.0, 0.0))
    assert near[0] == pytest.approx(near[3], rel=0.03), "nothing escapes: one line"
    # All K photons escape from the count: about 72 % of the absorptions (reference on spectral CT, 4.2).
    assert far[3] / near[3] == pytest.approx(0.28, abs=0.03)
    assert far[0] > 1.3 * near[0]


def test_bins_add_up_to_the_lowest_counter_and_energy_is_never_gained() -> None:
    response = _made(SensorModel(), dict.fromkeys(THRESHOLDS_KEV, 0.0))
    energies = np.arange(10.0, 120.0, 2.5)
    matrix = response.matrix(THRESHOLDS_KEV, energies)
    lowest = counts_above(THRESHOLDS_KEV[:1], energies, SensorModel(), response.values)[0]
    np.testing.assert_allclose(matrix.sum(axis=0), lowest, rtol=1e-9)
    assert matrix.min() > -1e-6
    for k, threshold in list(enumerate(THRESHOLDS_KEV))[1:]:
        assert matrix[k, energies < threshold - 10].max() < 1e-3
    assert response.spectrum(energies).sum() == pytest.approx(1.0)


def test_the_thresholds_measured_error_moves_the_response() -> None:
    exact, high = (_made(SensorModel(), dict.fromkeys(THRESHOLDS_KEV, off)) for off in (0.0, 1.0))
    moved = [threshold + 1.0 for threshold in THRESHOLDS_KEV]
    np.testing.assert_allclose(high.matrix(THRESHOLDS_KEV, [60.0, 90.0]), exact.matrix(moved, [60.0, 90.0]), rtol=1e-9)


def test_what_the_fit_did_not_see_is_foretold_within_one_per_cent() -> None:
    bench = SimulatedBench()
    plates: dict[str, Layers] = {f"pmma-{t:g}": {"pmma": t} for t in (5.0, 10.0, 20.0, 40.0)}
    plates |= {f"aluminium-{t:g}": {"aluminium": t} for t in (1.0, 4.0)}
    checks: dict[str, Layers] = {
        "both": {"pmma": 20.0, "aluminium": 2.0},
        "water": {"water": 8.0},
        "iodine": {solution("water", "iodine", 18.0): 8.0},
        "gadolinium": {solution("water", "gadolinium", 16.0): 8.0},
        "hydroxyapatite": {solution("water", "hydroxyapatite", 211.7): 8.0},
    }
    work = fit_response(
        SensorModel(),
        tube_kvp=118.0,
        thresholds_kev=bench.on_dac(np.asarray(THRESHOLDS_KEV)).tolist(),
        open_beam=bench.plate({}),
        plates={name: bench.plate(layers) for name, layers in plates.items()},
        checks={name: bench.plate(layers) for name, layers in checks.items()},
        curves=[bench.curve(source) for source in ("Gd", "W")],
    )
    steps = [next(work) for _ in range(3)]
    assert [step.done for step in steps] == [1, 2, 3], "each trial is a step, at which it can be broken off"
    found = finished(work)
    held_back = slice(-found.n_checks, None)
    np.testing.assert_allclose(found.predicted[held_back] / found.measured[held_back], 1, atol=0.01)
    # What it was told nothing about, and what the bench knows.
    assert found.values["filter_mm"] == pytest.approx(3.8, abs=0.4)
    assert found.values["noise_kev"] == pytest.approx(0.78, abs=0.3)
    assert np.abs(found.parameters[-4:]).max() < 0.2
    assert (np.diag(found.covariance) >= 0).all()
    np.testing.assert_allclose(found.transmission({"water": 8.0}), found.predicted[-4], rtol=1e-9)


def test_refusals_say_what_is_allowed() -> None:
    with pytest.raises(WrongUsage, match="no sensor of 'germanium'; allowed: silicon, gaas, cdte, czt"):
        SensorModel(material="germanium")
    with pytest.raises(WrongUsage, match="allowed: rising"):
        _made(SensorModel(), dict.fromkeys(THRESHOLDS_KEV, 0.0)).matrix([33, 18], [60])
    empty = PlateMeasurement(layers_mm={}, counts=np.ones(4), sigma_relative=np.ones(4))
    common = {"tube_kvp": 118.0, "thresholds_kev": THRESHOLDS_KEV, "checks": {}}
    with pytest.raises(CalibrationMissing, match="3 plates; allowed: 4 or more"):
        finished(fit_response(SensorModel(), open_beam=empty, plates=dict.fromkeys("abc", empty), **common))
    dark = PlateMeasurement(layers_mm={"Pb": 5.0}, counts=np.array([1.0, 1, 0, 1]), sigma_relative=np.ones(4))
    plates = dict.fromkeys("abc", empty) | {"d": dark}
    with pytest.raises(CalibrationMissing, match="bin 3 counts nothing behind d"):
        finished(fit_response(SensorModel(), open_beam=empty, plates=plates, **common))


def _made(sensor: SensorModel, off_kev: Mapping[float, float]) -> Response:
    names = (*PARAMETERS, *(f"threshold_{k}_kev" for k in range(len(off_kev))))
    return Response(
        sensor=sensor,
        tube_kvp=118.0,
        parameter_names=names,
        parameters=np.array([*STARTS.values(), *off_kev.values()]),
        covariance=np.zeros((len(names), len(names))),
        chi_square_ratio=1.0,
        n_degrees=1,
        thresholds_kev=tuple(off_kev),
        plates=(),
        n_checks=0,
        measured=np.zeros((0, 4)),
        predicted=np.zeros((0, 4)),
    )
