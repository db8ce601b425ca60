"""RTK's spectral filters, in a Python that has `itk-rtk`: `python peers_rtk_spectral.py FOLDER` does what it asks for.

The beam is parallel, along y in RTK's frame turned about its y axis; the object is flat, so three equal rows and three
equal slices stand for it, of which the middle ones are returned. Unknowns of the simplex are volume fractions; those of
the one step are in units of the data's, so that curvatures fit into its single precision.

# Ref: `SimplexSpectralProjectionsDecompositionImageFilter` and `MechlemOneStepSpectralReconstructionFilter` of RTK 2.7;
#      Mechlem et al. 2018, IEEE Trans. Med. Imaging 37, 68.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import itk
import numpy as np
from itk import RTK as rtk  # noqa: N811 - as its documentation writes it
from peers_work import Timing, serve, timed

COPIES = 3
"""Rows and slices."""
RESET_EVERY = 16
"""Subset steps."""
DISTANCE_MM = 1000.0


def plain(array: np.ndarray) -> np.ndarray:
    """Return it in the order of C: ITK takes that of Fortran for an array transposed."""
    return np.ascontiguousarray(array, np.float32)


def vector_image(array: np.ndarray, spacing: tuple[float, float, float]) -> Any:
    """Return an image of vectors, centred, of (slowest, ..., fastest, component)."""
    made = itk.image_from_array(np.ascontiguousarray(array, np.float32), is_vector=True)
    return _centred(made, array.shape[2::-1], spacing)


def _centred(made: Any, size: tuple[int, ...], spacing: tuple[float, float, float]) -> Any:
    made.SetSpacing(spacing)
    made.SetOrigin([-(n - 1) / 2 * step for n, step in zip(size, spacing, strict=True)])
    return made


def spectrum_image(data: dict[str, Any], cols: int, rows: int) -> Any:
    """Return the spectrum of every pixel: energies along the fastest axis."""
    return itk.image_from_array(np.tile(data["spectrum"].astype(np.float32), (rows, cols, 1)))


def thresholds(data: dict[str, Any]) -> Any:
    """Return the edges of the bins: RTK integrates between them by trapezoids, where ours are whole channels."""
    edges = [*(data["thresholds_kev"] - 0.5).tolist(), len(data["response"]) - 0.5]
    made = itk.VariableLengthVector[itk.D](len(edges))
    for k, edge in enumerate(edges):
        made[k] = edge
    return made


def as_vectors(array: np.ndarray, components: int) -> Any:
    """Return a VectorImage of (slowest, ..., fastest, component), with a copy of the values."""
    made = itk.image_from_array(plain(array), ttype=itk.VectorImage[itk.F, 3])
    if made.GetNumberOfComponentsPerPixel() != components:
        raise ValueError(f"{made.GetNumberOfComponentsPerPixel()} components came of {components}")
    return made


def simplex(data: dict[str, Any], repeats: int) -> tuple[np.ndarray, Timing]:
    counts = data["few_counts"]
    n_bins, n_views, n_rays = counts.shape
    n_materials = data["attenuation_per_mm"].shape[1]
    start = np.zeros((n_views, 1, n_rays, n_materials), np.float32)
    start[..., -1] = 100.0  # mm of the last material, water

    def run() -> Any:
        kinds = itk.VectorImage[itk.F, 3], itk.VectorImage[itk.F, 3], itk.Image[itk.F, 3], itk.Image[itk.F, 2]
        fit = rtk.SimplexSpectralProjectionsDecompositionImageFilter[*kinds, itk.Image[itk.F, 2]].New()
        fit.SetInputDecomposedProjections(as_vectors(start, n_materials))
        fit.SetInputMeasuredProjections(as_vectors(np.moveaxis(counts, 0, -1)[:, None], n_bins))
        fit.SetInputIncidentSpectrum(spectrum_image(data, n_rays, 1))
        fit.SetDetectorResponse(itk.image_from_array(plain(data["response"])))
        fit.SetMaterialAttenuations(itk.image_from_array(plain(data["attenuation_per_mm"])))
        fit.SetThresholds(thresholds(data))
        fit.SetNumberOfIterations(300)
        fit.SetIsSpectralCT(True)
        fit.SetOutputInverseCramerRaoLowerBound(False)
        fit.Update()
        return fit.GetOutput()

    made, timing = timed(run, repeats)
    return np.moveaxis(itk.array_from_image(made)[:, 0], -1, 0), timing


def one_step(
    n_subsets: int, reset_every: int, n_iterations: int | None = None
) -> Callable[[dict[str, Any], int], tuple[np.ndarray, Timing]]:
    def operation(data: dict[str, Any], repeats: int) -> tuple[np.ndarray, Timing]:
        counts, n, voxel = data["counts"], data["n"], data["voxel_mm"]
        n_bins, _, n_rays = counts.shape
        n_materials = data["attenuation_per_mm"].shape[1]
        geometry = rtk.ThreeDCircularProjectionGeometry.New()
        for angle in np.rad2deg(data["angles_rad"]):
            geometry.AddProjection(DISTANCE_MM, 0.0, float(angle))
        measured = np.repeat(np.moveaxis(counts, 0, -1)[:, None], COPIES, axis=1)
        volume = np.zeros((n, COPIES, n, n_materials), np.float32)
        kinds = (
            itk.Image[itk.Vector[itk.F, n_materials], 3],
            itk.Image[itk.Vector[itk.F, n_bins], 3],
            itk.Image[itk.F, 3],
        )

        def run() -> Any:
            solve = rtk.MechlemOneStepSpectralReconstructionFilter[*kinds].New()
            solve.SetForwardProjectionFilter(type(solve).ForwardProjectionType_FP_JOSEPH)
            solve.SetBackProjectionFilter(type(solve).BackProjectionType_BP_VOXELBASED)
            solve.SetInputMaterialVolumes(vector_image(volume, (voxel,) * 3))
            solve.SetInputMeasuredProjections(vector_image(measured, (voxel, voxel, 1.0)))
            solve.SetInputIncidentSpectrum(spectrum_image(data, n_rays, COPIES))
            solve.SetBinnedDetectorResponse(itk.vnl_matrix_from_array(plain(data["binned_response"])))
            solve.SetMaterialAttenuations(itk.vnl_matrix_from_array(plain(data["unit_attenuation_per_mm"])))
            solve.SetGeometry(geometry)
            solve.SetNumberOfIterations(n_iterations or data["n_iterations"])
            solve.SetNumberOfSubsets(n_subsets)
            if reset_every:
                solve.SetResetNesterovEvery(reset_every)
            solve.Update()
            return solve.GetOutput()

        made, timing = timed(run, repeats)
        middle = itk.array_from_image(made)[:, COPIES // 2]
        # RTK's x is ours, its z is our -y
        return np.moveaxis(middle[::-1], -1, 0)[:, None], timing

    return operation


if __name__ == "__main__":
    serve(
        Path(sys.argv[1]),
        f"itk-rtk {version('itk-rtk')}",
        {
            "simplex": simplex,
            "one_step_default": one_step(4, 0, 5),
            "one_step": one_step(4, 0),
            "one_step_reset": one_step(4, RESET_EVERY),
            "one_step_whole": one_step(1, 0),
        },
    )
