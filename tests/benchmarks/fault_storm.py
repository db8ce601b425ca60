"""Frames through the whole wire under random faults: is any of them wrong, lost in silence, or the host hung?

Every frame carries its run and its number in its pixels, over one of many random patterns, so that a frame that is
delivered can be told from every other. It goes from the simulated board's own packets through all faults of the way,
the simulated USB device, pyusb, the decoder and `Detector`. One-bit frames of 8 kB make a million of them a matter of
minutes; the packets are the same as those of 12 bits, only shorter. The chips are stand-ins that give those patterns.

Sessions also stop and abort runs, let commands break off in the middle, the chip hang, the supply fail and the plug be
pulled at any byte. With `--chips` every frame comes in one packet for each chip and counter.

`python tests/benchmarks/fault_storm.py --frames 1000000 --json`
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from firmware_iface.chip import Mode
from firmware_iface.configuration import Configuration
from firmware_iface.device import Detector
from firmware_iface.errors import DetectorError
from firmware_iface.frame import Frame, Lost
from firmware_iface.usb_transport import UsbTransport
from sim.board import Board
from sim.chip import SimulatedChip
from sim.faults import Faults
from sim.usb_device import SimulatedUsb
from sim.usb_model import UsbDevice

N_PATTERNS, N_BYTES, STAMP_BYTES, SIDE = 61, 8192, 16, 256
HANG_S = 60.0
"""Longer than any patience of the driver: so long a silence is a hang."""
CONFIGURATION = Configuration(is_colour=False, is_csm=False, depth_bits=1, counters=(0, 1))
COUNTERS = {Mode.READ_COUNTER_0: 0, Mode.READ_COUNTER_1: 1}
PATTERNS = [random.Random(n).randbytes(N_BYTES) for n in range(N_PATTERNS)]


def pixels_of(payload: bytes) -> NDArray[np.uint8]:
    """Return the matrix of one plane over 8 lines, from the specification: bit L of byte t of a row is a column."""
    bits = np.unpackbits(np.frombuffer(payload, np.uint8), bitorder="little").reshape(256, 32, 8)
    return bits.transpose(0, 2, 1).reshape(256, 256)[:, ::-1]  # line L, clock t: column 255 - (32 L + t)


PIXELS = [pixels_of(pattern) for pattern in PATTERNS]


def pattern_of(run: int, number: int, counter: int, chip: int) -> int:
    """Return which pattern one counter of one chip shows in one frame."""
    return (run + 3 * number + counter + 7 * chip) % N_PATTERNS


def stamped(run: int, number: int, counter: int, chip: int) -> bytes:
    """Return the payload of one counter of one chip in one frame."""
    stamp = run.to_bytes(6, "little") + bytes([chip, counter]) + number.to_bytes(8, "little")
    return stamp + PATTERNS[pattern_of(run, number, counter, chip)][STAMP_BYTES:]


def is_right(frame: Frame, run: int, layout: tuple[int, int] = (1, 1)) -> bool:
    """Say whether the pixels of a frame are those of its number, of this run, and each chip's in its place."""
    if frame.counts.shape != (2, SIDE * layout[0], SIDE * layout[1]):
        return False
    for counter, plane in enumerate(frame.counts):
        for chip in range(layout[0] * layout[1]):
            row, column = divmod(chip, layout[1])
            part = plane[SIDE * row : SIDE * (row + 1), SIDE * column : SIDE * (column + 1)]
            part = part[::-1, ::-1] if row else part  # the upper row of a quad is turned
            stamp = pixels_of(stamped(run, frame.sequence, counter, chip)[:32] + bytes(N_BYTES - 32))[0]
            expected = PIXELS[pattern_of(run, frame.sequence, counter, chip)]
            if not (np.array_equal(part[1:], expected[1:]) and np.array_equal(part[0], stamp)):
                return False
    return True


class PatternChip(SimulatedChip):
    """A chip without pixels: its readouts are the stamped patterns. The n-th clearing, by START, begins run n."""

    def __init__(self, number: int = 0) -> None:
        super().__init__(lambda duration_s, settings: np.zeros((8, 128, 128), np.uint32))
        self.number = number
        self.n_runs = self.n_frames = 0

    def fast_clear(self) -> None:
        self.n_runs, self.n_frames = self.n_runs + 1, 0

    def arm(self, omr: int) -> None:
        pass

    def expose(self, duration_s: float) -> None:
        self.n_frames += 1

    def transact(self, omr: int, bits: bytes) -> bytes:
        mode = Mode(omr & 7)
        if mode in COUNTERS:
            info_header = bytes(32) if omr >> 22 & 1 else b""
            return info_header + stamped(self.n_runs, self.n_frames - 1, COUNTERS[mode], self.number)
        return b""


