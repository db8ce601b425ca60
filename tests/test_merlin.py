"""Merlin files: an encoder written from the format's text, another reader, and real measured frames must agree."""

from __future__ import annotations

import itertools
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_iface.chip import DAC_FIELDS, Gain
from firmware_iface.errors import BadFile
from firmware_iface.merlin import (
    MerlinFrame,
    decode_pixels,
    parse_acquisition_header,
    parse_frame_header,
    read_hdr,
    read_mib,
)

# ---- an encoder made from the text of the format alone ---------------------------------------------------------------


def header_text(
    *,
    cols=256,
    rows=256,
    kind="U16",
    layout="   1x1",
    chips=1,
    sequence=1,
    counter=0,
    colour=0,
    gain=2,
    has_thresholds=True,
    has_dacs=True,
    depth=12,
    has_mq1a=True,
    optics="",
    size=None,
    thresholds=(120.0, 511.0, 0, 0, 0, 0, 0, 0.25),
    exposure="0.000555",
    exposure_ns=555000,
) -> bytes:
    size = size or 256 + 128 * chips
    text = f"MQ1,{sequence:06d},{size:05d},{chips:02d},{cols:04d},{rows:04d},{kind},{layout},{(1 << chips) - 1:02X},"
    text += f"2020-05-18 16:51:49.971626,{exposure},{counter},{colour},{gain},"
    if has_thresholds:
        text += "".join(merlin_number(value) + "," for value in thresholds)
    elif not has_dacs:
        text += ","
    text += optics
    if has_dacs:
        for chip in range(chips):
            text += "3RX," + "".join(f"{(7 * n + chip) % 512:03d}," for n in range(27))
    if has_mq1a:
        text += f"MQ1A,2020-05-18T14:51:49.971626178Z,{exposure_ns}ns,{depth},"
    assert len(text) <= size, len(text)
    return text.encode().ljust(size, b"\0")


def merlin_number(value: float) -> str:
    """Write 120.0 as 1.200000E+2: the exponent has no leading zero."""
    mantissa, exponent = f"{value:.6E}".split("E")
    return f"{mantissa}E{exponent[0]}{int(exponent[1:])}"


def raw_row(values: list[int], depth: int) -> bytes:
    """One row of one chip, value by value."""
    out = bytearray()
    if depth == 1:
        for start in range(0, len(values), 64):
            word = sum(bit << k for k, bit in enumerate(values[start : start + 64]))
            out += word.to_bytes(8, "big")
    else:
        group, n_bytes = (8, 1) if depth == 6 else (4, 2)
        for start in range(0, len(values), group):
            for value in reversed(values[start : start + group]):
                out += int(value).to_bytes(n_bytes, "big")
    return bytes(out)


def raw_image(image: np.ndarray, depth: int, *, is_quad: bool) -> bytes:
    """Pixels of an image (row 0 first) as the readout sends them; 24 bit is the high half, then the low half."""
    if depth == 24:
        return raw_image(image >> 12, 12, is_quad=is_quad) + raw_image(image & 0xFFF, 12, is_quad=is_quad)
    if not is_quad:
        return b"".join(raw_row(row.tolist(), depth) for row in image)
    half = len(image) // 2
    out = b""
    for row in range(half):
        turned = image[len(image) - 1 - row]
        for part in (turned[256:][::-1], turned[:256][::-1], image[row][256:], image[row][:256]):
            out += raw_row(part.tolist(), depth)
    return out


def random_image(shape: tuple[int, int], n_values: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, n_values, shape, dtype=np.uint64)


def write(folder: Path, *frames: bytes, name: str = "a.mib") -> Path:
    path = folder / name
    path.write_bytes(b"".join(frames))
    return path


PROCESSED = {
    "U01": (">u1", 2),
    "U08": (">u1", 64),
    "U16": (">u2", 4096),
    "U32": (">u4", 1 << 24),
    "U64": (">u8", 1 << 40),
}


