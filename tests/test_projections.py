"""Line integrals read a part at a time: the same values, bit for bit, as of the whole scan."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acquisition.scan import ImageKey
from calibration.correction import line_integrals
from calibration.count_rate import CountRate
from calibration.flat_field import FlatField
from calibration.geometry import Geometry
from calibration.pixels import fill, fill_reach
from calibration.progress import finished
from calibration.thickness import HIGHEST_DEGREE, EquivalentThickness
from firmware_iface.errors import BadFile, CalibrationMissing
from reconstruction import projections
from reconstruction.projections import LineIntegralReader, measure_line_integrals

N_COUNTERS, ROWS, COLS = 3, 14, 11
GEOMETRY = Geometry(source_to_detector_mm=250.0, source_to_object_mm=200.0, pitch_mm=0.2, rows=ROWS, cols=COLS)
RNG = np.random.default_rng(3)


def a_scan(n_tiles: int = 1, n_passes: int = 1, frames_per_view: int = 2) -> SimpleNamespace:
    """A scan in memory: flats, views of several frames and flats again in each tile and pass, with some lost."""
    key, angle, lift, shift, which = [], [], [], [], []
    for pass_index in range(n_passes):
        for tile in range(n_tiles):
            views = np.repeat(np.arange(9), frames_per_view)
            kinds = [ImageKey.FLAT] * 3 + [ImageKey.PROJECTION] * len(views) + [ImageKey.FLAT] * 2
            key += kinds
            angle += [0.0] * 3 + (views * 0.7).tolist() + [0.0] * 2
            lift += [0.0] * 3 + (views * 0.1).tolist() + [0.0] * 2
            shift += [tile * 1.0] * len(kinds)
            which += [pass_index] * len(kinds)
    keys = np.array(key)
    lost = RNG.choice(np.flatnonzero(keys == ImageKey.PROJECTION), 3, replace=False)
    keys[lost] = ImageKey.INVALID
    n = len(keys)
    beam = np.where(keys == ImageKey.FLAT, 900.0, 300.0)[:, None, None, None]
    counts = RNG.poisson(beam * np.array([1.0, 0.5, 0.2])[:, None, None], (n, N_COUNTERS, ROWS, COLS))
    counts = counts.astype(np.uint16)
    counts[:, :, 4, 6] = 0  # dead: nothing in the flats either
    is_bad = np.zeros((ROWS, COLS), bool)
    is_bad[3:8, 2:7] = True  # a cluster three deep
    is_bad[:, 9] = True  # and a column from end to end
    return SimpleNamespace(
        path="memory.h5",
        shape=counts.shape,
        image_key=keys,
        angles_rad=np.array(angle),
        lifts_mm=np.array(lift),
        shifts_mm=np.array(shift),
        passes=np.array(which),
        exposures_s=RNG.uniform(0.5, 1.5, n),
        calibration=SimpleNamespace(is_bad=is_bad),
        counts=lambda indices, *, rows: counts[indices][:, :, rows],
    )


def a_count_rate() -> CountRate:
    return CountRate(
        law="hybrid",
        thresholds_kev=np.array([18.0, 33.0, 50.0]),
        loss=np.array([0.2, 0.1, 0.0]),
        gains=np.array([[0.0, 0, 0], [0.02, 0.01, 0], [0.01, 0, 0]]),
        highest_rate_per_s=3000.0,
        dead_time_ratio=RNG.uniform(0.9, 1.1, (ROWS, COLS)).astype(np.float32),
        dead_time_sigma_relative=0.0,
        currents_ma=np.ones(1),
        rates_per_s=np.ones((1, 3)),
        true_rates_per_s_ma=np.ones(3),
        laws=("hybrid",),
        bic=np.zeros(1),
        residual_relative=np.zeros(3),
    )


def a_wedge() -> EquivalentThickness:
    shape = (N_COUNTERS, ROWS, COLS)
    common_mm = np.zeros((N_COUNTERS, HIGHEST_DEGREE))
    common_mm[:, :2] = [20.0, 1.0]
    return EquivalentThickness(
        material="PMMA",
        thresholds_kev=(18.0, 33.0, 50.0),
        tube_kvp=118.0,
        thickness_mm=np.array([5.0, 30.0]),
        signals=np.full((2, N_COUNTERS), 0.5),
        common_mm=common_mm,
        scale=RNG.normal(0, 0.01, shape).astype(np.float32),
        bend=RNG.normal(0, 0.01, shape).astype(np.float32),
        highest_signal=np.full(N_COUNTERS, 1.4),
        sigma_mm=np.zeros(shape, np.float32),
        residual_mm=np.zeros(N_COUNTERS),
        reference_mm=10.0,
    )


CORRECTIONS = {"none": {}, "all": {"count_rate": a_count_rate(), "thickness": a_wedge()}}


@pytest.mark.parametrize("n_tiles", [1, 2])
@pytest.mark.parametrize("corrections", CORRECTIONS)
def test_any_part_is_the_same_part_of_the_whole_bit_for_bit(monkeypatch, n_tiles, corrections):
    scan = a_scan(n_tiles, n_passes=2)
    options = {"pass_index": 1, **CORRECTIONS[corrections]}
    monkeypatch.setattr(projections, "VIEWS_AT_ONCE", 4)
    whole = finished(measure_line_integrals(scan, GEOMETRY, **options))
    reader = LineIntegralReader(scan, GEOMETRY, **options)
    assert reader.shape == whole.values.shape
    for views in (np.s_[:], np.s_[0:1], np.s_[3:5], np.s_[6:]):
        for rows in (np.s_[:], np.s_[0:1], np.s_[5:6], np.s_[2:9], np.s_[8:]):
            values, is_estimated = reader.read(views, rows)
            np.testing.assert_array_equal(values, whole.values[:, views, rows])
            np.testing.assert_array_equal(is_estimated, whole.is_estimated[:, views, rows])


def test_the_whole_is_what_the_correction_makes_of_all_frames(monkeypatch):
    scan = a_scan()
    monkeypatch.setattr(projections, "FLAT_BYTES", 2000)  # the flats in many parts
    measured = finished(measure_line_integrals(scan, GEOMETRY, count_rate=CORRECTIONS["all"]["count_rate"]))
    taken = np.flatnonzero(scan.image_key == ImageKey.PROJECTION)
    flats = np.flatnonzero(scan.image_key == ImageKey.FLAT)
    views = [taken[scan.angles_rad[taken] == angle] for angle in np.unique(scan.angles_rad[taken])]
    everything = np.s_[:]
    values, is_estimated = line_integrals(
        np.stack([scan.counts(view, rows=everything).sum(axis=0, dtype=np.uint32) for view in views]),
        scan.counts(flats, rows=everything),
        projection_frames=[view.mean() for view in views],
        flat_frames=flats,
        projection_exposures_s=[scan.exposures_s[view].sum() for view in views],
        flat_exposures_s=scan.exposures_s[flats],
        is_bad=scan.calibration.is_bad,
        count_rate=CORRECTIONS["all"]["count_rate"],
    )
    np.testing.assert_array_equal(measured.values, values)
    np.testing.assert_array_equal(measured.is_estimated, is_estimated)
    assert measured.lifts_mm == pytest.approx(measured.angles_rad / 7)


@pytest.mark.parametrize("corrections", CORRECTIONS)
def test_a_flat_field_stands_in_for_flats_that_count_the_same(monkeypatch, corrections):
    monkeypatch.setattr(projections, "FLAT_BYTES", 2000)
    scan = a_scan()
    flats, n_frames = np.flatnonzero(scan.image_key == ImageKey.FLAT), 5
    seen = scan.counts(flats[:1], rows=np.s_[:])[0]
    scan.exposures_s[flats] = 0.7
    counts = scan.counts(np.arange(len(scan.image_key)), rows=np.s_[:]).copy()
    counts[flats] = seen
    scan.counts = lambda indices, *, rows: counts[indices][:, :, rows]
    own = finished(measure_line_integrals(scan, GEOMETRY, **CORRECTIONS[corrections]))
    flat = FlatField(
        rates_per_s=(seen / 0.7).astype(np.float32), thresholds=(0, 2, 4), thresholds_kev=(18.0, 33.0, 50.0),
        n_frames=n_frames, exposure_s=n_frames * 0.7, tube_kvp=118.0, current_ma=0.1,
    )  # fmt: skip
    scan.image_key[flats] = ImageKey.INVALID
    with pytest.raises(CalibrationMissing, match="no flats"):
        LineIntegralReader(scan, GEOMETRY)
    stood_in = finished(measure_line_integrals(scan, GEOMETRY, flat=flat, **CORRECTIONS[corrections]))
    np.testing.assert_allclose(stood_in.values, own.values, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(stood_in.is_estimated, own.is_estimated)
    np.testing.assert_allclose(stood_in.open_counts, own.open_counts, rtol=1e-5)


def test_frames_at_one_angle_and_two_heights_are_two_views():
    scan = a_scan()
    scan.angles_rad = np.zeros_like(scan.angles_rad)
    assert len(finished(measure_line_integrals(scan, GEOMETRY)).angles_rad) == 9
    scan.lifts_mm = np.zeros_like(scan.lifts_mm)
    assert len(finished(measure_line_integrals(scan, GEOMETRY)).angles_rad) == 1


def test_a_view_that_one_tile_lost_is_none_of_the_wide_cameras():
    scan = a_scan(n_tiles=2)
    is_gone = (scan.shifts_mm == 1.0) & (scan.image_key == ImageKey.PROJECTION) & np.isclose(scan.angles_rad, 2.1)
    scan.image_key[is_gone] = ImageKey.INVALID
    reader = LineIntegralReader(scan, GEOMETRY)
    assert len(reader.angles_rad) == 8
    assert not np.isclose(reader.angles_rad, 2.1).any()
    assert reader.read()[0].shape == reader.shape


def test_a_pass_that_was_not_taken_is_refused():
    with pytest.raises(BadFile, match="no projections of pass 2"):
        LineIntegralReader(a_scan(), GEOMETRY, pass_index=1)


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95), st.integers(0, ROWS - 1), st.integers(1, ROWS))
@settings(max_examples=40, deadline=None)
def test_pixels_are_filled_from_no_further_than_they_say(seed, share, first, n_rows):
    rng = np.random.default_rng(seed)
    is_bad = rng.random((ROWS, COLS)) < share
    is_bad[rng.integers(ROWS), rng.integers(COLS)] = False
    images = rng.normal(size=(3, ROWS, COLS)).astype(np.float32)
    whole = fill(images, is_bad)
    stop = min(first + n_rows, ROWS)
    reach = int(fill_reach(is_bad)[first:stop].max())
    around = slice(max(first - reach, 0), min(stop + reach, ROWS))
    part = fill(images[:, around], is_bad[around])[:, first - around.start : stop - around.start]
    np.testing.assert_array_equal(part, whole[:, first:stop])
