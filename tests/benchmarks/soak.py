"""Whether everything between USB and disk keeps up: packets of a board at a rate, decoded, streamed, written, flushed.

The packets are those of one chip, 256 x 256 pixels of 12 bits, of a few frames with Poisson counts in turn. The board
makes them at its own pace into a memory of `MEMORY_FRAMES`; what does not fit is dropped there and counts as lost, as
the decoder sees it. With a rate of 0 it has the next frame whenever it is asked. The file is flushed to the disk as in
any scan, checked at the end, and removed.

# Ref: 1,250 frames/s of 12 bits: daq_gui reference 3.1.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import usb.core
from chain import DEPTH_BITS, N_LINES, FastBus

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a script finds the packages of its own checkout

from acquisition.instrument import Instrument
from acquisition.plan import Plan
from acquisition.scan import ImageKey, Readout
from acquisition.scan_file import read_scan
from acquisition.scan_writer import ScanWriter
from acquisition.stepping import Stepper
from acquisition.steps import Pose, Step, StepKind
from acquisition.stream import FrameStream
from firmware_iface import wire
from firmware_iface.chip import COLS, EFUSE_HEADER_BYTES, LFSR_STATES, PITCH_MM, ROWS
from firmware_iface.configuration import Configuration
from firmware_iface.device import Detector
from firmware_iface.frame import Frame, Lost
from firmware_iface.usb_transport import UsbTransport
from sim.pixels import FAST
from tests.rough_calibration import rough_calibration

MEMORY_FRAMES = 512
"""What a board with 64 MB of memory holds of frames of 98 kB, a choice."""
N_PAYLOADS = 16
WARM_UP_S = 5.0
"""After this long all buffers have been made, and memory is to stay as it is."""


class PacedBus(FastBus):
    """A board that makes frames at a rate, into a memory that ends."""

    def __init__(self, rate_per_s: float, mean_counts: float) -> None:
        super().__init__()
        rng = np.random.default_rng(1)
        self.counts = rng.poisson(mean_counts, (N_PAYLOADS, ROWS, COLS)).clip(0, (1 << DEPTH_BITS) - 1)
        self.payloads = [
            bytes(EFUSE_HEADER_BYTES) + FAST.shift_out(LFSR_STATES[DEPTH_BITS][counts], DEPTH_BITS, N_LINES)
            for counts in self.counts
        ]
        self._checksums = [zlib.crc32(payload) for payload in self.payloads]
        self._rate_per_s, self._began_s = rate_per_s, time.monotonic()
        self.n_overflows = 0
        self._begun = threading.Event()

    def start(self, run_id: int, n_frames: int, *, omr: int) -> None:
        """Begin a run, and the board's pace."""
        super().start(run_id, n_frames, omr=omr)
        self._began_s = time.monotonic()
        self._begun.set()

    def bulk_read(self, dev_handle: object, ep: int, intf: int, buff: array, timeout: int) -> int:
        """Give the next frame once it is made; the oldest are gone where more wait than the memory holds."""
        if ep == wire.EP_FRAMES and self._n_done >= self._n_frames:
            self._begun.clear()
            if self._n_done >= self._n_frames and not self._begun.wait(timeout / 1000):
                raise usb.core.USBTimeoutError("Operation timed out", -7, 110)
        if ep == wire.EP_FRAMES and self._rate_per_s and self._n_done < self._n_frames:
            n_made = int((time.monotonic() - self._began_s) * self._rate_per_s)
            n_dropped = min(n_made, self._n_frames) - self._n_done - MEMORY_FRAMES
            if n_dropped > 0:
                self._n_done += n_dropped
                self.n_overflows += 1
            if n_made <= self._n_done:
                due_s = (self._n_done + 1) / self._rate_per_s + self._began_s + 1e-4
                time.sleep(max(due_s - time.monotonic(), 0))
        return super().bulk_read(dev_handle, ep, intf, buff, timeout)

    def ctrl_transfer(self, *_: object) -> int:
        """Take the request to abort, the only one that is made."""
        self._n_frames = self._n_done
        return 0


