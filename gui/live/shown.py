"""What a live view shows of what is in its store, and how it is called: without a window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from firmware_iface.frame import Frame, Lost
from gui.live.frames import FrameStore, Picture, picture_of
from gui.live.measures import Flat, Kind, Selection, bins, composite, flattened, select, transmission

if TYPE_CHECKING:
    from calibration.store import Calibration


class Source(Enum):
    """Which frames are shown; the value says it in words."""

    NEWEST = "newest frame"
    LAST = "sum of the last"
    RUNNING = "sum of all"
    AVERAGE = "average of all"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is to be shown.

    Attributes
    ----------
    n_last : int
        Frames of Source.LAST.
    again : Frame, Lost or None
        What came earlier and is looked at again; None: what comes.
    """

    source: Source = Source.NEWEST
    n_last: int = 10
    selection: Selection = field(default_factory=Selection)
    is_flat: bool = False
    again: Frame | Lost | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shown:
    """What is shown.

    Attributes
    ----------
    picture : Picture
        Counts of all thresholds, for whatever is asked of them.
    image : (rows, cols) number or (rows, cols, 3) uint8
        NaN everywhere where a frame was lost.
    unit : str
    lost : Lost or None
        What is missing at this place.
    flat : Flat or None
        By which it was divided.
    colour_counts : tuple of (dark, full)
        Of each bin in an image of counts in colours; else empty.
    note : str
        What keeps the flat field from being used, if anything does.
    """

    picture: Picture
    image: NDArray[np.number]
    unit: str
    lost: Lost | None = None
    flat: Flat | None = None
    colour_counts: tuple[tuple[float, float], ...] = ()
    note: str = ""

    @property
    def is_colour(self) -> bool:
        """Whether the image has colours of its own."""
        return self.image.ndim == 3


def taken(store: FrameStore, view: View) -> tuple[Picture | None, Lost | None]:
    """Return the frames that are shown, summed or averaged, and what is missing in their place."""
    if isinstance(view.again, Frame):
        return picture_of(view.again), None
    if view.again is not None:
        return store.newest(), view.again
    if view.source is Source.NEWEST:
        return store.newest(), None
    if view.source is Source.LAST:
        return store.last(view.n_last), None
    total = store.running()
    return (average(total) if total is not None and view.source is Source.AVERAGE else total), None


def average(total: Picture) -> Picture:
    """Return the mean frame of a sum: its counts are fractions."""
    n = total.n_frames
    return replace(total, counts=total.counts / n, exposure_s=total.exposure_s / n, n_frames=1)


def show(
    picture: Picture,
    view: View,
    flats: Sequence[Flat] = (),
    lost: Lost | None = None,
    *,
    thresholds_kev: tuple[float, ...] | None = None,
    tube: tuple[float, float] | None = None,
    colour_counts: Sequence[tuple[float, float]] = (),
) -> Shown:
    """Make the image of frames that were taken, with these thresholds and this tube where they are known.

    Parameters
    ----------
    flats : sequence of Flat
        The first that fits the frames is used.
    colour_counts : sequence of (dark, full)
        Of each bin, for counts in colours; by default those of `composite`.
    """
    if lost is not None:
        nothing = np.full(picture.counts.shape[1:], np.nan, dtype=np.float32)
        return Shown(picture=picture, image=nothing, unit="counts", lost=lost)
    unit = "counts per frame" if np.issubdtype(picture.counts.dtype, np.floating) else "counts"
    selection = within(view.selection, len(picture.counts))
    note = ""
    if view.is_flat:
        reasons = [why_no_flat(picture, flat, thresholds_kev, tube) for flat in flats]
        if "" in reasons:
            flat = flats[reasons.index("")]
            return Shown(
                picture=picture, image=_flat_image(picture, flat, selection), unit="share of open beam", flat=flat
            )
        note = reasons[0] if reasons else "No flat was taken yet, and the calibration holds none."
    if selection.kind is Kind.COMPOSITE:
        image, used = composite(bins(picture.counts), colour_counts or None)
        return Shown(picture=picture, image=image, unit=unit, note=note, colour_counts=tuple(used))
    return Shown(picture=picture, image=select(picture.counts, selection), unit=unit, note=note)


def why_no_flat(
    picture: Picture,
    flat: Flat,
    thresholds_kev: tuple[float, ...] | None = None,
    tube: tuple[float, float] | None = None,
) -> str:
    """Return why frames cannot be divided by a flat; empty where they can."""
    if flat.rates_per_s.shape != picture.counts.shape or flat.thresholds != picture.thresholds:
        return "The flat is of another mode; take one anew."
    if thresholds_kev not in (None, flat.thresholds_kev):
        return "The flat was taken with other thresholds; take one anew."
    if tube is not None and flat.tube_kvp is not None and tube != (flat.tube_kvp, flat.current_ma):
        return (
            f"The flat was taken with the tube at {flat.tube_kvp:g} kV and {flat.current_ma:g} mA, now it is "
            f"{tube[0]:g} kV and {tube[1]:g} mA; take one anew."
        )
    return ""


