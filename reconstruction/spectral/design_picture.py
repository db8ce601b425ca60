"""A design drawn: contrast against each threshold, and the spectrum with thresholds and K edges."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from reconstruction.spectral.design import Design, Designer, k_edges_kev
from reconstruction.spectral.prediction import ENERGIES_KEV, STEP_KEV


def draw_design(designer: Designer, design: Design, path: str | Path) -> Path:
    """Draw what a design tells; the ending of the name says which kind of picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), layout="constrained")
    landscape_axes, spectrum_axes, bins_axes = figure.subplots(3, 1, height_ratios=(3, 2, 2))
    thresholds_kev, cnr = designer.landscape(design)
    rods = designer.sample.targets
    for i, moved in enumerate(cnr):
        landscape_axes.axvline(design.thresholds_kev[i], color=f"C{i}", lw=0.6, ls=":")
        landscape_axes.plot(thresholds_kev, moved.min(axis=1), color=f"C{i}", label=f"threshold {i + 1} moved")
    landscape_axes.set_ylabel("smallest contrast to noise")
    landscape_axes.set_xlabel("where that threshold stands, keV")
    landscape_axes.legend(fontsize=8)
    named = ", ".join(
        f"{rod.agent} {rod.concentration_mg_ml:g} mg/mL {value:.2g}"
        for rod, value in zip(rods, design.forecast.cnr, strict=True)
    )
    landscape_axes.set_title(
        f"{design.beam.kvp:g} kVp, {design.dose_mgy:.3g} mGy; contrast to noise: {named}", fontsize=9
    )

    photons = design.beam.photons(designer.geometry.source_to_detector_mm) / STEP_KEV
    is_there = photons > 0
    spectrum_axes.plot(ENERGIES_KEV[is_there], photons[is_there], "k", lw=1)
    edges = (*design.thresholds_kev, design.beam.kvp)
    for i, (low, high) in enumerate(pairwise(edges)):
        spectrum_axes.axvspan(low, high, color=f"C{i}", alpha=0.15)
    for edge_kev in k_edges_kev(designer.sample):
        spectrum_axes.axvline(edge_kev, color="k", lw=0.8, ls="--")
        spectrum_axes.annotate(f"K {edge_kev:.1f}", (edge_kev, photons.max()), fontsize=8, va="top")
    spectrum_axes.set_xlabel("energy, keV; shaded: the bins, dashed: K edges")
    spectrum_axes.set_ylabel("photons per mm², mAs, keV")

    place = np.arange(len(design.forecast.bin_counts))
    bins_axes.bar(place - 0.2, design.forecast.open_bin_counts, 0.4, label="open beam")
    bins_axes.bar(place + 0.2, design.forecast.bin_counts, 0.4, label="behind the sample")
    bins_axes.set_yscale("log")
    bins_axes.set_xticks(place, [f"{low:g} to {high:g} keV" for low, high in pairwise(edges)])
    bins_axes.set_ylabel("counts, pixel and view")
    bins_axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    return Path(path)
