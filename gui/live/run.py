"""A live view on the instrument: looks on until it is stopped, begins anew when settings change, takes a flat between.

`work` runs in the instrument's thread; all else may be called from the window's.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from acquisition.plan import MODES, DetectorPlan, Plan
from acquisition.scan import Readout, readout_of
from acquisition.scan_plan import FlatsPlan, FramesPlan, LivePlan, SnapPlan
from calibration.progress import Progress
from firmware_iface.chip import COLOUR_PITCH_MM, COLS, PITCH_MM, ROWS
from firmware_iface.errors import DataLost, WrongUsage
from gui.live.by_energy import NOTE, look_by_energy, takes_energies
from gui.live.frames import FrameStore
from gui.live.measures import Flat

if TYPE_CHECKING:
    from acquisition.calibrate.nominal import Nominal
    from acquisition.instrument import Instrument
    from acquisition.runner import RunHealth
    from calibration.store import Calibration

ENDLESS = 0
Way = tuple[str, str, str, float]
"""How a chip counts: its name, mode, gain and bias."""
Known = dict[Way, "Nominal"]
NOMINAL_NOTE = (
    "{why_not}. The noise was looked for first, with the beam off: pixels count it up to about {noise_kev:.0f} keV."
    "{noisy} Thresholds are nominal above it and pixels are not equalised: good to look, not to measure."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Underway:
    """What the frames in the store were taken with.

    Attributes
    ----------
    plan : Plan or None
        None where a file does not tell.
    calibration : Calibration or None
        None before it is known, and of a detector that has its own.
    note : str
        What is to be known of the thresholds; empty where they are as calibrated.
    """

    readout: Readout
    plan: Plan | None = None
    calibration: Calibration | None = None
    note: str = ""

    @classmethod
    def of(cls, plan: Plan, calibration: Calibration | None = None, note: str = "") -> Underway:
        """Return what frames of a plan are taken with."""
        return cls(readout=readout_of(plan), plan=plan, calibration=calibration, note=note)

    @property
    def thresholds_kev(self) -> tuple[float, ...]:
        """Energies of the counters; nan where they are not known."""
        return self.readout.thresholds_kev or (math.nan,) * len(self.readout.thresholds)


def tube_of(underway: Underway) -> tuple[float, float] | None:
    """Return how the tube stands, in kV and mA; None where its own program says so."""
    plan = underway.plan
    if plan is None or underway.calibration is None:
        return None
    return plan.source.kvp, plan.source.current_ma


def live_plan(plan: Plan, detector: DetectorPlan, n_frames: int = ENDLESS, sample: str = "") -> Plan:
    """Return a plan that looks with these settings, on the chip's own pixels in their mode.

    Parameters
    ----------
    n_frames : int
        1 is a snapshot, 0 goes on until somebody stops it.

    Raises
    ------
    ValueError
        The settings cannot be; the message says what is allowed.
    """
    scan = (
        LivePlan(sample=sample)
        if n_frames == ENDLESS
        else SnapPlan(sample=sample)
        if n_frames == 1
        else FramesPlan(sample=sample, n_frames=n_frames)
    )
    rows, cols, pitch_mm = (
        (ROWS // 2, COLS // 2, COLOUR_PITCH_MM) if detector.is_colour else (ROWS, COLS, PITCH_MM)
    )  # fmt: skip
    geometry = replace(plan.geometry, rows=rows, cols=cols, pitch_mm=pitch_mm)
    return msgspec.structs.replace(plan, detector=detector, scan=scan, geometry=geometry)


def thresholds_for(mode: str, energies_kev: tuple[float, ...], highest_kev: float) -> tuple[float, ...]:
    """Return as many ascending thresholds as a mode takes: those given, and where they are too few others above."""
    n = len(MODES[mode].thresholds)
    kept = energies_kev[:n]
    missing = n - len(kept)
    if not missing:
        return kept
    low_kev = kept[-1] if kept else 10.0
    step_kev = (max(highest_kev - 1, low_kev + missing) - low_kev) / missing
    return (*kept, *(round(low_kev + (k + 1) * step_kev, 1) for k in range(missing)))


class LiveRun:
    """One live view.

    Parameters
    ----------
    store : FrameStore
        Gets every frame and every loss.
    plan : Plan
        Of `live_plan`.
    calibration : Calibration, optional
        Without one, or where it is of another chip, mode or gain, the noise is looked for first, the thresholds stand
        where the gain mode's nominal scale puts them above it, and `underway.note` says so.
    n_flats : int
        Take a flat of so many frames, and nothing else.
    on_health : callable, optional
        Gets how the run stands, now and then.
    known : dict, optional
        Stand-ins for a calibration that earlier runs have found; gets those that this one finds.

    Attributes
    ----------
    underway : Underway
        Of the frames in the store.
    flat : Flat or None
        The newest that was taken.
    n_begun : int
        How often it has begun, with its settings of then.
    """

    def __init__(
        self,
        store: FrameStore,
        plan: Plan,
        calibration: Calibration | None,
        *,
        n_flats: int = 0,
        on_health: Callable[[RunHealth], None] | None = None,
        known: Known | None = None,
    ) -> None:
        self.store = store
        self.underway = Underway.of(plan)
        self.flat: Flat | None = None
        self.n_begun = 0
        self._on_health = on_health
        self._lock = threading.Lock()
        self._order = plan, calibration
        self._n_flats, self._is_flat_only = n_flats, bool(n_flats)
        self._is_told = threading.Event()
        self._is_stopping = False
        self._known = {} if known is None else known
        self._set_kev: tuple[float, ...] = ()

    def change(self, plan: Plan, calibration: Calibration | None) -> None:
        """Go on with other settings, as soon as the present frame is over."""
        with self._lock:
            self._order = plan, calibration
            self._is_told.set()

    def take_flat(self, n_frames: int) -> None:
        """Take frames of the open beam in between; then `flat` is their mean."""
        with self._lock:
            self._n_flats = n_frames
            self._is_told.set()

    def stop(self) -> None:
        """End it, as soon as the present frame is over."""
        with self._lock:
            self._is_stopping = True
            self._is_told.set()

    def work(self, instrument: Instrument) -> Generator[Progress, None, None]:
        """Look until there are no more frames, or somebody says so."""
        while True:
            with self._lock:
                self._is_told.clear()
                if self._is_stopping:
                    return
                (plan, wanted), n_flats, self._n_flats = self._order, self._n_flats, 0
            usable = yield from self._usable(instrument, plan, wanted)
            if usable is None:
                with self._lock:
                    self._n_flats = self._n_flats or n_flats
                continue
            calibration, note = usable
            if n_flats:
                yield from self._take_flat(instrument, plan, calibration, n_flats)
                if self._is_flat_only:
                    return
                continue
            self.store.begin()
            self.underway, self.n_begun = Underway.of(plan, calibration, note), self.n_begun + 1
            yield from self._look(instrument, plan, calibration, self.store)
            if not self._is_told.is_set():
                return

    def _usable(
        self, instrument: Instrument, plan: Plan, calibration: Calibration | None
    ) -> Generator[Progress, None, tuple[Calibration | None, str] | None]:
        """Return what to look with, and what is to be known of it; None where something else was ordered meanwhile.

        Where no calibration holds, the noise is looked for, once for each way to count.
        """
        if takes_energies(instrument.detector):
            return None, NOTE
        why_not, note = held_against(instrument, plan, calibration)
        if not why_not:
            return calibration, note
        way = str(instrument.detector.chip_id()), plan.detector.mode, plan.detector.gain, plan.detector.bias_v
        if way not in self._known:
            yield from self._find_noise(instrument, plan, way)
        found = self._known.get(way)
        if found is None:
            return None
        lowest_kev = min(plan.detector.thresholds_kev)
        noisy = f" The lowest threshold, {lowest_kev:g} keV, is in it." if lowest_kev < found.noise_kev else ""
        return found.calibration, NOMINAL_NOTE.format(why_not=why_not, noise_kev=found.noise_kev, noisy=noisy)

    def _find_noise(self, instrument: Instrument, plan: Plan, way: Way) -> Generator[Progress, None, None]:
        from acquisition.calibrate.nominal import find_nominal  # heavy, as `look` is

        finding = find_nominal(instrument, plan)
        try:
            while not self._is_told.is_set():
                yield next(finding)
        except StopIteration as found:
            self._known[way] = found.value
        finally:
            finding.close()

    def _look(
        self, instrument: Instrument, plan: Plan, calibration: Calibration | None, store: FrameStore
    ) -> Generator[Progress, None, None]:
        from acquisition.live import look  # heavy, and the window is to be there first

        if calibration is None:
            tell = self._on_health or (lambda _: None)
            looking = look_by_energy(instrument.detector, plan, store.push, tell, self._note_thresholds)
        else:
            looking = look(
                instrument, plan, calibration, is_forced=True, stop=self._is_told, on_health=self._on_health,
                on_item=store.push,
            )  # fmt: skip
        try:
            for progress in looking:
                yield progress
                if self._is_told.is_set():
                    return
        finally:
            looking.close()

    def _note_thresholds(self, set_kev: tuple[float, ...]) -> None:
        """Let what is shown be called by the thresholds that a detector with its own calibration has."""
        self._set_kev = set_kev
        if set_kev != self.underway.thresholds_kev:
            self.underway = replace(self.underway, readout=replace(self.underway.readout, thresholds_kev=set_kev))

    def _take_flat(
        self, instrument: Instrument, plan: Plan, calibration: Calibration | None, n_frames: int
    ) -> Generator[Progress, None, None]:
        taken = FrameStore(most_frames=1)
        flats = msgspec.structs.replace(plan, scan=FlatsPlan(n_flats=n_frames))
        yield from self._look(instrument, flats, calibration, taken)
        picture = taken.running()
        if self._is_told.is_set():
            return
        if picture is None:
            raise DataLost("no frame of the flat came", hint="check the cable, and take it again")
        self.flat = Flat(
            rates_per_s=picture.counts.astype(np.float64) / picture.exposure_s,
            thresholds=picture.thresholds,
            thresholds_kev=self._set_kev or plan.detector.thresholds_kev,
            n_frames=picture.n_frames,
            calibration=calibration,
            tube_kvp=None if calibration is None else plan.source.kvp,
            current_ma=None if calibration is None else plan.source.current_ma,
            origin=f"the flat of {datetime.now().astimezone():%H:%M}",
        )


def held_against(instrument: Instrument, plan: Plan, calibration: Calibration | None) -> tuple[str, str]:
    """Return why a live view cannot use a calibration, and what is to be known of it where it can; empty: nothing."""
    from acquisition.calibrate.exposures import wanted_conditions
    from calibration.conditions import differences

    if not hasattr(instrument.detector, "info"):
        raise WrongUsage(
            "a live view needs a board of ours; this detector is driven by its own program",
            hint="start its live view there, and scan here",
        )
    if calibration is None:
        return "There is no calibration", ""
    now, was = wanted_conditions(instrument.detector, plan), calibration.conditions
    told = "; ".join(differences(was, now))
    if (was.chip_id, was.mode, was.gain) != (now.chip_id, now.mode, now.gain):
        return f"The calibration is of another kind ({told})", ""
    return "", f"The calibration may not hold: {told}." if told else ""
