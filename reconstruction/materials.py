"""materials: `(n_materials, z, y, x) float32`, g/cm3, from a volume of bins or from a folder of images, bin by bin."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from calibration.material_basis import MaterialBasis
from calibration.store import software_version
from firmware_iface.errors import CalibrationMissing, WrongUsage
from reconstruction import decomposition
from reconstruction.volume import (
    LINEAR_ATTENUATION,
    MASS_CONCENTRATION,
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

    Returns
    -------
    volume : Volume
        In g/cm3, one channel per material.
    """
    if volume.unit != LINEAR_ATTENUATION:
        raise WrongUsage(f"the volume holds {', '.join(volume.channels)} in {volume.unit}; allowed: bins in 1/mm")
    attenuation = attenuation or volume.basis
    if attenuation is None:
        raise CalibrationMissing(
            "the volume carries no material basis",
            hint="run mpxct calibrate materials and scan again, or give --matrix",
        )
    _check_bins(volume, attenuation)
    if isinstance(attenuation, decomposition.Matrix):
        attenuation = attenuation.in_order_of(volume.channels)
    values = decomposition.decompose(
        volume.values,
        attenuation.attenuation_per_mm_per_g_cm3,
        covariance=decomposition.bin_covariance(volume.values) if is_weighted else None,
        is_non_negative=is_non_negative,
    )
    n_bins, n_materials = np.shape(attenuation.attenuation_per_mm_per_g_cm3)
    weights = "as many as bins" if n_materials == n_bins else "weighted by noise" if is_weighted else "unweighted"
    how = weights + (", none below 0" if is_non_negative else "")
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
            plan_json=source.plan_json,
            calibration_identity=source.calibration_identity,
            software=software_version(),
            steps=(*source.steps, f"least squares, {how}, into {', '.join(attenuation.materials)}"),
        ),
    )


def _check_bins(volume: Volume, attenuation: decomposition.Attenuation) -> None:
    n_bins = len(attenuation.attenuation_per_mm_per_g_cm3)
    if n_bins != len(volume.channels):
        raise WrongUsage(
            f"the volume has {len(volume.channels)} bins and the matrix {n_bins}; allowed: as many in both",
            hint="use the calibration or the matrix that belongs to this scan",
        )
    if not isinstance(attenuation, MaterialBasis) or not volume.thresholds_kev:
        return
    if not np.allclose(attenuation.thresholds_kev, volume.thresholds_kev, atol=0.5):
        raise CalibrationMissing(
            f"the basis was measured with thresholds {attenuation.thresholds_kev} keV, "
            f"and the scan has {volume.thresholds_kev} keV",
            hint="run mpxct calibrate materials with this scan's plan",
        )
    plan = json.loads(volume.provenance.plan_json or "{}")
    kvp = plan.get("source", {}).get("kvp")
    if None not in (kvp, attenuation.tube_kvp) and kvp != attenuation.tube_kvp:
        raise CalibrationMissing(
            f"the basis was measured at {attenuation.tube_kvp:g} kVp, and the scan at {kvp:g} kVp",
            hint="run mpxct calibrate materials with this scan's plan",
        )