# ---- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PROCESSED)
@pytest.mark.parametrize(
    ("layout", "chips", "rows", "cols"),
    [
        ("   1x1", 1, 256, 256),
        ("1x1", 1, 8, 256),
        ("   2x2", 4, 512, 512),
        ("  2x2G", 4, 514, 514),
        ("   Nx1", 3, 16, 768),
        ("  Nx1G", 3, 16, 772),
        ("4x1", 4, 4, 1024),
    ],
)
def test_processed_frames(tmp_path, kind, layout, chips, rows, cols):
    dtype, n_values = PROCESSED[kind]
    images = [random_image((rows, cols), n_values, seed) for seed in range(2)]
    path = write(
        tmp_path,
        *(
            header_text(cols=cols, rows=rows, kind=kind, layout=layout, chips=chips, sequence=i + 1)
            + image.astype(dtype).tobytes()
            for i, image in enumerate(images)
        ),
    )
    file = read_mib(path)
    assert len(file.frames) == 2
    for number, (frame, image) in enumerate(zip(file.frames, images, strict=True)):
        np.testing.assert_array_equal(frame.counts, image)
        assert frame.counts.dtype.isnative
        assert frame.header.sequence == number + 1
        assert frame.header.layout == layout.strip()
    assert file.stack().shape == (2, 1, rows, cols)


@pytest.mark.parametrize(
    ("rows_of_chip", "is_quad", "depth"), [*itertools.product((256, 128, 2), (False, True), (1, 6, 12, 24))]
)
@pytest.mark.parametrize("has_thresholds", [False, True])
def test_raw_frames(tmp_path, rows_of_chip, is_quad, depth, has_thresholds):
    shape = (2 * rows_of_chip, 512) if is_quad else (rows_of_chip, 256)
    image = random_image(shape, 1 << depth, seed=depth)
    header = header_text(
        cols=(1024 if is_quad else 256) * (2 if depth == 24 else 1),
        rows=rows_of_chip,
        kind="R64",
        layout="   2x2" if is_quad else "   1x1",
        chips=4 if is_quad else 1,
        depth=depth,
        has_thresholds=has_thresholds,
        has_dacs=has_thresholds,
    )
    frames = read_mib(write(tmp_path, header + raw_image(image, depth, is_quad=is_quad))).frames
    np.testing.assert_array_equal(frames[0].counts, image)
    assert frames[0].counts.dtype == {1: "u1", 6: "u1", 12: "u2", 24: "u4"}[depth]
    assert len(frames[0].header.thresholds_kev) == (8 if has_thresholds else 0)


def test_raw_quad_by_hand():
    """One marked pixel per chip, written by hand into [chip 4 | chip 3 | chip 2 | chip 1]."""
    header = parse_frame_header(header_text(cols=1024, rows=256, kind="R64", layout="  2x2G", chips=4, depth=6))
    data = bytearray(1024 * 256)
    for number, start in ((4, 0), (3, 256), (2, 512), (1, 768)):
        data[start + 7] = number  # pixel 0 of row 0 stands last in its group of eight
    counts = decode_pixels(header, bytes(data))
    assert counts[0, 0] == 1
    assert counts[0, 256] == 2
    assert counts[511, 255] == 3
    assert counts[511, 511] == 4
    assert counts.sum() == 10


def test_raw_depth_comes_from_the_hdr_file_without_mq1a(tmp_path):
    image = random_image((256, 256), 64, seed=3)
    header = header_text(kind="R64", depth=6, has_mq1a=False)
    path = write(tmp_path, header + raw_image(image, 6, is_quad=False))
    with pytest.raises(BadFile, match="frame 1: raw pixels need the counter depth"):
        read_mib(path)
    path.with_suffix(".hdr").write_bytes(b"HDR,\t\r\nCounter Depth (number):\t6\r\nEnd\t")
    np.testing.assert_array_equal(read_mib(path).frames[0].counts, image)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_counts_survive(data):
    is_quad, depth = data.draw(st.booleans()), data.draw(st.sampled_from((1, 6, 12, 24)))
    rows = data.draw(st.integers(1, 3))
    flat = data.draw(st.binary(min_size=8, max_size=8))
    image = random_image(
        (rows * (2 if is_quad else 1), 512 if is_quad else 256), 1 << depth, int.from_bytes(flat, "big")
    )
    header = parse_frame_header(
        header_text(
            cols=(1024 if is_quad else 256) * (2 if depth == 24 else 1), rows=rows, kind="R64",
            layout="2x2" if is_quad else "1x1", chips=4 if is_quad else 1, depth=depth,
        )
    )  # fmt: skip
    frame = MerlinFrame(header=header, counts=decode_pixels(header, raw_image(image, depth, is_quad=is_quad)))
    np.testing.assert_array_equal(frame.counts, image)