def faults_of(draw: random.Random) -> Faults:
    """Return the faults of one session: always a storm, and sometimes something that ends it."""
    ending = draw.randrange(8)
    return Faults(
        storm_fraction=draw.choice([0.01, 0.1, 0.3, 0.9]),
        storm_seed=draw.randrange(1 << 30),
        slow=MappingProxyType({draw.randrange(2000): draw.randrange(1, 200) for _ in range(3)}),
        hang=frozenset({draw.randrange(2000)} if ending == 0 else ()),
        brown_out=frozenset({draw.randrange(2000)} if ending == 1 else ()),
        unplug_at=draw.randrange(1, 20_000_000) if ending == 2 else None,
        break_command=frozenset(draw.randrange(60) for _ in range(2)) if ending == 3 else frozenset(),
    )


class Storm:
    """Sessions, and what came of them."""

    def __init__(self, seed: int, layout: tuple[int, int] = (1, 1)) -> None:
        self.draw = random.Random(seed)
        self.layout = layout
        self.n_taken = self.n_right = self.n_lost = self.n_wrong = self.n_silent = self.n_hangs = self.n_ends = 0
        self.n_baseless = 0
        self.heard_s = 0.0

    def session(self) -> None:
        """Open a detector, take some runs, and close it."""
        chips = [PatternChip(number) for number in range(self.layout[0] * self.layout[1])]
        n_lost_before, faults = self.n_lost, faults_of(self.draw)
        board = Board(chips, str.upper, "STORM", faults, layout=self.layout)
        device = UsbDevice(board, "STORM", broken_writes=faults.break_command)
        is_over = threading.Event()
        self.heard_s = time.monotonic()
        threading.Thread(target=self.watch, args=(device, is_over), daemon=True).start()
        try:
            with Detector(UsbTransport(SimulatedUsb(device), "storm")) as detector:
                detector.configure(CONFIGURATION)
                detector.write_register("MEMORY_FRAMES", 64)
                detector.write_register("WHEN_FULL", self.draw.randrange(2))
                for _ in range(self.draw.randrange(1, 4)):
                    self.run(detector, chips[0])
        except DetectorError:
            self.n_ends += 1
        finally:
            is_over.set()
        # A fault may cost the frame that it hits and no other.
        self.n_baseless += max(self.n_lost - n_lost_before - board.n_harmed, 0)

    def watch(self, device: UsbDevice, is_over: threading.Event) -> None:
        """Count a hang, and pull the plug, when nothing came for long."""
        while not is_over.wait(1.0):
            if time.monotonic() - self.heard_s > HANG_S:
                self.n_hangs += 1
                device.unplug()
                return

    def run(self, detector: Detector, chip: PatternChip) -> None:
        """Take one run, some of them cut short, and judge what comes."""
        n_frames, early = self.draw.randrange(1, 3000), self.draw.randrange(6)
        n_before_end = self.draw.randrange(n_frames) if early < 3 else n_frames
        n_next = 0
        is_whole = False
        items = detector.frames(0 if early == 0 else n_frames, 1e-5)
        try:
            for item in items:
                self.heard_s = time.monotonic()
                n_next = self.judge(item, n_next, chip.n_runs)
                if n_next > n_before_end:
                    n_before_end = 1 << 62
                    (detector.stop, detector.stop, detector.abort)[early]()
            is_whole = True
        finally:
            if is_whole and early > 2:
                self.n_silent += n_frames - n_next
            elif is_whole and early < 2:
                self.n_silent += max(detector.status().n_frames_done - n_next, 0)
            self.n_taken += n_next

    def judge(self, item: Frame | Lost, n_next: int, run: int) -> int:
        """Count one item, and return the number of the frame that must follow it."""
        first, n = (item.sequence, 1) if isinstance(item, Frame) else (item.first_sequence, item.n_frames)
        if first < n_next:
            self.n_wrong += 1  # twice, or out of its place
            return n_next
        self.n_silent += first - n_next
        if isinstance(item, Lost):
            self.n_lost += n
        elif is_right(item, run, self.layout):
            self.n_right += 1
        else:
            self.n_wrong += 1
        return first + n


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=1_000_000, help="how many frames to take at least")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--chips", default="1x1", help="an assembly of COLUMNSxROWS: 1x1 to 8x1, or 2x2")
    parser.add_argument("--quick", action="store_true", help="20,000 frames; 5,000 of an assembly")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    columns, rows = map(int, options.chips.split("x"))
    storm, began_s = Storm(options.seed, (rows, columns)), time.perf_counter()
    n_quick = 20_000 if rows * columns == 1 else 5_000
    while storm.n_taken < (n_quick if options.quick else options.frames):
        storm.session()
    seconds = time.perf_counter() - began_s
    figures = {
        "frames": storm.n_taken, "wrong": storm.n_wrong, "silent_losses": storm.n_silent, "hangs": storm.n_hangs,
    }  # fmt: skip
    if options.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:24} {value}" for name, value in figures.items()))
        print(f"{'right':24} {storm.n_right}\n{'told as lost':24} {storm.n_lost}")
        print(f"{'of them, unharmed':24} {storm.n_baseless}")
        print(f"{'sessions that broke off':24} {storm.n_ends}\n{'frames/s':24} {storm.n_taken / seconds:.0f}")
    sys.exit(any((storm.n_wrong, storm.n_silent, storm.n_hangs, storm.n_baseless)))


if __name__ == "__main__":
    main()
