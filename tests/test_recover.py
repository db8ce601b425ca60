"""Damaged, cut off and foreign scan files: one sentence or the truth, never a crash, and recovery only copies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from acquisition.plan import Plan
from acquisition.recover import Recovery, recover
from acquisition.scan import ImageKey, ScanStatus
from acquisition.scan_file import read_scan
from acquisition.scan_layout import partial_path
from acquisition.scan_writer import FlushPolicy, ScanWriter
from calibration.progress import Progress
from firmware_iface.errors import BadFile, WrongUsage
from firmware_iface.frame import Lost
from tests.scan_records import READOUT, calibration_record, fill_steps, frame

ROOT = Path(__file__).resolve().parent.parent
N_FRAMES = 12


def recovered(path: Path, target: Path) -> Recovery:
    work = recover(path, target)
    while True:
        try:
            assert isinstance(next(work), Progress)
        except StopIteration as end:
            return end.value


def a_scan(path: Path, *, n_written: int = N_FRAMES, n_planned: int | None = N_FRAMES) -> Path:
    """Write a scan with one lost frame, and return where it stands."""
    policy = FlushPolicy(block_bytes=1)
    options = {"plan": Plan(), "calibration": calibration_record(), "sample": "vials", "attributes": {"operator": "me"}}
    with ScanWriter(path, READOUT, n_frames=n_planned, policy=policy, clock=lambda: 1e9, **options) as writer:  # type: ignore[arg-type]
        fill_steps(writer, 0, 3)
        writer.lost(Lost(run_id=9, first_sequence=3, n_frames=1, reason="CRC"))
        fill_steps(writer, 4, n_written)
        if n_written == n_planned:
            writer.finish()
    return path if n_written == n_planned else partial_path(path)


def assert_true(path: Path, n_frames: int, damaged: tuple[int, ...] = ()) -> None:
    scan = read_scan(path, allow_partial=True)
    assert scan.shape[0] == n_frames
    for n, counts in enumerate(scan.counts()):
        is_lost = n == 3 or n in damaged
        np.testing.assert_array_equal(counts, np.full(READOUT.shape, READOUT.fill) if is_lost else frame(n).counts)
        assert scan.image_key[n] == (ImageKey.INVALID if is_lost else ImageKey.PROJECTION)
        assert scan.sequence[n] == n
    assert (scan.plan, scan.sample, scan.header) == (Plan(), "vials", {"operator": "me"})
    assert scan.start_time.startswith("2001-09-09T01:46:40")


def test_part_of_a_scan_is_copied_and_can_be_gone_on_with(tmp_path: Path) -> None:
    broken, good = a_scan(tmp_path / "a.h5", n_written=7), tmp_path / "good.h5"
    before = broken.read_bytes()
    result = recovered(broken, good)
    assert result == Recovery(
        path=good,
        status=ScanStatus.INTERRUPTED,
        n_planned=N_FRAMES,
        n_frames=7,
        n_lost=1,
        n_damaged=0,
        damages=(),
    )
    assert broken.read_bytes() == before
    assert_true(good, 7)
    scan = read_scan(good, allow_partial=True)
    assert scan.status is ScanStatus.INTERRUPTED
    assert scan.calibration is not None
    assert [event.kind for event in scan.events][-2:] == ["recovered", "interrupted"]
    options = {"n_frames": N_FRAMES, "plan": Plan(), "calibration": scan.calibration, "adopt": (good, 7)}
    with ScanWriter(tmp_path / "b.h5", READOUT, **options) as writer:  # type: ignore[arg-type]
        fill_steps(writer, 7, N_FRAMES)
        assert writer.finish() is ScanStatus.DEGRADED


@pytest.mark.parametrize(("n_planned", "status"), [(12, "degraded"), (None, "interrupted")])
def test_all_of_a_killed_scan_is_whole_where_it_is_known_how_much_that_is(
    tmp_path: Path, n_planned: int | None, status: str
) -> None:
    """Killed between the last frame and the closing: a copy of the open file is what that leaves."""
    with ScanWriter(tmp_path / "a.h5", READOUT, n_frames=n_planned, plan=Plan(), sample="vials") as writer:
        fill_steps(writer, 0, 3)
        writer.lost(Lost(run_id=9, first_sequence=3, n_frames=1, reason="CRC"))
        fill_steps(writer, 4, 12)
        writer.flush()
        (tmp_path / "killed.h5").write_bytes(writer.partial.read_bytes())
    assert recovered(tmp_path / "killed.h5", tmp_path / "good.h5").status.value == status
    assert read_scan(tmp_path / "good.h5", allow_partial=True).shape[0] == 12


def test_damaged_frames_are_marked_and_the_others_kept(tmp_path: Path) -> None:
    path = a_scan(tmp_path / "a.h5")
    with h5py.File(path) as file:
        data = file["entry/instrument/detector/data"]
        spoilt = [data.id.get_chunk_info_by_coord((n, 0, 0, 0)) for n in (5, 9)]
    with path.open("r+b") as raw:
        for chunk in spoilt:
            raw.seek(chunk.byte_offset + 20)
            raw.write(bytes(16))
    assert read_scan(path).shape[0] == N_FRAMES, "nobody has looked at the counts yet"
    with pytest.raises(BadFile, match=r"frames .*damaged"):
        read_scan(path).counts()
    with pytest.raises(BadFile, match="frame 5 of"):
        ScanWriter(
            tmp_path / "b.h5", READOUT, n_frames=12, plan=Plan(), calibration=calibration_record(), adopt=(path, 12)
        )
    assert not partial_path(tmp_path / "b.h5").exists()
    result = recovered(path, tmp_path / "good.h5")
    assert (result.status, result.n_lost, result.n_damaged) == (ScanStatus.DEGRADED, 1, 2)
    assert_true(tmp_path / "good.h5", N_FRAMES, damaged=(5, 9))


def test_file_that_was_cut_off_gives_the_frames_before_the_cut(tmp_path: Path) -> None:
    n_frames = 60
    path = a_scan(tmp_path / "a.h5", n_written=n_frames, n_planned=n_frames)
    with h5py.File(path) as file:
        data = file["entry/instrument/detector/data"]
        starts = {n: data.id.get_chunk_info_by_coord((n, 0, 0, 0)).byte_offset for n in range(n_frames) if n != 3}
    cut = sorted(starts.values())[-20] + 30
    os.truncate(path, cut)
    with pytest.raises(BadFile, match="is truncated") as caught:
        read_scan(path)
    assert "recover" in caught.value.hint
    assert recovered(path, tmp_path / "good.h5").n_damaged == 20
    assert_true(tmp_path / "good.h5", n_frames, damaged=tuple(n for n, start in starts.items() if start > cut - 60))


def test_calibration_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    path = a_scan(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        del file["entry/calibration/trim"]
        del file["entry/events/text"]
    with pytest.raises(BadFile):
        read_scan(path)
    result = recovered(path, tmp_path / "good.h5")
    assert [damage.partition(":")[0] for damage in result.damages] == ["events", "calibration"]
    assert_true(tmp_path / "good.h5", N_FRAMES)
    assert read_scan(tmp_path / "good.h5").calibration is None


def test_scan_is_never_recovered_onto_itself(tmp_path: Path) -> None:
    path = a_scan(tmp_path / "a.h5")
    before = path.read_bytes()
    with pytest.raises(WrongUsage, match="onto itself"):
        recovered(path, tmp_path / "." / "a.h5")
    (tmp_path / "b.h5").write_bytes(b"precious")
    with pytest.raises(WrongUsage, match="exists already"):
        recovered(path, tmp_path / "b.h5")
    assert path.read_bytes() == before


FUZZ = """
import random, sys
from pathlib import Path
from acquisition.scan_file import read_scan
from acquisition.recover import recover
from firmware_iface.errors import MpxctError

