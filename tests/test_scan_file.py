"""Scan files: what was written is read, loss is in its place, and half a scan is never taken for a whole one."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acquisition.plan import Plan
from acquisition.scan import Crc, FrameFlag, ImageKey, Readout, ScanStatus, readout_of
from acquisition.scan_file import read_scan
from acquisition.scan_layout import COLUMNS, Row, partial_path, pixel_mask
from acquisition.scan_writer import FlushPolicy, ScanWriter
from acquisition.steps import Pose, cost, expand
from calibration.pixels import PixelClass
from firmware_iface.errors import BadFile, DataLost, WrongUsage
from firmware_iface.frame import Lost
from tests.scan_records import READOUT, calibration_record, fill_steps, frame, shaped_like, write_scan

ROOT = Path(__file__).resolve().parent.parent
BITSHUFFLE = "32008"


def test_everything_comes_back(tmp_path: Path) -> None:
    path, plan, calibration = tmp_path / "scan.h5", Plan(), calibration_record()
    keys = [ImageKey.FLAT, ImageKey.DARK, ImageKey.PROJECTION]
    frames = [frame(n) for n in range(3)]
    attributes = {"operator": "me", "temperature": 21.5, "n": 3}
    options = {"plan": plan, "calibration": calibration, "sample": "vials", "source": "TUBE", "attributes": attributes}
    with ScanWriter(path, READOUT, n_frames=3, clock=lambda: 1e9, **options) as writer:  # type: ignore[arg-type]
        for item, key in zip(frames, keys, strict=True):
            writer.write(item, key, Pose(angle_rad=math.pi * item.sequence))
        assert writer.finish() is ScanStatus.COMPLETE
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.counts(), [item.counts for item in frames])
    assert scan.shape == (3, *READOUT.shape)
    assert scan.readout == READOUT
    assert scan.status is ScanStatus.COMPLETE
    assert scan.image_key.tolist() == keys
    assert scan.angles_rad.tolist() == [0.0, math.pi, 2 * math.pi]
    assert scan.exposures_s.tolist() == [0.5] * 3
    assert scan.sequence.tolist() == [0, 1, 2]
    assert scan.run.tolist() == [9, 9, 9]
    assert scan.timestamps_ns.tolist() == [7, 1007, 2007]
    assert scan.plan == plan
    assert scan.calibration is not None
    assert scan.calibration.identity == scan.calibration_identity == calibration.identity
    assert (scan.sample, scan.header) == ("vials", attributes)
    assert [(event.kind, event.time_s) for event in scan.events] == [("start", 1e9), ("complete", 1e9)]
    assert not partial_path(path).exists()


def test_what_is_known_of_each_frame_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    settings = {"device": {"serial": "B7", "firmware": 3}, "chip 0": {"Threshold0": 20, "GND": 110}}
    with ScanWriter(path, READOUT, is_checked=True, settings=settings) as writer:
        writer.write(frame(0, was_paused=True, is_triggered=True), ImageKey.DARK, temperature_k=301.5, monitor=7.0)
        writer.write(frame(1, follows_overflow=True), ImageKey.FLAT, Pose(angle_rad=math.pi / 2, shift_mm=2.0))
        writer.lost(Lost(run_id=9, first_sequence=2, n_frames=1, reason="CRC"), [Pose(lift_mm=3.0)], pass_index=1)
        writer.finish()
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.temperatures_k, [301.5, np.nan, np.nan])
    np.testing.assert_array_equal(scan.monitor, [7.0, np.nan, np.nan])
    assert scan.crc.tolist() == [Crc.CHECKED, Crc.CHECKED, Crc.WRONG]
    assert scan.flags.tolist() == [FrameFlag.PAUSED | FrameFlag.TRIGGERED, FrameFlag.FOLLOWS_OVERFLOW, 0]
    assert (scan.lifts_mm.tolist(), scan.shifts_mm.tolist()) == ([0.0, 0.0, 3.0], [0.0, 2.0, 0.0])
    assert scan.passes.tolist() == [0, 0, 1]
    assert scan.passes_kev == (READOUT.thresholds_kev,)
    assert {name: scan.settings[name] for name in settings} == settings
    assert set(scan.settings) == {"device", "chip 0", "host", "software"}
    with h5py.File(path) as file:
        assert file["entry/sample/rotation_angle_deg"][:].tolist() == [0.0, 90.0, 0.0]


def test_every_row_has_a_column() -> None:
    assert Row._fields == tuple(COLUMNS)


def test_masks_are_in_the_bits_of_nexus() -> None:
    calibration = calibration_record()
    reasons = np.array([[PixelClass.DEAD, PixelClass.HOT], [PixelClass.EDGE, PixelClass.UNDER | PixelClass.NOISY]])
    calibration.pixel_class[:2, :2] = reasons
    calibration.is_masked[3, 3, 3] = True
    mask = pixel_mask(calibration, 3)
    assert mask[:2, :2].tolist() == [[2, 16], [0, 4 + 16]]
    assert mask[3, 3] == 256
    assert np.count_nonzero(mask) == 4
    assert not pixel_mask(calibration, 4)[3, 3]


def test_scan_of_one_frame_holds_the_frame(tmp_path: Path) -> None:
    np.testing.assert_array_equal(
        write_scan(tmp_path / "scan.h5", 1)[0].counts, read_scan(tmp_path / "scan.h5").counts()[0]
    )


def test_data_exchange_has_views_flats_and_angles_by_themselves(tmp_path: Path) -> None:
    """Also of a part: there the frames that are missing hold the fill."""
    plan = Plan()
    plan = msgspec.structs.replace(plan, scan=msgspec.structs.replace(plan.scan, n_views=7, n_flats=2))
    plan = msgspec.structs.replace(plan, scan=msgspec.structs.replace(plan.scan, flats_every_n_views=3))
    steps = expand(plan)
    keys = [ImageKey[step.kind.name] for step in steps for _ in range(step.n_frames)]
    angles_rad = [step.pose.angle_rad for step in steps for _ in range(step.n_frames)]
    assert keys.count(ImageKey.FLAT) > 2
    readout = dataclasses.replace(READOUT, thresholds_kev=())
    for n_written in (len(keys), len(keys) - 3, 0):
        path = tmp_path / f"{n_written}.h5"
        with ScanWriter(path, readout, n_frames=len(keys), plan=plan) as writer:
            for n, (key, angle_rad) in enumerate(zip(keys[:n_written], angles_rad, strict=False)):
                writer.write(frame(n), key, Pose(angle_rad=angle_rad))
            if n_written == len(keys):
                writer.finish()
        with h5py.File(path if n_written == len(keys) else partial_path(path)) as file:
            for plane, group in enumerate(("exchange", "exchange_1")):
                for key, name in ((ImageKey.PROJECTION, "data"), (ImageKey.FLAT, "data_white")):
                    places = [n for n, each in enumerate(keys) if each == key]
                    fill = np.full(READOUT.shape, READOUT.fill)
                    expected = [(frame(n).counts if n < n_written else fill)[plane] for n in places]
                    np.testing.assert_array_equal(file[f"{group}/{name}"], expected)
                views = [n for n, key in enumerate(keys) if key is ImageKey.PROJECTION]
                theta = [math.degrees(angles_rad[n]) if n < n_written else np.nan for n in views]
                np.testing.assert_allclose(file[f"{group}/theta"], theta)
                assert file[f"{group}/theta"].attrs["units"] == "deg"


def test_layout_is_nxtomo_with_units_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    frames = write_scan(path, plan=Plan(), calibration=calibration_record())
    without_units = []

    def visit(name: str, node: h5py.Group | h5py.Dataset) -> None:
        if isinstance(node, h5py.Dataset) and "units" not in node.attrs:
            without_units.append(name)

    with h5py.File(path) as file:
        file.visititems(visit)
        assert not without_units
        data = file["entry/instrument/detector/data"]
        assert data.chunks == (1, *READOUT.shape)
        assert BITSHUFFLE in data._filters
        assert data.dtype == np.uint16
        assert file["entry/definition"].asstr()[()] == "NXtomo"
        assert file["entry/data/data"] == data
        for plane, number in enumerate(READOUT.thresholds):
            view = file[f"entry_threshold_{number}/instrument/detector/data"]
            np.testing.assert_array_equal(view[()], [item.counts[plane] for item in frames])
            assert len(file[f"entry_threshold_{number}/sample/rotation_angle"]) == len(frames)


def test_documented_datasets_are_those_in_the_file(tmp_path: Path) -> None:
    """Both ways, for what stands under `/entry` and the names beside it; a calibration's are not told one by one."""
    path, plan, calibration = tmp_path / "scan.h5", Plan(), calibration_record()
    calibration = dataclasses.replace(calibration, **shaped_like(calibration, readout_of(plan).shape[1:]))
    n_frames = cost(plan).n_frames
    with ScanWriter(path, readout_of(plan), n_frames=n_frames, plan=plan, calibration=calibration) as writer:
        writer.lost(Lost(run_id=0, first_sequence=0, n_frames=n_frames, reason="none was taken"))
        writer.finish()
    text = (ROOT / "acquisition" / "FILE_FORMAT.md").read_text()
    names: set[str] = set()

    def visit(name: str, node: h5py.Group | h5py.Dataset) -> None:
        if isinstance(node, h5py.Dataset) and not name.startswith("entry/calibration/"):
            name = re.sub(r".*threshold_\d+_channel/|exchange(_\d+)?/|entry_threshold_\d+/|entry/", "", name)
            names.add(name)

    with h5py.File(path) as file:
        file.visititems(visit)
    told = set(re.findall(r"`([^`]+)`", "\n".join(line.split("|")[1] for line in text.splitlines() if "|" in line)))
    assert not names - told, "FILE_FORMAT.md does not tell of these"
    assert told - names == {"format", "version", "status", "n_frames_planned", "calibration", "software", "data_dark"}


