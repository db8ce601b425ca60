"""The steps of a calibration as a person sees them: how each stands, what it will do, how long it may take.

Times are frames times exposure, and a little for each frame to be set up and read; what is known from the last run of
a step is the better guess, and is told beside.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from itertools import pairwise

from acquisition.calibrate.edges import nominal_gain
from acquisition.calibrate.steps import STEPS
from acquisition.plan import Plan, calibrated_kev
from calibration.conditions import Conditions, StepRecord, differences
from calibration.energy_scale import line_group, mean_kev
from calibration.store import Calibration
from firmware_iface.errors import MpxctError
from gui.calibrate.dates import time_words, when

FRAME_S = 0.005
"""To set up and read a frame, beside its exposure: a round figure, above the chip's own 0.8 ms a counter."""
LONGEST_STEP_S = 4 * 3600.0
"""Steps whose records stand further apart were not done one after the other."""


class Standing(Enum):
    """How a step stands; the value is the word for it."""

    NOT_DONE = "not done"
    DONE = "done"
    OLD = "old"
    RUNNING = "running"
    NEW = "done, to be accepted"
    FAILED = "failed"
    STOPPED = "broken off"
    WAITS = "needs another first"
    COMING = "is to come"
    LEFT_OUT = "left out"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepView:
    """One step, for the list.

    Attributes
    ----------
    words : str
        How it stands, with when and by what, or why.
    why_not : str
        Why it cannot be run on what is there; empty where it can. Whether an instrument is there is not asked here.
    """

    name: str
    title: str
    standing: Standing
    words: str
    why_not: str


TITLES: Mapping[str, str] = {
    "bias": "Bias voltages",
    "equalise": "Equalise thresholds",
    "energy": "Energy scale",
    "pixels": "Bad pixels and flats",
    "count-rate": "Count rate",
    "materials": "Materials",
    "geometry": "Geometry",
    "wedge": "Step wedge",
    "response": "Spectral response",
}

DOES: Mapping[str, str] = {
    "bias": "Reads the chip's reference voltages GND, FBK and Cas and tunes their DACs until each stands at its target."
    " A board without a converter at the sense pads cannot do this; a run of all steps then goes on without it.",
    "equalise": "Brings the thresholds of all pixels to one code: finds where each pixel's noise (or pulses, or a "
    "source's edge) stands, chooses the strength of the trims and each pixel's trim, and measures again.",
    "energy": "Scans the thresholds under sources with known lines and fits which code stands at which energy (keV),"
    " for every threshold and pixel. The end of the tube's spectrum is an independent check.",
    "pixels": "Looks for pixels that fire in the dark, count too little or too much, or flicker; switches the first off"
    " in the chip and lists the others with the reason, so that their values are filled from their neighbours. Keeps"
    " the open beam as every pixel counts it (the flat field): live views are divided by it, and scans that take no"
    " flats; it tells how even the detector is.",
    "count-rate": "Raises the tube's current step by step and measures how many counts overlapping pulses lose, so that"
    " scans can be corrected for it.",
    "materials": "Looks through cells of known content and measures what each energy bin sees of each material: the "
    "basis of the decomposition into materials.",
    "geometry": "Turns a phantom with small beads once around and finds distances, offsets and tilts of source and "
    "detector from the paths of the shadows.",
    "wedge": "Looks through plates of known thickness and teaches each pixel which signal means which thickness; takes "
    "away rings and beam hardening.",
    "response": "Scans sources over the whole range of thresholds and fits, with the plates of the step wedge, what "
    "each bin counts of photons of each energy.",
}

IN_BEAM: Mapping[str, str] = {
    "bias": "Nothing; the beam stays off.",
    "equalise": "Nothing; the beam stays off (with the method “source”: the source named below).",
    "energy": "The sources named below, one after the other, then the tube for the check; no sample.",
    "pixels": "The tube, nothing between it and the detector; the beam goes off in between.",
    "count-rate": "The tube, nothing in the beam; its current is raised step by step.",
    "materials": "The cells named below, in the sample changer.",
    "geometry": "The bead phantom, in the sample changer.",
    "wedge": "The plates named below, in the sample changer.",
    "response": "The sources named below, then the held-back plates, in the sample changer.",
}


def needs_words(name: str) -> str:
    """Return which steps must have been done before one, in words; empty for none."""
    return " and ".join(TITLES[need] for need in STEPS[name].needs)


