"""The quality of a material volume as figures: for a script, for a terminal, and which of them to quote."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gui.reports.page import figure_of
from reconstruction.assessment import Assessment, Figures


def figures_to_quote(a: Assessment) -> Figures:
    """Return the figures to quote: at one sharpness wherever that could be reached."""
    return a.matched or a.as_it_is


def pose_in_words(a: Assessment) -> str:
    """Tell where the phantom was found."""
    if a.pose is None:
        return "positions as described"
    return (
        f"found {a.pose.x_mm:+.3f}, {a.pose.y_mm:+.3f} mm off and turned by {np.degrees(a.pose.rotation_rad):+.2f} "
        f"degrees (correlation {a.pose.correlation_ratio:.3f})"
    )


def sets_of_figures(a: Assessment) -> Sequence[tuple[str, Figures]]:
    """Name the two sets of figures, for tables that show both."""
    sets = [("as they are", a.as_it_is)]
    return sets if a.matched is None else [*sets, (f"at MTF50 {a.mtf50_per_mm:.2f} 1/mm", a.matched)]


def quality_figures(a: Assessment) -> dict[str, object]:
    """Return everything for a script: `as_it_is`, and `matched` where all maps were brought to one MTF50."""
    return {
        "voxel_mm": a.voxel_mm,
        "pose": None
        if a.pose is None
        else {
            "x_mm": a.pose.x_mm,
            "y_mm": a.pose.y_mm,
            "rotation_deg": float(np.degrees(a.pose.rotation_rad)),
            "correlation": a.pose.correlation_ratio,
        },
        "as_it_is": _told(a.as_it_is),
        "matched": None if a.matched is None else {"mtf50_per_mm": a.mtf50_per_mm, **_told(a.matched)},
        "sd_over_crlb": {name: e.sd_ratio for name, e in a.efficiencies.items()},
        "remarks": list(a.remarks),
    }


def material_text(a: Assessment) -> str:
    """Return the figures for a terminal: a line a material, and what they were measured at."""
    f = figures_to_quote(a)
    heads = (("slope", 8), ("offset", 9), ("R2", 9), ("RMSE", 8), ("x-talk", 8), ("CNR 5", 8), ("3 sd", 8), ("sens", 7))
    lines = [f"{'material':<16}" + "".join(name.rjust(width) for name, width in (*heads, ("spec", 7)))]
    for k, name in enumerate(f.confusion.names[:-1]):
        r, limits = f.regressions.get(name), f.limits.get(name)
        cells = [
            ("8.3f", r.slope if r else np.nan), ("9.2f", r.offset_mg_ml if r else np.nan),
            ("9.4f", r.r2 if r else np.nan),
            ("8.3f", f.agreements[name].rmse_mg_ml if name in f.agreements else np.nan),
            ("8.3f", f.cross_talk_mg_ml.get(name, np.nan)), ("8.3f", limits.cnr_mg_ml if limits else np.nan),
            ("8.3f", limits.iupac_mg_ml if limits else np.nan), ("7.3f", f.confusion.sensitivity[k]),
            ("7.3f", f.confusion.specificity[k]),
        ]  # fmt: skip
        lines.append(f"{name:<16}" + "".join(figure_of(value, form).rjust(int(form[0])) for form, value in cells))
    at = f"at an MTF50 of {a.mtf50_per_mm:.3f} 1/mm" if a.matched else "not at one sharpness"
    lines.append(f"mg/mL, {at}; {pose_in_words(a)}")
    return "\n".join([*lines, *a.remarks])


def _told(f: Figures) -> dict[str, object]:
    sensitivity, specificity = f.confusion.sensitivity, f.confusion.specificity
    materials: dict[str, object] = {}
    for k, name in enumerate(f.confusion.names[:-1]):
        told: dict[str, float | None] = {
            "cross_talk_mg_ml": f.cross_talk_mg_ml.get(name),
            "sensitivity": _number(sensitivity[k]),
            "specificity": _number(specificity[k]),
            "auc": f.rocs[name].area_fraction if name in f.rocs else None,
            "threshold_mg_ml": f.thresholds_mg_ml[name],
        }
        if name in f.regressions:
            r = f.regressions[name]
            told |= {
                "slope": r.slope,
                "slope_se": _number(r.slope_se_ratio),
                "offset_mg_ml": r.offset_mg_ml,
                "offset_se_mg_ml": _number(r.offset_se_mg_ml),
                "r2": _number(r.r2),
                "concordance": r.concordance_ratio,
            }
        if name in f.agreements:
            g = f.agreements[name]
            told |= {
                "rmse_mg_ml": g.rmse_mg_ml,
                "bias_mg_ml": g.bias_mg_ml,
                "agreement_low_mg_ml": _number(g.lower_mg_ml),
                "agreement_high_mg_ml": _number(g.upper_mg_ml),
            }
        if name in f.limits:
            told |= {
                "blank_sd_mg_ml": f.blank_sd_mg_ml[name],
                "limit_cnr5_mg_ml": _number(f.limits[name].cnr_mg_ml),
                "limit_iupac_mg_ml": _number(f.limits[name].iupac_mg_ml),
            }
        if name in f.sharpness:
            told["mtf50_per_mm"] = f.sharpness[name].mtf.mtf50_per_mm
        materials[name] = told
    return {
        "materials": materials,
        "cross_talk_rmse_mg_ml": _number(f.total_cross_talk_mg_ml),
        "confusion": {"names": list(f.confusion.names), "counts": f.confusion.counts.tolist()},
        "vials": [
            {
                "vial": s.vial.label,
                "mean_mg_ml": {m: s.mean_mg_ml(m) for m in s.materials},
                "sd_mg_ml": {m: s.sd_mg_ml(m) for m in s.materials},
                "identified": _number(share),
            }
            for s, share in zip(f.vials, f.identified_share, strict=True)
        ],
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
