"""ODL's solvers over ASTRA's parallel beam on the CPU: `python peers_odl.py FOLDER`.

In three dimensions ODL has ASTRA's CUDA projectors only; without a GPU it can do P1 and neither P2 nor P3.

# Ref: `odl.applications.tomo.RayTransform` (its back ends astra_cpu and skimage are for two dimensions), `odl.solvers`.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import odl
from odl.applications import tomo
from peers_work import Timing, serve, timed


def transform_of(data: dict[str, Any]) -> Any:
    n = data["shape"][1]
    half = n / 2
    space = odl.uniform_discr([-half, -half], [half, half], [n, n], dtype="float32")
    angles = odl.nonuniform_partition(data["angles_rad"])
    bins = odl.uniform_partition(-data["cols"] / 2, data["cols"] / 2, data["cols"])
    return tomo.RayTransform(space, tomo.Parallel2dGeometry(angles, bins), impl="astra_cpu")


def gradients(data: dict[str, Any], repeats: int) -> tuple[np.ndarray, Timing]:
    transform = transform_of(data)
    sinogram = transform.range.element(data["projections"][:, 0])

    def run() -> Any:
        x = transform.domain.zero()
        odl.solvers.conjugate_gradient_normal(transform, x, sinogram, niter=data["n_iterations"])
        return x

    made, timing = timed(run, repeats)
    return np.asarray(made.asarray()).T[None], timing


if __name__ == "__main__":
    serve(
        Path(sys.argv[1]),
        f"odl {version('odl')} over astra-toolbox {version('astra-toolbox')} CPU",
        {"cgls": gradients},
    )