@given(st.lists(st.one_of(st.just(1), st.integers(-3, -1)), min_size=1, max_size=30))
@settings(max_examples=25, deadline=None)
def test_lost_frames_stand_in_their_places(tmp_path_factory: pytest.TempPathFactory, pieces: list[int]) -> None:
    """A piece of 1 is a frame, one of -n a loss of n frames."""
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    is_whole: list[bool] = []
    with ScanWriter(path, READOUT, n_frames=sum(map(abs, pieces))) as writer:
        for piece in pieces:
            place = len(is_whole)
            if piece == 1:
                writer.write(frame(place), ImageKey.PROJECTION)
            else:
                writer.lost(Lost(run_id=9, first_sequence=place, n_frames=-piece, reason="CRC"))
            is_whole += [piece == 1] * abs(piece)
        status = writer.finish()
    scan = read_scan(path)
    assert status is scan.status is (ScanStatus.COMPLETE if all(is_whole) else ScanStatus.DEGRADED)
    assert scan.n_lost == is_whole.count(False)
    assert scan.sequence.tolist() == list(range(len(is_whole)))
    counts = scan.counts()
    for place, whole in enumerate(is_whole):
        if whole:
            np.testing.assert_array_equal(counts[place], frame(place).counts)
        else:
            assert (counts[place] == READOUT.fill).all()
            assert np.isnan(scan.exposures_s[place])
            assert scan.image_key[place] == ImageKey.INVALID
    assert sum(event.kind == "lost" for event in scan.events) == sum(piece < 0 for piece in pieces)


