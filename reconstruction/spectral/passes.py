"""Bins of several passes over one sample as the bins of one scan: a chip of four thresholds then tells eight energies.

Passes are measured one after the other, so that their noise is independent; that their bins overlap in energy does no
harm, for each has a row of its own in the matrix. What moved or changed between passes is not told apart from material.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from calibration.material_basis import joined as joined_bases
from firmware_iface.errors import WrongUsage
from reconstruction.volume import LINEAR_ATTENUATION, Volume


def joined(volumes: Sequence[Volume]) -> Volume:
    """Put the bins of several passes into one volume, in their order, and so their material bases.

    Raises
    ------
    WrongUsage
        The volumes are not bins on one grid.
    """
    first = volumes[0]
    for other in volumes:
        if other.unit != LINEAR_ATTENUATION:
            raise WrongUsage(f"a volume holds {', '.join(other.channels)} in {other.unit}; allowed: bins in 1/mm")
        if other.grid != first.grid:
            raise WrongUsage(
                f"the passes stand on grids {first.grid} and {other.grid}; allowed: one grid",
                hint="reconstruct each pass with the same --voxel-mm, --shape and --roi",
            )
    bases = [each.basis for each in volumes if each.basis is not None]
    return replace(
        first,
        values=np.concatenate([each.values for each in volumes]),
        channels=tuple(name for each in volumes for name in each.channels),
        thresholds_kev=tuple(kev for each in volumes for kev in each.thresholds_kev),
        basis=joined_bases(bases) if len(bases) == len(volumes) else None,
        provenance=replace(
            first.provenance,
            steps=(*first.provenance.steps, f"bins of {len(volumes)} passes joined"),
        ),
    )