def soak(seconds: float, rate_per_s: float, folder: Path, *, mean_counts: float = 2.0) -> dict[str, object]:
    """Write for some seconds and return what came of it; with a rate of 0, as fast as it goes."""
    bus = PacedBus(rate_per_s, mean_counts)
    with Detector(UsbTransport(bus)) as detector:
        detector.configure(Configuration(is_colour=False, depth_bits=DEPTH_BITS))
        *_, first = detector.frames(50, 1e-6)  # compiled before the clock runs
        assert isinstance(first, Frame)
        readout = Readout(
            shape=first.counts.shape, depth_bits=DEPTH_BITS, thresholds=first.thresholds, pitch_mm=PITCH_MM
        )
        n_wanted = round(seconds * rate_per_s)
        path = folder / "soak.h5"
        began_s = time.monotonic()
        n_frames = n_lost = rss_begin_kb = worst_depth = 0
        worst_write_s = 0.0
        with ScanWriter(path, readout, n_frames=n_wanted or None) as writer:
            with FrameStream(_endless(detector, n_wanted, seconds), let_go=detector.abort) as stream:
                while not stream.is_over:
                    placed = stream.poll()
                    if placed is None:
                        writer.flush_when_due()
                        continue
                    item, before_s = placed[1], time.monotonic()
                    if isinstance(item, Frame):
                        writer.write(item, ImageKey.PROJECTION)
                        n_frames += 1
                    else:
                        writer.lost(item)
                        n_lost += item.n_frames
                    last_s = time.monotonic()
                    worst_write_s = max(worst_write_s, last_s - before_s)
                    if not rss_begin_kb and last_s - began_s > min(WARM_UP_S, seconds / 2):
                        rss_begin_kb = rss_kb()
                worst_depth = stream.counters.high_water
            rss_end_kb, took_s = rss_kb(), time.monotonic() - began_s
            before_s = time.monotonic()
            writer.finish()
            close_s = time.monotonic() - before_s
        size_bytes = path.stat().st_size
        _check(path, bus, n_frames + n_lost)
    raw_bytes = n_frames * ROWS * COLS * readout.dtype.itemsize
    return {
        "frames": n_frames,
        "lost": n_lost,
        "frames_per_s": round(n_frames / took_s, 1),
        "rss_growth_mb": round((rss_end_kb - rss_begin_kb) / 1024, 1),
        "seconds": round(took_s, 1),
        "raw_mb_per_s": round(raw_bytes / took_s / 1e6, 1),
        "disk_mb_per_s": round(size_bytes / took_s / 1e6, 1),
        "compression_ratio": round(raw_bytes / size_bytes, 2),
        "mean_counts": mean_counts,
        "overflows": bus.n_overflows,
        "most_waiting": worst_depth,
        "worst_flush_s": round(writer.worst_flush_s, 3),
        "worst_write_s": round(worst_write_s, 3),
        "close_s": round(close_s, 3),
    }


def overhead_per_step_s(n_steps: int) -> float:
    """Return what a step of one frame costs host and driver beside exposure and move; the gantry is there at once."""
    plan = Plan()
    steps = [
        Step(kind=StepKind.PROJECTION, pose=Pose(angle_rad=n * 1e-3), n_frames=1, exposure_s=1e-6, sample="vials")
        for n in range(n_steps)
    ]
    with Detector(UsbTransport(PacedBus(0.0, 2.0))) as detector:
        detector.configure(Configuration(is_colour=False, depth_bits=DEPTH_BITS))
        *_, _ = detector.frames(50, 1e-6)
        instrument = Instrument(detector=detector, gantry=NoGantry())
        stepper = Stepper(instrument, plan, rough_calibration(plan))
        began_s = time.monotonic()
        with FrameStream(stepper.frames(steps)) as stream:
            n_came = sum(isinstance(item, Frame) for _, item in stream)
        if n_came != n_steps:
            sys.exit(f"{n_came} of {n_steps} steps came")
        return (time.monotonic() - began_s) / n_steps


class NoGantry:
    """Stands wherever it is wanted."""

    def move_to(self, pose: Pose) -> None:
        """Be there."""

    def select_sample(self, name: str | None) -> None:
        """Have it."""


def _endless(detector: Detector, n_wanted: int, seconds: float) -> Iterator[tuple[None, Frame | Lost]]:
    """Yield so many frames, or, where the number is not given, those of some seconds."""
    until_s = time.monotonic() + seconds
    run = detector.frames(n_wanted or (1 << 32) - 1, 1e-6)
    for item in run:
        yield None, item
        if not n_wanted and time.monotonic() > until_s:
            detector.abort()
            return


def _check(path: Path, bus: PacedBus, n_frames: int) -> None:
    """Read some frames back; end the program where one is not what the board sent."""
    scan = read_scan(path)
    if scan.shape[0] != n_frames:
        sys.exit(f"the file has {scan.shape[0]} frames; {n_frames} came")
    for place in np.linspace(0, n_frames - 1, 50).astype(int):
        if scan.image_key[place] != ImageKey.INVALID:
            wanted = bus.counts[int(scan.sequence[place]) % N_PAYLOADS]
            if not np.array_equal(scan.counts(slice(place, place + 1))[0, 0], wanted):
                sys.exit(f"frame {place} is not what the board sent")


def rss_kb() -> int:
    """Return the memory that this process has in RAM, in kB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def main() -> None:
    """Soak, and print the table or the JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rate", type=float, default=1250.0, help="frames/s; 0 is as fast as it goes")
    parser.add_argument("--mean-counts", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, default=None, help="where the file is written, and removed again")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="ten seconds")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        seconds = min(arguments.seconds, 10.0) if arguments.quick else arguments.seconds
        figures = soak(seconds, arguments.rate, folder, mean_counts=arguments.mean_counts)
        figures["overhead_per_step_ms"] = round(1e3 * overhead_per_step_s(50 if arguments.quick else 500), 2)
    finally:
        shutil.rmtree(folder)
    lines = [f"{name:<20} {value}" for name, value in figures.items()]
    print(json.dumps(figures) if arguments.json else "\n".join(lines))
    if arguments.rate and figures["lost"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