def test_any_selection_of_frames_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    whole = np.array([item.counts for item in write_scan(path, 12)])
    scan = read_scan(path)
    for places in (np.array([0, 1, 2, 7, 8, 11]), np.array([5]), np.array([], int), np.array([4, 3, 9, 3])):
        np.testing.assert_array_equal(scan.counts(places), whole[places])
        np.testing.assert_array_equal(scan.counts(places, rows=np.s_[1:2]), whole[places][:, :, 1:2])
    np.testing.assert_array_equal(scan.counts(slice(2, 9, 3)), whole[2:9:3])
    np.testing.assert_array_equal(scan.counts(scan.indices(ImageKey.PROJECTION)), whole)


def test_long_scans_cross_block_borders(tmp_path: Path) -> None:
    policy = FlushPolicy(block_bytes=4 * 2 * 6 * 5 * 2)
    whole = np.array([item.counts for item in write_scan(tmp_path / "scan.h5", 23, policy=policy)])
    np.testing.assert_array_equal(read_scan(tmp_path / "scan.h5").counts(), whole)


@pytest.mark.parametrize(("depth_bits", "dtype"), [(1, "u1"), (6, "u1"), (12, "u2"), (24, "u4")])
def test_every_depth_keeps_its_counts_and_its_fill_apart(tmp_path: Path, depth_bits: int, dtype: str) -> None:
    path = tmp_path / "scan.h5"
    readout = Readout(shape=(1, 514, 514), depth_bits=depth_bits, thresholds=(0,), pitch_mm=0.055)
    assert readout.dtype == np.dtype(dtype)
    highest = (1 << depth_bits) - 1
    assert readout.fill > highest
    counts = np.full(readout.shape, highest, dtype)
    with ScanWriter(path, readout) as writer:
        writer.write(frame(0, readout, counts=counts), ImageKey.PROJECTION)
        writer.finish()
    np.testing.assert_array_equal(read_scan(path).counts(), counts[None])


