"""readouts of all chips: one image of the whole detector, every threshold a plane.

Chips stand in one row, or 2 x 2 with the bottoms of all chips outside: chips 1 and 2 below, 3 and 4 above, these turned
by 180 degrees. No gap is put between chips; the wider pixels at their edges are the calibration's business.

# Ref: quad: chips 1, 2 unflipped (1 left), chips 3 (left), 4 rotated by 180 degrees: medipix3rx reference 9.4, from
#      LiberTEM-live's Merlin decoder; rows of a file start with the bottom row (Merlin specification 7.3).
# Ref: counter 1 before counter 0, 24 bits as two readouts of 12, counters in turn in continuous read/write: reference
#      2.1 and 2.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import or_

import numpy as np
from numpy.typing import NDArray

from firmware_iface import chip
from firmware_iface.bitplanes import colour_planes, decode_matrix
from firmware_iface.codec import Readout
from firmware_iface.configuration import Configuration
from firmware_iface.errors import TheirMistake
from firmware_iface.frame import Frame
from firmware_iface.wire import FrameFlag

LAYOUTS = frozenset({(1, n) for n in range(1, 9)} | {(2, 2)})
"""(rows, columns) of chips that can be put together."""


def frame_of(readouts: Iterable[Readout], configuration: Configuration, layout: tuple[int, int] = (1, 1)) -> Frame:
    """Decode the readouts of one frame and put them together.

    Parameters
    ----------
    readouts : iterable of Readout
        Of every chip and counter, in any order.
    configuration : Configuration
        What was asked for.
    layout : (rows, columns)
        How the chips stand.

    Raises
    ------
    TheirMistake
        The frame was taken in another mode than asked for.
    """
    by_place = {(each.chip, each.omr): each for each in readouts}
    first = next(iter(by_place.values()))
    omrs = configuration.readouts_of(first.sequence)
    n_chips = layout[0] * layout[1]
    parts = [_planes_of(n, by_place, omrs, configuration) for n in range(n_chips)]
    flags = reduce(or_, (each.flags for each in by_place.values()))
    return Frame(
        counts=parts[0] if n_chips == 1 else _together(parts, layout),
        thresholds=configuration.thresholds,
        sequence=first.sequence,
        timestamp_ns=first.timestamp_ns,
        exposure_ns=first.exposure_ns,
        run_id=first.run_id,
        was_paused=FrameFlag.PAUSED in flags,
        follows_overflow=FrameFlag.OVERFLOW in flags,
        is_triggered=FrameFlag.TRIGGERED in flags,
        missed_trigger=FrameFlag.TRIGGER_MISSED in flags,
    )


def _planes_of(
    n_chip: int, by_place: Mapping[tuple[int, int], Readout], omrs: Sequence[int], configuration: Configuration
) -> NDArray[np.unsignedinteger]:
    """Return the counts of one chip: (n_thresholds, rows, cols)."""
    matrices: list[NDArray[np.unsignedinteger]] = []
    for omr in omrs:
        readout = by_place.get((n_chip, omr))
        if readout is None:
            taken = ", ".join(f"{other:#014x}" for other_chip, other in by_place if other_chip == n_chip)
            raise TheirMistake(f"a frame of chip {n_chip} was taken with the OMR {taken}; asked for: {omr:#014x}")
        matrices.append(decode_matrix(readout.matrix_bits, readout.depth_bits, readout.n_lines))
    if configuration.depth_bits == 24:
        high, low = matrices
        matrices = [high.astype(np.uint32) << np.uint32(chip.PIXEL_BITS) | low]
    matrices.reverse()  # counter 0 holds the lower threshold of each pair
    planes = [colour_planes(matrix) if configuration.is_colour else matrix[np.newaxis] for matrix in matrices]
    return planes[0] if len(planes) == 1 else np.stack(planes, axis=1).reshape(-1, *planes[0].shape[1:])


def _together(parts: Sequence[NDArray[np.unsignedinteger]], layout: tuple[int, int]) -> NDArray[np.unsignedinteger]:
    """Return the chips' counts, (n_thresholds, rows, cols) each, as one image."""
    n_rows, n_columns = layout
    rows = [parts[n_columns * row : n_columns * (row + 1)] for row in range(n_rows)]
    turned = [rows[0], *([part[:, ::-1, ::-1] for part in row] for row in rows[1:])]
    return np.concatenate([np.concatenate(row, axis=2) for row in turned], axis=1)
