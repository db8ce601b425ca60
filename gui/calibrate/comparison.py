"""Two calibrations beside each other: in a table, in sentences, in plots; and many over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from calibration.conditions import differences
from calibration.equalisation import mean_and_sigma
from calibration.store import Calibration
from gui.calibrate.dates import when
from gui.calibrate.panels import Chart, Line, Panel, Picture, Style, ends_for, histogram, line
from gui.calibrate.results import TRIM_ENDS, geometry_rows, used_thresholds
from gui.calibrate.sequence import TITLES

ZERO_C_K = 273.15
MASK_WORDS = ("good in both", "bad in both", "bad only before", "bad only after")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: a quantity with its unit, in both, and what that means."""

    quantity: str
    before: str
    after: str
    change: str = ""


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:{form}}"


def _numbers(quantity: str, before: float | None, after: float | None, form: str, unit: str) -> Row:
    change = ""
    if before is not None and after is not None and math.isfinite(before) and math.isfinite(after):
        is_same = _number(before, form) == _number(after, form)
        change = "the same" if is_same else f"{after - before:+{form}} {unit}".strip()
    name = f"{quantity}, {unit}" if unit else quantity
    return Row(quantity=name, before=_number(before, form), after=_number(after, form), change=change)


def sigma_kev(calibration: Calibration) -> float:
    """Return the spread of the equalised thresholds over the pixels, on the energy scale there is (nominal or not)."""
    numbers = used_thresholds(calibration)
    if not numbers:
        return math.nan
    spreads = [
        mean_and_sigma(calibration.edges_after_dac[n])[1] / float(calibration.gain_dac_per_kev[n]) for n in numbers
    ]
    return float(np.sqrt(np.mean(np.square(spreads))))


def mean_gain(calibration: Calibration) -> float:
    """Return the mean gain in DAC codes per keV of the thresholds that were measured; NaN before any was."""
    numbers = sorted({each.threshold for each in calibration.lines})
    return float(calibration.gain_dac_per_kev[numbers].mean()) if numbers else math.nan


def mean_offset(calibration: Calibration) -> float:
    """Return the mean offset in DAC codes of the thresholds that were measured; NaN before any was."""
    numbers = sorted({each.threshold for each in calibration.lines})
    return float(calibration.offset_dac[numbers].mean()) if numbers else math.nan


def n_bad(calibration: Calibration) -> int:
    """Return how many pixels are not used."""
    return int(np.count_nonzero(calibration.is_bad))


def table(before: Calibration | None, after: Calibration) -> list[Row]:
    """Tell what two calibrations hold, line by line; without one before, what the other holds."""
    rows = [
        Row(quantity="made", before=when(made(before)) if before else "-", after=when(made(after))),
        _texts("chip", before and before.chip_id, after.chip_id),
        _texts("mode, gain", before and _mode(before), _mode(after)),
        _numbers("bias", before and before.bias_v, after.bias_v, ".0f", "V"),
        _numbers("sensor", _celsius(before), _celsius(after), ".1f", "\N{DEGREE SIGN}C"),
        _texts("steps", before and ", ".join(_steps(before)), ", ".join(_steps(after))),
        _numbers("spread of the thresholds (sigma)", before and sigma_kev(before), sigma_kev(after), ".3f", "keV"),
        _numbers("target of the equalisation", before and before.target_dac, after.target_dac, ".0f", "DAC code"),
        _numbers("gain", before and mean_gain(before), mean_gain(after), ".4f", "DAC code/keV"),
        _numbers("offset", before and mean_offset(before), mean_offset(after), ".2f", "DAC code"),
        _numbers("residuals (rms)", before and before.residual_rms_kev, after.residual_rms_kev, ".3f", "keV"),
        _numbers("end of the tube's spectrum off by", _end(before), _end(after), ".2f", "keV"),
        _numbers("pixels not used", before and n_bad(before), n_bad(after), ".0f", ""),
        _numbers("open beam", _open_beam(before), _open_beam(after), ".4g", "1/s"),
        _numbers("differences between pixels", _pattern(before), _pattern(after), ".2f", "%"),
        _numbers("10 % of counts lost at", _loss(before), _loss(after), ".0f", "1/s"),
        _texts("materials", before and _materials(before), _materials(after)),
        _numbers("residual of the geometry (rms)", _rest(before), _rest(after), ".3f", "pixels"),
    ]  # fmt: skip
    was, now = (geometry_rows(each)[0] if each is not None else {} for each in (before, after))
    rows += [Row(quantity=name, before=was.get(name, "-"), after=now.get(name, "-")) for name in {**was, **now}]
    return [row for row in rows if {row.before, row.after} != {"-"}]


def _texts(quantity: str, before: str | None, after: str) -> Row:
    change = "" if before is None else "the same" if before == after else "differs"
    return Row(quantity=quantity, before=before or "-", after=after or "-", change=change)


