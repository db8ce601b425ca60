"""The counts of a scan, with the bins of all its passes, and what these count behind materials.

What they count is told by the response that was fitted to the detector, brought to what plates and cells let through;
or, where none was fitted, by the plates of the step wedge: a few exponentials per bin, for the materials that the
plates are of.

# Ref: forward models of a few exponentials, fitted to plates: reference on spectral CT, section 2.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from acquisition.plan import passes_kev
from acquisition.scan_plan import Turning
from calibration.material_basis import SAME_KEV
from calibration.progress import Progress
from calibration.store import Calibration
from firmware_iface.errors import CalibrationMissing, WrongUsage
from reconstruction.projections import LineIntegrals, measure_line_integrals, places_of
from reconstruction.scan_source import ScanSource, open_source
from reconstruction.spectral.adjustment import adjusted, known_layers
from reconstruction.spectral.model import SpectralModel
from reconstruction.spectral.wedge import fitted_model

RESPONSE, PLATES = "response", "plates"
MODELS = (RESPONSE, PLATES)


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
    places : tuple of int
        Which bins of all passes they are, from 0; nothing: all.
    words : tuple of str
        By what the model was told, for the provenance.
    """

    measured: LineIntegrals
    model: SpectralModel
    sources: tuple[ScanSource, ...]
    places: tuple[int, ...] = ()
    words: tuple[str, ...] = ()

    @property
    def open_counts(self) -> NDArray[np.float64]:
        """Counts of a pixel in one view of the open beam: (n_bins,) float64."""
        return self.measured.open_counts

    def of_bins(self, numbers: Sequence[int]) -> ScanRays:
        """Return some bins of every pass, from 1."""
        if not numbers:
            return self
        n_bins = len(self.model.bins) // len(self.sources)
        if max(numbers) > n_bins:
            raise WrongUsage(f"bin {max(numbers)} is named; allowed: 1 to {n_bins}, in every pass")
        here = [first * n_bins + number - 1 for first in range(len(self.sources)) for number in numbers]
        refuse_too_many(self.model.materials, len(here))
        measured = self.measured
        return replace(
            self,
            measured=replace(
                measured,
                values=measured.values[here],
                is_estimated=measured.is_estimated[here],
                open_counts=measured.open_counts[here],
            ),
            model=self.model.of_bins(here),
            places=tuple(here),
        )


def read_rays(
    path: str | Path,
    materials: Sequence[str] = (),
    *,
    calibration: Calibration | None = None,
    pass_number: int | None = None,
    allow_partial: bool = False,
    model: str | None = None,
    knows_sharing: bool = False,
) -> Generator[Progress, None, ScanRays]:
    """Read a scan for a decomposition of its rays.

    Parameters
    ----------
    materials : sequence of str
        Names on the shelf of `calibration.attenuation`; nothing: those of the calibration's material basis, or of the
        plates.
    calibration : Calibration, optional
        Whose response or plates, and geometry if it has one, to take; None: the scan's own.
    pass_number : int, optional
        Which pass of several; None: all, with the bins of each.
    model : "response" or "plates", optional
        What tells what bins count. None: the response, or the plates where none was fitted.
    knows_sharing : bool
        Take from the response, too, which counts of neighbouring pixels are of one photon.

    Raises
    ------
    CalibrationMissing
        No response was fitted to this detector and no plates were measured, or only at another voltage of the tube.
    """
    yield Progress("reading", 0, 1)
    aligned = calibration if calibration is not None and calibration.alignment is not None else None
    number = 1 if pass_number is None else pass_number
    first = open_source(path, calibration=aligned, pass_number=number, allow_partial=allow_partial)
    scanned = first.plan.scan
    n_passes = len(passes_kev(first.plan)) if isinstance(scanned, Turning) else 1
    numbers = range(1, n_passes + 1) if pass_number is None else [number]
    sources = tuple(open_source(path, calibration=aligned, pass_number=n, allow_partial=allow_partial) for n in numbers)
    known = calibration or first.scan.calibration
    if model is None:
        model = PLATES if known and known.response is None and known.wedge is not None else RESPONSE
    if model == RESPONSE:
        told, words = _by_response(sources, materials, known, knows_sharing=knows_sharing)
    elif model == PLATES:
        told, words = _by_plates(sources, materials, known, knows_sharing=knows_sharing)
    else:
        raise WrongUsage(f"the model is {model!r}; allowed: {', '.join(MODELS)}")
    parts = []
    for done, source in enumerate(sources):
        yield Progress("reading", done, len(sources))
        part = yield from measure_line_integrals(
            source.scan,
            source.geometry,
            pass_index=source.pass_index,
            count_rate=source.count_rate,
            flat=source.flat,
        )
        parts.append(part)
    yield Progress("reading", len(sources), len(sources))
    return ScanRays(measured=_joined(parts), model=told, sources=sources, words=words)


