"""Laws of the threshold estimators: they converge to the truth put in, and agree with real silicon."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from calibration.attenuation import Line
from calibration.thresholds import (
    SCurve,
    choose_disc,
    choose_trims,
    fit_energy_scale,
    is_closer,
    mean_and_sigma,
    noise_edges_dac,
    refine_trims,
    steepest_dac,
)
from firmware_iface.errors import CalibrationMissing

SHAPE = (2, 24, 24)
DACS = np.arange(0, 80, 2)


def _noise_scan(
    rng: np.random.Generator, edges: np.ndarray, *, width: float = 2.0, peak: float = 1500.0, photons: float = 0.0
) -> np.ndarray:
    """Zero crossings of Gaussian noise (Rice), with photons below a far S-curve, in a 12-bit counter."""
    rate = peak * np.exp(-0.5 * ((DACS[:, None, None, None] - edges) / width) ** 2) + photons
    return np.minimum(rng.poisson(rate), 4095).astype(np.uint16)


@pytest.mark.parametrize(("peak", "photons"), [(1500.0, 0.0), (20_000.0, 0.0), (1500.0, 15.0)])
def test_noise_peaks_are_found_where_they_were_put(peak: float, photons: float) -> None:
    rng = np.random.default_rng(1)
    truth = rng.uniform(10, 65, SHAPE)
    error = noise_edges_dac(_noise_scan(rng, truth, peak=peak, photons=photons), DACS) - truth
    assert error.dtype == np.float64
    assert abs(error.mean()) < 0.02
    assert error.std() < 0.15
    assert np.abs(error).max() < 0.7


def test_a_pixel_without_a_whole_peak_has_no_edge() -> None:
    rng = np.random.default_rng(2)
    truth = np.full(SHAPE, 30.0)
    truth[0, 0, 0], truth[0, 0, 1] = -5.0, 200.0  # below the scan, and above it
    truth[0, 5, 5], truth[0, 5, 6] = 1.0, 77.0  # cut by its first code, and by its last
    counts = _noise_scan(rng, truth)
    counts[:, 1, 3, 3] = 0
    counts[10, 1, 3, 3] = 99
    edges = noise_edges_dac(counts, DACS)
    assert np.argwhere(np.isnan(edges)).tolist() == [[0, 0, 0], [0, 0, 1], [0, 5, 5], [0, 5, 6], [1, 3, 3]]


def test_mean_and_sigma_are_those_of_the_good_pixels() -> None:
    edges = np.random.default_rng(3).normal(20, 3, 10_000)
    edges[:50], edges[50:100] = 500, 60
    edges[100:200] = np.nan
    mean, sigma = mean_and_sigma(edges)
    assert mean == pytest.approx(20, abs=0.15)
    assert sigma == pytest.approx(3, rel=0.03)
    with pytest.raises(CalibrationMissing, match="no pixel showed its noise peak"):
        mean_and_sigma(np.full(9, np.nan))


@pytest.mark.parametrize("baseline", [4.0, 15.0, 64.0])
def test_disc_is_the_smallest_that_reaches_the_target_from_both_sides(baseline: float) -> None:
    def mean_at(disc: float, trim: int) -> float:
        return baseline + 0.9 * disc * (1 - trim / 16)

    def reaches(disc: int) -> bool:
        return mean_at(disc, 0) >= 15 + 3.5 * 6 and mean_at(disc, 31) <= 15 - 3.5 * 6

    ends = [[mean_at(disc, trim) for disc in (80, 120)] for trim in (0, 31)]
    disc = choose_disc((80, 120), *ends, sigma_dac=6.0, target_dac=15.0, n_sigma=3.5)
    assert reaches(disc)
    assert not reaches(disc - 1)


def test_disc_stays_on_its_dac_where_nothing_reaches_far_enough() -> None:
    ends = (16.0, 17.0), (14.0, 13.0)  # a trim step so weak that 255 is not enough
    assert choose_disc((80, 120), *ends, sigma_dac=6.0, target_dac=15.0) == 255


def test_trims_that_do_not_move_the_edges_are_refused() -> None:
    with pytest.raises(CalibrationMissing, match="DAC_Disc moves the mean edge"):
        choose_disc((80, 120), (70.0, 60.0), (20.0, 10.0), sigma_dac=6.0, target_dac=15.0)


@settings(max_examples=30, deadline=None)
@given(
    n_codes=st.sampled_from([16, 32]),
    sign=st.sampled_from([-1, 1]),
    step=st.floats(1.0, 6.0),
    extra=st.lists(st.integers(1, 14), max_size=3, unique=True),
)
def test_trims_of_a_linear_detector_bring_every_edge_within_half_a_step(
    n_codes: int, sign: int, step: float, extra: list[int]
) -> None:
    rng = np.random.default_rng(4)
    steps = step * rng.uniform(0.9, 1.1, 500)
    ideal = rng.uniform(0.6, n_codes - 1.6, 500)  # the real-valued code that would hit the target
    codes = sorted({0, n_codes - 1, *extra})
    edges = np.stack([100 + sign * steps * (code - ideal) for code in codes])
    choice = choose_trims(edges, codes, 100.0, n_codes=n_codes)
    assert not choice.is_out_of_range.any()
    reached = 100 + sign * steps * (choice.trims - ideal)
    np.testing.assert_allclose(choice.predicted_edges_dac, reached, atol=1e-3)
    assert (np.abs(reached - 100) <= 0.5 * steps + 1e-3).all()


def test_pixels_beyond_the_trim_range_and_without_any_edge_are_named() -> None:
    edges = np.array([[200.0, 80.0, 300.0, np.nan], [100.0, 50.0, 201.0, np.nan]])
    choice = choose_trims(edges, (0, 31), 90.0)
    assert choice.is_out_of_range.tolist() == [True, True, True, True]
    assert choice.trims[:3].tolist() == [31, 0, 31]
    assert np.isnan(choice.predicted_edges_dac[3])


def test_out_of_range_begins_beyond_half_a_step_and_its_noise() -> None:
    lowest = np.array([100.0, 100.0, 100.0, 100.0])
    highest = 100.0 - 31 * 4.0  # four codes a step, so the edges end at 100 and -24
    targets = {-24.0: False, -24.0 - 0.7 * 4: False, -24.0 - 0.8 * 4: True, 100.0 + 0.8 * 4: True}
    for target, is_out in targets.items():
        choice = choose_trims(np.stack([lowest, np.full(4, highest)]), (0, 31), target)
        assert (choice.is_out_of_range == is_out).all(), target


def test_an_edge_seen_once_takes_the_median_slope_of_the_others() -> None:
    edges = np.array(
        [[90.0, 62.0, 60.0, 70.0], [30.0, 32.0, 28.0, np.nan], [-30.0, 2.0, -4.0, np.nan]]
    )  # slopes of -6, -3 and -3.2
    choice = choose_trims(edges, (0, 10, 20), 31.0)
    assert choice.trims.tolist() == [10, 10, 9, 12]
    assert choice.predicted_edges_dac[3] == pytest.approx(70 - 3.2 * 12)


def test_edges_that_were_seen_at_one_code_only_give_no_slope() -> None:
    edges = np.array([[60.0, np.nan], [np.nan, 30.0]])
    with pytest.raises(CalibrationMissing, match="two trim codes"):
        choose_trims(edges, (0, 31), 40.0)


def test_several_codes_follow_a_curved_trim_dac() -> None:
    code = np.arange(32)
    curve = 60 - 0.05 * (code + 5.0) ** 2
    choice = choose_trims(curve[[0, 8, 16, 24, 31], None], (0, 8, 16, 24, 31), 30.0)
    assert abs(curve[choice.trims[0]] - 30) <= abs(curve[[18, 19, 20]] - 30).min() + 0.5
    straight = choose_trims(curve[[0, 31], None], (0, 31), 30.0)
    assert abs(curve[straight.trims[0]] - 30) > 2


def test_a_refinement_step_that_helps_is_kept_and_any_other_is_not() -> None:
    trims = np.array([10, 10, 0, 31, 10], dtype=np.uint8)
    edges = np.array([17.0, 13.0, 12.0, 20.0, np.nan])
    trial = refine_trims(trims, edges, 15.0)
    assert trial.tolist() == [11, 9, 0, 31, 10]
    assert is_closer(np.array([14.5, 18.0, 12.0, np.nan, 16.0]), edges, 15.0).tolist() == [
        True,
        False,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(("chip", "sigma_measured"), [(0, 4.41), (1, 1.96)])
def test_trims_of_real_timepix_silicon_are_predicted(test_data: Path, chip: int, sigma_measured: float) -> None:
    table = np.loadtxt(
        test_data / "timepix_equalisation" / f"Run2_chip{chip}" / f"thresholdMeans{chip}.txt", dtype=np.int32
    )
    at_0, at_15, chosen, equalised = table[:, 2].astype(float), table[:, 3].astype(float), table[:, 4], table[:, 5]
    is_live = (at_0 > 0) & (at_15 > 0) & (equalised > 0)
    target = 0.5 * (np.median(at_0[is_live]) + np.median(at_15[is_live]))
    choice = choose_trims(np.stack([at_0, at_15])[:, is_live], (0, 15), target, n_codes=16)
    in_range = ~choice.is_out_of_range
    assert in_range.mean() > 0.97
    predicted_sigma = choice.predicted_edges_dac[in_range].std()
    difference = choice.trims[in_range].astype(int) - chosen[is_live][in_range]
    assert equalised[is_live].std() == pytest.approx(sigma_measured, abs=0.1), "the chip's own equalisation"
    assert at_0[is_live].std() > 8
    # The chip's own target is not recorded: a common shift of the trims is its, their scatter is ours.
    assert abs(difference.mean()) < 1
    assert difference.std() < 0.7
    assert predicted_sigma <= 1.3


def _curve(
    rng: np.random.Generator | None, source: str, lines: dict[float, float], scale: tuple[float, float], **shape: float
) -> SCurve:
    """Sum over pixels of an S-curve with a linear share of shared charge; normal's survival is the independent edge."""
    offset, gain = scale
    energies = np.array(list(lines))
    edges = offset + gain * energies
    dacs = np.arange(round(edges.min() * 0.85), round(edges.max() * 1.1), 2).astype(float)
    below = np.maximum(edges - dacs[:, None], 0)
    curve = norm.sf(dacs[:, None], edges, shape.get("width", 5.0)) * (1 + shape.get("slope", 0.004) * below)
    weights = np.array(list(lines.values()))
    mean = shape.get("height", 1e6) * curve @ (weights / weights.sum()) + shape.get("constant", 2000.0)
    counts = mean if rng is None else rng.poisson(mean).astype(float)
    return SCurve(source=source, lines=_lines(lines), dacs=dacs, counts=counts)