def test_counts_that_do_not_fit_are_refused_not_wrapped(tmp_path: Path) -> None:
    counts = np.full(READOUT.shape, 70_000, np.uint32)
    with ScanWriter(tmp_path / "scan.h5", READOUT) as writer, pytest.raises(ValueError, match="70000"):
        writer.write(frame(0, counts=counts), ImageKey.PROJECTION)


def test_frame_of_another_shape_is_refused(tmp_path: Path) -> None:
    other = Readout(shape=(2, 6, 6), depth_bits=12, thresholds=(1, 3), pitch_mm=0.11)
    with ScanWriter(tmp_path / "scan.h5", READOUT) as writer, pytest.raises(ValueError, match=r"\(2, 6, 6\)"):
        writer.write(frame(0, other), ImageKey.PROJECTION)


def test_pause_of_the_board_is_an_event_and_no_loss(tmp_path: Path) -> None:
    with ScanWriter(tmp_path / "scan.h5", READOUT) as writer:
        writer.write(frame(0, was_paused=True), ImageKey.PROJECTION)
        assert writer.finish() is ScanStatus.COMPLETE
    assert [event.kind for event in read_scan(tmp_path / "scan.h5").events] == ["start", "paused", "complete"]


def test_unfinished_scan_stays_partial_and_is_refused_unless_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    with ScanWriter(path, READOUT, n_frames=9) as writer:
        for n in range(4):
            writer.write(frame(n), ImageKey.PROJECTION)
    assert not path.exists()
    with pytest.raises(BadFile, match=r"only a part of a scan.*4 of 9"):
        read_scan(partial_path(path))
    scan = read_scan(partial_path(path), allow_partial=True)
    assert scan.status is ScanStatus.INTERRUPTED
    np.testing.assert_array_equal(scan.counts(), [frame(n).counts for n in range(4)])