def _by_response(
    sources: Sequence[ScanSource], materials: Sequence[str], calibration: Calibration | None, *, knows_sharing: bool
) -> tuple[SpectralModel, tuple[str, ...]]:
    """Return the model that the response makes, and what it was brought to."""
    response = calibration.response if calibration else None
    if calibration is None or response is None:
        raise CalibrationMissing(
            "no response was fitted to this detector: what a bin counts of each energy is not known",
            hint="run mpxct calibrate wedge and response and give the file with --calibration, or use --tier image",
        )
    _refuse_another_voltage("the response was fitted", response.tube_kvp, sources)
    names = tuple(materials) or (calibration.basis.materials if calibration.basis else ())
    if not names:
        raise WrongUsage("no materials are named, and the calibration has none", hint="--materials water,I,Gd")
    _refuse_what_cannot_be_told(names, sources)
    models, n_layers = [], 0
    for source in sources:
        layers = known_layers(source.thresholds_kev, calibration.wedge, source.basis, source.plan.calibration.cells)
        model = SpectralModel.of_response(
            response, names, thresholds_kev=source.thresholds_kev, knows_sharing=knows_sharing
        )
        models.append(adjusted(model, layers))
        n_layers += sum(len(each.paths) for each in layers)
    words = (f"response brought to {n_layers} transmissions of plates and cells",) if n_layers else ()
    return models[0] if len(models) == 1 else SpectralModel.joined(models), words


def _by_plates(
    sources: Sequence[ScanSource], materials: Sequence[str], calibration: Calibration | None, *, knows_sharing: bool
) -> tuple[SpectralModel, tuple[str, ...]]:
    """Return the model that foretells the wedge's plates, and how well it does so."""
    wedge, thickness = (calibration.wedge, calibration.thickness) if calibration else (None, None)
    if wedge is None or thickness is None:
        raise CalibrationMissing(
            "the plates of a step wedge were not measured", hint="run mpxct calibrate wedge with this scan's plan"
        )
    if knows_sharing:
        raise WrongUsage("plates do not tell which counts of neighbours are of one photon; allowed: with a response")
    _refuse_another_voltage("the plates were measured", thickness.tube_kvp, sources)
    for source in sources:
        if not np.allclose(wedge.thresholds_kev, source.thresholds_kev, rtol=0, atol=SAME_KEV):
            raise CalibrationMissing(
                f"the plates were measured at {_told(wedge.thresholds_kev)} keV, and the scan has "
                f"{_told(source.thresholds_kev)} keV",
                hint="run mpxct calibrate wedge with this scan's plan; of several passes take one: --pass",
            )
    names = tuple(materials) or wedge.materials
    _refuse_what_cannot_be_told(names, sources)
    model, words = fitted_model(wedge.of_materials(names))
    return (model if len(sources) == 1 else SpectralModel.joined([model] * len(sources))), (words,)


def _told(energies_kev: Sequence[float] | NDArray[np.float64]) -> str:
    return ", ".join(f"{kev:.3g}" for kev in energies_kev)


def _refuse_another_voltage(what: str, kvp: float, sources: Sequence[ScanSource]) -> None:
    scanned_kvp = sources[0].plan.source.kvp
    if kvp != scanned_kvp:
        raise CalibrationMissing(
            f"{what} at {kvp:g} kVp, and the scan has {scanned_kvp:g} kVp",
            hint="run mpxct calibrate wedge and response with this scan's plan",
        )


def _refuse_what_cannot_be_told(names: Sequence[str], sources: Sequence[ScanSource]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise WrongUsage(f"the materials name {', '.join(twice)} more than once; allowed: each once")
    refuse_too_many(names, sum(len(source.thresholds_kev) for source in sources))


def refuse_too_many(materials: Sequence[str], n_bins: int) -> None:
    """Refuse more materials than bins."""
    if len(materials) > n_bins:
        raise WrongUsage(
            f"{len(materials)} materials cannot be told apart with {n_bins} bins; allowed: at most {n_bins}"
        )


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
