"""Scans without flats: their views divided by the calibration's flat field where it fits, and refused where not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from acquisition.doctor import Level
from acquisition.open_beam import flat_misfits
from acquisition.plan import Plan, SourcePlan
from acquisition.preflight import examine
from acquisition.scan import ImageKey, readout_of
from acquisition.scan_plan import ScanPlan
from acquisition.scan_writer import ScanWriter
from acquisition.steps import Pose
from calibration.conditions import StepRecord
from calibration.flat_field import FlatField
from calibration.progress import finished
from calibration.store import Calibration
from firmware_iface.errors import CalibrationMissing
from firmware_iface.frame import Frame
from gui.reconstruct.settings import Settings
from gui.reconstruct.sources import scan_facts
from reconstruction.pipeline import align_scan_file, reconstruct_scan
from reconstruction.projections import measure_line_integrals
from reconstruction.recipe import Recipe
from reconstruction.scan_slabs import reconstruct_to_file
from reconstruction.scan_source import open_source
from reconstruction.volume import load_volume
from tests.rough_calibration import rough_calibration
from tests.scan_bench import PLAN as BENCH_PLAN
from tests.scan_bench import Bench
from tests.test_pipeline import BASIS, GEOMETRY, N_VIEWS, chords, command
from tests.test_pipeline import PLAN as WITH_FLATS
from tests.test_pipeline import calibration as bare

PLAN = msgspec.structs.replace(WITH_FLATS, scan=ScanPlan(n_views=N_VIEWS, frames_per_view=1, n_flats=0))
N_FLATS, EXPOSURE_S = 30, 1.0
IMAGE = (GEOMETRY.rows, GEOMETRY.cols)
PATTERN = 1 + 0.2 * np.random.default_rng(1).standard_normal((4, *IMAGE)).clip(-2, 2)
"""Pixels that are far from even: what is not divided by the right flat is seen at once."""
OPEN = np.array([3000.0, 1800.0, 900.0, 400.0])[:, None, None] * PATTERN


def drawn(seed: int, n: int, angle_rad: float | None = None, exposure_s: float = EXPOSURE_S) -> NDArray[np.uint16]:
    """Draw frames of water, or of the open beam: (n, n_counters, rows, cols)."""
    means = OPEN * exposure_s
    if angle_rad is not None:
        water = BASIS.attenuation_per_mm_per_g_cm3[:, 0, None, None]
        means = means * np.exp(-water * chords(angle_rad, 0.0, 0.0, 4.5))
    bins = np.random.default_rng(seed).poisson(means, (n, *OPEN.shape))
    return np.cumsum(bins[:, ::-1], axis=1)[:, ::-1].astype(np.uint16)


def flat_field(frames: NDArray[np.uint16], exposure_s: float = EXPOSURE_S) -> FlatField:
    return FlatField(
        rates_per_s=(frames.mean(axis=0, dtype=np.float64) / exposure_s).astype(np.float32),
        thresholds=PLAN.detector.thresholds,
        thresholds_kev=PLAN.detector.thresholds_kev,
        n_frames=len(frames),
        exposure_s=len(frames) * exposure_s,
        tube_kvp=PLAN.source.kvp,
        current_ma=PLAN.source.current_ma,
    )


def calibrated(flat: FlatField | None = None) -> Calibration:
    flat = flat or flat_field(drawn(7, N_FLATS, exposure_s=0.5), 0.5)
    made = StepRecord(
        step="pixels", created="2026-03-04T05:06:07Z", software="1", mode="colour-csm", gain="HGM", bias_v=500.0,
        temperature_k=303.0,
    )  # fmt: skip
    return replace(bare(), flat_field=flat, history=(made,), temperature_k=303.0, bias_v=PLAN.detector.bias_v)


def write(
    path: Path,
    calibration: Calibration,
    flats: NDArray[np.uint16] | None = None,
    *,
    plan: Plan = PLAN,
    sensor_k: float = 303.5,
    forced: str = "",
) -> Path:
    """Write the same views each time, behind flats where there are any."""
    n_flats = 0 if flats is None else len(flats)
    views = [drawn(1000 + view, 1, 2 * np.pi * view / N_VIEWS)[0] for view in range(N_VIEWS)]
    frames = [*(() if flats is None else flats), *views]
    with ScanWriter(path, readout_of(plan), n_frames=n_flats + N_VIEWS, plan=plan, calibration=calibration) as writer:
        for number in range(n_flats + N_VIEWS):
            angle_rad = 2 * np.pi * max(number - n_flats, 0) / N_VIEWS
            is_flat = number < n_flats
            frame = Frame(
                counts=frames[number],
                thresholds=plan.detector.thresholds,
                sequence=number,
                timestamp_ns=number,
                exposure_ns=round(EXPOSURE_S * 1e9),
                run_id=1,
            )
            key = ImageKey.FLAT if is_flat else ImageKey.PROJECTION
            writer.write(frame, key, Pose(angle_rad=angle_rad), temperature_k=sensor_k)
        if forced:
            writer.event("forced", forced)
        writer.finish()
    return path


def integrals(path: Path) -> NDArray[np.float32]:
    source = open_source(path)
    return finished(measure_line_integrals(source.scan, source.geometry, flat=source.flat)).values


def test_the_calibrations_flat_gives_the_same_line_integrals_within_counting(tmp_path: Path) -> None:
    """Own flats and the calibration's, of another exposure, differ by the noise of both, and by nothing else."""
    calibration = calibrated()
    own = integrals(write(tmp_path / "own.h5", calibration, drawn(5, N_FLATS)))
    stood_in = integrals(write(tmp_path / "none.h5", calibration))
    apart = (stood_in - own)[..., ~calibration.is_bad]
    assert np.ptp(apart, axis=1).max() < 1e-4, "the views are the same, so that only the flats can differ"
    sigma = np.sqrt(1 / (N_FLATS * OPEN * EXPOSURE_S) + 1 / (N_FLATS * OPEN * 0.5))[:, ~calibration.is_bad]
    for pulls in apart[:, 0] / sigma:
        assert abs(pulls.mean()) < 4 / np.sqrt(pulls.size)
        assert pulls.std() == pytest.approx(1.0, abs=4 / np.sqrt(2 * pulls.size))