def _mode(calibration: Calibration) -> str:
    return f"{calibration.conditions.mode}, {calibration.gain}"


def _steps(calibration: Calibration) -> list[str]:
    """Return the titles of the steps that were done, in their order; of a step of another version, its name."""
    return [TITLES.get(name, name) for name in dict.fromkeys(record.step for record in calibration.history)]


def _celsius(calibration: Calibration | None) -> float | None:
    if calibration is None or calibration.temperature_k is None:
        return None
    return calibration.temperature_k - ZERO_C_K


def _end(calibration: Calibration | None) -> float | None:
    return calibration.end_point.error_kev if calibration is not None and calibration.end_point is not None else None


def _open_beam(calibration: Calibration | None) -> float | None:
    """Return what the mean pixel counts of the open beam above the lowest threshold."""
    if calibration is None or calibration.flat_field is None:
        return None
    return calibration.flat_field.evenness(calibration.is_bad)[0].mean_per_s


def _pattern(calibration: Calibration | None) -> float | None:
    """Return how far pixels stand apart under the open beam, above the lowest threshold, beyond what counting makes."""
    if calibration is None or calibration.flat_field is None:
        return None
    return 100 * calibration.flat_field.evenness(calibration.is_bad)[0].pattern_ratio


def _loss(calibration: Calibration | None) -> float | None:
    if calibration is None or calibration.count_rate is None:
        return None
    return calibration.count_rate.rate_at_loss_per_s(0.1)


def _materials(calibration: Calibration) -> str:
    return ", ".join(calibration.basis.materials) if calibration.basis is not None else ""


def _rest(calibration: Calibration | None) -> float | None:
    return calibration.alignment.residual_rms_px if calibration is not None and calibration.alignment else None


def sentences(before: Calibration | None, after: Calibration) -> list[str]:
    """Tell in words what is better, worse or other than before; the most important first."""
    if before is None:
        told = [f"{n_bad(after)} of {after.is_bad.size} pixels are not used."]
        spread = sigma_kev(after)
        if math.isfinite(spread):
            told.insert(0, f"The thresholds of the pixels stand within {spread:.2f} keV (sigma).")
        return ["There is no calibration to compare with.", *told]
    told = [f"Made under other conditions: {each}." for each in differences(before.conditions, after.conditions)]
    was, now = sigma_kev(before), sigma_kev(after)
    if math.isfinite(was) and math.isfinite(now) and abs(now - was) >= 0.005:
        told.append(f"The thresholds of the pixels stand {_closer(now < was)}: sigma {now:.2f} keV, was {was:.2f} keV.")
    bad_was, bad_now = n_bad(before), n_bad(after)
    if bad_was != bad_now:
        apart, more = abs(bad_now - bad_was), "more" if bad_now > bad_was else "fewer"
        pixels_are = "pixel is" if apart == 1 else "pixels are"
        told.append(f"{apart} {more} {pixels_are} not used: {bad_now}, before {bad_was}.")
    gain_was, gain_now = mean_gain(before), mean_gain(after)
    if math.isfinite(gain_was) and math.isfinite(gain_now) and gain_was != gain_now:
        told.append(f"The gain changed by {100 * (gain_now / gain_was - 1):+.2f} % to {gain_now:.3f} codes a keV.")
    moved = _moved_kev(before, after)
    if moved is not None:
        told.append(f"By the new scale, thresholds that the old one put to 30 keV stood at {30 + moved:.2f} keV.")
    if before.lines and after.lines and before.residual_rms_kev != after.residual_rms_kev:
        told.append(
            f"The lines of the sources agree to {after.residual_rms_kev:.3f} keV rms, "
            f"before to {before.residual_rms_kev:.3f} keV."
        )
    steps_was, steps_now = _steps(before), _steps(after)
    if more := [step for step in steps_now if step not in steps_was]:
        told.append(f"It has in addition: {', '.join(more)}.")
    if gone := [step for step in steps_was if step not in steps_now]:
        told.append(f"It lacks what the one before has: {', '.join(gone)}.")
    return told or ["Both say the same."]


def _closer(is_closer: bool) -> str:
    return "closer together" if is_closer else "further apart"


def _moved_kev(before: Calibration, after: Calibration) -> float | None:
    """Return how far from 30 keV, on the scale after, the codes stand that the calibration before puts there."""
    numbers = sorted({each.threshold for each in before.lines} & {each.threshold for each in after.lines})
    if not numbers:
        return None
    codes = before.offset_dac[numbers] + 30.0 * before.gain_dac_per_kev[numbers]
    stands = (codes - after.offset_dac[numbers]) / after.gain_dac_per_kev[numbers]
    moved = float(stands.mean() - 30.0)
    return moved if abs(moved) >= 0.005 else None


