"""How many frames per second the simulated chip and its board give at 12 bits, fast against bit-serial.

Measured from the events of a frame, ready in memory, to the packet on the board's frame endpoint: counting into the
pixels' registers, shifting 98 kB out over 8 lines, both checksums and the header. What the scene and the sensor make of
photons is not in it. The fast chip counts and shifts by tables; that it gives the same bytes as the chip that steps
every register and every clock is compared here first, and in `tests/test_chip.py` for every mode.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import zlib
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a script finds the packages of its own checkout

from firmware_iface import chip, wire
from firmware_iface.chip import Mode
from sim.board import Board
from sim.chip import SimulatedChip
from sim.sensor import Settings

N_SCENES = 8
READ_1 = chip.pack_register(
    chip.OMR_FIELDS,
    {"M": Mode.READ_COUNTER_1, "CountL": 2, "PS": 3, "ColourMode": 1, "CSM_SPM": 1, "InfoHeader": 1, "GainMode": 1},
)


def a_board(*, is_bit_serial: bool) -> Board:
    """Return a board whose chip sees a few frames of Poisson counts in turn."""
    rng = np.random.default_rng(1)
    scenes = [rng.poisson(40, (8, 128, 128)).astype(np.uint32) for _ in range(N_SCENES)]
    n_exposed = 0

    def front_end(duration_s: float, settings: Settings) -> NDArray[np.uint32]:
        nonlocal n_exposed
        n_exposed += 1
        return scenes[n_exposed % N_SCENES]

    return Board(SimulatedChip(front_end, is_bit_serial=is_bit_serial), str.upper, "BENCH-1")


def start(board: Board, n_frames: int) -> None:
    """Begin a run."""
    run = wire.START.pack(1, n_frames, 1_000_000, 0, 1) + wire.OMR.pack(READ_1)
    header = wire.COMMAND_HEADER.pack(wire.COMMAND_MAGIC, wire.VERSION, wire.Opcode.START, 1, 0, len(run))
    board.receive(header + run + wire.CRC.pack(zlib.crc32(header + run)))
    board.take_reply_bytes(1 << 20)


def take(board: Board, n_frames: int) -> list[bytes]:
    """Take frames from the frame endpoint."""
    return [bytes(board.take_frame_bytes(1 << 20)) for _ in range(n_frames)]


def frames_per_s(board: Board, n_frames: int, n_rounds: int) -> float:
    """Return the median round's speed."""
    start(board, 0)
    take(board, 2)
    times_s = []
    for _ in range(n_rounds):
        begin = time.perf_counter()
        for _ in range(n_frames):
            board.take_frame_bytes(1 << 20)
        times_s.append(time.perf_counter() - begin)
    return n_frames / median(times_s)


def main() -> None:
    """Compare, measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    arguments = parser.parse_args()
    fast, serial = a_board(is_bit_serial=False), a_board(is_bit_serial=True)
    for board in (fast, serial):
        start(board, N_SCENES)
    if take(fast, N_SCENES) != take(serial, N_SCENES):
        sys.exit("the fast chip and the bit-serial one differ")
    n_rounds = 5 if arguments.quick else 21
    speeds = {
        "frames_per_s": frames_per_s(fast, 100, n_rounds),
        "bit_serial_frames_per_s": frames_per_s(serial, 10, n_rounds),
    }
    if arguments.json:
        print(json.dumps(speeds))
    else:
        print(f"12 bits, 8 lines, one counter: {speeds['frames_per_s']:.0f} frames/s by tables, ", end="")
        print(f"{speeds['bit_serial_frames_per_s']:.0f} step by step; the same bytes")


if __name__ == "__main__":
    main()