# ---- headers ---------------------------------------------------------------------------------------------------------


def test_every_field_of_the_header():
    header = parse_frame_header(
        header_text(chips=4, layout="   2x2", cols=512, rows=512, kind="U16", counter=5, colour=1, sequence=1234567)
    )
    assert (header.sequence, header.header_bytes, header.n_chips, header.chip_select) == (1234567, 768, 4, 15)
    assert (header.file_cols, header.file_rows, header.shape) == (512, 512, (512, 512))
    assert (header.pixel_type, header.layout, header.is_raw) == ("U16", "2x2", False)
    assert (header.timestamp, header.exposure_s) == ("2020-05-18 16:51:49.971626", 0.000555)
    assert (header.counter, header.colour_mode, header.gain) == (5, 1, Gain.HGM)
    assert header.thresholds_kev == (120.0, 511.0, 0, 0, 0, 0, 0, 0.25)
    assert len(header.chips) == 4
    for number, chip in enumerate(header.chips):
        assert chip.revision == "3RX"
        assert list(chip.dacs) == list(DAC_FIELDS)
        assert list(chip.dacs.values()) == [(7 * n + number) % 512 for n in range(27)]
    assert (header.timestamp_utc, header.exposure_ns) == ("2020-05-18T14:51:49.971626178Z", 555000)
    assert header.depth_bits == 12


@pytest.mark.parametrize(("code", "gain"), [(0, Gain.SLGM), (1, Gain.LGM), (2, Gain.HGM), (3, Gain.SHGM)])
def test_gain_counts_the_other_way_round(code, gain):
    assert parse_frame_header(header_text(gain=code)).gain is gain


def test_blocks_may_be_missing_or_more():
    bare = parse_frame_header(header_text(has_thresholds=False, has_dacs=False, has_mq1a=False))
    assert (bare.thresholds_kev, bare.chips, bare.depth_bits, bare.timestamp_utc) == ((), (), None, "")
    optics = parse_frame_header(header_text(optics="OPT1,1,2,30,40,3,END1,")).optics
    assert optics is not None
    assert (optics.x, optics.y, optics.width, optics.height, optics.profile_mask) == (1, 2, 30, 40, "3")
    assert parse_frame_header(header_text()).optics is None


def test_a_larger_header_of_one_chip_is_read(tmp_path):
    """The Merlin-like server of another readout always sends 768 bytes."""
    image = random_image((256, 256), 4096, 1)
    path = write(tmp_path, header_text(size=768) + image.astype(">u2").tobytes())
    np.testing.assert_array_equal(read_mib(path).frames[0].counts, image)


@settings(max_examples=50, deadline=None)
@given(
    sequence=st.integers(1, 10**7),
    thresholds=st.tuples(*[st.floats(0, 999, allow_subnormal=False).map(lambda v: round(v, 4))] * 8),
    exposure_ns=st.integers(1000, 10**15),
    counter=st.integers(0, 7),
)
def test_any_header_values_survive(sequence, thresholds, exposure_ns, counter):
    header = parse_frame_header(
        header_text(sequence=sequence, thresholds=thresholds, exposure_ns=exposure_ns, counter=counter)
    )
    assert (header.sequence, header.exposure_ns, header.counter) == (sequence, exposure_ns, counter)
    np.testing.assert_allclose(header.thresholds_kev, thresholds, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "U12"}, "pixel type is 'U12'; allowed: U01"),
        ({"layout": "  2x1G"}, None),
        ({"layout": "   3x2"}, "layout is '3x2'"),
        ({"chips": 0, "size": 384, "has_dacs": False}, "0 chips"),
        ({"cols": 0}, "0 x 256 pixels"),
        ({"gain": 7}, "gain is 7; allowed: 0 .* to 3"),
        ({"exposure": "soon"}, "shutter time is 'soon'"),
        ({"kind": "R64", "depth": 8}, "counter depth is 8; allowed: 1, 6, 12 or 24"),
        ({"depth": 0}, "counter depth is 0; allowed: 1, 6, 12 or 24"),
        ({"counter": 8}, "counter is 8; allowed: 0 to 7"),
        ({"layout": "2X2G"}, None),
        ({"kind": "R64", "cols": 512}, "has 512 columns; allowed: 256"),
        ({"kind": "R64", "layout": "Nx1", "cols": 768}, "layout Nx1 cannot be ordered"),
        ({"optics": "OPT1,1,2,30,40,3,END2,"}, "ends with 'END2'"),
        ({"optics": "OPT1,1,-2,30,40,3,END1,"}, "region of interest is -2"),
    ],
)
def test_headers_that_cannot_be(changes, message):
    data = header_text(**changes)
    if message is None:
        parse_frame_header(data)
        return
    with pytest.raises(ValueError, match=message):
        parse_frame_header(data)


