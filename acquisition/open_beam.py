"""What the views of a scan are divided by where it took no flats: the flat field of its calibration, if that fits.

# Ref: the response of CdTe drifts (reference on spectral CT, section 5), so flats of a scan's own come first; without
#      them, what has drifted since the calibration stays in the picture as rings.
"""

from __future__ import annotations

import math

from acquisition.plan import Plan
from acquisition.scan_plan import Turning
from calibration.conditions import Conditions, differences
from calibration.flat_field import FlatField
from calibration.store import Calibration

SAME_RATIO = 1e-6
"""Settings of a plan are typed, and are the same or not."""


def takes_flats(plan: Plan) -> bool:
    """Whether a scan around a sample takes flats of its own; one that does not turn needs none."""
    return not isinstance(plan.scan, Turning) or plan.scan.n_flats > 0


def flat_misfits(
    plan: Plan,
    calibration: Calibration | None,
    thresholds_kev: tuple[float, ...],
    sensor_k: float | None = None,
) -> tuple[str, ...]:
    """Tell in words why views of a plan cannot be divided by a calibration's flat field; nothing where they can.

    The exposure need not be the same: the flat field holds counts per second.

    Parameters
    ----------
    thresholds_kev : tuple of float
        Of the pass that is meant.
    sensor_k : float, optional
        How warm the sensor is, or was; None: not known.
    """
    if calibration is None:
        return ("no calibration is kept",)
    flat = calibration.flat_field
    if flat is None:
        return ("the calibration keeps no flat field",)
    detector, source = plan.detector, plan.source
    wanted = Conditions(
        chip_id=calibration.chip_id,
        gain=detector.gain,
        is_csm=detector.is_csm,
        is_colour=detector.is_colour,
        bias_v=detector.bias_v,
        temperature_k=sensor_k,
    )
    told = [
        *differences(calibration.conditions, wanted),
        *(
            f"{what} {was}, now {now}"
            for what, was, now in (
                ("image", _size(flat), f"{plan.geometry.rows} x {plan.geometry.cols}"),
                ("thresholds", _listed(flat.thresholds), _listed(detector.thresholds)),
            )
            if was != now
        ),
        *(
            f"{what} {_listed(was)} {unit}, now {_listed(now)} {unit}"
            for what, was, now, unit in (
                ("thresholds at", flat.thresholds_kev, thresholds_kev, "keV"),
                ("tube at", (flat.tube_kvp,), (source.kvp,), "kV"),
                ("tube at", (flat.current_ma,), (source.current_ma,), "mA"),
            )
            if not _are_same(was, now)
        ),
    ]
    shifts_mm = plan.scan.shifts_mm if isinstance(plan.scan, Turning) else (0.0,)
    if shifts_mm != (0.0,):
        told.append(f"camera at 0 mm, now at {_listed(shifts_mm)} mm")
    return tuple(told)


def told_of_flat(calibration: Calibration) -> str:
    """Return which flat field it is, in words: whose, when it was taken, and how many frames it is of."""
    flat = calibration.flat_field
    assert flat is not None, "asked for before"
    made = [record.created for record in calibration.history if record.step == "pixels"]
    when = f" of {made[-1][:16].replace('T', ' ')} UTC" if made else ""
    return f"the flat field{when} in calibration {calibration.identity} ({flat.n_frames} frames)"


def _size(flat: FlatField) -> str:
    return " x ".join(map(str, flat.rates_per_s.shape[1:]))


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _are_same(was: tuple[float, ...], now: tuple[float, ...]) -> bool:
    return len(was) == len(now) and all(
        math.isclose(left, right, rel_tol=SAME_RATIO) for left, right in zip(was, now, strict=True)
    )
