"""Plans of every kind of scan, for tests that state what holds for all of them."""

from __future__ import annotations

from hypothesis import strategies as st

from acquisition.plan import DetectorPlan, Plan
from acquisition.scan_plan import (
    TRIGGERS,
    BurstPlan,
    ContinuousPlan,
    FlatsPlan,
    FramesPlan,
    HelicalPlan,
    LivePlan,
    ScanPlan,
    SnapPlan,
    ThresholdScanPlan,
)

PASSES_KEV = ((18.0, 33.0, 50.0, 75.0), (20.0, 40.0, 60.0, 80.0), (10.0, 11.0, 12.0, 13.0))
names = st.from_regex(r"[\w.+-]{1,64}", fullmatch=True)
samples = st.just("") | names
triggers = st.sampled_from(tuple(TRIGGERS))
turning = {
    "sample": names,
    "flats_every_n_views": st.integers(1, 50),
    "n_flats": st.integers(0, 3),
    "passes_kev": st.lists(st.sampled_from(PASSES_KEV), max_size=3).map(tuple),
    "direction": st.sampled_from(("both", "forward")),
}
tiles_mm = st.tuples(st.floats(-6, 6), st.floats(0.1, 14), st.integers(1, 4)).map(
    lambda tile: tuple(tile[0] + n * tile[1] for n in range(tile[2]))
)
symmetrical_mm = st.sampled_from(((0.0,), (-6.0, 6.0), (-13.0, 0.0, 13.0)))
circular = st.builds(
    ScanPlan,
    **turning,
    shifts_mm=tiles_mm,
    n_views=st.integers(1, 60),
    arc_deg=st.floats(360, 3600),
    frames_per_view=st.integers(1, 4),
    tile_order=st.sampled_from(("tile", "view")),
    pass_order=st.sampled_from(("scan", "view")),
)
short = st.builds(ScanPlan, **turning, n_views=st.integers(1, 60), arc_deg=st.floats(1, 360))
continuous = st.builds(
    ContinuousPlan,
    **turning,
    shifts_mm=tiles_mm,
    n_views=st.integers(1, 60),
    arc_deg=st.floats(360, 3600),
    period_s=st.just(0.0) | st.floats(1.1, 10),
    trigger=triggers,
)
lengths = {"length_mm": st.floats(1, 40), "pitch_mm": st.floats(2, 12), "centre_mm": st.floats(-20, 20)}
helical_steps = st.builds(
    HelicalPlan,
    **turning,
    **lengths,
    shifts_mm=symmetrical_mm,
    views_per_turn=st.integers(1, 12),
    frames_per_view=st.integers(1, 3),
)
helical_sweeps = st.builds(
    HelicalPlan,
    **turning,
    **lengths,
    shifts_mm=symmetrical_mm,
    views_per_turn=st.integers(1, 12),
    motion=st.just("continuous"),
    period_s=st.floats(0, 10),
    trigger=triggers,
)
turning_scans = circular | short | continuous | helical_steps | helical_sweeps
still_scans = (
    st.builds(SnapPlan, sample=samples)
    | st.builds(FramesPlan, sample=samples, n_frames=st.integers(1, 10_000_000))
    | st.builds(LivePlan, sample=samples)
    | st.builds(
        BurstPlan,
        sample=samples,
        n_bursts=st.integers(1, 100),
        frames_per_view=st.integers(1, 100),
        trigger=triggers,
    )
    | st.builds(FlatsPlan, n_flats=st.integers(1, 100))
    | st.builds(
        ThresholdScanPlan,
        sample=samples,
        threshold=st.sampled_from(("all", 1, 3, 5, 7)),
        start_kev=st.floats(8, 60),
        stop_kev=st.floats(60, 120),
        step_kev=st.floats(0.5, 50),
        frames_per_view=st.integers(1, 5),
        n_flats=st.integers(0, 3),
    )
)
all_scans = turning_scans | still_scans


def plan_of(scan: object, **detector: object) -> Plan:
    """Return a plan of a scan, charge summing arbitrated low enough for all of them."""
    return Plan(detector=DetectorPlan(**{"arbitration_kev": 7.0, **detector}), scan=scan)  # type: ignore[arg-type]
