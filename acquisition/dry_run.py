"""What `mpxct acquire --dry-run` tells of a plan: a few lines to read, and the same as figures.

# Ref: compression of 256 x 256 Poisson counts of mean 2000 by bitshuffle and LZ4, 1.6 times: measured for this project
#      with h5py 3.16 and hdf5plugin 7.1. Fewer counts compress better: 2.4 times at a mean of 100, 5.7 at 2.
"""

from __future__ import annotations

import math

from acquisition.coverage import Coverage, coverage
from acquisition.limits import UNKNOWN, Limits
from acquisition.plan import Plan
from acquisition.scan import readout_of
from acquisition.scan_plan import (
    BurstPlan,
    ContinuousPlan,
    HelicalPlan,
    ScanPlan,
    ThresholdScanPlan,
    Turning,
)
from acquisition.steps import Cost, Tally, check, cost, passes_kev, tally, unchecked

COMPRESSION_RATIO = 1.6
COMPRESSION_DEPTH_BITS = 12
CLOSE_DEG = 1e-6


def figures(plan: Plan, limits: Limits = UNKNOWN) -> dict[str, object]:
    """Return what a script may want to know of a plan; None where nobody knows."""
    total = tally(plan, limits)
    costs = cost(plan, limits, total)
    scan, geometry, detector = plan.scan, plan.geometry, plan.detector
    found: dict[str, object] = {
        "kind": scan.kind,
        "n_steps": total.n_steps,
        "n_frames": costs.n_frames,
        "n_flat_frames": total.n_flat_frames,
        "n_passes": len(passes_kev(plan)),
        "n_tiles": len(scan.shifts_mm) if isinstance(scan, Turning) else 1,
        "exposure_s": detector.accumulate * detector.exposure_s,
        "duration_s": costs.duration_s,
        "moves_s": costs.moves_s,
        "size_bytes": costs.size_bytes,
        "compressed_bytes": _compressed_bytes(plan, costs.size_bytes),
        "charge_mas": costs.open_s * plan.source.current_ma,
        "voxel_mm": geometry.pitch_mm / geometry.magnification,
        "is_endless": scan.is_endless,
        "wrong": check(plan, limits, total),
        "is_reconstructed": isinstance(scan, Turning),
        "not_checked": list(unchecked(plan, limits, total)),
        "not_timed": list(costs.untimed),
    }
    if isinstance(scan, Turning):
        seen = coverage(geometry, scan.shifts_mm)
        found |= {
            "n_views": scan.views,
            "arc_deg": math.degrees(scan.angle_rad(scan.views)),
            "field_of_view_mm": [2 * seen.radius_mm, _height_mm(scan, seen)],
            "overlap_mm": seen.overlap_mm if len(scan.shifts_mm) > 1 else None,
            "short_scan_deg": math.degrees(seen.short_scan_rad),
            "is_arc_enough": _is_arc_enough(scan, seen),
        }
    return found


def describe(plan: Plan, limits: Limits = UNKNOWN) -> str:
    """Tell in a few lines what the plan will do, how long it takes, how much it writes, and what nobody checked."""
    detector, scan, geometry, total = plan.detector, plan.scan, plan.geometry, tally(plan, limits)
    costs = cost(plan, limits, total)
    rows = [
        ("sample", f"{scan.held or 'none, the open beam'}, {plan.source.kvp:g} kVp, {_current(plan)}"),
        ("detector", f"{detector.mode}, {detector.gain}, {detector.depth_bits} bits, {_exposure(plan)}"),
        ("thresholds", _thresholds(plan)),
        (
            "geometry",
            f"{geometry.rows} x {geometry.cols} pixels of {geometry.pitch_mm:g} mm, "
            f"magnification {geometry.magnification:.3g}, "
            f"{geometry.pitch_mm / geometry.magnification:.3g} mm on the axis",
        ),
        ("scan", f"{scan.kind}: {_scan(plan, total)}"),
    ]
    if isinstance(scan, Turning):
        rows += _turning(plan, scan)
    rows += [("total", "frames until it is stopped, nothing written")] if scan.is_endless else _totals(plan, costs)
    rows += [("WRONG", fault) for fault in check(plan, limits, total)]
    if unknown := unchecked(plan, limits, total):
        rows.append(("not checked", ", ".join(unknown)))
    return "\n".join(f"{name:<12}{text}" for name, text in rows)


def _current(plan: Plan) -> str:
    current_ma = plan.source.current_ma
    return f"{current_ma * 1000:g} uA" if current_ma < 1 else f"{current_ma:g} mA"


def _exposure(plan: Plan) -> str:
    detector = plan.detector
    return f"{f'{detector.accumulate} x ' if detector.accumulate > 1 else ''}{detector.exposure_s:g} s a frame"


def _thresholds(plan: Plan) -> str:
    passes = [", ".join(f"{energy_kev:g}" for energy_kev in energies_kev) for energies_kev in passes_kev(plan)]
    if len(passes) > 4:
        passes[2:-1] = [f"... ({len(passes)} passes)"]
    return " | ".join(passes) + " keV"


