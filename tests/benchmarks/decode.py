"""How fast one core turns the chip's bit planes into counts, against NumPy's unpackbits in the same run.

Both decode the same frames and their results are compared first. Rounds of the two take turns, and the figure is the
median round, so a busy machine harms both alike. GB/s are bytes of counts that come out: 131 kB per frame as uint16.
Counts of 1 bit fit into uint8 too; the table has both, and the figures are those of uint16, what the driver hands on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a script finds the packages of its own checkout

from firmware_iface.bitplanes import DEPTHS, decode_matrix, matrix_bytes
from firmware_iface.chip import COLS, LFSR_STATES, LINES_CODES, ROWS

N_FRAMES = 16
"""Frames in turn, 1.5 MB at 12 bits: more than a core's own cache holds."""


class Speed(NamedTuple):
    """Frames per second of ours and of NumPy's, and bytes of counts per frame."""

    ours_per_s: float
    numpy_per_s: float
    frame_bytes: int

    @property
    def gb_per_s(self) -> float:
        """Bytes of counts that ours gives."""
        return self.ours_per_s * self.frame_bytes / 1e9


def numpy_decoder(depth_bits: int, n_lines: int) -> Callable[[bytes], NDArray[np.uint16]]:
    """Return what one would write with NumPy alone: unpack, put planes together, look up, put columns in order."""
    clocks, lines = np.divmod(np.arange(COLS), n_lines)
    position = np.empty(COLS, dtype=np.intp)
    position[COLS - 1 - (COLS // n_lines * lines + clocks)] = np.arange(COLS)
    states = LFSR_STATES.get(depth_bits, np.arange(2, dtype=np.uint16))
    count_of = np.argsort(states).astype(np.uint16)

    def decode(payload: bytes) -> NDArray[np.uint16]:
        bits = np.unpackbits(np.frombuffer(payload, dtype=np.uint8), bitorder="little").reshape(ROWS, depth_bits, COLS)
        words = bits[:, 0].astype(np.uint16)
        for plane in range(1, depth_bits):
            words <<= 1
            words |= bits[:, plane]
        return np.take(np.take(count_of, words), position, axis=1)

    return decode


def measure(depth_bits: int, n_lines: int, n_rounds: int, kind: type = np.uint16) -> Speed:
    """Decode the same frames by ours, into counts of this kind, and by NumPy."""
    rng = np.random.default_rng(depth_bits)
    frames = [rng.bytes(matrix_bytes(depth_bits)) for _ in range(N_FRAMES)]
    peer = numpy_decoder(depth_bits, n_lines)
    out: NDArray[Any] = np.empty((ROWS, COLS), dtype=kind)
    for payload in frames:
        if not np.array_equal(decode_matrix(payload, depth_bits, n_lines, out=out), peer(payload)):
            sys.exit(f"the decoders differ at {depth_bits} bits over {n_lines} lines")
    ours_s, peer_s = [], []
    for _ in range(n_rounds):
        ours_s.append(seconds(lambda payload: decode_matrix(payload, depth_bits, n_lines, out=out), frames))
        peer_s.append(seconds(peer, frames))
    return Speed(N_FRAMES / median(ours_s), N_FRAMES / median(peer_s), out.nbytes)


def seconds(decode: Callable[[bytes], object], frames: list[bytes]) -> float:
    """Return how long one pass over the frames takes."""
    begin = time.perf_counter()
    for payload in frames:
        decode(payload)
    return time.perf_counter() - begin


def figures(n_rounds: int) -> dict[str, float]:
    """Measure the headline: 8 lines, all depths, uint16."""
    speeds = {depth_bits: measure(depth_bits, 8, n_rounds) for depth_bits in DEPTHS}
    return {
        **{f"frames_per_s_{depth_bits}bit": speed.ours_per_s for depth_bits, speed in speeds.items()},
        "gb_per_s_1bit": speeds[1].gb_per_s,
        **{
            f"ratio_to_numpy_{depth_bits}bit": speed.ours_per_s / speed.numpy_per_s
            for depth_bits, speed in speeds.items()
        },
    }


def main() -> None:
    """Measure, and print the table or the JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    arguments = parser.parse_args()
    n_rounds = 30 if arguments.quick else 200
    if arguments.json:
        print(json.dumps(figures(n_rounds)))
        return
    print("bits  lines  counts   frames/s   GB/s out   NumPy frames/s   ratio")  # under 8 lines NumPy does ours too
    for depth_bits in DEPTHS:
        for n_lines in LINES_CODES:
            for kind in (np.uint8, np.uint16) if n_lines == 8 and depth_bits < 12 else (np.uint16,):
                speed = measure(depth_bits, n_lines, n_rounds, kind)
                print(
                    f"{depth_bits:4} {n_lines:6}  {kind.__name__:6} {speed.ours_per_s:10.0f} {speed.gb_per_s:10.2f} "
                    f"{speed.numpy_per_s:16.0f} {speed.ours_per_s / speed.numpy_per_s:7.1f}"
                )


if __name__ == "__main__":
    main()
