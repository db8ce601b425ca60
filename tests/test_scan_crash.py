"""What becomes of a scan file when its writer is killed, the disk is full, or others read it meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from acquisition.scan import ScanStatus
from acquisition.scan_file import read_scan
from acquisition.scan_layout import partial_path
from acquisition.scan_writer import FlushPolicy, ScanWriter
from tests.scan_records import READOUT, fill_steps, frame, write_scan

ROOT = Path(__file__).resolve().parent.parent

READER = """
import sys, h5py, hdf5plugin
from acquisition.scan_file import read_scan
for line in sys.stdin:
    scan = read_scan(sys.argv[1], allow_partial=True)
    with h5py.File(sys.argv[1], "r", swmr=True) as file:
        view = file["entry_threshold_3/instrument/detector/data"]
        n_valid = int((file["entry/instrument/detector/image_key"][:] != 3).sum())
        print(scan.shape[0], n_valid, int(scan.counts()[:, 1].sum()), int(view[:n_valid].sum()), flush=True)
"""


@pytest.mark.parametrize("n_planned", [None, 9])
def test_others_read_while_it_is_written(tmp_path: Path, n_planned: int | None) -> None:
    """The first frame alone too: it is itself, and no fill."""
    path = tmp_path / "scan.h5"
    with ScanWriter(path, READOUT, n_frames=n_planned, policy=FlushPolicy(reopen_frames=2)) as writer:
        command = [sys.executable, "-c", READER, str(partial_path(path))]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdin is not None
            assert reader.stdout is not None
            for n in (0, 1, 2, 5, 9):
                fill_steps(writer, writer.n_frames, n)
                writer.flush()
                reader.stdin.write("look\n")
                reader.stdin.flush()
                total = sum(int(frame(m).counts[1].sum()) for m in range(n))
                assert list(map(int, reader.stdout.readline().split())) == [n, n, total, total]
            reader.stdin.close()
        writer.finish()
    assert reader.returncode == 0
    assert read_scan(path).shape[0] == 9


HOLDER = """
import sys, time, h5py
with h5py.File(sys.argv[1], "r"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_reader_that_comes_between_closing_and_opening_again_is_in_nobody_s_way(tmp_path: Path) -> None:
    """That is the only moment at which HDF5 lets one open the file as if nobody wrote it, and it takes a lock."""
    holders: list[subprocess.Popen[str]] = []

    class Interrupted(ScanWriter):
        def _attach(self, *, is_again: bool = False) -> None:
            if is_again and not holders:
                command = [sys.executable, "-c", HOLDER, str(self.partial)]
                holders.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
                assert holders[0].stdout is not None
                assert holders[0].stdout.readline() == "held\n"
            super()._attach(is_again=is_again)

    path, policy = tmp_path / "scan.h5", FlushPolicy(reopen_frames=3)
    try:
        with Interrupted(path, READOUT, n_frames=9, policy=policy) as writer:
            for n in range(1, 10):
                fill_steps(writer, writer.n_frames, n)
                writer.flush()
            writer.finish()
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()
    assert holders, "the file was never closed on the way"
    scan = read_scan(path)
    assert [int(counts[1].sum()) for counts in scan.counts()] == [int(frame(n).counts[1].sum()) for n in range(9)]


WRITER = """
import os, resource, signal, sys
import numpy as np
from acquisition.scan import Crc, FrameFlag, ImageKey, Readout
from acquisition.scan_writer import ScanWriter
from firmware_iface.errors import DataLost
from firmware_iface.frame import Frame

readout = Readout(shape=(4, 128, 128), depth_bits=12, thresholds=(1, 3, 5, 7), pitch_mm=0.11)
random = np.random.default_rng(0)
n_frames, limit_bytes = int(sys.argv[2]), int(sys.argv[3])
if limit_bytes:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))
try:
    with ScanWriter(sys.argv[1], readout) as writer:
        for n in range(n_frames):
            counts = np.full(readout.shape, n, np.uint16)
            counts[:, 1:] = random.integers(0, 4096, (4, 127, 128))
            writer.write(Frame(counts=counts, thresholds=readout.thresholds, sequence=n, timestamp_ns=n,
                               exposure_ns=1, run_id=1), ImageKey.PROJECTION)
        os.kill(os.getpid(), signal.SIGKILL)
except DataLost as error:
    print(error)
"""


def run_writer(path: Path, n_frames: int, limit_bytes: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WRITER, str(path), str(n_frames), str(limit_bytes)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def leading_rows(counts: NDArray[np.unsignedinteger]) -> list[int]:
    first = counts[:, 0, 0, 0]
    assert (counts[:, :, 0] == first[:, None, None]).all()
    return first.tolist()


def test_killed_writer_leaves_every_flushed_frame(tmp_path: Path) -> None:
    result = run_writer(tmp_path / "scan.h5", 150, 0)
    assert result.returncode < 0
    scan = read_scan(partial_path(tmp_path / "scan.h5"), allow_partial=True)
    assert scan.status is ScanStatus.RUNNING
    assert scan.shape[0] >= 128, "two whole blocks were flushed before the end"
    assert leading_rows(scan.counts()) == list(range(scan.shape[0]))


def test_nothing_flushed_is_lost_by_a_kill_at_any_moment() -> None:
    """The same script with more kills is a benchmark; see there what it does."""
    command = [sys.executable, "tests/benchmarks/scan_kills.py", "--kills", "10", "--frames", "100", "--json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found.pop("after_the_end") < 10
    assert found == {"kills": 10, "lost_flushed_frames": 0, "false_frames": 0, "unreadable": 0}


def test_full_disk_is_one_error_and_what_was_written_stays(tmp_path: Path) -> None:
    """A file size limit stands for the full disk: both refuse to extend the file."""
    path = tmp_path / "scan.h5"
    result = run_writer(path, 10_000, 40_000_000)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "frames are in" in result.stdout
    assert len(result.stdout.splitlines()) == 1
    assert not path.exists()
    scan = read_scan(partial_path(path), allow_partial=True)
    assert scan.status is ScanStatus.INTERRUPTED
    assert f"{scan.shape[0]} frames are in" in result.stdout
    assert scan.shape[0] >= 128
    assert leading_rows(scan.counts()) == list(range(scan.shape[0]))


def test_no_room_at_all_leaves_no_file(tmp_path: Path) -> None:
    result = run_writer(tmp_path / "scan.h5", 10, 1000)
    assert "cannot write" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_reserved_room_is_given_back(tmp_path: Path) -> None:
    write_scan(tmp_path / "scan.h5")
    assert (tmp_path / "scan.h5").stat().st_size < 200_000
