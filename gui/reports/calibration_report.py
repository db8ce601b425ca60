"""The report of a calibration: what each step measured, as pictures and tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np

from calibration.store import Calibration
from gui.picture import write_whole
from gui.reports import beam_sections, chip_sections
from gui.reports.alignment_section import alignment
from gui.reports.page import cards, figure_of, moment, note, page, table

_ZERO_C_K = 273.15


def save_calibration_report(calibration: Calibration, path: str | Path) -> Path:
    """Write the report of a calibration as one HTML file, whole or not at all."""
    return write_whole(path, calibration_html(calibration).encode())


def calibration_html(calibration: Calibration) -> str:
    """Return the report as one HTML text."""
    c = calibration
    told = (
        f"{moment(c.created)}, {c.conditions.mode}, {c.gain}, {c.bias_v:g} V{_warmth(c.temperature_k)}; "
        f"{c.device}, mpxct {c.software}, identity {c.identity}"
    )
    head = (
        f"<header><h1>Calibration of {escape(c.chip_id)}</h1>\n"
        f'<div class="soft">{escape(told)}</div>\n{cards(_key_figures(c))}</header>'
    )
    return page(f"calibration {c.identity}", head, [("Steps", _history(c)), *sections(c)])


def sections(calibration: Calibration) -> Sequence[tuple[str, str]]:
    """Return a heading and HTML for everything that was calibrated."""
    shown = ((title, show(calibration)) for title, show in _SECTIONS)
    return [(title, text) for title, text in shown if text]


def _key_figures(calibration: Calibration) -> dict[str, str]:
    figures = {}
    if calibration.lines:
        before_kev, after_kev = calibration.sigmas_kev
        figures["thresholds, sigma before and after"] = f"{before_kev:.2f} to {after_kev:.2f} keV"
        figures["energy residual, rms"] = f"{calibration.residual_rms_kev:.3f} keV"
    if calibration.end_point is not None:
        figures["end point"] = f"{calibration.end_point.error_kev:+.2f} keV"
    if calibration.alignment is not None:
        figures["alignment residual, rms"] = f"{calibration.alignment.residual_rms_px:.3f} pixels"
    if calibration.count_rate is not None:
        rate = calibration.count_rate.rate_at_loss_per_s(0.1)
        figures["10 % of counts lost at"] = f"{figure_of(rate, ',.0f')} /s"
    if calibration.response is not None:
        worst = calibration.response.figures["worst_check_percent"]
        figures["worst held-back plate"] = "-" if worst is None else f"{worst} %"
    figures["bad pixels"] = f"{np.count_nonzero(calibration.is_bad)} of {calibration.is_bad.size}"
    return figures


def _warmth(temperature_k: float | None) -> str:
    return "" if temperature_k is None or math.isnan(temperature_k) else f", {temperature_k - _ZERO_C_K:.1f} °C"


def _history(calibration: Calibration) -> str:
    if not calibration.history:
        return note("No step was done.")
    rows = (
        (
            record.step,
            moment(record.created),
            f"{record.mode}, {record.gain}, {record.bias_v:g} V{_warmth(record.temperature_k)}",
            "forced, under other conditions" if record.is_forced else "",
        )
        for record in calibration.history
    )
    return table(("step", "when", "how the detector stood", ""), rows, n_text=4)


_SECTIONS: Sequence[tuple[str, Callable[[Calibration], str]]] = (
    ("Bias voltages", chip_sections.bias_currents),
    ("Equalisation", chip_sections.equalisation),
    ("Energy scale", chip_sections.energy_scale),
    ("Energy scale of each pixel", chip_sections.pixel_scale),
    ("End point of the tube's spectrum", chip_sections.end_point),
    ("Bad pixels", chip_sections.pixels),
    ("Count rate", beam_sections.count_rate),
    ("Materials", beam_sections.basis),
    ("Step wedge", beam_sections.wedge),
    ("Equivalent thickness", beam_sections.thickness),
    ("Response", beam_sections.response),
    ("Alignment", alignment),
)