def flat_of(calibration: Calibration | None) -> Flat | None:
    """Return the flat that a calibration holds; None where it holds none."""
    kept = calibration.flat_field if calibration is not None else None
    if calibration is None or kept is None:
        return None
    made = [record.created for record in calibration.history if record.step == "pixels"]
    return Flat(
        rates_per_s=kept.rates_per_s,
        thresholds=kept.thresholds,
        thresholds_kev=kept.thresholds_kev,
        n_frames=kept.n_frames,
        calibration=calibration,
        tube_kvp=kept.tube_kvp,
        current_ma=kept.current_ma,
        origin=f"the calibration's flat, {made[-1][:16].replace('T', ' ')} UTC" if made else "the calibration's flat",
    )


def count_alike(one: Calibration | None, other: Calibration | None) -> bool:
    """Whether thresholds stand at the same codes by two calibrations, so that a flat with one holds with the other."""
    if one is other or one is None or other is None:
        return one is other
    return (
        one.conditions.mode == other.conditions.mode
        and one.gain == other.gain
        and np.array_equal(one.offset_dac, other.offset_dac)
        and np.array_equal(one.gain_dac_per_kev, other.gain_dac_per_kev)
        and np.array_equal(one.trim, other.trim)
    )


def within(selection: Selection, n_counters: int) -> Selection:
    """Return a selection of counters that are there."""
    last = n_counters - 1
    return replace(selection, first=min(selection.first, last), second=min(selection.second, last))


def name_of(selection: Selection, thresholds_kev: tuple[float, ...]) -> str:
    """Return what a selection is called."""
    if not all(map(math.isfinite, thresholds_kev)):
        return name_by_number(within(selection, len(thresholds_kev)), len(thresholds_kev))
    kev = [f"{energy:g}" for energy in thresholds_kev]
    selection = within(selection, len(kev))
    first, second = kev[selection.first], kev[selection.second]
    if selection.kind is Kind.COMPOSITE:
        return "colours of all bins"
    if selection.kind is Kind.DIFFERENCE:
        return f"above {first} keV minus above {second} keV"
    if selection.kind is Kind.BIN and selection.first + 1 < len(kev):
        return f"bin {first} to {kev[selection.first + 1]} keV"
    return f"bin above {first} keV" if selection.kind is Kind.BIN else f"above {first} keV"


def energy_name(energy_kev: float, place: int) -> str:
    """Return what a threshold is called: by its energy, or its place where that is not known."""
    return f"{energy_kev:g} keV" if math.isfinite(energy_kev) else f"counter {place + 1}"


def name_by_number(selection: Selection, n_counters: int) -> str:
    """Return what a selection is called where nobody knows the energies."""
    first, second = selection.first + 1, selection.second + 1
    if selection.kind is Kind.COMPOSITE:
        return "colours of all bins"
    if selection.kind is Kind.DIFFERENCE:
        return f"counter {first} minus counter {second}"
    if selection.kind is Kind.BIN and first < n_counters:
        return f"counter {first} minus the next"
    return f"counter {first}"


def side_by_side(shown: Shown, kind: Kind) -> NDArray[np.number]:
    """Return all thresholds, or all bins, of what is shown, divided by the flat where that is: (n, rows, cols).

    NaN everywhere where a frame was lost.
    """
    counts = shown.picture.counts
    if shown.lost is not None:
        return np.full(counts.shape, np.nan, dtype=np.float32)
    if shown.flat is not None:
        return _flat_planes(shown.picture, shown.flat, kind)
    return bins(counts) if kind is Kind.BIN else counts


def _flat_image(picture: Picture, flat: Flat, selection: Selection) -> NDArray[np.number]:
    if selection.kind is not Kind.COMPOSITE:
        return flattened(picture.counts, picture.exposure_s, flat, selection)
    planes = _flat_planes(picture, flat, Kind.BIN)
    return composite(planes, [(0.0, 1.05)] * len(planes))[0]


def _flat_planes(picture: Picture, flat: Flat, kind: Kind) -> NDArray[np.number]:
    if kind is Kind.THRESHOLD:
        return transmission(picture.counts, picture.exposure_s, flat)
    return np.stack(
        [
            flattened(picture.counts, picture.exposure_s, flat, Selection(kind=kind, first=n))
            for n in range(len(picture.counts))
        ]
    )