def test_scan_of_too_few_frames_cannot_finish(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    with ScanWriter(path, READOUT, n_frames=2) as writer:
        writer.write(frame(0), ImageKey.PROJECTION)
        with pytest.raises(DataLost, match="1 frames; whole are 2"):
            writer.finish()
    assert not path.exists()
    assert read_scan(partial_path(path), allow_partial=True).shape[0] == 1


def test_error_inside_is_told_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"

    def fail() -> None:
        with ScanWriter(path, READOUT) as writer:
            writer.write(frame(0), ImageKey.PROJECTION)
            raise OSError("stage stuck")

    with pytest.raises(OSError, match="stage stuck"):
        fail()
    event = read_scan(partial_path(path), allow_partial=True).events[-1]
    assert (event.kind, event.text, event.sequence) == ("interrupted", "OSError: stage stuck", 1)


@pytest.mark.parametrize("name_of", [lambda path: path, partial_path], ids=["whole", "partial"])
def test_existing_scan_is_not_overwritten_unless_asked(tmp_path: Path, name_of: Callable[[Path], Path]) -> None:
    path = tmp_path / "scan.h5"
    name_of(path).write_bytes(b"precious")
    with pytest.raises(WrongUsage, match="exists already"):
        ScanWriter(path, READOUT)
    assert name_of(path).read_bytes() == b"precious"
    write_scan(path, overwrite=True)
    assert read_scan(path).shape[0] == 5


def test_wrong_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongUsage, match=r"\.h5"):
        ScanWriter(tmp_path / "scan.tif", READOUT)


def foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["data"] = 1


def without_data(path: Path) -> None:
    write_scan(path)
    with h5py.File(path, "r+") as file:
        del file["entry/instrument/detector/data"]


def newer(path: Path) -> None:
    write_scan(path)
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = 99


def short_table(path: Path) -> None:
    write_scan(path)
    with h5py.File(path, "r+") as file:
        file["entry/sample/rotation_angle"].resize(3, axis=0)