def _lines(table: dict[float, float]) -> tuple[Line, ...]:
    return tuple(Line(energy_kev=energy, fraction=fraction) for energy, fraction in table.items())


LINES = {
    "In": {24.21: 0.53, 24.0: 0.29, 27.3: 0.18},
    "Gd": {42.996: 0.5, 42.31: 0.28, 48.7: 0.22},
    "Am-241": {59.541: 1.0},
    "Pb": {74.97: 0.48, 72.8: 0.29, 84.9: 0.23},
}


def test_the_energy_scale_put_in_comes_out() -> None:
    curves = [_curve(None, name, lines, (13.0, 4.3)) for name, lines in LINES.items()]
    scale = fit_energy_scale(curves)
    assert scale.gain_dac_per_kev == pytest.approx(4.3, rel=1e-4)
    assert scale.offset_dac == pytest.approx(13.0, abs=0.02)
    assert np.abs(scale.residuals_kev).max() < 0.005
    assert scale.sources == tuple(LINES)
    means = [np.average(list(table), weights=list(table.values())) for table in LINES.values()]
    assert scale.energies_kev == pytest.approx(means)
    assert scale.widths_dac == pytest.approx([5.0] * 4, rel=0.02)


def test_poisson_counts_keep_the_scale_within_a_tenth_of_the_goal() -> None:
    found = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        curves = [_curve(rng, name, lines, (13.0, 4.3), height=3e5) for name, lines in LINES.items()]
        scale = fit_energy_scale(curves, guess=(15.0, 4.5))
        assert scale.residual_rms_kev < 0.05
        found.append((scale.offset_dac + scale.gain_dac_per_kev * 50 - 13 - 4.3 * 50) / 4.3)
    assert abs(np.mean(found)) < 0.01
    assert np.std(found) < 0.015


