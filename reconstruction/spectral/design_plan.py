"""A design as a scan plan: the settings that a plan has, in exposures that no counter overflows in."""

from __future__ import annotations

import math

import msgspec

from acquisition.plan import Plan, passes_kev, plan_to_toml, refuse_foreign_pixels
from acquisition.scan_plan import Turning
from firmware_iface.errors import WrongUsage
from reconstruction.spectral.design import Design

FILLED_SHARE = 0.75
"""Of a counter, by the open beam in one exposure."""
DIGITS = 4


def n_views(plan: Plan) -> int:
    """Return the number of views of a plan."""
    return _turning(plan).views


def charge_mas(plan: Plan) -> float:
    """Return the charge of all views of a plan, in all its passes."""
    scan = _turning(plan)
    exposures_s = plan.detector.exposure_s * plan.detector.accumulate * scan.frames_of_view
    return scan.views * len(passes_kev(plan)) * exposures_s * plan.source.current_ma


def plan_of(design: Design, base: Plan) -> Plan:
    """Return a plan with the settings of a design; what a design does not say is the base's.

    Each frame is a sum of exposures, each as long as fills the lowest counter to FILLED_SHARE by the open beam.
    """
    scan = _turning(base)
    frame_s = design.view_s / len(design.passes_kev) / scan.frames_of_view
    lowest_kev = min(one[0] for one in design.passes_kev)
    longest_s = FILLED_SHARE * (2**base.detector.depth_bits - 1) / design.open_rate_per_s
    accumulate = max(math.ceil(frame_s / longest_s), 1)
    plan = msgspec.structs.replace(
        base,
        detector=msgspec.structs.replace(
            base.detector,
            thresholds_kev=design.passes_kev[0],
            arbitration_kev=min(base.detector.arbitration_kev, lowest_kev),
            exposure_s=_rounded(frame_s / accumulate),
            accumulate=accumulate,
        ),
        source=msgspec.structs.replace(base.source, kvp=design.beam.kvp, current_ma=_rounded(design.current_ma)),
        scan=msgspec.structs.replace(scan, passes_kev=design.passes_kev if len(design.passes_kev) > 1 else ()),
    )
    refuse_foreign_pixels(plan)
    return plan


def design_to_toml(design: Design, base: Plan) -> str:
    """Return the plan of a design as text; what a plan has no key for stands above it."""
    filters = ", ".join(f"{mm:g} mm {name}" for name, mm in design.beam.filters_mm.items() if mm)
    head = (
        f"# mpxct design: {design.beam.kvp:g} kVp behind {filters or 'no filter'} (a plan cannot set filters),\n"
        f"# {design.dose_mgy:.3g} mGy in the sample, {design.kerma_mgy:.3g} mGy of air kerma on the axis.\n\n"
    )
    return head + plan_to_toml(plan_of(design, base))


def _turning(plan: Plan) -> Turning:
    if not isinstance(plan.scan, Turning):
        raise WrongUsage(
            f"a scan of kind {plan.scan.kind!r} has no views around a sample; allowed: circular, continuous, helical"
        )
    return plan.scan


def _rounded(value: float) -> float:
    """Return a number with few digits, as people write it."""
    return float(f"{value:.{DIGITS}g}")
