"""scikit-image's parallel beam, in a Python of its own: `python peers_skimage.py FOLDER`.

Its images have the highest row first, and of an even number of pixels the upper one of the middle two lies on the axis:
what it is given was seen from half a pixel aside. Its pixels then lie on the rays' own grid, where ours and ASTRA's lie
between two rays, and its errors at edges are a little smaller for it.

# Ref: `skimage.transform.radon`, `iradon`, `iradon_sart` of scikit-image.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from peers_work import Timing, serve, timed
from skimage.transform import iradon, radon


def forward(data: dict[str, Any], repeats: int) -> tuple[None, Timing]:
    """Project; the bins are those of its own diagonal, so that only the time can be compared."""
    theta, volume = np.rad2deg(data["angles_rad"]), data["volume"][0, ::-1]
    _, timing = timed(lambda: radon(volume, theta=theta, circle=False), repeats)
    return None, timing


def back(filter_name: str | None) -> Any:
    def operation(data: dict[str, Any], repeats: int) -> tuple[np.ndarray, Timing]:
        theta, sinogram = np.rad2deg(data["angles_rad"]), np.ascontiguousarray(data["shifted_projections"][:, 0].T)
        n = data["shape"][1]

        def run() -> np.ndarray:
            return iradon(sinogram, theta=theta, filter_name=filter_name, circle=False, output_size=n)

        made, timing = timed(run, repeats)
        return made[None, ::-1], timing

    return operation


if __name__ == "__main__":
    serve(
        Path(sys.argv[1]),
        f"scikit-image {version('scikit-image')}",
        {"forward": forward, "adjoint": back(None), "fbp": back("ramp")},
    )