def test_a_line_that_is_off_shows_in_the_residuals_and_is_not_hidden() -> None:
    shifted = {
        name: {energy + (0.6 if name == "Gd" else 0): w for energy, w in lines.items()} for name, lines in LINES.items()
    }
    curves = []
    for name, lines in LINES.items():
        seen = _curve(None, name, shifted[name], (13.0, 4.3))
        curves.append(
            SCurve(
                source=name,
                lines=_lines(lines),
                dacs=seen.dacs,
                counts=seen.counts,
            )
        )
    scale = fit_energy_scale(curves)
    assert int(np.argmax(np.abs(scale.residuals_kev))) == 1
    assert 0.25 < scale.residuals_kev[1] < 0.65
    assert scale.residual_rms_kev > 0.15
    found_kev = (scale.positions_dac - scale.offset_dac) / scale.gain_dac_per_kev
    np.testing.assert_allclose(scale.residuals_kev, found_kev - scale.energies_kev, atol=1e-9)


def test_a_bright_source_that_is_off_does_not_outvote_the_others() -> None:
    # Counting statistics alone would follow it, and call the three others wrong.
    curves = [_curve(None, name, lines, (13.0, 4.3), height=3e5) for name, lines in LINES.items()]
    seen = _curve(None, "Gd", {energy + 0.2: w for energy, w in LINES["Gd"].items()}, (13.0, 4.3), height=3e8)
    curves[1] = SCurve(source="Gd", lines=_lines(LINES["Gd"]), dacs=seen.dacs, counts=seen.counts)
    scale = fit_energy_scale(curves, guess=(15.0, 4.5))
    assert int(np.argmax(scale.residuals_kev)) == 1
    assert scale.residuals_kev[1] > 0.08
    assert abs(scale.offset_dac + scale.gain_dac_per_kev * 75 - 13 - 4.3 * 75) / 4.3 < 0.1


def test_the_steepest_point_is_near_the_edge() -> None:
    curve = _curve(None, "Am-241", LINES["Am-241"], (13.0, 4.3))
    assert steepest_dac(curve.dacs, curve.counts) == pytest.approx(13 + 4.3 * 59.541, abs=1.1)  # half a step
    noisy = _curve(np.random.default_rng(5), "Am-241", LINES["Am-241"], (13.0, 4.3))
    assert steepest_dac(noisy.dacs, noisy.counts) == pytest.approx(13 + 4.3 * 59.541, abs=5)
    with pytest.raises(CalibrationMissing, match="do not fall"):
        steepest_dac(curve.dacs, np.ones(len(curve.dacs)))


def test_one_source_is_no_scale() -> None:
    with pytest.raises(ValueError, match="two or more"):
        fit_energy_scale([_curve(None, "Am-241", LINES["Am-241"], (13.0, 4.3))])
