"""Which options of ``mpxct decompose`` belong to which kind of work: what would be ignored is refused instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import typer

from firmware_iface.errors import WrongUsage
from reconstruction.stated_options import option_of, stated

IMAGES, VOLUMES = "folders of images", "volume files"
BINS_OF_SCANS, COUNTS = "scans (--tier image)", "scans (--tier projection, onestep)"
_SCANS = (BINS_OF_SCANS, COUNTS)
_BINS = (IMAGES, VOLUMES, BINS_OF_SCANS)
LEAST_SQUARES, NON_NEGATIVE, FRACTIONS, EXCLUSIVE, MIN_RESIDUAL = (
    "least-squares",
    "non-negative",
    "fractions",
    "exclusive",
    "min-residual",
)
OF_KINDS: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(
        (
            "matrix", "vials", "water_mm", "flatten", "rule", "non_negative", "weighted", "densities", "full",
            "subsets", "significance", "false_alarm", "angle_deg", "air_per_mm", "field", "agents",
        ),
        _BINS,
    ),
    "scale": (IMAGES,),
    "voxel_mm": (IMAGES, *_SCANS),
    **dict.fromkeys(
        (
            "calibration", "window", "roi", "preview", "pass_number", "allow_partial", "gpu", "scatter", "rings",
            "metal_per_mm", "truncation", "bins",
        ),
        _SCANS,
    ),
    **dict.fromkeys(("prior", "strength", "iterations", "model", "fit"), (COUNTS,)),
}  # fmt: skip
"""By the names of the command's parameters; what is not named belongs to all."""
OF_RULES: Mapping[str, Sequence[str]] = {
    "densities": (FRACTIONS,),
    "full": (FRACTIONS,),
    "subsets": (EXCLUSIVE, MIN_RESIDUAL),
    "significance": (EXCLUSIVE,),
    "false_alarm": (EXCLUSIVE,),
    "angle_deg": (EXCLUSIVE, MIN_RESIDUAL),
    "air_per_mm": (EXCLUSIVE, MIN_RESIDUAL),
    "field": (EXCLUSIVE, MIN_RESIDUAL),
    "non_negative": (LEAST_SQUARES, NON_NEGATIVE),
}


def refuse_what_is_unused(ctx: typer.Context, kind: str, rule: str) -> None:
    """Refuse options on the command line that this kind of work, or this rule, does not look at."""
    for name in stated(ctx, OF_KINDS):
        if kind not in OF_KINDS[name]:
            raise WrongUsage(f"{_option(name)} does nothing with {kind}; allowed: with {' or '.join(OF_KINDS[name])}")
    for name in stated(ctx, OF_RULES) if kind != COUNTS else ():
        if rule not in OF_RULES[name]:
            raise WrongUsage(
                f"{_option(name)} does nothing with --rule {rule}; allowed: with --rule {' or '.join(OF_RULES[name])}"
            )
    if kind == COUNTS and not ctx.params.get("prior") and ctx.params.get("tier") == "projection":
        for name in stated(ctx, ("strength", "iterations")):
            raise WrongUsage(
                f"{_option(name)} does nothing without a prior: paths are back-projected; allowed: with --prior"
            )
    if kind in _BINS and not ctx.params.get("response"):
        for name in stated(ctx, ("water_mm", "materials")):
            raise WrongUsage(
                f"{_option(name)} does nothing without a response; allowed: with --response",
                hint="give --response, or choose what voxels may hold with --rule exclusive --subsets",
            )


def _option(name: str) -> str:
    return option_of("pass" if name == "pass_number" else name)