def _scan(plan: Plan, total: Tally) -> str:
    scan = plan.scan
    flats = f", {total.n_flat_frames} flats" if total.n_flat_frames else ""
    if isinstance(scan, ScanPlan):
        return (
            f"{scan.n_views} views over {scan.arc_deg:g} degrees, {_count(scan.frames_per_view, 'frame')} a view{flats}"
        )
    if isinstance(scan, ContinuousPlan):
        speed_deg_per_s = math.degrees(total.fastest.angle_rad)
        return f"{scan.n_views} views over {scan.arc_deg:g} degrees, turning {speed_deg_per_s:.4g} degrees/s{flats}"
    if isinstance(scan, HelicalPlan):
        speed = f", turning {math.degrees(total.fastest.angle_rad):.4g} degrees/s" if scan.is_sweep else ""
        frames = "" if scan.is_sweep else f", {_count(scan.frames_per_view, 'frame')} a view"
        return (
            f"{scan.views} views in {scan.n_turns:.4g} turns of {scan.pitch_mm:g} mm for {scan.length_mm:g} mm"
            f"{speed}{frames}{flats}"
        )
    if isinstance(scan, BurstPlan):
        frames = _count(scan.frames_per_view, "frame")
        return f"{_count(scan.n_bursts, 'burst')} of {frames}, each at an edge, {scan.trigger}"
    if isinstance(scan, ThresholdScanPlan):
        what = "all thresholds" if scan.threshold == "all" else f"threshold {scan.threshold}"
        return (
            f"{what} from {scan.start_kev:g} to {scan.positions_kev[-1]:g} keV in {scan.n_positions} positions, "
            f"{_count(scan.frames_per_view, 'frame')} each{flats}"
        )
    return "frames without end" if scan.is_endless else _count(total.n_frames, "frame")


def _turning(plan: Plan, scan: Turning) -> list[tuple[str, str]]:
    """Return what is told of a scan around the sample: its arc, its passes and tiles, what it sees."""
    seen, rows = coverage(plan.geometry, scan.shifts_mm), []
    if not isinstance(scan, HelicalPlan):
        rows.append(("arc", _arc(scan, seen)))
    if len(scan.passes_kev) > 1:
        how = "each view in all of them" if scan.is_pass_in_view else "one whole scan after the other"
        rows.append(("passes", f"{len(scan.passes_kev)}, {how}"))
    if scan.shifts_mm != (0.0,):
        rows.append(("camera", _tiles(scan, seen)))
    across, high = f"{2 * seen.radius_mm:.3g} mm across", f"{_height_mm(scan, seen):.3g} mm high on the axis"
    return [*rows, ("sees", f"{across}, {high}")]


def _tiles(scan: Turning, seen: Coverage) -> str:
    text = f"at {', '.join(f'{shift_mm:g}' for shift_mm in scan.shifts_mm)} mm along its rows"
    if len(scan.shifts_mm) > 1:
        text += ", each view at all places" if scan.is_tile_in_view else ", one whole scan after the other"
        text += f", rows overlap by {seen.overlap_mm:.3g} mm"
    if seen.is_wide:
        text += f"; a half-scan, the inner {2 * seen.twice_seen_mm:.3g} mm seen from both sides"
    return text


def _arc(scan: Turning, seen: Coverage) -> str:
    arc_deg, short_deg = math.degrees(scan.angle_rad(scan.views)), math.degrees(seen.short_scan_rad)
    if arc_deg >= 360 - CLOSE_DEG:
        return f"{arc_deg:g} degrees, {'a whole circle' if arc_deg < 360 + CLOSE_DEG else 'more than a circle'}"
    enough = "a short scan" if arc_deg >= short_deg else "TOO SHORT to see all from all sides"
    return f"{arc_deg:g} degrees, {enough} ({short_deg:.1f} are needed)"


def _is_arc_enough(scan: Turning, seen: Coverage) -> bool:
    return scan.angle_rad(scan.views) >= min(seen.short_scan_rad, 2 * math.pi) - math.radians(CLOSE_DEG)


def _height_mm(scan: Turning, seen: Coverage) -> float:
    """Return how much along the axis is seen from all sides, on the axis."""
    return scan.length_mm if isinstance(scan, HelicalPlan) else seen.height_mm


def _totals(plan: Plan, costs: Cost) -> list[tuple[str, str]]:
    """Return the sums: frames, time, bytes, charge."""
    compressed_bytes = _compressed_bytes(plan, costs.size_bytes)
    size = f"{costs.size_bytes / 1e6:.4g} MB of {readout_of(plan).dtype} counts"
    if compressed_bytes is not None:
        size += f", about {compressed_bytes / 1e6:.3g} MB compressed where counters are well filled"
    moves = f", {_time(costs.moves_s)} of it moves" if costs.moves_s else ""
    untimed = f", without {', '.join(costs.untimed)}" if costs.untimed else ""
    return [
        ("total", _count(costs.n_frames, "frame")),
        ("time", f"{_time(costs.duration_s)}{moves}{untimed}"),
        ("size", size),
        ("charge", f"{costs.open_s * plan.source.current_ma:.3g} mAs while the detector counts"),
    ]


def _compressed_bytes(plan: Plan, size_bytes: int) -> int | None:
    """Return the size on the disk where the compression of such counts has been measured."""
    detector = plan.detector
    is_measured = detector.depth_bits == COMPRESSION_DEPTH_BITS and detector.accumulate == 1
    return round(size_bytes / COMPRESSION_RATIO) if is_measured else None


def _time(duration_s: float) -> str:
    if duration_s < 10:
        return f"{duration_s:.3g} s"
    minutes, seconds = divmod(round(duration_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
