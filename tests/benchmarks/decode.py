"""How fast one core turns the chip's bit planes into counts, against NumPy's unpackbits in the same run.

Both decode the same frames and their results are compared first. Rounds of the two take turns, and the figure is the
median round, so a busy machine harms both alike.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a script finds the packages of its own checkout

from firmware_iface.bitplanes import DEPTHS, decode_matrix, matrix_bytes
from firmware_iface.chip import COLS, LFSR_STATES, LINES_CODES, ROWS

N_FRAMES = 16
"""Frames in turn, 1.5 MB: more than a core's own cache holds."""
HEADLINE = (12, 8)


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


def measure(depth_bits: int, n_lines: int, n_rounds: int) -> tuple[float, float]:
    """Return the frames per second of our decoder and of NumPy's."""
    rng = np.random.default_rng(depth_bits)
    frames = [rng.bytes(matrix_bytes(depth_bits)) for _ in range(N_FRAMES)]
    peer = numpy_decoder(depth_bits, n_lines)
    out = np.empty((ROWS, COLS), dtype=np.uint16)
    for payload in frames:
        if not np.array_equal(decode_matrix(payload, depth_bits, n_lines), peer(payload)):
            sys.exit(f"the decoders differ at {depth_bits} bits over {n_lines} lines")
    ours_s, peer_s = [], []
    for _ in range(n_rounds):
        ours_s.append(seconds(lambda payload: decode_matrix(payload, depth_bits, n_lines, out=out), frames))
        peer_s.append(seconds(peer, frames))
    return N_FRAMES / median(ours_s), N_FRAMES / median(peer_s)


def seconds(decode: Callable[[bytes], object], frames: list[bytes]) -> float:
    """Return how long one pass over the frames takes."""
    begin = time.perf_counter()
    for payload in frames:
        decode(payload)
    return time.perf_counter() - begin


def main() -> None:
    """Measure, and print the table or the JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    arguments = parser.parse_args()
    n_rounds = 50 if arguments.quick else 400
    if arguments.json:
        depth_bits, n_lines = HEADLINE
        ours_per_s, peer_per_s = measure(depth_bits, n_lines, n_rounds)
        figures = {
            "frames_per_s": ours_per_s,
            "bits": depth_bits,
            "lines": n_lines,
            "gb_per_s": ours_per_s * matrix_bytes(depth_bits) / 1e9,
            "peer_numpy_frames_per_s": peer_per_s,
            "ratio": ours_per_s / peer_per_s,
        }
        print(json.dumps(figures))
        return
    print("bits  lines   frames/s   GB/s   NumPy frames/s   ratio")  # fewer lines than 8 are decoded by NumPy too
    for depth_bits in DEPTHS:
        for n_lines in LINES_CODES:
            ours_per_s, peer_per_s = measure(depth_bits, n_lines, n_rounds)
            gb_per_s = ours_per_s * matrix_bytes(depth_bits) / 1e9
            ratio = ours_per_s / peer_per_s
            print(f"{depth_bits:4} {n_lines:6} {ours_per_s:10.0f} {gb_per_s:6.2f} {peer_per_s:16.0f} {ratio:7.1f}")


if __name__ == "__main__":
    main()
