"""What a plan costs, as the page tells it: acquisition's own figures, and a dose that follows physics."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from acquisition.dry_run import figures
from acquisition.plan import Plan, load_plan
from acquisition.scan_plan import FramesPlan, LivePlan, ScanPlan
from acquisition.steps import cost, expand
from gui.scan.estimate import dose_mgy, duration, estimate, rows, size
from gui.scan.presets import presets

DEMO = Plan()


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.name)
def test_the_figures_are_those_of_the_steps(preset, tmp_path: Path) -> None:
    plan = load_plan(preset.path)
    found = estimate(plan, folder=tmp_path, has_dose=False)
    assert found.figures == figures(plan)
    steps = expand(plan)
    assert found.figures["n_frames"] == sum(step.n_frames for step in steps)
    assert found.size_bytes == cost(plan).size_bytes
    told = dict(rows(found))
    assert str(found.figures["n_frames"]) in told["Frames"]
    assert told["Time"].startswith(duration(cost(plan).duration_s))
    assert found.free_bytes is not None
    assert found.has_room


def test_a_disk_without_room_is_told(tmp_path: Path) -> None:
    found = estimate(DEMO, folder=tmp_path, has_dose=False)
    small = type(found)(
        figures=found.figures, described="", free_bytes=found.size_bytes - 1, sample_mm=1.0, dose_mgy=None
    )
    assert "NOT ENOUGH" in dict(rows(small))["Free disk"]


def test_an_arc_that_is_too_short_is_told() -> None:
    plan = msgspec.structs.replace(DEMO, scan=ScanPlan(arc_deg=170.0))
    assert "TOO SHORT" in dict(rows(estimate(plan, has_dose=False)))["Arc"]


def test_the_dose_grows_with_charge_and_falls_with_the_size_of_the_sample() -> None:
    once = dose_mgy(DEMO)
    assert once is not None
    twice = msgspec.structs.replace(DEMO, source=msgspec.structs.replace(DEMO.source, current_ma=0.012))
    tiles = msgspec.structs.replace(DEMO, scan=ScanPlan(shifts_mm=(-12.0, 0.0, 12.0)))
    assert dose_mgy(twice) == pytest.approx(2 * once)
    assert dose_mgy(tiles) == pytest.approx(3 * once)
    larger = dose_mgy(DEMO, 11.0)
    assert larger is not None
    assert larger < once


def test_the_dose_is_near_that_of_photons_thrown() -> None:
    from reconstruction.spectral.design import beams_of
    from reconstruction.spectral.design_plan import charge_mas
    from reconstruction.spectral.dose import dose_by_photons
    from reconstruction.spectral.prediction import ENERGIES_KEV
    from reconstruction.spectral.sample import Sample

    (beam,) = beams_of([118.0], {"aluminium": 3.8}, {})
    photons = beam.photons(DEMO.geometry.source_to_object_mm)
    thrown = dose_by_photons(Sample(diameter_mm=10.0), DEMO.geometry, photons, ENERGIES_KEV, n_photons=20_000)
    ours = dose_mgy(DEMO)
    assert ours is not None
    # Scattered photons are in the one and not in the other: a tenth of the dose in so little water.
    assert ours == pytest.approx(thrown.dose_mgy * float(photons.sum()) * charge_mas(DEMO), rel=0.15)


def test_nothing_that_does_not_turn_has_a_dose() -> None:
    assert dose_mgy(msgspec.structs.replace(DEMO, scan=FramesPlan())) is None
    told = dict(rows(estimate(msgspec.structs.replace(DEMO, scan=LivePlan()))))
    assert "without end" in told["Frames"]


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.5, "0.5 s"), (59.6, "1 min 00 s"), (61, "1 min 01 s"), (7265, "2 h 01 min")]
)
def test_times_are_told_in_the_largest_units(seconds: float, told: str) -> None:
    assert duration(seconds) == told


@pytest.mark.parametrize(("n_bytes", "told"), [(0, "0 B"), (1500, "1.5 kB"), (2.37e8, "237 MB"), (1e15, "1e+03 TB")])
def test_bytes_are_told_with_three_digits(n_bytes: float, told: str) -> None:
    assert size(n_bytes) == told