path, folder, n_rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
whole, rng = path.read_bytes(), random.Random(int(sys.argv[4]))
victim, n_refused = folder / "victim.h5", 0
for n in range(n_rounds):
    spoilt = bytearray(whole)
    kind = n % 3
    if kind == 0:
        del spoilt[rng.randrange(len(spoilt)) :]
    elif kind == 1:
        first = rng.randrange(len(spoilt))
        size = min(rng.choice((8, 64, 512, 4096)), len(spoilt) - first)
        spoilt[first : first + size] = bytes(size)
    else:
        for _ in range(rng.choice((1, 4, 64))):
            spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
    print(n, kind, flush=True)
    victim.write_bytes(spoilt)
    for is_recovery in (False, True):
        try:
            if is_recovery:
                list(recover(victim, folder / "good.h5", overwrite=True))
            else:
                read_scan(victim, allow_partial=True).counts()
        except MpxctError as error:
            n_refused += 1
            assert "\\n" not in str(error), str(error)
print("refused", n_refused)
"""


@pytest.mark.parametrize("seed", [0, 1])
def test_no_damage_crashes_or_hangs_the_reader(tmp_path: Path, seed: int) -> None:
    """In a process of its own, which a crash inside HDF5 would end."""
    path = a_scan(tmp_path / "a.h5")
    command = [sys.executable, "-c", FUZZ, str(path), str(tmp_path), "45", str(seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout[-40:] + done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 10