def test_a_flat_of_the_very_same_frames_is_the_very_same_flat(tmp_path: Path) -> None:
    flats = drawn(5, N_FLATS)
    calibration = calibrated(flat_field(flats))
    own = integrals(write(tmp_path / "own.h5", calibration, flats))
    np.testing.assert_allclose(integrals(write(tmp_path / "none.h5", calibration)), own, atol=1e-5)


def test_a_scan_with_flats_uses_its_own(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "own.h5", calibrated(), drawn(5, 2)))
    assert source.flat is None
    assert not any("flat" in word for word in source.words)


def test_the_volume_says_by_what_its_views_were_divided_however_it_was_made(tmp_path: Path) -> None:
    path = write(tmp_path / "none.h5", calibration := calibrated())
    recipe = Recipe(window="ram-lak")
    whole = finished(reconstruct_scan(path, recipe))
    told = (
        "no flats in the scan: its views are divided by the flat field of 2026-03-04 05:06 UTC in calibration "
        f"{calibration.identity} ({N_FLATS} frames)"
    )
    assert told in whole.provenance.steps
    finished(reconstruct_to_file(path, tmp_path / "slabs.h5", recipe, memory_bytes=1 << 30))
    by_slabs = load_volume(tmp_path / "slabs.h5")
    assert told in by_slabs.provenance.steps
    np.testing.assert_allclose(by_slabs.values, whole.values, atol=1e-5)
    assert finished(align_scan_file(path)).geometry.offset_u_mm == pytest.approx(0.0, abs=0.05)


def test_the_command_says_it_too_and_refuses_in_a_sentence(tmp_path: Path) -> None:
    said = command("reconstruct", write(tmp_path / "none.h5", calibrated()), "-o", tmp_path / "v.h5")
    assert "no flats in the scan: its views are divided by the flat field of 2026-03-04" in said
    with pytest.raises(CalibrationMissing, match=r"bare.h5 holds no flats, and .* the calibration keeps no") as caught:
        command("reconstruct", write(tmp_path / "bare.h5", bare()), "-o", tmp_path / "bare-volume.h5")
    assert "n_flats" in caught.value.hint
    assert "mpxct calibrate pixels" in caught.value.hint


