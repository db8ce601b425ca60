"""materials: `(n_materials, z, y, x) float32`, g/cm3, from a volume of bins or from a folder of images, bin by bin."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.attenuation import material
from calibration.material_basis import MaterialBasis
from calibration.store import load, software_version
from firmware_iface.errors import CalibrationMissing, WrongUsage
from reconstruction import decomposition
from reconstruction.spectral.effective import effective_attenuation
from reconstruction.spectral.exclusive import Rule, separate
from reconstruction.spectral.model import SpectralModel
from reconstruction.volume import (
    LINEAR_ATTENUATION,
    MASS_CONCENTRATION,
    PURE_NUMBER,
    Grid,
    Provenance,
    Volume,
    read_bin_images,
)


def read_image_folder(folder: str | Path, *, scale: float = 1.0, voxel_mm: float | None = None) -> Volume:
    """Read one TIFF per bin as a volume.

    Parameters
    ----------
    scale : float
        Grey value that means an attenuation of 1 per cm.
    voxel_mm : float, optional
        Edge of a pixel; None: the images do not tell, and lengths count pixels.
    """
    if not (np.isfinite(scale) and scale > 0):
        raise WrongUsage(f"the scale is {scale}; allowed: above 0, the grey value that means 1 per cm")
    names, values = read_bin_images(folder)
    return Volume(
        values=values * np.float32(decomposition.CM_PER_MM / scale),
        channels=names,
        unit=LINEAR_ATTENUATION,
        grid=Grid(
            shape=(values.shape[1], values.shape[2], values.shape[3]),
            voxel_mm=1.0 if voxel_mm is None else voxel_mm,
            is_scale_known=voxel_mm is not None,
        ),
        provenance=Provenance(
            source_file=Path(folder).name, software=software_version(), steps=(f"TIFF images, scale {scale:g}",)
        ),
    )


def decompose_volume(
    volume: Volume,
    attenuation: decomposition.Attenuation | None = None,
    *,
    is_weighted: bool = False,
    is_non_negative: bool = False,
    densities_g_cm3: Mapping[str, float] | None = None,
    is_full: bool = False,
) -> Volume:
    """Turn bins into materials.

    Parameters
    ----------
    attenuation : MaterialBasis or Matrix, optional
        None: the basis that the volume carries.
    is_weighted : bool
        Let quiet bins count more, by the noise that the volume shows; with as many materials as bins nothing is left
        to weigh.
    is_non_negative : bool
        Allow no concentration below 0.
    densities_g_cm3 : mapping of str to float, optional
        Of the pure materials; those that are missing are taken from the shelf. With it, volume fractions are not below
        0 and sum to 1 at most.
    is_full : bool
        Volume fractions sum to 1 exactly.

    Returns
    -------
    volume : Volume
        In g/cm3, one channel per material.
    """
    attenuation = _attenuation_of(volume, attenuation)
    densities = None if densities_g_cm3 is None else densities_of(attenuation.materials, densities_g_cm3)
    values = decomposition.decompose(
        volume.values,
        attenuation.attenuation_per_mm_per_g_cm3,
        covariance=decomposition.bin_covariance(volume.values) if is_weighted else None,
        is_non_negative=is_non_negative,
        densities_g_cm3=densities,
        is_full=is_full,
    )
    n_bins, n_materials = np.shape(attenuation.attenuation_per_mm_per_g_cm3)
    weights = "as many as bins" if n_materials == n_bins else "weighted by noise" if is_weighted else "unweighted"
    sum_ = "" if densities is None else f", fractions sum to 1{'' if is_full else ' at most'}"
    signs = ", none below 0" if is_non_negative or densities is not None else ""
    return _materials(volume, attenuation, values, f"least squares, {weights}{signs}{sum_}")


def basis_of_response(
    volume: Volume, file: Path, *, water_mm: float = 0.0, materials: Sequence[str] = ()
) -> MaterialBasis:
    """Compute the attenuation in the volume's bins from the response that a calibration file holds.

    Parameters
    ----------
    water_mm : float
        The rays' mean way through the sample, as water.
    materials : sequence of str
        Nothing: those of the volume's basis.
    """
    known = load(file).response
    if known is None:
        raise CalibrationMissing(f"{file} holds no response", hint="run mpxct calibrate response")
    names = tuple(materials) or (volume.basis.materials if volume.basis else ())
    if not names:
        raise WrongUsage("the volume names no materials; allowed: name them with --materials")
    thresholds_kev = volume.thresholds_kev or known.thresholds_kev
    model = SpectralModel.of_response(known, names, thresholds_kev=thresholds_kev)
    return MaterialBasis(
        materials=names,
        attenuation_per_mm_per_g_cm3=effective_attenuation(model, water_mm),
        thresholds_kev=tuple(thresholds_kev),
        tube_kvp=known.tube_kvp,
    )


def separate_volume(
    volume: Volume, rule: Rule, attenuation: decomposition.Attenuation | None = None, *, is_weighted: bool = False
) -> tuple[Volume, Volume]:
    """Turn bins into materials, in each voxel those of one sub-problem.

    Parameters
    ----------
    attenuation : MaterialBasis or Matrix, optional
        None: the basis that the volume carries.
    is_weighted : bool
        Weigh the bins by noise even where the least residual chooses.

    Returns
    -------
    materials : Volume
        In g/cm3, one channel per material.
    labels : Volume
        Which sub-problem holds ("label", numbers as its last step tells), and how well ("chi-square").
    """
    attenuation = _attenuation_of(volume, attenuation)
    covariance = decomposition.bin_covariance(volume.values) if is_weighted or rule.asks_for_noise else None
    found = separate(volume.values, attenuation, rule, covariance=covariance)
    tests = [f"chi square at {rule.rejected_fraction:g}"] if rule.rejected_fraction else []
    tests += [] if rule.most_angle_deg is None else [f"angles up to {rule.most_angle_deg:g} degrees"]
    tests += [] if rule.air_below_per_mm is None else [f"air below {rule.air_below_per_mm:g} per mm"]
    tests += [f"field of weight {rule.field_weight:g}"] if rule.field_weight else []
    choice = "the likeliest" if rule.is_sparse else "the least residual"
    how = f"one of {len(rule.labels)} sub-problems a voxel, {', '.join([choice, *tests])}"
    materials = _materials(volume, attenuation, found.concentrations, how)
    legend = f"labels: {', '.join(f'{k} {name}' for k, name in enumerate(rule.labels))}"
    share = f"{100 * found.is_rejected.mean():.3g} % of the voxels stood no test"
    labels = replace(
        materials,
        values=np.stack([found.labels.astype(np.float32), found.chi_square]),
        channels=("label", "chi-square"),
        unit=PURE_NUMBER,
        provenance=replace(materials.provenance, steps=(*materials.provenance.steps, share, legend)),
    )
    return materials, labels


def densities_of(names: Sequence[str], stated_g_cm3: Mapping[str, float]) -> NDArray[np.float64]:
    """Return the densities of pure materials, those stated, then those of the shelf: (n_materials,) float64."""
    if unknown := [name for name in stated_g_cm3 if name not in names]:
        raise WrongUsage(f"densities of {', '.join(unknown)} are stated; allowed: of {', '.join(names)}")
    found = []
    for name in names:
        try:
            found.append(stated_g_cm3[name] if name in stated_g_cm3 else material(name).density_g_cm3)
        except WrongUsage as error:
            raise WrongUsage(f"the density of {name} is not known", hint=f"state it: {name}=…, in g/cm3") from error
    return np.array(found)


def _attenuation_of(volume: Volume, attenuation: decomposition.Attenuation | None) -> decomposition.Attenuation:
    """Return the attenuation that fits the volume's bins, or refuse."""
    if volume.unit != LINEAR_ATTENUATION:
        raise WrongUsage(f"the volume holds {', '.join(volume.channels)} in {volume.unit}; allowed: bins in 1/mm")
    if empty := [n for n, of_bin in zip(volume.channels, volume.values, strict=True) if not np.isfinite(of_bin).any()]:
        raise WrongUsage(f"the bin {', '.join(empty)} holds no number in any voxel; allowed: bins that were measured")
    attenuation = attenuation or volume.basis
    if attenuation is None:
        raise CalibrationMissing(
            "the volume carries no material basis",
            hint="run mpxct calibrate materials and scan again, or give --matrix, --vials or --response",
        )
    _check_bins(volume, attenuation)
    return attenuation.in_order_of(volume.channels) if isinstance(attenuation, decomposition.Matrix) else attenuation


