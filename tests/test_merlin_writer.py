"""What we write as Merlin files must be the same to rosettasciio, an independent reader, and to our own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquisition.convert import convert_merlin
from acquisition.merlin_writer import encode_frame_header, export_merlin
from acquisition.scan import ImageKey, Readout
from acquisition.scan_file import read_scan
from acquisition.scan_writer import ScanWriter
from firmware_iface.chip import COLOUR_PITCH_MM, DAC_FIELDS, PITCH_MM, Gain
from firmware_iface.errors import BadFile, WrongUsage
from firmware_iface.frame import Frame, Lost
from firmware_iface.merlin import ChipSettings, FrameHeader, parse_frame_header, read_mib
from gui.export.cli import export

rsciio = pytest.importorskip("rsciio.quantumdetector", reason="rosettasciio is not installed")

N_FRAMES = 3
EPOCH_NS = 1_589_813_509_971_626_178


def scan_file(path: Path, readout: Readout, *, lost: int | None = None) -> np.ndarray:
    """Write a scan of random counts and return them: (n_frames, n_counters, rows, cols)."""
    top = min(1 << readout.depth_bits, readout.fill)
    rng = np.random.default_rng(readout.depth_bits)
    counts = rng.integers(0, top, (N_FRAMES, *readout.shape)).astype(readout.dtype)
    with ScanWriter(path, readout, n_frames=N_FRAMES) as writer:
        for place in range(N_FRAMES):
            if place == lost:
                writer.lost(Lost(run_id=1, first_sequence=place, n_frames=1, reason="a test"))
                continue
            writer.write(
                Frame(
                    counts=counts[place],
                    thresholds=readout.thresholds,
                    sequence=place,
                    timestamp_ns=EPOCH_NS + place * 1_000_001,
                    exposure_ns=555_000,
                    run_id=1,
                ),
                ImageKey.PROJECTION,
            )
        writer.finish()
    return counts


def readout(depth: int, side: tuple[int, int], thresholds: tuple[int, ...], pitch_mm: float = PITCH_MM) -> Readout:
    return Readout(
        shape=(len(thresholds), *side),
        depth_bits=depth,
        thresholds=thresholds,
        thresholds_kev=tuple(10.0 + 7.25 * n for n in thresholds),
        pitch_mm=pitch_mm,
    )


ASSEMBLIES = {
    "single": ((256, 256), (0,), PITCH_MM, "1x1"),
    "both counters": ((256, 256), (0, 1), PITCH_MM, "1x1"),
    "quad": ((512, 512), (0,), PITCH_MM, "2x2"),
    "quad with gaps": ((514, 514), (0, 1), PITCH_MM, "2x2G"),
    "four in a row": ((256, 1024), (0,), PITCH_MM, "4x1"),
    "colour, one counter": ((128, 128), (1, 3, 5, 7), COLOUR_PITCH_MM, "1x1"),
    "colour, both counters": ((128, 128), tuple(range(8)), COLOUR_PITCH_MM, "1x1"),
    "colour quad": ((256, 256), (0, 2, 4, 6), COLOUR_PITCH_MM, "2x2"),
}


@pytest.mark.parametrize("assembly", ASSEMBLIES)
@pytest.mark.parametrize("depth", [1, 6, 12, 24])
def test_rosettasciio_reads_every_mib_that_we_write(tmp_path: Path, depth: int, assembly: str) -> None:
    side, thresholds, pitch_mm, layout = ASSEMBLIES[assembly]
    counts = scan_file(tmp_path / "s.h5", readout(depth, side, thresholds, pitch_mm))
    list(export_merlin(tmp_path / "s.h5", tmp_path / "s.mib"))
    theirs, headers = rsciio.load_mib_data(str(tmp_path / "s.mib"), return_headers=True)
    order = sorted(range(len(thresholds)), key=lambda n: (-(thresholds[n] % 2), thresholds[n]))
    assert np.array_equal(np.asarray(theirs).reshape(N_FRAMES, len(thresholds), *side), counts[:, order])
    assert rsciio.parse_exposures(headers) == [0.555] * (N_FRAMES * len(thresholds))
    assert rsciio.parse_timestamps(headers)[0] == "2020-05-18T14:51:49.971626178Z"
    ours = read_mib(tmp_path / "s.mib")
    assert np.array_equal(ours.stack(), counts)
    assert ours.frames[0].header.layout == layout
    assert [frame.header.sequence for frame in ours.frames] == list(range(1, N_FRAMES * len(thresholds) + 1))
    assert ours.header["Counter Depth (number)"] == str(depth)
    assert int(ours.header["Frames in Acquisition (Number)"]) == N_FRAMES


def test_there_and_back_again(tmp_path: Path) -> None:
    before = readout(12, (128, 128), (1, 3, 5, 7), COLOUR_PITCH_MM)
    counts = scan_file(tmp_path / "a.h5", before)
    list(export_merlin(tmp_path / "a.h5", tmp_path / "a.mib", gain=Gain.LGM))
    list(convert_merlin(tmp_path / "a.mib", tmp_path / "b.h5"))
    after = read_scan(tmp_path / "b.h5")
    assert np.array_equal(after.counts(), counts)
    assert after.readout == before
    assert after.header["gain"] == "LGM"
    assert after.exposures_s.tolist() == [555e-6] * N_FRAMES
    list(export_merlin(tmp_path / "b.h5", tmp_path / "b.mib"))
    assert read_mib(tmp_path / "b.mib").frames[0].header.gain is Gain.LGM


def test_the_command_says_what_it_wrote(tmp_path: Path) -> None:
    said: list[object] = []

    class Console:
        def track(self, work):
            while True:
                try:
                    next(work)
                except StopIteration as end:
                    return end.value

        def emit(self, figures, text, *, as_json) -> None:
            said.extend((figures, text))

    scan_file(tmp_path / "s.h5", readout(6, (256, 256), (0, 1)))
    export(SimpleNamespace(obj=Console()), tmp_path / "s.h5", tmp_path / "s.mib")
    assert said[0] == {"path": str(tmp_path / "s.mib"), "n_images": 6, "shape": [256, 256], "dtype": "U08"}
    assert "6 images of 256 x 256" in str(said[1])


def test_lost_frames_are_left_out_and_their_numbers_too(tmp_path: Path) -> None:
    counts = scan_file(tmp_path / "s.h5", readout(12, (256, 256), (0, 1)), lost=1)
    list(export_merlin(tmp_path / "s.h5", tmp_path / "s.mib"))
    ours = read_mib(tmp_path / "s.mib")
    assert [frame.header.sequence for frame in ours.frames] == [1, 2, 5, 6]
    assert np.array_equal(ours.stack(), counts[[0, 2]])


def test_what_no_merlin_has_is_refused(tmp_path: Path) -> None:
    scan_file(tmp_path / "s.h5", readout(12, (100, 256), (0,)))
    with pytest.raises(BadFile, match="100 x 256"):
        list(export_merlin(tmp_path / "s.h5", tmp_path / "s.mib"))
    assert list(tmp_path.glob("*.mib")) == []
    with pytest.raises(WrongUsage, match=r"\.mib"):
        list(export_merlin(tmp_path / "s.h5", tmp_path / "s.dat"))
    (tmp_path / "there.mib").write_bytes(b"x")
    with pytest.raises(WrongUsage, match="exists"):
        list(export_merlin(tmp_path / "s.h5", tmp_path / "there.mib"))


@given(
    sequence=st.integers(1, 999_999),
    counter=st.integers(0, 7),
    thresholds=st.lists(st.floats(0, 999), min_size=8, max_size=8),
    exposure_ns=st.integers(0, 10**12),
    n_chips=st.sampled_from([1, 4]),
    gain=st.sampled_from(Gain),
    codes=st.lists(st.integers(0, 511), min_size=27, max_size=27),
    depth=st.sampled_from([1, 6, 12, 24]),
)
def test_header_round_trip(sequence, counter, thresholds, exposure_ns, n_chips, gain, codes, depth) -> None:
    dacs = dict(zip(DAC_FIELDS, codes, strict=True))
    header = FrameHeader(
        sequence=sequence,
        header_bytes=256 + 128 * n_chips,
        n_chips=n_chips,
        file_cols=256 * (1 + (n_chips == 4)),
        file_rows=256 * (1 + (n_chips == 4)),
        pixel_type="U16",
        layout="2x2" if n_chips == 4 else "1x1",
        chip_select=(1 << n_chips) - 1,
        timestamp="2020-05-18 16:51:49.971626",
        exposure_s=round(exposure_ns * 1e-9, 6),
        counter=counter,
        colour_mode=1,
        gain=gain,
        thresholds_kev=tuple(float(f"{value:.6e}") for value in thresholds),
        chips=tuple(ChipSettings(revision="3RX", dacs=dacs) for _ in range(n_chips)),
        timestamp_utc="2020-05-18T14:51:49.971626178Z",
        exposure_ns=exposure_ns,
        depth_bits=depth,
    )
    data = encode_frame_header(header)
    assert len(data) == header.header_bytes
    assert parse_frame_header(data) == header
