"""What the page Calibrate knows without a window: steps, estimates, options, files, comparisons, plots."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np
import pytest

from acquisition.calibrate.geometry import _rests_px
from acquisition.calibrate.steps import STEPS
from acquisition.calibrate.watch import Watch, Watched, watched
from acquisition.plan import Plan
from calibration import store
from calibration.geometry import Geometry
from calibration.pixels import PixelClass
from calibration.progress import Progress
from firmware_iface.device import Configuration
from firmware_iface.errors import WrongUsage
from gui.calibrate import archive, comparison, options, panels, results, sequence
from gui.calibrate.dates import age_words, time_words
from gui.calibrate.live import live_panels
from gui.calibrate.live_beam import _beside
from gui.calibrate.sequence import Standing
from tests.calibration_records import everything
from tests.gui.calibration_stand import PLAN, Stand, begun, record

WHEN = datetime(2026, 11, 29, 1, 2, 3, tzinfo=UTC)


def run(work):
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


# steps


def standings(accepted=None, candidate=None, **more) -> dict[str, Standing]:
    return {view.name: view.standing for view in sequence.views(PLAN, accepted, candidate, **more)}


def test_every_step_is_told_in_words_and_can_be_estimated() -> None:
    names = set(STEPS)
    assert set(sequence.TITLES) == set(sequence.DOES) == set(sequence.IN_BEAM) == set(options.OPTIONS) == names
    for name in names:
        guessed = sequence.estimate(name, Plan())
        assert guessed.n_frames > 0
        assert guessed.duration_s > 0


def test_with_nothing_done_only_steps_without_needs_can_be_run() -> None:
    views = sequence.views(PLAN, None, None)
    assert {view.name for view in views if not view.why_not} == {name for name, step in STEPS.items() if not step.needs}
    assert all((view.standing is Standing.WAITS) == bool(view.why_not) for view in views)


def test_a_step_is_old_once_what_it_builds_on_was_done_again() -> None:
    accepted = begun(steps=("equalise", "energy", "pixels", "materials"))
    assert standings(accepted)["materials"] is Standing.DONE
    again = replace(accepted, history=(*accepted.history, record("equalise", "2026-02-01T00:00:00+00:00")))
    found = standings(accepted, again)
    assert found["equalise"] is Standing.NEW
    assert {found[name] for name in ("energy", "pixels", "materials")} == {Standing.OLD}


def test_steps_of_a_run_are_running_or_to_come_and_done_ones_wait_to_be_accepted() -> None:
    accepted = begun(steps=("equalise", "energy"))
    so_far = replace(accepted, history=(record("equalise", "2026-03-01T00:00:00+00:00"),))
    found = standings(accepted, so_far, running="energy", coming=("pixels", "materials"))
    assert found["equalise"] is Standing.NEW
    assert found["energy"] is Standing.RUNNING
    assert found["pixels"] is found["materials"] is Standing.COMING


def test_a_step_is_new_until_it_is_accepted() -> None:
    accepted = begun(steps=("equalise",))
    candidate = replace(accepted, history=(*accepted.history, record("energy")))
    assert standings(accepted, candidate)["energy"] is Standing.NEW
    assert standings(candidate)["energy"] is Standing.DONE
    assert standings(accepted)["energy"] is Standing.NOT_DONE


def test_other_conditions_make_all_old_and_say_what_differs() -> None:
    accepted = begun()
    now = replace(accepted.conditions, gain="LGM")
    views = {view.name: view for view in sequence.views(PLAN, accepted, None, now=now)}
    assert views["energy"].standing is Standing.OLD
    assert "gain HGM, now LGM" in views["energy"].words


def test_count_rate_of_other_thresholds_is_old() -> None:
    full = replace(everything(), history=(record("count-rate"),))
    assert full.count_rate is not None
    assert {view.name: view.standing for view in sequence.views(Plan(), full, None)}["count-rate"] is Standing.OLD


def test_what_ended_badly_says_how() -> None:
    failed = {"energy": (Standing.FAILED, "failed: no edge"), "pixels": (Standing.STOPPED, "broken off")}
    found = standings(begun(), None, failed=failed, running="equalise")
    assert (found["energy"], found["pixels"], found["equalise"]) == (
        Standing.FAILED, Standing.STOPPED, Standing.RUNNING,
    )  # fmt: skip


def test_an_estimate_grows_with_frames_and_exposure() -> None:
    plan = Plan()
    more = msgspec.structs.replace(plan, calibration=msgspec.structs.replace(plan.calibration, n_flat_frames=100))
    longer = msgspec.structs.replace(plan, detector=msgspec.structs.replace(plan.detector, exposure_s=2.0))
    here = sequence.estimate("pixels", plan)
    assert here.n_frames == 2 * 20 + 50
    assert sequence.estimate("pixels", more).n_frames - here.n_frames == 50
    assert sequence.estimate("pixels", longer).duration_s == pytest.approx(here.duration_s + here.n_frames)


def test_the_estimate_of_quick_steps_is_what_they_take() -> None:
    stand, calibration = Stand(), begun()
    for name in ("pixels", "materials"):
        stand.n_frames = 0
        calibration = replace(calibration, history=(*calibration.history, record("pixels")))
        run(STEPS[name].run(stand, PLAN, calibration))
        assert stand.n_frames == sequence.estimate(name, PLAN).n_frames


def test_a_source_that_nobody_knows_gives_no_estimate_and_no_error() -> None:
    plan = msgspec.structs.replace(
        Plan(), calibration=msgspec.structs.replace(Plan().calibration, sources=("Xx", "Yy"))
    )
    assert math.isnan(sequence.estimate("energy", plan).duration_s)
    assert sequence.estimate("energy", plan).words == "not known"


def test_last_times_are_between_steps_that_followed_each_other() -> None:
    times = [WHEN + timedelta(seconds=each) for each in (0, 90, 100_000)]
    steps = ("equalise", "energy", "pixels")
    history = [record(step, at.isoformat()) for step, at in zip(steps, times, strict=True)]
    assert sequence.last_times_s(history) == {"energy": 90.0}


@pytest.mark.parametrize(("seconds", "words"), [(8, "8 s"), (125, "2 min 5 s"), (4320, "1 h 12 min")])
def test_times_are_told_in_words(seconds: float, words: str) -> None:
    assert time_words(seconds) == words


def test_ages_are_told_in_words() -> None:
    assert age_words(WHEN.isoformat(), WHEN + timedelta(hours=3)) == "3 h ago"
    assert age_words(WHEN.isoformat(), WHEN + timedelta(days=12)) == "12 days ago"
    assert age_words("some day") == ""


# options


@pytest.mark.parametrize("path", sorted({option.path for each in options.OPTIONS.values() for option in each}))
def test_every_option_reads_back_what_it_shows(path: str) -> None:
    assert options.with_text(Plan(), path, options.text_of(Plan(), path)) == Plan()


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("calibration.n_flat_frames", "0", "n_flat_frames is 0"),
        ("calibration.sources", "Am-241, Xx", "Xx"),
        ("calibration.response.sources", "", "no source is named"),
        ("calibration.response.sensor_material", "unobtainium", "unobtainium"),
        ("calibration.wedge.plates", "pmma-5, unobtainium-1", "unobtainium"),
        ("calibration.cells", "a, water, 0, 8; b, unobtainium, 4, 8", "unobtainium"),
        ("calibration.n_flat_frames", "many", "'many' is not a whole number"),
        ("calibration.n_flat_frames", "", "nothing is typed"),
        ("calibration.energy_exposure_s", "x", "not a number"),
        ("calibration.sources", "In", "at least 2"),
        ("calibration.cells", "cell-water, water, 0", "is no cell"),
        ("calibration.equalisation.method", "magic", "noise"),
        ("calibration.wedge.plates", "pmma", "names no plate"),
    ],
)
def test_what_a_plan_refuses_is_refused_with_its_sentence(path: str, text: str, message: str) -> None:
    with pytest.raises(WrongUsage, match=message):
        options.with_text(Plan(), path, text)


def test_options_change_the_plan_and_nothing_else() -> None:
    plan = options.with_text(Plan(), "calibration.sources", "In,  Am-241 ,")
    assert plan.calibration.sources == ("In", "Am-241")
    assert options.with_text(plan, "calibration.sources", "In, Gd, Am-241, Pb") == Plan()
    assert options.with_text(Plan(), "calibration.energy.end_point_ma", "0,5").calibration.energy.end_point_ma == 0.5


# what is seen of a run


def test_a_watch_sees_what_a_step_measures_and_changes_nothing() -> None:
    plain, seen_stand, watch = Stand(), Stand(), Watch(clock_s=lambda: 0.0)
    base = begun()
    alone = run(STEPS["pixels"].run(plain, PLAN, base))
    looked_at = run(watched(lambda instrument: STEPS["pixels"].run(instrument, PLAN, base), seen_stand, watch))
    assert looked_at.identity == alone.identity
    watch.at_stage("over")
    stages = [series.stage for series in watch.newest.series]
    assert stages == ["dark", "dark, masked", "flats"]
    flats = watch.newest.series[-1]
    assert flats.thresholds == (1, 3, 5, 7)
    assert flats.counts.shape == (4, 128, 128)


def test_a_series_holds_mean_and_scatter_of_repeated_frames() -> None:
    stand, watch = Stand(), Watch(clock_s=lambda: 0.0)
    stand.is_lit = True
    instrument = Watched(stand, watch)
    instrument.detector.set_dacs({f"Threshold{n}": 120 for n in range(8)})
    watch.at_stage("flats")
    taken = np.stack([frame.counts for frame in instrument.detector.frames(20, 1.0)])
    watch.at_stage("next")
    series = watch.newest.series[-1]
    assert series.mean is not None
    assert series.fano is not None
    np.testing.assert_allclose(series.mean, taken.mean(axis=0))
    is_lit = series.mean > 1
    expected = taken.var(axis=0, ddof=1)[is_lit] / taken.mean(axis=0)[is_lit]
    np.testing.assert_allclose(series.fano[is_lit], expected)
    assert series.peaks_dac is None
    assert series.n_frames == 20


def test_flats_of_passes_that_share_their_first_threshold_are_kept_apart() -> None:
    stand, watch = Stand(), Watch(clock_s=lambda: 0.0)
    stand.is_lit = True
    instrument, taken = Watched(stand, watch), []
    for second_dac in (160, 300):
        instrument.detector.configure(Configuration(is_colour=True, is_csm=True))
        instrument.detector.set_dacs({"Threshold1": 120, **{f"Threshold{n}": second_dac for n in range(2, 8)}})
        for stage in ("flats", "cell", "flats"):
            watch.at_stage(stage)
            taken.append(next(iter(instrument.detector.frames(1, 1.0))).counts)
    watch.at_stage("next")
    cell, flats = watch.newest.series
    assert flats.n_frames == 2
    np.testing.assert_allclose(flats.mean, (taken[3] + taken[5].astype(float)) / 2)
    np.testing.assert_array_equal(flats.stand_dac, [120, 300, 300, 300])
    assert _beside(watch.newest, flats) == [cell]
    watch.at_stage("of the first pass")
    instrument.detector.set_dacs({f"Threshold{n}": 160 for n in range(2, 8)})
    list(instrument.detector.frames(1, 1.0))
    watch.at_stage("next")
    assert _beside(watch.newest, flats) == [cell]


def test_a_threshold_scan_shows_curves_and_where_pixels_count_most() -> None:
    stand, watch = Stand(), Watch(clock_s=lambda: 0.0)
    instrument = Watched(stand, watch)
    watch.at_stage("noise")
    codes, taken = range(0, 80, 8), []
    for code in codes:
        instrument.detector.set_dacs({f"Threshold{n}": code for n in range(8)})
        taken += [frame.counts for frame in instrument.detector.frames(1, 0.001)]
    watch.at_stage("next")
    series = watch.newest.series[-1]
    counts = np.stack(taken)
    np.testing.assert_allclose(series.codes_dac, list(codes))
    np.testing.assert_allclose(series.means, counts.mean(axis=(2, 3)))
    assert series.peaks_dac is not None
    has_counted = counts.max(axis=0) > 0
    np.testing.assert_array_equal(series.peaks_dac[has_counted], 8 * counts.argmax(axis=0)[has_counted])
    assert np.isnan(series.peaks_dac[~has_counted]).all()


def test_live_plots_follow_every_step_that_the_stand_can_do() -> None:
    watch, stand = Watch(clock_s=lambda: 0.0), Stand()
    base = begun(steps=("equalise", "energy"))
    assert live_panels(watch.newest) == []
    for name in ("pixels", "materials"):
        watch.begins(name, base)
        run(watched(lambda instrument, name=name: STEPS[name].run(instrument, PLAN, base), stand, watch))
        watch.ends(name, base)
        shown = live_panels(watch.newest)
        assert any(isinstance(panel, panels.Picture) for panel in shown)
        assert any(isinstance(panel, panels.Chart) for panel in shown)
        assert all(panel.title for panel in shown)
    assert watch.newest.done == ("pixels", "materials")


def test_beads_that_stand_where_they_belong_leave_no_residual() -> None:
    geometry = Geometry(
        source_to_detector_mm=250.0, source_to_object_mm=200.0, pitch_mm=0.11, rows=128, cols=128, offset_u_mm=0.3
    )
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    beads_mm = np.array([[3.0, 1.0, -4.0], [-2.0, 2.5, 0.0], [1.0, -3.0, 4.0]])
    at_px = geometry.views(angles).shadows_px(beads_mm).swapaxes(0, 1).copy()
    at_px[1, 5:8] = np.nan
    rests = _rests_px(at_px, angles, geometry)
    assert np.nanmax(np.abs(rests)) < 1e-6
    assert np.isnan(rests[1, 5:8]).all()
    other = replace(geometry, offset_u_mm=0.6)
    assert np.nanstd(_rests_px(at_px, angles, other)) > 1e-3


# results and comparisons


@pytest.mark.parametrize("step", list(STEPS))
def test_every_step_of_a_full_calibration_has_plots_and_an_empty_one_none(step: str) -> None:
    full = replace(everything(), history=tuple(record(name) for name in STEPS))
    shown = results.result_panels(step, full, begun())
    assert shown
    for panel in shown:
        if isinstance(panel, panels.Chart):
            assert panel.lines
            for line in panel.lines:
                assert len(line.x) == len(line.y) + (line.style is panels.Style.STEPS)
    bare = replace(begun(steps=()), edges_after_dac=np.full((8, 128, 128), np.nan, np.float32))
    assert results.result_panels(step, bare) == []


def test_histograms_count_every_finite_value_once() -> None:
    values = np.array([1.0, 2.0, 2.5, np.nan, 3.0])
    assert panels.histogram("", values, panels.ends_for([values], share=0.0)).y.sum() == 4


def test_bad_pixels_are_told_in_words_with_how_many() -> None:
    classes = np.zeros((4, 4), np.uint16)
    classes[0, 0] = PixelClass.DEAD
    classes[1, 1] = PixelClass.HOT | PixelClass.MASKED
    shown = panels.classes_picture("", classes)
    assert shown.words[0] == "good (14)"
    words = {shown.words[int(shown.image[place])] for place in ((0, 0), (1, 1))}
    assert words == {"counts nothing (1)", "switched off in the chip (1)"}
    assert set(panels.CLASS_WORDS) == set(PixelClass)


def test_the_same_calibration_twice_differs_in_nothing() -> None:
    full = everything()
    assert comparison.sentences(full, full) == ["Both say the same."]
    assert {row.change for row in comparison.table(full, full)} <= {"", "the same"}


def test_differences_are_told_in_words() -> None:
    before = everything()
    classes = before.pixel_class.copy()
    places = np.argwhere(classes == 0)[:5]
    classes[tuple(places.T)] = PixelClass.DEAD
    after = replace(
        before, pixel_class=classes, gain_dac_per_kev=1.01 * before.gain_dac_per_kev, gain="LGM", basis=None
    )
    told = " ".join(comparison.sentences(before, after))
    assert "5 more pixels are not used" in told
    assert "The gain changed by +1.00 %" in told
    assert f"gain {before.gain}, now LGM" in told


def test_masks_are_compared_pixel_by_pixel() -> None:
    was, now = np.array([[True, True, False, False]]), np.array([[True, False, True, False]])
    picture = comparison._masks(was, now)
    assert [picture.words[kind] for kind in picture.image[0]] == [
        "bad in both (1)", "bad only before (1)", "bad only after (1)", "good in both (1)",
    ]  # fmt: skip


def test_drift_is_over_days_and_needs_two() -> None:
    first = replace(everything(), history=(record("energy", "2026-01-01T00:00:00+00:00"),))
    second = replace(first, history=(record("energy", "2026-01-03T00:00:00+00:00"),))
    assert comparison.drift_panels([first]) == []
    charts = comparison.drift_panels([second, first])
    assert all(isinstance(chart, panels.Chart) and list(chart.lines[0].x) == [-2.0, 0.0] for chart in charts)


# files


def test_a_new_file_has_a_name_that_none_has(tmp_path: Path) -> None:
    first = archive.new_path(tmp_path, WHEN)
    assert first.name == "calibration-20261129-010203.h5"
    first.touch()
    assert archive.new_path(tmp_path, WHEN).name == "calibration-20261129-010203-2.h5"


def test_what_is_overwritten_is_backed_up_and_stays_in_the_history(tmp_path: Path) -> None:
    path, old, new = tmp_path / "mine.h5", begun(seed=1), begun(seed=2)
    store.save(old, path)
    run(archive.keep(new, path, WHEN))
    run(archive.keep(new, path, WHEN))
    names = {each.name for each in tmp_path.iterdir()}
    assert names == {"mine.h5", "mine.h5.bak-20261129-010203", "mine.h5.bak-20261129-010203-2"}
    assert store.load(path).identity == new.identity
    assert store.load(tmp_path / "mine.h5.bak-20261129-010203").identity == old.identity
    entries = run(archive.scan_folder(tmp_path))
    assert {entry.path.name for entry in entries if entry.is_backup} == names - {"mine.h5"}


def test_the_history_holds_calibrations_newest_first_and_damaged_ones_with_why(tmp_path: Path) -> None:
    for number, day in enumerate(("03", "01", "02")):
        made = replace(begun(seed=number), history=(record("equalise", f"2026-01-{day}T00:00:00+00:00"),))
        store.save(made, tmp_path / f"c{day}.h5")
    (tmp_path / "no.h5").write_bytes(b"nothing")
    (tmp_path / "notes.txt").write_text("not a file of ours")
    broken = tmp_path / "broken.h5"
    store.save(begun(), broken)
    import h5py

    with h5py.File(broken, "r+") as file:
        del file["trim"]
    entries = run(archive.scan_folder(tmp_path))
    assert [entry.path.stem for entry in entries] == ["c03", "c02", "c01", "broken"]
    assert "incomplete" in entries[-1].fault
    assert entries[-1].cells == ("", "", "", "")


def test_files_that_have_not_changed_are_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    store.save(begun(), path)
    (first,) = run(archive.scan_folder(tmp_path))
    (second,) = run(archive.scan_folder(tmp_path, {path: first}))
    assert second.calibration is first.calibration


def test_notes_stand_beside_the_file_and_leave_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    store.save(begun(), path)
    identity = store.load(path).identity
    archive.write_note(path, "  cold room \n")
    assert archive.read_note(path) == "cold room"
    assert store.load(path).identity == identity
    archive.write_note(path, "")
    assert not list(tmp_path.glob("*.txt"))


def test_watched_work_is_closed_with_what_watches_it() -> None:
    ends: list[str] = []

    def work(_):
        try:
            yield Progress("one", 0, 2)
            yield Progress("two", 1, 2)
        finally:
            ends.append("closed")

    running = watched(work, Stand(), Watch())  # pyright: ignore[reportArgumentType]
    next(running)
    running.close()
    assert ends == ["closed"]