def comparison_panels(before: Calibration, after: Calibration) -> list[Panel]:
    """Return the plots of two calibrations: trims, edges, gains, masks; what cannot be compared is left out."""
    panels: list[Panel] = []
    if before.trim.shape == after.trim.shape:
        panels += _same_chip_panels(before, after)
    numbers = [n for n in used_thresholds(after) if n < len(before.gain_dac_per_kev)]
    if numbers and before.lines and after.lines:
        at = np.arange(len(numbers))
        panels.append(
            Chart(
                title="Gain of each threshold", x_label="", y_label="DAC code/keV",
                lines=(
                    line("before", at, before.gain_dac_per_kev[numbers], style=Style.DOTS, series=-1),
                    line("after", at, after.gain_dac_per_kev[numbers], style=Style.DOTS, series=0),
                ),
                x_names=tuple(f"threshold {n}" for n in numbers),
            )
        )  # fmt: skip
    return panels


def _same_chip_panels(before: Calibration, after: Calibration) -> list[Panel]:
    numbers = used_thresholds(after)[:1] or [0]
    first = numbers[0]
    moved = after.trim.astype(int) - before.trim
    edges = after.edges_after_dac - before.edges_after_dac
    shown = [n for n in used_thresholds(after) if np.isfinite(edges[n]).any()][:4]
    panels: list[Panel] = [
        Chart(
            title=f"Trims of threshold {first}", x_label="trim code", y_label="pixels",
            lines=(
                histogram("before", before.trim[first], TRIM_ENDS, series=-1),
                histogram("after", after.trim[first], TRIM_ENDS, series=0),
            ),
            note=f"{np.count_nonzero(moved[first])} of {moved[first].size} pixels have another trim",
        ),
        _masks(before.is_bad, after.is_bad),
    ]  # fmt: skip
    if shown:
        ends = ends_for([edges[n] for n in shown])
        lines = tuple(histogram(f"threshold {n}", edges[n], ends, series=k) for k, n in enumerate(shown))
        panels.append(
            Chart(title="How far edges moved", x_label="after minus before, DAC code", y_label="pixels", lines=lines)
        )
    if before.pixel_scale is not None and after.pixel_scale is not None:
        gains = after.pixel_scale.gain_dac_per_kev / before.pixel_scale.gain_dac_per_kev - 1
        known = [n for n in used_thresholds(after) if np.isfinite(gains[n]).any()][:4]
        if known:
            ends = 100 * ends_for([gains[n] for n in known])
            lines = tuple(histogram(f"threshold {n}", 100 * gains[n], ends, series=k) for k, n in enumerate(known))
            panels.append(
                Chart(title="How gains of pixels changed", x_label="change, %", y_label="pixels", lines=lines)
            )
    return panels


def _masks(was: NDArray[np.bool_], now: NDArray[np.bool_]) -> Picture:
    kinds = np.select([was & now, was, now], [1, 2, 3], 0).astype(np.uint8)
    words = tuple(f"{text} ({np.count_nonzero(kinds == kind)})" for kind, text in enumerate(MASK_WORDS))
    return Picture(title="Pixels not used", image=kinds, unit="", levels=np.array([0.0, 3.0]), words=words)


def drift_panels(calibrations: Sequence[Calibration]) -> list[Panel]:
    """Return how calibrations of one chip and mode changed over time, in days before the newest."""
    known = [(_date(each), each) for each in calibrations]
    dated = sorted(((date, each) for date, each in known if date is not None), key=lambda pair: pair[0])
    if len(dated) < 2:
        return []
    newest = dated[-1][0]
    days = np.array([(date - newest) / 86400 for date, _ in dated])

    def chart(title: str, unit: str, values: Sequence[float | None]) -> Chart:
        numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        lines: tuple[Line, ...] = (
            line("", days, numbers, series=0),
            line("", days, numbers, style=Style.DOTS, series=0),
        )
        return Chart(title=title, x_label="days before the newest", y_label=unit, lines=lines)

    each = [calibration for _, calibration in dated]
    charts = [
        chart("Spread of the thresholds", "sigma, keV", [sigma_kev(c) for c in each]),
        chart("Gain", "DAC code/keV", [mean_gain(c) for c in each]),
        chart("Offset", "DAC code", [mean_offset(c) for c in each]),
        chart("Pixels not used", "pixels", [n_bad(c) for c in each]),
        chart("Sensor", "\N{DEGREE SIGN}C", [_celsius(c) for c in each]),
    ]
    return [each for each in charts if np.isfinite(each.lines[0].y).any()]


def made(calibration: Calibration) -> str:
    """Return when the newest of its steps was done, ISO 8601; when it was begun, where none was."""
    return calibration.history[-1].created if calibration.history else calibration.created


def _date(calibration: Calibration) -> float | None:
    try:
        return datetime.fromisoformat(made(calibration)).timestamp()
    except ValueError:
        return None