def _materials(volume: Volume, attenuation: decomposition.Attenuation, values: NDArray[np.float32], how: str) -> Volume:
    source = volume.provenance
    return Volume(
        values=values,
        channels=attenuation.materials,
        unit=MASS_CONCENTRATION,
        grid=volume.grid,
        thresholds_kev=volume.thresholds_kev,
        basis=attenuation if isinstance(attenuation, MaterialBasis) else None,
        provenance=Provenance(
            source_file=source.source_file,
            source_begun=source.source_begun,
            plan_json=source.plan_json,
            calibration_identity=source.calibration_identity,
            software=software_version(),
            steps=(*source.steps, f"{how}, into {', '.join(attenuation.materials)}"),
        ),
    )


def _check_bins(volume: Volume, attenuation: decomposition.Attenuation) -> None:
    n_bins = len(attenuation.attenuation_per_mm_per_g_cm3)
    if n_bins != len(volume.channels):
        raise WrongUsage(
            f"the volume has {len(volume.channels)} bins and the matrix {n_bins}; allowed: as many in both",
            hint="use the calibration or the matrix that belongs to this scan",
        )
    if isinstance(attenuation, MaterialBasis) and volume.thresholds_kev:
        refuse_foreign_basis(attenuation, volume.thresholds_kev, scan_kvp(volume))


def scan_kvp(volume: Volume) -> float | None:
    """Return the voltage of the scan that a volume was made from; None: not known."""
    return json.loads(volume.provenance.plan_json or "{}").get("source", {}).get("kvp")


def refuse_foreign_basis(basis: MaterialBasis, thresholds_kev: Sequence[float], tube_kvp: float | None) -> None:
    """Refuse a basis that was measured with other thresholds or another voltage than a scan, where both are known.

    Raises
    ------
    CalibrationMissing
    """
    if not basis.is_for(thresholds_kev):
        raise CalibrationMissing(
            f"the basis was measured with thresholds {_in_words(basis.thresholds_kev)} keV, "
            f"and the scan has {_in_words(thresholds_kev)} keV",
            hint="run mpxct calibrate materials with this scan's plan",
        )
    if None not in (tube_kvp, basis.tube_kvp) and tube_kvp != basis.tube_kvp:
        raise CalibrationMissing(
            f"the basis was measured at {basis.tube_kvp:g} kVp, and the scan at {tube_kvp:g} kVp",
            hint="run mpxct calibrate materials with this scan's plan",
        )


def _in_words(energies_kev: Sequence[float]) -> str:
    return ", ".join(f"{energy_kev:g}" for energy_kev in energies_kev)
