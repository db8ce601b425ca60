"""Kill a scan's writer at random moments, and see whether everything that it had flushed is still there.

The writer lays out, writes, flushes, loses frames, forgets a broken step, is interrupted, goes on from its own partial
file and finishes; SIGKILL strikes anywhere in between. What it is sure of it tells through a pipe beforehand. Every
frame that is found has to be true as well: its counts are a function of its number and run. A kill leaves the kernel's
memory as it is, so nothing is synchronised with the disk here, and most kills hit HDF5 at work.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a script finds the packages of its own checkout

from acquisition import disk, scan_writer
from acquisition.scan import ImageKey, Readout
from acquisition.scan_file import read_scan
from acquisition.scan_layout import partial_path
from acquisition.scan_writer import FlushPolicy, ScanWriter
from acquisition.steps import Pose
from firmware_iface.errors import MpxctError
from firmware_iface.frame import Frame, Lost

READOUT = Readout(shape=(2, 32, 32), depth_bits=12, thresholds=(1, 3), thresholds_kev=(18.0, 33.0), pitch_mm=0.11)
POLICY = FlushPolicy(block_bytes=5 * 2 * 32 * 32 * 2, block_s=1e9, reopen_frames=25)


class Storm(NamedTuple):
    """How many kills there were, what they hit, and the frames that should have been there."""

    kills: int
    after_the_end: int
    lost_flushed_frames: int
    false_frames: int
    unreadable: int


def true_counts(sequence: int, run_id: int) -> NDArray[np.uint16]:
    """Return the counts of one frame, different in each frame and run."""
    return np.random.default_rng((sequence, run_id)).integers(0, 1 << 12, READOUT.shape, np.uint16)


def work(path: Path, n_frames: int, tell: Callable[[bytes], object]) -> None:
    """Write a scan in all the ways there are; tell beforehand which rows are sure, by their runs."""
    runs: list[int] = []

    def write(writer: ScanWriter, stop: int, run_id: int) -> None:
        while writer.n_frames < stop:
            n = writer.n_frames
            if n % 37 == 36:
                writer.lost(Lost(run_id=run_id, first_sequence=n, n_frames=1, reason="CRC"))
            else:
                counts = true_counts(n, run_id)
                frame = Frame(
                    counts=counts, thresholds=(1, 3), sequence=n, timestamp_ns=n, exposure_ns=1, run_id=run_id
                )
                writer.write(frame, ImageKey.PROJECTION, Pose(angle_rad=n))
            runs.append(run_id)
            if not writer.n_waiting:
                tell(bytes(runs))

    with ScanWriter(path, READOUT, n_frames=n_frames, policy=POLICY) as writer:
        for first in range(0, n_frames // 2, 50):
            write(writer, first + 47, first % 256)
            del runs[first + 20 :]
            tell(bytes(runs))
            writer.rewind(first + 20, "the tube tripped")
            write(writer, first + 50, (first + 1) % 256)
        writer.flush()
        tell(bytes(runs))
    del runs[n_frames // 2 - 30 :]
    tell(bytes(runs))
    with ScanWriter(path, READOUT, n_frames=n_frames, policy=POLICY, adopt=(partial_path(path), len(runs))) as writer:
        write(writer, n_frames, 255)
        writer.finish()
    tell(bytes(runs))


def in_a_child(path: Path, n_frames: int, pipe: int) -> None:
    """Do the work in a process of its own, which ends here."""

    def tell(runs: bytes) -> None:
        os.write(pipe, len(runs).to_bytes(4, "little") + runs)

    with mock.patch.object(disk, "sync"), mock.patch.object(scan_writer, "sync"):
        work(path, n_frames, tell)
    os._exit(0)


def kill_one(path: Path, n_frames: int, delay_s: float) -> tuple[bytes, bool]:
    """Start the work, kill it after a while; return what it was sure of, and whether it had ended before."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            in_a_child(path, n_frames, writing)
        finally:
            os._exit(1)
    os.close(writing)
    os.set_blocking(reading, False)
    deadline_s, told, status = time.monotonic() + delay_s, b"", None
    while time.monotonic() < deadline_s and status is None:
        told += _drain(reading)
        done, code = os.waitpid(child, os.WNOHANG)
        status = code if done else None
        time.sleep(0.0005)
    if status is None:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    told += _drain(reading)
    os.close(reading)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit("the writer failed by itself")
    return _last(told), os.WIFEXITED(status)


def _drain(pipe: int) -> bytes:
    parts = []
    while True:
        try:
            part = os.read(pipe, 1 << 16)
        except BlockingIOError:
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


def _last(told: bytes) -> bytes:
    """Return the last message that is whole."""
    last, place = b"", 0
    while len(told) - place >= 4:
        size = int.from_bytes(told[place : place + 4], "little")
        if len(told) - place - 4 < size:
            break
        last = told[place + 4 : place + 4 + size]
        place += 4 + size
    return last


def look(path: Path, sure: bytes) -> tuple[int, int, bool]:
    """Return the sure frames that are missing, the frames that are not true, and whether the file could be read."""
    found = path if path.exists() else partial_path(path)
    if not found.exists():
        return len(sure), 0, True
    try:
        scan = read_scan(found, allow_partial=True)
        counts = scan.counts()
    except MpxctError as error:
        print(error, file=sys.stderr)
        return len(sure), 0, False
    n_false = n_missing = 0
    for n in range(scan.shape[0]):
        run_id = int(scan.run[n])
        is_lost = n % 37 == 36
        expected = np.full(READOUT.shape, READOUT.fill) if is_lost else true_counts(n, run_id)
        is_true = (
            np.array_equal(counts[n], expected)
            and scan.sequence[n] == n
            and scan.angles_rad[n] == (0 if is_lost else n)
            and scan.image_key[n] == (ImageKey.INVALID if is_lost else ImageKey.PROJECTION)
        )
        n_false += not is_true
        n_missing += n < len(sure) and run_id != sure[n]
    return n_missing + max(0, len(sure) - scan.shape[0]), n_false, True


def storm(n_kills: int, n_frames: int, seed: int, folder: Path) -> Storm:
    """Kill that many writers, each at a moment of its own."""
    path, rng = folder / "scan.h5", random.Random(seed)
    began_s = time.monotonic()
    sure, is_over = kill_one(path, n_frames, 600.0)
    duration_s = time.monotonic() - began_s
    if not is_over or look(path, sure) != (0, 0, True):
        sys.exit("the scan is wrong without any kill")
    after = lost = false = unreadable = 0
    for _ in range(n_kills):
        for each in folder.iterdir():
            each.unlink()
        sure, is_over = kill_one(path, n_frames, rng.uniform(0.0, duration_s))
        n_missing, n_false, is_readable = look(path, sure)
        after, lost, false = after + is_over, lost + n_missing, false + n_false
        unreadable += not is_readable
    return Storm(n_kills, after, lost, false, unreadable)


def main() -> None:
    """Kill, and print the table or the JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--frames", type=int, default=200, help="of each scan, a multiple of 100")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="20 kills")
    arguments = parser.parse_args()
    n_kills, n_frames = (20, 100) if arguments.quick else (arguments.kills, arguments.frames)
    with tempfile.TemporaryDirectory() as folder:
        result = storm(n_kills, n_frames, arguments.seed, Path(folder))
    if arguments.json:
        print(json.dumps(result._asdict()))
        return
    for name, value in result._asdict().items():
        print(f"{name.replace('_', ' '):<20} {value}")


if __name__ == "__main__":
    main()
