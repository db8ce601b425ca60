"""RTK's cone beam, in a Python that has `itk-rtk`: `python peers_rtk.py FOLDER` does what the folder asks for.

Its frame has the axis of rotation along y: its x is ours, its y our z, its z our -y. Its projections have the same rows
and columns as ours when the poses are given by vectors.

# Ref: Rit et al. 2014, J. Phys.: Conf. Ser. 489, 012079; `rtk::ThreeDCircularProjectionGeometry` of RTK 2.7.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import itk
import numpy as np
from itk import RTK as rtk  # noqa: N811 - as its documentation writes it
from peers_work import Timing, serve, timed

IMAGE = itk.Image[itk.F, 3]
SART = rtk.SARTConeBeamReconstructionFilter[IMAGE, IMAGE]
GRADIENTS = rtk.ConjugateGradientConeBeamReconstructionFilter[IMAGE]


def geometry_of(vectors: np.ndarray) -> Any:
    """Return the poses of (n_views, 4, 3) vectors: source, detector, u, v of ours in mm."""
    geometry = rtk.ThreeDCircularProjectionGeometry.New()
    for source, detector, u, v in vectors[:, :, [0, 2, 1]] * np.array([1, 1, -1.0]):
        if not geometry.AddProjection(source.tolist(), detector.tolist(), unit(u), unit(v)):
            raise ValueError(f"RTK refuses the pose with its source at {source} and its detector at {detector}")
    return geometry


def unit(vector: np.ndarray) -> list[float]:
    return (vector / np.linalg.norm(vector)).tolist()


def image(array: np.ndarray, spacing: tuple[float, float, float]) -> Any:
    """Return an image of an array, slowest axis first, with its middle at 0; the spacing is along its x, y, z."""
    made = itk.image_from_array(np.ascontiguousarray(array, np.float32))
    made.SetSpacing(spacing)
    made.SetOrigin([-(n - 1) / 2 * step for n, step in zip(array.shape[::-1], spacing, strict=True)])
    return made


def volume_image(volume: np.ndarray, voxel_mm: float) -> Any:
    """Return RTK's image of (z, y, x)."""
    return image(volume.transpose(1, 0, 2)[::-1], (voxel_mm,) * 3)


def volume_array(made: Any) -> np.ndarray:
    """Return (z, y, x) of RTK's image."""
    return itk.array_from_image(made)[::-1].transpose(1, 0, 2)


def stack_image(projections: np.ndarray, vectors: np.ndarray) -> Any:
    """Return RTK's image of (n_views, rows, cols)."""
    u_mm, v_mm = (float(np.linalg.norm(vectors[0, n])) for n in (2, 3))
    return image(projections, (u_mm, v_mm, 1.0))


def forward(data: dict[str, Any], repeats: int) -> tuple[np.ndarray, Timing]:
    geometry, vectors = geometry_of(data["vectors"]), data["vectors"]
    empty = stack_image(np.zeros((len(vectors), data["rows"], data["cols"])), vectors)
    volume = volume_image(data["volume"], data["voxel_mm"])

    def run() -> Any:
        project = rtk.JosephForwardProjectionImageFilter[IMAGE, IMAGE].New()
        project.SetInput(0, empty)
        project.SetInput(1, volume)
        project.SetGeometry(geometry)
        project.InPlaceOff()
        project.Update()
        return project.GetOutput()

    made, timing = timed(run, repeats)
    return itk.array_from_image(made), timing


def back(filter_type: Any) -> Any:
    def operation(data: dict[str, Any], repeats: int) -> tuple[np.ndarray, Timing]:
        geometry = geometry_of(data["vectors"])
        empty = volume_image(np.zeros(data["shape"]), data["voxel_mm"])
        projections = stack_image(data["projections"], data["vectors"])

        def run() -> Any:
            smear = filter_type[IMAGE, IMAGE].New()
            smear.SetInput(0, empty)
            smear.SetInput(1, projections)
            smear.SetGeometry(geometry)
            smear.InPlaceOff()
            smear.Update()
            return smear.GetOutput()

        made, timing = timed(run, repeats)
        return volume_array(made), timing

    return operation


def fdk(data: dict[str, Any], repeats: int) -> tuple[np.ndarray, Timing]:
    geometry = geometry_of(data["vectors"])
    empty = volume_image(np.zeros(data["shape"]), data["voxel_mm"])
    projections = stack_image(data["projections"], data["vectors"])

    def run() -> Any:
        feldkamp = rtk.FDKConeBeamReconstructionFilter[IMAGE].New()
        feldkamp.SetInput(0, empty)
        feldkamp.SetInput(1, projections)
        feldkamp.SetGeometry(geometry)
        feldkamp.Update()
        return feldkamp.GetOutput()

    made, timing = timed(run, repeats)
    return volume_array(made), timing


def conjugate_gradients(data: dict[str, Any], repeats: int) -> tuple[np.ndarray, Timing]:
    geometry = geometry_of(data["vectors"])
    empty = volume_image(np.zeros(data["shape"]), data["voxel_mm"])
    projections = stack_image(data["projections"], data["vectors"])
    weights = stack_image(np.ones_like(data["projections"]), data["vectors"])

    def run() -> Any:
        solve = GRADIENTS.New()
        solve.SetInputVolume(empty)
        solve.SetInputProjectionStack(projections)
        solve.SetInputWeights(weights)
        solve.SetGeometry(geometry)
        solve.SetNumberOfIterations(data["n_iterations"])
        solve.SetDisableDisplacedDetectorFilter(True)
        solve.SetForwardProjectionFilter(GRADIENTS.ForwardProjectionType_FP_JOSEPH)
        solve.SetBackProjectionFilter(GRADIENTS.BackProjectionType_BP_JOSEPH)
        solve.Update()
        return solve.GetOutput()

    made, timing = timed(run, repeats)
    return volume_array(made), timing


def sart(subset_views: str, back: str = "JOSEPH") -> Any:
    def operation(data: dict[str, Any], repeats: int) -> tuple[np.ndarray, Timing]:
        geometry = geometry_of(data["vectors"])
        empty = volume_image(np.zeros(data["shape"]), data["voxel_mm"])
        projections = stack_image(data["projections"], data["vectors"])

        def run() -> Any:
            solve = SART.New()
            solve.SetInput(0, empty)
            solve.SetInput(1, projections)
            solve.SetGeometry(geometry)
            solve.SetNumberOfIterations(data["n_iterations"])
            solve.SetNumberOfProjectionsPerSubset(data[subset_views])
            solve.SetForwardProjectionFilter(SART.ForwardProjectionType_FP_JOSEPH)
            solve.SetBackProjectionFilter(getattr(SART, f"BackProjectionType_BP_{back}"))
            solve.Update()
            return solve.GetOutput()

        made, timing = timed(run, repeats)
        return volume_array(made), timing

    return operation


if __name__ == "__main__":
    serve(
        Path(sys.argv[1]),
        f"itk-rtk {version('itk-rtk')}",
        {
            "forward": forward,
            "adjoint": back(rtk.JosephBackProjectionImageFilter),
            "back": back(rtk.FDKBackProjectionImageFilter),
            "fdk": fdk,
            "cg": conjugate_gradients,
            "os_sart": sart("subset_views"),
            "os_sart_voxel_driven": sart("subset_views", "VOXELBASED"),
            "sirt": sart("n_views"),
        },
    )
