"""ASTRA's parallel beam on the CPU, in a Python that has `astra-toolbox`: `python peers_astra.py FOLDER`.

Its images have the highest row first. On the CPU it has two dimensions only; its 3-D projectors need CUDA.

# Ref: van Aarle et al. 2016, Opt. Express 24, 25129; the projector "linear" of its 2-D documentation is Joseph's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import astra
import numpy as np
from peers_work import Timing, serve, timed

KERNEL = "linear"


def beam_of(data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return ASTRA's volume and projections of one slice: by vectors, (n_views, 12) in voxels, or by angles."""
    volume = astra.create_vol_geom(data["shape"][1], data["shape"][2])
    if "vectors_2d" in data:  # direction or source, detector, u: x and y of each
        kind = "parallel_vec" if data["is_parallel"] else "fanflat_vec"
        return volume, astra.create_proj_geom(kind, data["cols"], data["vectors_2d"])
    return volume, astra.create_proj_geom("parallel", 1.0, data["cols"], data["angles_rad"])


def algorithm(name: str, *, is_forward: bool = False) -> Callable[[dict[str, Any], int], tuple[np.ndarray, Timing]]:
    """Return the operation that runs one of ASTRA's algorithms."""

    def operation(data: dict[str, Any], repeats: int) -> tuple[np.ndarray, Timing]:
        volume_geometry, projection_geometry = beam_of(data)
        kernel = KERNEL if projection_geometry["type"].startswith("parallel") else "line_fanflat"
        projector = astra.create_projector(kernel, projection_geometry, volume_geometry)
        volume = astra.data2d.create("-vol", volume_geometry, data["volume"][0, ::-1] if is_forward else 0)
        projections = astra.data2d.create("-sino", projection_geometry, 0 if is_forward else data["projections"][:, 0])
        options = {"type": name, "ProjectorId": projector, "ProjectionDataId": projections}
        options |= {"VolumeDataId": volume} if is_forward else {"ReconstructionDataId": volume}
        n_iterations = data.get("n_iterations", 1) if name in {"SIRT", "CGLS"} else 1

        def run() -> None:
            if not is_forward:
                astra.data2d.store(volume, 0)
            made = astra.algorithm.create(options)
            astra.algorithm.run(made, n_iterations)
            astra.algorithm.delete(made)

        _, timing = timed(run, repeats)
        if is_forward:
            return astra.data2d.get(projections)[:, None], timing
        return astra.data2d.get(volume)[None, ::-1], timing

    return operation


def circular_vectors(data: dict[str, Any], repeats: int) -> tuple[np.ndarray, Timing]:
    """Return the `cone_vec` that ASTRA itself makes of its circular cone beam."""
    kinds = {"cone": ("source_to_object", "object_to_detector"), "parallel3d": ()}
    names = kinds[data["kind"]]
    beam = astra.create_proj_geom(
        data["kind"],
        data["pitch"],
        data["pitch"],
        data["rows"],
        data["cols"],
        data["angles_rad"],
        *(data[n] for n in names),
    )
    return timed(lambda: astra.geom_2vec(beam)["Vectors"], repeats)


if __name__ == "__main__":
    serve(
        Path(sys.argv[1]),
        f"astra-toolbox {version('astra-toolbox')} CPU",
        {
            "forward": algorithm("FP", is_forward=True),
            "adjoint": algorithm("BP"),
            "fbp": algorithm("FBP"),
            "sirt": algorithm("SIRT"),
            "cgls": algorithm("CGLS"),
            "circular_vectors": circular_vectors,
        },
    )
