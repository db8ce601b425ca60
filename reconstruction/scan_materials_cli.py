"""What ``mpxct decompose SCAN`` does: from the counts of a scan to its materials, by their rays or in one step."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from calibration.attenuation import MG_ML_PER_G_CM3
from calibration.progress import Console
from reconstruction.recipe import Recipe


def decompose_counts(
    console: Console,
    scan: Path,
    output: Path,
    recipe: Recipe,
    materials: Sequence[str],
    *,
    tier: str,
    fit: str,
    model: str | None,
    calibration: Path | None,
    prior: str | None,
    strength: float | None,
    n_iterations: int | None,
    n_draws: int | None,
    knows_sharing: bool,
    allow_partial: bool,
    as_json: bool,
) -> None:
    """Decompose, write materials, their errors and how iterations went, and tell."""
    from calibration.store import load
    from reconstruction.scan_materials import N_DRAWS, decompose_scan
    from reconstruction.scan_rays import read_rays
    from reconstruction.volume import save_volume

    began_s = time.monotonic()
    rays = console.track(
        read_rays(
            scan,
            materials,
            calibration=load(calibration) if calibration else None,
            pass_number=recipe.pass_number,
            allow_partial=allow_partial,
            model=model,
            knows_sharing=knows_sharing,
        )
    )
    found = console.track(
        decompose_scan(
            rays,
            recipe,
            tier=tier,
            fit=fit,
            prior=prior,
            strength=strength,
            n_iterations=n_iterations,
            n_draws=N_DRAWS if n_draws is None else n_draws,
        )
    )
    save_volume(found.volume, output)
    sigma = None if found.sigma is None else save_volume(found.sigma, output.with_name(f"{output.stem}-sigma.h5"))
    plot = None if found.log is None else found.log.plot(output.with_name(f"{output.stem}-convergence.png"))
    picture = console.picture(output)
    errors = (
        [None] * len(found.volume.channels)
        if found.sigma is None
        else [float(np.median(channel[channel > 0])) * MG_ML_PER_G_CM3 for channel in found.sigma.values]
    )
    told = dict(zip(found.volume.channels, errors, strict=True))
    seconds = time.monotonic() - began_s
    figures = {
        "file": str(output),
        "sigma": None if sigma is None else str(sigma),
        "picture": str(picture),
        "plot": None if plot is None else str(plot),
        "chi_square_ratio": None if np.isnan(found.chi_square_ratio) else found.chi_square_ratio,
        "median_sigma_mg_ml": told,
        "convergence": json.loads(found.volume.provenance.convergence_json or "null"),
        "steps": list(found.volume.provenance.steps),
        "seconds": seconds,
    }
    files = ", ".join(str(file) for file in (output, sigma, plot, picture) if file is not None)
    lines = [f"{files}: {', '.join(found.volume.channels)}, {seconds:.1f} s"]
    lines += [f"  {step}" for step in found.volume.provenance.steps]
    lines += [f"{name}: {error:.3g} mg/mL of noise in a voxel" for name, error in told.items() if error is not None]
    console.emit(figures, "\n".join(lines), as_json=as_json)
