"""A design drawn: contrast against each threshold, and the spectrum with thresholds and K edges."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from reconstruction.spectral.design import Design, Designer, k_edges_kev
from reconstruction.spectral.prediction import ENERGIES_KEV

LINES = ("-", "--", "-.")


def draw_design(designer: Designer, design: Design, path: str | Path) -> Path:
    """Draw what a design tells; the ending of the name says which kind of picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), layout="constrained")
    landscape_axes, spectrum_axes, bins_axes = figure.subplots(3, 1, height_ratios=(3, 2, 2))
    thresholds_kev, cnr = designer.landscape(design)
    rods = designer.sample.targets
    n_passes = len(cnr)
    for of_pass, i in np.ndindex(*cnr.shape[:2]):
        style = {"color": f"C{i}", "ls": LINES[of_pass % len(LINES)]}
        name = f"threshold {i + 1}" + (f", pass {of_pass + 1}" if n_passes > 1 else "")
        landscape_axes.axvline(design.passes_kev[of_pass][i], color=f"C{i}", lw=0.6, ls=":")
        landscape_axes.plot(thresholds_kev, cnr[of_pass, i].min(axis=1), label=name, **style)
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

    # The tube's model has bins of 1 keV.
    photons = design.beam.photons(designer.geometry.source_to_detector_mm).reshape(-1, 2).sum(axis=1)
    energies_kev = ENERGIES_KEV.reshape(-1, 2).mean(axis=1)
    is_there = photons > 0
    spectrum_axes.plot(energies_kev[is_there], photons[is_there], "k", lw=1)
    names = []
    for of_pass, thresholds in enumerate(design.passes_kev):
        stripe = (1 - (of_pass + 1) / n_passes, 1 - of_pass / n_passes)
        for i, (low, high) in enumerate(pairwise((*thresholds, design.beam.kvp))):
            spectrum_axes.axvspan(low, high, *stripe, color=f"C{i}", alpha=0.15)
            names.append(f"{low:g} to {high:g}")
    for edge_kev in k_edges_kev(designer.sample):
        spectrum_axes.axvline(edge_kev, color="k", lw=0.8, ls="--")
        spectrum_axes.annotate(f"K {edge_kev:.1f}", (edge_kev, photons.max()), fontsize=8, va="top")
    spectrum_axes.set_xlabel("energy, keV; shaded: the bins, dashed: K edges")
    spectrum_axes.set_ylabel("photons per mm², mAs, keV")

    place = np.arange(len(names))
    bins_axes.bar(place - 0.2, design.forecast.open_bin_counts.ravel(), 0.4, label="open beam")
    bins_axes.bar(place + 0.2, design.forecast.bin_counts.ravel(), 0.4, label="behind the sample")
    bins_axes.set_yscale("log")
    bins_axes.set_xticks(place, names, fontsize=8)
    bins_axes.set_xlabel("bins, keV")
    bins_axes.set_ylabel("counts, pixel and view")
    bins_axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    return Path(path)
