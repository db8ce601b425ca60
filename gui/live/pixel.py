"""All that is known of one pixel, and the mask that a person edits: on the calibration, without a window.

# Ref: one mask switches off both thresholds of a chip pixel: `acquisition.calibrate.exposures.matrix`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gui.live.frames import Picture

if TYPE_CHECKING:
    from calibration.store import Calibration

REASONS = {
    "DEAD": "dead: counts nothing",
    "NOISY": "noisy: counts in the dark",
    "UNDER": "counts far less than its neighbours",
    "OVER": "counts far more than its neighbours",
    "TELEGRAPH": "unsteady: its level jumps",
    "OUT_OF_TRIM": "no trim brings its threshold to the others'",
    "NO_EDGE": "its noise was not found",
    "MASKED": "switched off in the chip",
    "HOT": "hot: counts all the time",
    "EDGE": "at the sensor's edge (used as it is)",
    "MASKED_NEIGHBOUR": "beside one that is off (used as it is)",
}
"""Of every bit of `calibration.pixels.PixelClass`, by its name, in plain words."""
STEP = "mask by hand"


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelReport:
    """What is known of one pixel.

    Attributes
    ----------
    thresholds : tuple of int
    counts : tuple of float
        Of each counter that is read; those of an average are no whole numbers.
    trims : tuple of int
        Of the same thresholds; empty without a calibration of these pixels.
    reasons : tuple of str
        Why the pixel is not a good one.
    """

    row: int
    col: int
    thresholds: tuple[int, ...]
    counts: tuple[float, ...]
    trims: tuple[int, ...] = ()
    is_masked: bool = False
    is_unusable: bool = False
    reasons: tuple[str, ...] = ()

    def lines(self, thresholds_kev: tuple[float, ...] = ()) -> list[tuple[str, str]]:
        """Return it as names and values for people."""
        named = [
            (f"above {kev:g} keV" if math.isfinite(kev) else f"counter {place}", _number(count))
            for place, (count, kev) in enumerate(zip(self.counts, _known(thresholds_kev, self.counts), strict=True), 1)
        ]
        trims = ", ".join(map(str, self.trims)) if self.trims else "not known"
        state = "masked" if self.is_masked else "not to be used" if self.is_unusable else "counts"
        return [
            ("pixel", f"column {self.col}, row {self.row}"),
            *named,
            ("trim", trims),
            ("state", state),
            ("why", "; ".join(self.reasons) or "a good pixel, or not judged yet"),
        ]


def inspect(picture: Picture, row: int, col: int, calibration: Calibration | None) -> PixelReport:
    """Return what is known of a pixel; a calibration of another mode than the picture's tells nothing of it."""
    counts = tuple(picture.counts[:, row, col].tolist())
    report = PixelReport(row=row, col=col, thresholds=picture.thresholds, counts=counts)
    if calibration is None or not fits(calibration, picture.counts.shape[1:]):
        return report
    from calibration.pixels import PixelClass, is_unusable  # heavy, and there already with a calibration

    bits = PixelClass(int(calibration.pixel_class[row, col]))
    return replace(
        report,
        trims=tuple(int(calibration.trim[number, row, col]) for number in picture.thresholds),
        is_masked=bool(calibration.is_masked[:, row, col].any()),
        is_unusable=bool(is_unusable(calibration.pixel_class[row : row + 1, col])[0]),
        reasons=tuple(text for name, text in REASONS.items() if bits & PixelClass[name]),
    )


def fits(calibration: Calibration, shape: tuple[int, ...]) -> bool:
    """Return whether a calibration has these rows and columns."""
    return calibration.pixel_class.shape == tuple(shape)


def masked(calibration: Calibration) -> NDArray[np.bool_]:
    """Return which pixels are switched off in any of their thresholds: (rows, cols) bool."""
    return np.asarray(calibration.is_masked.any(axis=0))


def painted(
    mask: NDArray[np.bool_], rows: tuple[int, int], cols: tuple[int, int], *, is_masked: bool
) -> NDArray[np.bool_]:
    """Return a mask in which a rectangle of pixels, both ends of it included, is switched off or on."""
    edited = mask.copy()
    low_row, high_row = sorted(rows)
    low_col, high_col = sorted(cols)
    edited[max(low_row, 0) : max(high_row + 1, 0), max(low_col, 0) : max(high_col + 1, 0)] = is_masked
    return edited


def with_mask(calibration: Calibration, mask: NDArray[np.bool_]) -> Calibration:
    """Return a calibration with this mask; its history tells that a person changed it.

    A pixel that is switched off is so in all its thresholds, one that was off and stays so keeps which of them were.
    """
    from calibration.conditions import StepRecord
    from calibration.pixels import PixelClass
    from calibration.store import software_version

    before = masked(calibration)
    if mask.shape != before.shape:
        raise ValueError(f"the mask has shape {mask.shape}; allowed: {before.shape}, the calibration's")
    is_masked = (calibration.is_masked & mask) | (mask & ~before)
    bit = np.uint16(PixelClass.MASKED)
    pixel_class = np.where(mask, calibration.pixel_class | bit, calibration.pixel_class & ~bit).astype(np.uint16)
    now = calibration.conditions
    record = StepRecord(
        step=STEP,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        software=software_version(),
        mode=now.mode,
        gain=now.gain,
        bias_v=now.bias_v,
        temperature_k=math.nan if now.temperature_k is None else now.temperature_k,
    )
    return replace(
        calibration, is_masked=is_masked, pixel_class=pixel_class, history=(*calibration.history, record)
    )  # fmt: skip


def _number(count: float) -> str:
    return (f"{count:,}" if count == int(count) else f"{count:,.1f}").replace(",", " ")


def _known(thresholds_kev: tuple[float, ...], counts: tuple[float, ...]) -> tuple[float, ...]:
    return thresholds_kev if len(thresholds_kev) == len(counts) else (math.nan,) * len(counts)