# ---- files -----------------------------------------------------------------------------------------------------------


def u8_frame(**changes) -> bytes:
    header = header_text(**{"kind": "U08", "rows": 4, "depth": 6, **changes})
    return header + bytes(range(256)) * 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "frame 1: expected at least 384 bytes, found 0"),
        (b"\x89HDF\r\n\x1a\n" + bytes(5000), "frame 1: it starts with"),
        (b"MQ1,", "frame 1: .*header"),
        (u8_frame()[:300], "frame 1: expected a header of 384 bytes, found 300"),
        (u8_frame()[:1000], "frame 1: expected 1408 bytes, found 1000"),
        (u8_frame() * 2 + u8_frame()[:500], "frame 3: expected 1408 bytes, found 500"),
        (u8_frame() * 2 + u8_frame()[:2], "frame 3: expected 1408 bytes, found 2"),
        (u8_frame() + u8_frame(rows=8) + bytes(1024), "frame 2: its size fields are 00384,01,0256,0008"),
        (u8_frame() + u8_frame(size=768), "frame 2: its size fields are 00768"),
        (u8_frame() + u8_frame(kind="U16"), "frame 2: its size fields"),
        (u8_frame() + b"x" + u8_frame(), "frame 2: expected a header 'MQ1' at byte 1408, found b'xMQ1'"),
        (u8_frame().replace(b"00384", b"00256", 1), "data offset is 256, but a header of 1 chips takes 384 bytes"),
        (u8_frame().replace(b"00384", b"99999", 1) * 60, "expected a header of 99999 bytes, found 84480"),
        (u8_frame().replace(b"00384", b"00385", 1) + u8_frame(), "frame 2: expected a header 'MQ1' at byte 1409"),
    ],
)
def test_files_that_cannot_be_are_refused_in_one_sentence(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(BadFile, match=message) as caught:
        read_mib(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_a_missing_file_and_a_changing_depth(tmp_path):
    with pytest.raises(BadFile, match="cannot be read"):
        read_mib(tmp_path / "none.mib")
    frames = read_mib(write(tmp_path, u8_frame(depth=6), u8_frame(depth=1))).frames
    with pytest.raises(BadFile, match="frame 2: the counter depth is 1 bits"):
        frames[1]


def test_frames_are_a_sequence(tmp_path):
    frames = read_mib(write(tmp_path, *(u8_frame(sequence=n + 1) for n in range(3)))).frames
    assert [f.header.sequence for f in frames] == [1, 2, 3]
    assert frames[-1].header.sequence == 3
    assert [f.header.sequence for f in frames[1:]] == [2, 3]
    with pytest.raises(IndexError, match="allowed: 0 to 2"):
        frames[3]


@pytest.mark.parametrize("layers", [(0,), (1, 0), (0, 2, 4, 6), (1, 3, 5, 7, 0, 2, 4, 6)])
def test_layers_become_counters(tmp_path, layers):
    """Counter 1 comes before counter 0; layers are sorted by number whatever their order in the file."""
    frames = [
        header_text(kind="U08", rows=2, depth=6, counter=layer, colour=1, sequence=n + 1)
        + bytes([10 * n + layer]) * 512
        for n in range(3)
        for layer in layers
    ]
    file = read_mib(write(tmp_path, *frames))
    assert file.groups()[0] == tuple(sorted(layers))
    counts = file.stack()
    assert counts.shape == (3, len(layers), 2, 256)
    np.testing.assert_array_equal(counts[:, :, 0, 0], [[10 * n + layer for layer in sorted(layers)] for n in range(3)])


def test_a_cut_group_is_refused(tmp_path):
    file = read_mib(write(tmp_path, *(u8_frame(counter=c) for c in (1, 0, 1, 0, 1))))
    with pytest.raises(BadFile, match=r"frame 5: its exposure has the layers \[1\]") as caught:
        file.stack()
    assert "interrupted" in caught.value.hint
    assert len(file.frames) == 5


def test_acquisition_header_of_old_and_new_software(tmp_path):
    text = (
        "HDR,\t\r\nChip Mode  (SPM, CSM, CM, CSCM):\tSPM\r\nSensor Bias (V, µA)\t80 V, 0.1 µA\r\n"
        "Dead Time File:\tDummy (C:\\<NUL>\\)\r\nScanX: 4\r\n\r\nEnd\t"
    ).encode("latin-1")
    values = parse_acquisition_header(text.ljust(2048))
    assert values["Chip Mode  (SPM, CSM, CM, CSCM)"] == "SPM"
    assert values["Sensor Bias (V, µA)"] == "80 V, 0.1 µA"
    assert values["Dead Time File"] == "Dummy (C:\\<NUL>\\)"
    assert values["ScanX"] == "4"
    for content, message in ((b"", "starts with ''"), (b"HDR,\t\r\nGain:\tSLGM\r\n", "no line 'End'")):
        path = tmp_path / "x.hdr"
        path.write_bytes(content)
        with pytest.raises(BadFile, match=message):
            read_hdr(path)


# ---- another reader, and real frames ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["U08", "U16", "U32"])
@pytest.mark.parametrize(
    ("layout", "chips", "rows", "cols"),
    [("   1x1", 1, 256, 256), ("   1x1", 1, 100, 256), ("   2x2", 4, 512, 512), ("  2x2G", 4, 514, 514)],
)
def test_agrees_with_rosettasciio(tmp_path, kind, layout, chips, rows, cols):
    rsciio = pytest.importorskip("rsciio.quantumdetector", reason="rosettasciio is the independent reader")
    dtype, n_values = PROCESSED[kind]
    path = write(
        tmp_path,
        *(
            header_text(cols=cols, rows=rows, kind=kind, layout=layout, chips=chips, sequence=n + 1)
            + random_image((rows, cols), n_values, n).astype(dtype).tobytes()
            for n in range(3)
        ),
    )
    theirs, headers = rsciio.load_mib_data(str(path), return_headers=True)
    ours = read_mib(path)
    assert len(ours.frames) == len(theirs)
    for frame, image, exposure_ms, timestamp in zip(
        ours.frames, theirs, rsciio.parse_exposures(headers), rsciio.parse_timestamps(headers), strict=True
    ):
        np.testing.assert_array_equal(frame.counts, image)
        assert (frame.header.exposure_ns, frame.header.timestamp_utc) == (exposure_ms * 1e6, timestamp)


@pytest.mark.parametrize(("name", "rows"), [("001_4x2_6bit", 256), ("002_4x2_6bit_roi128", 128)])
def test_real_frames(test_data, tmp_path, name, rows):
    rsciio = pytest.importorskip("rsciio.quantumdetector", reason="rosettasciio is the independent reader")
    with zipfile.ZipFile(test_data / "merlin" / "Merlin_navigation4x2_ROI.zip") as archive:
        archive.extractall(tmp_path)
    path = next(tmp_path.rglob(f"{name}.mib"))
    file = read_mib(path)
    # rosettasciio turns the rows round, so that its row 0 is the top one
    (theirs,) = rsciio.file_reader(str(path), navigation_shape=(4, 2))
    np.testing.assert_array_equal(file.stack()[:, 0, ::-1], theirs["data"].reshape(8, rows, 256))
    hdr = theirs["original_metadata"]["hdr_file"]
    assert file.header == {key.strip(): value.strip() for key, value in hdr.items()}
    header = file.frames[0].header
    assert header.thresholds_kev[:2] == (40.0, 511.0)
    assert header.chips[0].dacs["Threshold0"] == 68
    assert header.chips[0].dacs["TP_REFB"] == 511
    assert file.header["DACs"].split(";")[0] == ",".join(f"{code:03d}" for code in header.chips[0].dacs.values())
    assert file.header["Gain"] == header.gain.name
    assert [frame.header.sequence for frame in file.frames] == list(range(1, 9))
    assert all(frame.counts.max() < 64 for frame in file.frames)
    assert all(frame.counts.any() for frame in file.frames)
