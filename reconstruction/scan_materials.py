"""materials of a scan by the physics of its rays: from counts, without bins' volumes between.

Two tiers. "projection" fits the path through each material to the counts of every ray, and reconstructs the paths.
"onestep" fits the volumes of all materials to all counts at once. Both take the response that was fitted to this
detector, so that hardening of the beam and cross-talk of the bins are part of the fit, and both tell their noise:
errors drawn from the Cramer-Rao bound of the rays go the same way as the paths did.

# Ref: two-step decomposition: Schlomka et al. 2008, Phys. Med. Biol. 53, 4031; one step: Mechlem et al. 2018,
#      IEEE Trans. Med. Imaging 37, 68.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from acquisition.plan import passes_kev
from acquisition.scan_plan import Turning
from calibration.progress import Progress
from calibration.store import Calibration
from firmware_iface.errors import CalibrationMissing, WrongUsage
from reconstruction.projections import LineIntegrals, measure_line_integrals, places_of
from reconstruction.scan_source import ScanSource, open_source
from reconstruction.spectral.model import SpectralModel

TIERS = ("projection", "onestep")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScanRays:
    """The counts of a scan, with the bins of all its passes, and what they mean.

    Attributes
    ----------
    measured : LineIntegrals
        Of all bins.
    model : SpectralModel
        With the same bins, and the materials that are looked for.
    sources : tuple of ScanSource
        One for each pass.
    """

    measured: LineIntegrals
    model: SpectralModel
    sources: tuple[ScanSource, ...]

    @property
    def open_counts(self) -> NDArray[np.float64]:
        """Counts of a pixel in one view of the open beam: (n_bins,) float64."""
        return self.measured.open_counts

    @property
    def is_known(self) -> NDArray[np.bool_]:
        """Which rays were measured in all bins: (n_views, rows, cols) bool."""
        return np.logical_not(np.any(self.measured.is_estimated, axis=0))

    def counts(self) -> NDArray[np.float32]:
        """Return the counts of every ray, as if all pixels were alike: (n_bins, n_views, rows, cols) float32."""
        open_counts = self.open_counts.astype(np.float32)[:, None, None, None]
        return open_counts * np.exp(-self.measured.values)


def read_rays(
    path: str | Path,
    materials: Sequence[str] = (),
    *,
    calibration: Calibration | None = None,
    pass_number: int | None = None,
    allow_partial: bool = False,
) -> Generator[Progress, None, ScanRays]:
    """Read a scan for a decomposition of its rays.

    Parameters
    ----------
    materials : sequence of str
        Names on the shelf of `calibration.attenuation`; nothing: those of the calibration's material basis.
    calibration : Calibration, optional
        Whose response, and geometry if it has one, to take; None: the scan's own.
    pass_number : int, optional
        Which pass of several; None: all, with the bins of each.

    Raises
    ------
    CalibrationMissing
        No response was fitted to this detector, or to another voltage of the tube.
    """
    yield Progress("reading", 0, 1)
    aligned = calibration if calibration is not None and calibration.alignment is not None else None
    first = open_source(path, calibration=aligned, pass_number=pass_number or 1, allow_partial=allow_partial)
    scanned = first.plan.scan
    n_passes = len(passes_kev(first.plan)) if isinstance(scanned, Turning) else 1
    numbers = [pass_number] if pass_number else range(1, n_passes + 1)
    sources = tuple(open_source(path, calibration=aligned, pass_number=n, allow_partial=allow_partial) for n in numbers)
    model = _model_of(sources, materials, calibration or first.scan.calibration)
    parts = []
    for done, source in enumerate(sources):
        yield Progress("reading", done, len(sources))
        parts.append(
            measure_line_integrals(
                source.scan, source.geometry, pass_index=source.pass_index, count_rate=source.count_rate
            )
        )
    yield Progress("reading", len(sources), len(sources))
    return ScanRays(measured=_joined(parts), model=model, sources=sources)


def _model_of(
    sources: Sequence[ScanSource], materials: Sequence[str], calibration: Calibration | None
) -> SpectralModel:
    """Return what the bins of all passes count behind the materials."""
    response = calibration.response if calibration else None
    if calibration is None or response is None:
        raise CalibrationMissing(
            "no response was fitted to this detector: what a bin counts of each energy is not known",
            hint="run mpxct calibrate wedge and response and give the file with --calibration, or use --tier image",
        )
    kvp = sources[0].plan.source.kvp
    if response.tube_kvp != kvp:
        raise CalibrationMissing(
            f"the response was fitted at {response.tube_kvp:g} kVp, and the scan has {kvp:g} kVp",
            hint="run mpxct calibrate wedge and response with this scan's plan",
        )
    names = tuple(materials) or (calibration.basis.materials if calibration.basis else ())
    if not names:
        raise WrongUsage("no materials are named, and the calibration has none", hint="--materials water,I,Gd")
    models = [SpectralModel.of_response(response, names, thresholds_kev=source.thresholds_kev) for source in sources]
    n_bins = sum(len(model.bins) for model in models)
    if len(names) > n_bins:
        raise WrongUsage(f"{len(names)} materials cannot be told apart with {n_bins} bins; allowed: at most {n_bins}")
    return models[0] if len(models) == 1 else SpectralModel.joined(models)


def _joined(parts: Sequence[LineIntegrals]) -> LineIntegrals:
    """Return the bins of all passes, of the views that all have."""
    first = parts[0]
    if len(parts) == 1:
        return first
    poses = [np.round(part.angles_rad, 9) + 1j * np.round(part.lifts_mm, 9) for part in parts]
    shared = poses[0]
    for other in poses[1:]:
        shared = shared[np.isin(shared, other)]
    if not len(shared):
        raise WrongUsage("the passes have no view in common; allowed: passes over the same views")
    places = [places_of(pose, shared) for pose in poses]
    return replace(
        first,
        values=np.concatenate([part.values[:, at] for part, at in zip(parts, places, strict=True)]),
        is_estimated=np.concatenate([part.is_estimated[:, at] for part, at in zip(parts, places, strict=True)]),
        angles_rad=first.angles_rad[places[0]],
        lifts_mm=first.lifts_mm[places[0]],
        open_counts=np.concatenate([part.open_counts for part in parts]),
    )