def views(
    plan: Plan,
    accepted: Calibration | None,
    candidate: Calibration | None,
    *,
    running: str = "",
    coming: Collection[str] = (),
    failed: Mapping[str, tuple[Standing, str]] | None = None,
    now: Conditions | None = None,
) -> tuple[StepView, ...]:
    """Tell how every step stands.

    Parameters
    ----------
    candidate : Calibration, optional
        What was measured and is not accepted yet; it holds what it was begun with too.
    running : str
        The step that runs now.
    coming : collection of str
        Steps that run after it.
    failed : mapping of str to (Standing, str)
        How steps ended that did not end well when they were last tried, and why.
    now : Conditions, optional
        How the detector stands; without it nobody is told that a calibration is of other conditions.
    """
    known = candidate or accepted
    foreign = differences(known.conditions, now) if known is not None and now is not None else ()
    under_way = {running: (Standing.RUNNING, "running now")} if running else {}
    under_way |= dict.fromkeys(coming, (Standing.COMING, "runs after the steps before it"))
    return tuple(_view(name, plan, known, accepted, under_way, failed or {}, foreign) for name in STEPS)


def _view(
    name: str,
    plan: Plan,
    known: Calibration | None,
    accepted: Calibration | None,
    under_way: Mapping[str, tuple[Standing, str]],
    failed: Mapping[str, tuple[Standing, str]],
    foreign: tuple[str, ...],
) -> StepView:
    last = {record.step: (place, record) for place, record in enumerate(known.history)} if known else {}
    missing = [TITLES[need] for need in STEPS[name].needs if need not in last]
    why_not = f"{TITLES[name]} needs {' and '.join(missing)} first." if missing else ""
    if name in under_way:
        standing, words = under_way[name]
    elif name in failed:
        standing, words = failed[name]
        if name in last:
            words = f"{words}; what was known before still holds"
    elif name not in last:
        standing = Standing.WAITS if missing else Standing.NOT_DONE
        words = f"needs {' and '.join(missing)} first" if missing else "not done"
    else:
        place, record = last[name]
        reasons = _reasons_old(name, place, plan, known, {step: at for step, (at, _) in last.items()}, foreign)
        is_new = accepted is None or place >= len(accepted.history) or accepted.history[place] != record
        standing = Standing.OLD if reasons else Standing.NEW if is_new else Standing.DONE
        words = f"done {when(record.created)} by mpxct {record.software}"
        if is_new:
            words = f"{words}, to be accepted"
        if record.is_forced:
            words = f"{words}, forced under other conditions"
        if reasons:
            words = f"{words}; old: {'; '.join(reasons)}"
    return StepView(name=name, title=TITLES[name], standing=standing, words=words, why_not=why_not)


def _reasons_old(
    name: str,
    place: int,
    plan: Plan,
    known: Calibration | None,
    places: Mapping[str, int],
    foreign: tuple[str, ...],
) -> list[str]:
    """Tell why what a step found may not hold any more; nothing where it does."""
    later = [TITLES[need] for need in _all_needs(name) if places.get(need, -1) > place]
    reasons = [f"{' and '.join(later)} was done again after it"] if later else []
    if known is not None and not _is_for_thresholds(name, plan, known):
        reasons.append("the plan's thresholds are others now")
    return [*reasons, *foreign]


def _is_for_thresholds(name: str, plan: Plan, known: Calibration) -> bool:
    """Whether a step was measured at the thresholds that the plan has now, where that matters to it."""
    if name == "count-rate" and known.count_rate is not None:
        return all(known.count_rate.of_pass(energies_kev) for energies_kev in calibrated_kev(plan))
    if name == "materials" and known.basis is not None:
        return known.basis.is_for([energy_kev for energies_kev in calibrated_kev(plan) for energy_kev in energies_kev])
    return True


def _all_needs(name: str) -> list[str]:
    """Return every step that one builds on, in their order: trims move everything that is measured after them."""
    needs: set[str] = set(STEPS[name].needs)
    while more := {far for near in needs for far in STEPS[near].needs} - needs:
        needs |= more
    return [step for step in STEPS if step in needs]


def last_times_s(history: Collection[StepRecord]) -> dict[str, float]:
    """Return how long each step took, by when it and the one before it ended; only where one followed the other."""
    took_s: dict[str, float] = {}
    ends = [(record.step, datetime.fromisoformat(record.created)) for record in history if _is_date(record.created)]
    for (_, before), (step, end) in pairwise(ends):
        between_s = (end - before).total_seconds()
        if 0 < between_s < LONGEST_STEP_S:
            took_s[step] = between_s
    return took_s