def short_scan(path: Path) -> None:
    write_scan(path)
    with h5py.File(path, "r+") as file:
        file.attrs["n_frames_planned"] = 6


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "there is no file"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"MQ1,000001,00384"), "is not an HDF5 file"),
        (lambda path: (write_scan(path), os.truncate(path, path.stat().st_size // 2)), "is truncated"),
        (foreign, "is not a scan"),
        (newer, "version 99"),
        (without_data, "no dataset entry/instrument/detector/data"),
        (short_table, "different lengths"),
        (short_scan, "5 of 6 frames"),
    ],
)
def test_what_is_no_whole_scan_is_refused_in_one_sentence(
    tmp_path: Path, make: Callable[[Path], None], words: str
) -> None:
    path = tmp_path / "scan.h5"
    make(path)
    with pytest.raises(BadFile, match=words) as caught:
        read_scan(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_interrupted_scan_is_gone_on_with_under_its_own_name(tmp_path: Path) -> None:
    """The partial file is replaced by one that begins with its frames, losses and events."""
    path, options = tmp_path / "scan.h5", {"n_frames": 12, "plan": Plan(), "calibration": calibration_record()}
    with ScanWriter(path, READOUT, **options) as writer:  # type: ignore[arg-type]
        fill_steps(writer, 0, 4)
        writer.lost(Lost(run_id=9, first_sequence=4, n_frames=1, reason="CRC"))
        fill_steps(writer, 5, 9)
    with ScanWriter(path, READOUT, adopt=(partial_path(path), 6), **options) as writer:  # type: ignore[arg-type]
        assert (writer.n_frames, writer.n_lost) == (6, 1)
        np.testing.assert_array_equal(read_scan(partial_path(path), allow_partial=True).sequence, range(6))
        fill_steps(writer, 6, 12)
        assert writer.finish() is ScanStatus.DEGRADED
    assert [each.name for each in tmp_path.iterdir()] == ["scan.h5"]
    scan = read_scan(path)
    assert scan.shape[0] == 12
    for n, counts in enumerate(scan.counts()):
        np.testing.assert_array_equal(counts, READOUT.fill if n == 4 else frame(n).counts)
    others = [n for n in range(12) if n != 4]
    assert scan.lifts_mm[others].tolist() == others
    assert scan.passes[others].tolist() == [n % 2 for n in others]
    kinds = [event.kind for event in scan.events]
    assert kinds == ["start", "lost", "interrupted", "resumed", "start", "degraded"]
    assert "6 of 12 frames were taken over from scan.partial.h5" in [event.text for event in scan.events]


def test_only_the_same_scan_is_gone_on_with(tmp_path: Path) -> None:
    path, calibration = tmp_path / "scan.h5", calibration_record()
    with ScanWriter(path, READOUT, n_frames=9, plan=Plan(), calibration=calibration) as writer:
        fill_steps(writer, 0, 4)
    other = msgspec.structs.replace(Plan(), source=msgspec.structs.replace(Plan().source, kvp=100.0))
    before = partial_path(path).read_bytes()
    old = (partial_path(path), 4)
    coarse = dataclasses.replace(READOUT, pitch_mm=0.22)
    for words, readout, options in (
        ("another plan", READOUT, {"calibration": calibration, "plan": other}),
        ("another calibration", READOUT, {"plan": Plan()}),
        ("another readout", coarse, {"plan": Plan(), "calibration": calibration}),
    ):
        with pytest.raises(WrongUsage, match=words):
            ScanWriter(path, readout, n_frames=9, adopt=old, **options)  # type: ignore[arg-type]
    with pytest.raises(WrongUsage, match=r"5 frames are to be taken over from .*, which has 4"):
        ScanWriter(path, READOUT, plan=Plan(), calibration=calibration, adopt=(partial_path(path), 5))
    assert partial_path(path).read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["scan.partial.h5"]


@pytest.mark.parametrize(("n_before", "n_kept"), [(7, 3), (7, 0), (7, 7), (1100, 1020)])
def test_broken_step_is_forgotten_and_taken_again(tmp_path: Path, n_before: int, n_kept: int) -> None:
    path = tmp_path / "scan.h5"
    with ScanWriter(path, READOUT, n_frames=n_before + 2) as writer:
        fill_steps(writer, 0, n_before - 1)
        writer.lost(Lost(run_id=9, first_sequence=n_before - 1, n_frames=1, reason="CRC"))
        writer.rewind(n_kept, "the tube tripped")
        assert (writer.n_frames, writer.n_lost) == (n_kept, int(n_kept == n_before))
        assert read_scan(partial_path(path), allow_partial=True).shape[0] == n_kept
        fill_steps(writer, n_kept, n_before + 2)
        writer.finish()
    scan = read_scan(path)
    expected = [frame(n).counts for n in range(n_before + 2)]
    if n_kept == n_before:
        expected[n_before - 1 : n_before + 1] = [np.full(READOUT.shape, READOUT.fill), frame(n_before).counts]
    np.testing.assert_array_equal(scan.counts(), expected)
    told = [event.text for event in scan.events if event.kind == "repeated"]
    assert told == (
        [] if n_kept == n_before else [f"frames {n_kept} to {n_before - 1} were taken again: the tube tripped"]
    )


def test_no_frames_before_the_first_can_be_forgotten(tmp_path: Path) -> None:
    with ScanWriter(tmp_path / "scan.h5", READOUT) as writer:
        fill_steps(writer, 0, 3)
        with pytest.raises(ValueError, match="back to 4 frames; there are 3"):
            writer.rewind(4, "")
        with pytest.raises(ValueError, match="back to -1"):
            writer.rewind(-1, "")


def test_readout_of_the_demo() -> None:
    readout = readout_of(Plan())
    assert (readout.shape, readout.dtype, readout.thresholds) == ((4, 128, 128), np.uint16, (1, 3, 5, 7))
