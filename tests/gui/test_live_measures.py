"""What is asked of live counts: levels, bins, colours, flat field, regions, spectra, profiles, and single pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.correction import bins as correct_bins
from calibration.pixels import PixelClass
from calibration.store import Calibration
from gui import levels
from gui.live import measures, pixel, shown
from gui.live.frames import FrameStore, Picture
from gui.live.measures import Flat, Kind, Region, Selection, Shape
from gui.live.run import live_plan, thresholds_for
from gui.live.shown import Source, View
from tests.gui.live_fakes import a_calibration, a_frame

RNG = np.random.default_rng(8)


def pictured(counts: np.ndarray) -> Picture:
    return Picture(counts=counts, thresholds=tuple(range(len(counts))), n_frames=1, exposure_s=0.5)


# Levels


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4)), np.full((4, 4), np.nan), np.full((3, 3), 7, dtype=np.uint16), np.zeros((0, 0)),
     np.array([[np.inf, -np.inf]]), np.full((2, 2), 1e30)],
)  # fmt: skip
def test_odd_images_have_levels_and_a_histogram(image: np.ndarray) -> None:
    low, high = levels.percentile_levels(image)
    assert np.isfinite([low, high]).all()
    assert low < high
    centres, counts = levels.histogram(image)
    assert np.isfinite(centres).all()
    assert counts.sum() == np.isfinite(image).sum()


def test_a_few_outliers_do_not_move_the_levels() -> None:
    image = RNG.normal(100, 5, (100, 100))
    quiet = levels.percentile_levels(image)
    image[0, :5] = 1e6
    assert levels.percentile_levels(image) == pytest.approx(quiet, abs=2)


@given(st.lists(st.integers(0, 4095), min_size=1, max_size=200), st.integers(2, 300))
def test_a_histogram_holds_every_pixel(values: list[int], n_bins: int) -> None:
    image = np.array([values], dtype=np.uint16)
    centres, counts = levels.histogram(image, n_bins)
    assert counts.sum() == len(values)
    assert len(centres) == len(counts) <= n_bins
    assert centres[0] <= min(values) + (centres[1] - centres[0]) / 2


# Counters


def test_bins_are_those_of_the_correction_and_sum_to_the_lowest_threshold() -> None:
    counts = RNG.integers(0, 4096, (4, 5, 6)).astype(np.uint16)
    ours = measures.bins(counts)
    np.testing.assert_array_equal(ours, correct_bins(counts))
    np.testing.assert_array_equal(ours.sum(axis=0), counts[0])
    difference = measures.select(counts, Selection(kind=Kind.DIFFERENCE, first=3, second=1))
    np.testing.assert_array_equal(difference, counts[3].astype(int) - counts[1].astype(int))
    with pytest.raises(ValueError, match="allowed: 0 to 3"):
        measures.select(counts, Selection(kind=Kind.DIFFERENCE, first=0, second=4))


@pytest.mark.parametrize("n_bins", range(1, 9))
def test_what_all_bins_see_alike_is_grey(n_bins: int) -> None:
    planes = np.repeat(np.linspace(0, 90, 16).reshape(1, 4, 4), n_bins, axis=0)
    picture, _ = measures.composite(planes, [(0.0, 100.0)] * n_bins)
    spread = picture.astype(int).max(axis=-1) - picture.astype(int).min(axis=-1)
    assert spread.max() <= 1
    assert picture.max() == pytest.approx(0.9 * 255, abs=1)
    if n_bins > 1:
        planes[0] = 0
        tinted, _ = measures.composite(planes, [(0.0, 100.0)] * n_bins)
        assert int(tinted[3, 3, 2]) > int(tinted[3, 3, 0])  # what the lowest bin does not see is bluish


def test_a_picture_of_the_open_beam_is_one_everywhere_and_no_number_where_nothing_came() -> None:
    rates = RNG.uniform(100, 200, (3, 4, 5)) * np.array([3, 2, 1])[:, None, None]
    rates[:, 1, 1] = 0
    flat = Flat(rates_per_s=rates, thresholds=(0, 1, 2), thresholds_kev=(20.0, 30.0, 40.0), n_frames=9)
    for selection in (Selection(), Selection(kind=Kind.BIN, first=1), Selection(kind=Kind.DIFFERENCE, second=2)):
        image = measures.flattened(rates * 0.25, 0.25, flat, selection)
        assert np.isnan(image[1, 1])
        np.testing.assert_allclose(image[np.isfinite(image)], 1.0)


# Regions, profiles, odd pixels


@settings(max_examples=50)
@given(st.integers(-3, 9), st.integers(-3, 9), st.integers(0, 9), st.integers(0, 9))
def test_statistics_are_numpys(x: int, y: int, width: int, height: int) -> None:
    plane = RNG.normal(50, 9, (8, 9))
    is_masked = np.zeros(plane.shape, dtype=bool)
    is_masked[2, 2:5] = True
    where = measures.inside(Region(Shape.RECTANGLE, x, y, width, height), (8, 9))
    block = np.zeros_like(where)
    block[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)] = True
    np.testing.assert_array_equal(where, block)
    told = measures.statistics(plane, where, is_masked, plane > 60)
    values = plane[block & ~is_masked]
    assert told.n == values.size
    assert told.n_left_out == (block & is_masked).sum()
    assert told.n_saturated == (block & (plane > 60)).sum()
    if values.size > 1:
        assert told.mean == pytest.approx(values.mean())
        assert told.sd == pytest.approx(values.std(ddof=1))
        assert (told.total, told.low, told.high) == pytest.approx((values.sum(), values.min(), values.max()))


def test_an_ellipse_has_its_area() -> None:
    where = measures.inside(Region(Shape.ELLIPSE, 5, 10, 60, 40), (80, 80))
    assert where.sum() == pytest.approx(np.pi * 30 * 20, rel=0.01)
    assert not measures.inside(Region(Shape.ELLIPSE, 5, 10, 0, 40), (80, 80)).any()


def test_a_spectrum_has_means_and_their_errors() -> None:
    counts = RNG.poisson(np.array([400, 300, 100])[:, None, None] * np.ones((3, 30, 30)))
    spectrum = measures.spectrum(counts, np.ones((30, 30), dtype=bool))
    np.testing.assert_allclose(spectrum.above, [400, 300, 100], atol=5 * 20 / 30)
    np.testing.assert_allclose(spectrum.above_sigma, np.sqrt([400, 300, 100]) / 30, rtol=0.15)
    assert spectrum.within.sum() == pytest.approx(spectrum.above[0])


def test_a_profile_takes_what_it_crosses() -> None:
    plane = np.arange(6 * 8, dtype=float).reshape(6, 8)
    distance, values = measures.profile(plane, (0.5, 2.5), (7.5, 2.5))
    np.testing.assert_array_equal(values, plane[2])
    np.testing.assert_array_equal(distance, np.arange(8))
    _, wide = measures.profile(plane, (0.5, 2.5), (7.5, 2.5), width=3)
    np.testing.assert_allclose(wide, plane[1:4].mean(axis=0))
    _, outside = measures.profile(plane, (-2.5, 2.5), (1.5, 2.5))
    assert np.isnan(outside[:2]).all()
    np.testing.assert_array_equal(outside[3:], plane[2, :2])
    assert len(measures.profile(plane, (1.5, 1.5), (1.5, 1.5))[0]) == 1


def test_hot_pixels_look_noisy_and_poisson_ones_do_not() -> None:
    plane = RNG.poisson(50, (128, 128)).astype(np.uint16)
    plane[[3, 70, 127], [0, 64, 127]] = 400
    found = measures.looks_noisy(plane)
    assert found[[3, 70, 127], [0, 64, 127]].all()
    assert found.sum() == 3


def test_a_counter_is_full_at_its_end() -> None:
    counts = np.zeros((2, 2, 2), dtype=np.uint16)
    counts[1, 0, 1] = 63
    counts[0, 1, 1] = 62
    assert measures.is_saturated(counts, 63).tolist() == [[False, True], [False, False]]


# One pixel, and the mask


def test_the_inspector_tells_the_truth(calibration: Calibration) -> None:
    counts = RNG.integers(0, 4096, (4, *calibration.pixel_class.shape)).astype(np.uint16)
    picture = Picture(counts=counts, thresholds=(1, 3, 5, 7), n_frames=1, exposure_s=1.0)
    calibration.pixel_class[3, 2] = PixelClass.HOT | PixelClass.MASKED
    calibration.is_masked[4, 3, 2] = True
    report = pixel.inspect(picture, 3, 2, calibration)
    assert report.counts == tuple(counts[:, 3, 2])
    assert report.trims == tuple(calibration.trim[[1, 3, 5, 7], 3, 2])
    assert report.is_masked
    assert report.is_unusable
    assert report.reasons == (pixel.REASONS["MASKED"], pixel.REASONS["HOT"])
    assert set(pixel.REASONS) == {bit.name for bit in PixelClass}
    foreign = pixel.inspect(pictured(np.zeros((2, 3, 3), dtype=np.uint16)), 0, 0, calibration)
    assert foreign.trims == ()
    texts = dict(report.lines((18.0, 33.0, 50.0, 75.0)))
    assert texts["pixel"] == "column 2, row 3"
    assert texts["state"] == "masked"
    mean = replace(picture, counts=np.full((4, 8, 6), 1946.75))
    assert dict(pixel.inspect(mean, 3, 2, calibration).lines((18.0, 33.0, 50.0, 75.0)))["above 33 keV"] == "1 946.8"


def test_a_mask_goes_into_a_calibration_and_out_again(calibration: Calibration) -> None:
    calibration.is_masked[2, 1, 1] = True
    calibration.pixel_class[1, 1] = PixelClass.MASKED
    before = pixel.masked(calibration)
    edited = pixel.painted(pixel.painted(before, (5, 3), (2, 4), is_masked=True), (1, 1), (1, 1), is_masked=False)
    better = pixel.with_mask(calibration, edited)
    np.testing.assert_array_equal(pixel.masked(better), edited)
    np.testing.assert_array_equal((better.pixel_class & PixelClass.MASKED) > 0, edited)
    assert better.identity != calibration.identity
    assert better.history[-1].step == pixel.STEP
    assert pixel.masked(calibration)[1, 1]  # the old one is as it was
    kept = pixel.with_mask(calibration, before)
    np.testing.assert_array_equal(kept.is_masked, calibration.is_masked)
    with pytest.raises(ValueError, match="the mask has shape"):
        pixel.with_mask(calibration, np.zeros((2, 2), dtype=bool))


@pytest.fixture
def calibration() -> Calibration:
    return a_calibration((8, 6))


# What is shown


def test_what_is_shown_is_what_was_asked_for() -> None:
    store = FrameStore()
    frames = [a_frame(n) for n in range(7)]
    for frame in frames:
        store.push(frame)
    every = np.stack([frame.counts for frame in frames]).astype(np.int64)
    expected = {Source.NEWEST: every[-1], Source.LAST: every[-3:].sum(axis=0), Source.RUNNING: every.sum(axis=0),
                Source.AVERAGE: every.mean(axis=0)}  # fmt: skip
    for source, counts in expected.items():
        view = View(source=source, n_last=3, selection=Selection(kind=Kind.BIN, first=1))
        picture, lost = shown.taken(store, view)
        assert lost is None
        assert picture is not None
        np.testing.assert_allclose(picture.counts, counts)
        np.testing.assert_allclose(shown.show(picture, view).image, counts[1] - counts[2])
    again, _ = shown.taken(store, View(source=Source.RUNNING, again=frames[2]))
    assert again is not None
    np.testing.assert_array_equal(again.counts, frames[2].counts)


def test_a_flat_of_other_settings_is_not_used_and_said() -> None:
    picture = pictured(np.ones((2, 3, 3), dtype=np.uint16))
    flat = Flat(rates_per_s=np.full((2, 3, 3), 2.0), thresholds=(0, 1), thresholds_kev=(20.0, 30.0), n_frames=1)
    view = View(is_flat=True)
    assert "No flat" in shown.show(picture, view).note
    assert "other thresholds" in shown.show(picture, view, [flat], thresholds_kev=(20.0, 31.0)).note
    assert "another mode" in shown.show(replace(picture, thresholds=(1, 3)), view, [flat]).note
    used = shown.show(picture, view, [flat], thresholds_kev=(20.0, 30.0))
    assert used.note == ""
    np.testing.assert_allclose(used.image, 1.0)
    lit = replace(flat, tube_kvp=100.0, current_ma=0.1)
    assert "at 100 kV and 0.1 mA, now it is 100 kV and 0.2 mA" in shown.show(picture, view, [lit], tube=(100, 0.2)).note
    assert shown.show(picture, view, [lit, flat], tube=(100, 0.2)).flat is flat
    assert shown.show(picture, view, [lit, flat], tube=(100.0, 0.1)).flat is lit


def test_a_flat_holds_for_calibrations_that_put_thresholds_alike() -> None:
    one = a_calibration((4, 4))
    assert shown.count_alike(one, replace(one, is_masked=~one.is_masked)), "a mask moves no threshold"
    assert not shown.count_alike(one, replace(one, offset_dac=one.offset_dac + 1))
    assert not shown.count_alike(one, replace(one, trim=one.trim // 2))
    assert not shown.count_alike(one, None)
    assert shown.count_alike(None, None)


@pytest.mark.parametrize(
    ("selection", "name"),
    [
        (Selection(), "above 20 keV"),
        (Selection(kind=Kind.BIN, first=0), "bin 20 to 30.5 keV"),
        (Selection(kind=Kind.BIN, first=1), "bin above 30.5 keV"),
        (Selection(kind=Kind.DIFFERENCE), "above 20 keV minus above 30.5 keV"),
        (Selection(kind=Kind.BIN, first=7), "bin above 30.5 keV"),
    ],
)
def test_selections_have_names(selection: Selection, name: str) -> None:
    assert shown.name_of(selection, (20.0, 30.5)) == name


def test_every_mode_gets_a_plan_that_can_be() -> None:
    from acquisition.plan import MODES, Plan, refuse_foreign_pixels

    plan = Plan()
    for mode in MODES:
        energies_kev = thresholds_for(mode, plan.detector.thresholds_kev, plan.source.kvp)
        detector = type(plan.detector)(mode=mode, thresholds_kev=energies_kev, exposure_s=0.1)
        for n_frames, kind in ((0, "live"), (1, "snap"), (5, "frames")):
            made = live_plan(plan, detector, n_frames)
            refuse_foreign_pixels(made)
            assert made.scan.kind == kind