def _is_date(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """How long a step may take.

    Attributes
    ----------
    n_frames : int
        At most.
    duration_s : float
        NaN where the plan does not tell.
    """

    n_frames: int
    duration_s: float

    @property
    def words(self) -> str:
        """In words, for people."""
        if math.isnan(self.duration_s):
            return "not known"
        return f"about {time_words(self.duration_s)} ({self.n_frames} frames at most)"


def estimate(name: str, plan: Plan, known: Calibration | None = None) -> Estimate:
    """Return how long a step may take by its plan: frames times exposure, and what reading them adds."""
    try:
        exposures = _EXPOSURES[name](plan, known)
    except (MpxctError, KeyError, ValueError):  # a source that nobody knows: the step itself will say so
        return Estimate(n_frames=0, duration_s=math.nan)
    n_frames = sum(n for n, _ in exposures)
    return Estimate(n_frames=n_frames, duration_s=sum(n * (exposure_s + FRAME_S) for n, exposure_s in exposures))


Exposures = list[tuple[int, float]]
"""How many frames of which exposure."""


def _of_bias(plan: Plan, _: Calibration | None) -> Exposures:
    return [(3 * 35 * plan.calibration.bias.n_readings, 0.0)]


def _of_equalise(plan: Plan, _: Calibration | None) -> Exposures:
    wanted = plan.calibration.equalisation
    noise_s, patterns = plan.calibration.equalisation_exposure_s, max(wanted.spacing, 1) ** 2
    wide, near = 130, 16
    first = [(3 * wide * patterns, noise_s)]
    n_near = near * (2 + wanted.max_rounds // 2)
    if wanted.method == "noise":
        return [*first, ((3 * wide + n_near) * patterns, noise_s)]
    if wanted.method == "source":
        return [*first, ((4 * 54 + n_near) * patterns, wanted.source_exposure_s)]
    spacing = wanted.spacing or (3 if plan.detector.is_csm else 1)
    return [*first, ((4 * 54 + n_near) * spacing**2, (wanted.n_pulses + 1) * 1e-4)]


def _of_energy(plan: Plan, known: Calibration | None) -> Exposures:
    wanted, gain = plan.calibration, _gain(plan, known)
    energies = [mean_kev(line_group(source)) for source in wanted.sources]
    find = 1.2 * gain * min(energies) / 5
    share = 0.24 if plan.detector.is_csm else 0.38
    scans = sum((share * energy + 2) * gain / max(1, round(gain * energy / 130)) for energy in energies)
    found = [(round(find + scans), wanted.energy_exposure_s)]
    if wanted.energy.end_point_kvp:
        found.append((24 * wanted.energy.end_point_frames, plan.detector.exposure_s))
    return found


def _gain(plan: Plan, known: Calibration | None) -> float:
    return float(known.gain_dac_per_kev.mean()) if known is not None and known.lines else nominal_gain(plan)


def _of_pixels(plan: Plan, _: Calibration | None) -> Exposures:
    wanted = plan.calibration
    return [(2 * wanted.n_dark_frames + wanted.n_flat_frames, plan.detector.exposure_s)]


def _of_count_rate(plan: Plan, _: Calibration | None) -> Exposures:
    wanted = plan.calibration.count_rate
    current_ma, found = wanted.lowest_ratio * plan.source.current_ma, []
    while 0 < current_ma <= wanted.highest_ma:
        found.append((wanted.n_frames, plan.detector.exposure_s * min(1.0, plan.source.current_ma / current_ma)))
        current_ma *= wanted.growth_ratio
    return found * len(calibrated_kev(plan))


def _of_materials(plan: Plan, _: Calibration | None) -> Exposures:
    wanted = plan.calibration
    n_cells = len(wanted.cells)
    n_flat = max(1, round(2 * wanted.n_flat_frames / (n_cells + 1)))
    n_passes = len(calibrated_kev(plan))
    return [(n_passes * (n_cells * wanted.n_cell_frames + (n_cells + 1) * n_flat), plan.detector.exposure_s)]


def _of_geometry(plan: Plan, _: Calibration | None) -> Exposures:
    beads = plan.calibration.beads
    return [(plan.calibration.n_flat_frames + beads.n_views * beads.frames_per_view, plan.detector.exposure_s)]


def _of_wedge(plan: Plan, _: Calibration | None) -> Exposures:
    return [(_plate_frames(plan, len(plan.calibration.wedge.plates)), plan.detector.exposure_s)]


def _of_response(plan: Plan, _: Calibration | None) -> Exposures:
    wanted = plan.calibration.response
    n_points = len(wanted.sources) * wanted.n_points * wanted.n_frames_per_point
    plates = (_plate_frames(plan, len(wanted.checks)), plan.detector.exposure_s)
    return [(n_points, plan.calibration.energy_exposure_s), *([plates] if wanted.checks else [])]


def _plate_frames(plan: Plan, n_plates: int) -> int:
    wanted = plan.calibration.wedge
    return n_plates * wanted.n_frames + (n_plates + 1) * max(1, round(wanted.n_flat_frames / 2))


_EXPOSURES = {
    "bias": _of_bias,
    "equalise": _of_equalise,
    "energy": _of_energy,
    "pixels": _of_pixels,
    "count-rate": _of_count_rate,
    "materials": _of_materials,
    "geometry": _of_geometry,
    "wedge": _of_wedge,
    "response": _of_response,
}