def changed(**parts: object) -> Plan:
    """Return the plan with other settings of the detector."""
    return msgspec.structs.replace(PLAN, detector=msgspec.structs.replace(PLAN.detector, **parts))


EIGHT_KEV = tuple(np.arange(20.0, 100.0, 10.0))


def test_the_page_reconstruct_says_it_before_anything_is_made(tmp_path: Path) -> None:
    facts = scan_facts(write(tmp_path / "none.h5", calibrated()), Settings())
    assert dict(facts.lines)["flats"] == "the calibration's"
    assert any("no flats of its own" in warning and "2026-03-04" in warning for warning in facts.warnings)
    assert (
        dict(scan_facts(write(tmp_path / "own.h5", calibrated(), drawn(5, 2)), Settings()).lines)["flats"] == "2 frames"
    )


MISFITS = {
    "tube at 118 kV, now 100 kV": msgspec.structs.replace(PLAN, source=SourcePlan(kvp=100.0)),
    "tube at 0.006 mA, now 0.01 mA": msgspec.structs.replace(PLAN, source=SourcePlan(current_ma=0.01)),
    "thresholds at 18, 33, 50, 75 keV, now 20, 33, 50, 75 keV": changed(thresholds_kev=(20.0, 33.0, 50.0, 75.0)),
    "gain HGM, now SHGM": changed(gain="SHGM"),
    "mode colour-csm, now colour-spm": changed(mode="colour-spm", thresholds_kev=EIGHT_KEV),
    "bias 500 V, now 200 V": changed(bias_v=200.0),
    "camera at 0 mm, now at -5, 5 mm": msgspec.structs.replace(
        PLAN, scan=msgspec.structs.replace(PLAN.scan, shifts_mm=(-5.0, 5.0))
    ),
    "image 12 x 48, now 6 x 48": msgspec.structs.replace(PLAN, geometry=replace(GEOMETRY, rows=6)),
}


@pytest.mark.parametrize("told", MISFITS)
def test_a_flat_taken_otherwise_is_refused_and_told_with_both_values(told: str) -> None:
    plan = MISFITS[told]
    assert told in flat_misfits(plan, calibrated(), plan.detector.thresholds_kev)


def test_a_flat_that_fits_is_not_refused() -> None:
    assert flat_misfits(PLAN, calibrated(), PLAN.detector.thresholds_kev) == ()


def test_a_sensor_that_warmed_up_or_a_scan_that_was_forced_has_no_flat(tmp_path: Path) -> None:
    calibration = calibrated()
    with pytest.raises(CalibrationMissing, match=r"sensor at 29.9 C, now \+5.0 K"):
        open_source(write(tmp_path / "warm.h5", calibration, sensor_k=308.0))
    forced = f"went on all the same: the calibration {calibration.identity} does not hold here: chip W1, now W2"
    with pytest.raises(CalibrationMissing, match="chip W1, now W2"):
        open_source(write(tmp_path / "forced.h5", calibration, forced=forced))


def test_the_check_before_a_scan_tells_what_it_will_be_divided_by() -> None:
    def flats(calibration: Calibration, n_flats: int) -> list[tuple[Level, str]]:
        scan = msgspec.structs.replace(BENCH_PLAN.scan, n_flats=n_flats)
        plan = msgspec.structs.replace(BENCH_PLAN, scan=scan)
        checks = examine(Bench().instrument, plan, calibration, None)
        return [(check.level, check.text) for check in checks if check.topic == "flats"]

    known = rough_calibration(BENCH_PLAN, chip_id="W1")
    assert flats(known, 2) == []
    ((level, text),) = flats(known, 0)
    assert level is Level.WARN
    assert "the calibration keeps no flat field" in text
    flat = FlatField(
        rates_per_s=np.ones((4, 128, 128), np.float32), thresholds=BENCH_PLAN.detector.thresholds,
        thresholds_kev=BENCH_PLAN.detector.thresholds_kev, n_frames=9, exposure_s=9.0,
        tube_kvp=BENCH_PLAN.source.kvp, current_ma=BENCH_PLAN.source.current_ma,
    )  # fmt: skip
    ((level, text),) = flats(kept := replace(known, flat_field=flat), 0)
    assert level is Level.OK
    assert f"divided by the flat field in calibration {kept.identity} (9 frames)" in text
