"""Merlin frame headers and pixels: pure bytes to records, for .mib and .hdr files.

A .mib file is a row of frames, each a text header and then its pixels; a .hdr file beside it tells of the whole
acquisition. Counters and colour layers come as frames of their own; `MerlinFile.stack` puts them together again.

Row 0 of `MerlinFrame.counts` is the first row of the file, which is the lowest row of the detector, and column 0 is
the left one. Raw (R64) quad pixels are put together in the same order: chips 1 and 2 are the first half of the rows,
chips 3 and 4 the second half, turned by 180 degrees, so that the periphery of every chip lies outside.

What the sources do not settle, and what is done here: 24-bit raw quad frames, which no known reader supports, are
taken as two 12-bit quad images, the high bits first, like those of a single chip; raw frames of Nx1 assemblies are
refused, because the order of their chips is not known; raw frames of assemblies with gaps stay without gaps.

# Ref: frame header, pixel order: Merlin data specification 7.3 and manual v0.7 (Plackett and Omar 2015), p46-47;
#      MQ1A block and U01 as one byte per pixel: LiberTEM-rs @b1c275c1 `libertem_qd_mpx/src/{base_types,decoder}.rs`.
# Ref: raw (R64) layouts: LiberTEM @8ca212e8 `src/libertem/io/dataset/mib.py`, agreeing with LiberTEM-rs.
# Ref: headers of 768 bytes for a single chip: navrit/dexter @c8bc0f46 `SpidrMpx3Eq/MerlinInterface`.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from firmware_iface.chip import COLS, DAC_FIELDS, N_THRESHOLDS, Gain
from firmware_iface.errors import BadFile

MAGIC = b"MQ1"
PIXEL_TYPES: Mapping[str, str] = {"U01": "u1", "U08": "u1", "U16": ">u2", "U32": ">u4", "U64": ">u8"}
"""Pixel type of processed frames to NumPy's name; 1-bit counts take a whole byte each."""
RAW = "R64"
RAW_BITS: Mapping[int, int] = {1: 1, 6: 8, 12: 16, 24: 16}
"""Counter depth to bits per raw value in the file; a 24-bit frame is two 12-bit images, counted in its columns."""
RAW_CHIPS: Mapping[str, int] = {"1x1": 1, "2x2": 4, "2x2G": 4}
GAINS = (Gain.SLGM, Gain.LGM, Gain.HGM, Gain.SHGM)
"""Field 13 counts the gains the other way round than the chip's own register."""

_LAYOUT = re.compile(r"(?:\d+|N)x1G?|2x2G?")
_NUMBER = re.compile(r"\s*[+-]?\d+(\.\d*)?([eE][+-]?\d+)?\s*")
_FIXED_FIELDS = 14
_OFFSET_DIGITS = 5
_FIRST_FIELDS_BYTES = 128  # more than the nine fields that fix the size of a frame ever take


@dataclass(frozen=True, slots=True, kw_only=True)
class Optics:
    """The OPT1 block of beam-position monitors: region of interest in pixels, and which profiles follow."""

    x: int
    y: int
    width: int
    height: int
    profile_mask: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipSettings:
    """Revision of one chip, and its DAC codes by name."""

    revision: str
    dacs: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameHeader:
    """Every field of the header of one Merlin frame.

    Attributes
    ----------
    sequence : int
        Number of the frame in its acquisition, from 1.
    header_bytes : int
        Where the pixels begin, counted from the start of the header.
    n_chips, chip_select : int
        Chips in the assembly, and a bit mask of those in use; chip 1 is bit 0.
    file_cols, file_rows : int
        Size in the order of the file; `shape` is that of the image.
    pixel_type : str
        U01, U08, U16, U32, U64 (processed) or R64 (raw).
    layout : str
        1x1, 2x2, 2x2G, Nx1 or Nx1G.
    timestamp : str
        Local time of the shutter's opening, as written.
    exposure_s : float
    counter : int
        Counter, or colour layer, which is the number of the threshold.
    colour_mode : int
        0 single threshold per pixel, 1 colour.
    gain : Gain
    thresholds_kev : tuple of float
        Up to 8 values; raw frames may leave them out.
    chips : tuple of ChipSettings
        One per chip; raw frames may leave them out.
    optics : Optics or None
    timestamp_utc, exposure_ns, depth_bits
        The MQ1A block of newer software; "", None and None without it.
    """

    sequence: int
    header_bytes: int
    n_chips: int
    file_cols: int
    file_rows: int
    pixel_type: str
    layout: str
    chip_select: int
    timestamp: str
    exposure_s: float
    counter: int
    colour_mode: int
    gain: Gain
    thresholds_kev: tuple[float, ...] = ()
    chips: tuple[ChipSettings, ...] = ()
    optics: Optics | None = None
    timestamp_utc: str = ""
    exposure_ns: int | None = None
    depth_bits: int | None = None

    def __post_init__(self) -> None:
        if self.n_chips < 1 or self.file_cols < 1 or self.file_rows < 1:
            raise ValueError(
                f"{self.n_chips} chips with {self.file_cols} x {self.file_rows} pixels cannot be; allowed: at least 1"
            )
        if self.pixel_type not in PIXEL_TYPES and self.pixel_type != RAW:
            raise ValueError(f"the pixel type is {self.pixel_type!r}; allowed: {', '.join(PIXEL_TYPES)}, {RAW}")
        if not _LAYOUT.fullmatch(self.layout):
            raise ValueError(f"the layout is {self.layout!r}; allowed: 1x1, 2x2, 2x2G, Nx1, Nx1G")
        if self.counter >= N_THRESHOLDS:
            raise ValueError(f"the counter is {self.counter}; allowed: 0 to {N_THRESHOLDS - 1}")
        if self.depth_bits is not None and self.depth_bits not in RAW_BITS:
            raise ValueError(f"the counter depth is {self.depth_bits}; allowed: 1, 6, 12 or 24 bits")
        _check_offset(self.header_bytes, self.n_chips)
        if self.pixel_type == RAW:
            self._check_raw()

    def _check_raw(self) -> None:
        if self.layout not in RAW_CHIPS:
            raise ValueError(f"raw pixels of layout {self.layout} cannot be ordered; allowed: {', '.join(RAW_CHIPS)}")
        if self.depth_bits is None:
            raise ValueError(
                "raw pixels need the counter depth, but neither an MQ1A block nor a .hdr file tells it; "
                "allowed: 1, 6, 12 or 24 bits"
            )
        cols = RAW_CHIPS[self.layout] * COLS * (2 if self.depth_bits == 24 else 1)
        if self.file_cols != cols:
            raise ValueError(
                f"a raw frame of the layout {self.layout} with {self.depth_bits} bits has {self.file_cols} columns; "
                f"allowed: {cols}"
            )

    @property
    def is_raw(self) -> bool:
        """Whether the pixels are in the order of the chips, not of the image."""
        return self.pixel_type == RAW

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the image."""
        if not self.is_raw:
            return self.file_rows, self.file_cols
        return (self.file_rows, COLS) if RAW_CHIPS[self.layout] == 1 else (2 * self.file_rows, 2 * COLS)

    @property
    def pixel_bytes(self) -> int:
        """Bytes of the pixels that follow the header."""
        n_values = self.file_rows * self.file_cols
        if self.is_raw:
            return n_values * RAW_BITS[self.depth_bits or 0] // 8
        return n_values * np.dtype(PIXEL_TYPES[self.pixel_type]).itemsize


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MerlinFrame:
    """One Merlin frame.

    Attributes
    ----------
    header : FrameHeader
    counts : (rows, cols) uint8, uint16, uint32 or uint64
        Row 0 is the lowest row, column 0 the left column.
    """

    header: FrameHeader
    counts: NDArray[np.unsignedinteger]

    def __post_init__(self) -> None:
        if self.counts.shape != self.header.shape:
            raise ValueError(f"counts of shape {self.counts.shape} do not match the header's {self.header.shape}")


def parse_frame_header(data: bytes, *, depth_bits: int | None = None) -> FrameHeader:
    """Read the header of one frame.

    Parameters
    ----------
    data : bytes
        At least the whole header; what follows it is not looked at.
    depth_bits : int, optional
        Counter depth to take where the header has no MQ1A block.

    Raises
    ------
    ValueError
        In one clause: what is wrong, the value, what is allowed.
    """
    if not data.startswith(MAGIC + b","):
        raise ValueError(f"it starts with {bytes(data[:4])!r}; allowed: {MAGIC + b','!r}")
    first = data[:_FIRST_FIELDS_BYTES].split(b",")
    header_bytes = _integer(first[2].decode("latin-1"), "data offset") if len(first) > 2 else 0
    if len(data) < header_bytes:
        raise ValueError(f"expected a header of {header_bytes} bytes, found {len(data)}")
    fields = data[:header_bytes].split(b"\0", 1)[0].decode("latin-1").split(",")
    if len(fields) < _FIXED_FIELDS:
        raise ValueError(
            f"the header has {len(fields)} fields in {header_bytes} bytes; allowed: at least {_FIXED_FIELDS}"
        )
    n_chips = _integer(fields[3], "number of chips")
    _check_offset(header_bytes, n_chips)  # before the blocks, which a wrong offset would cut
    rest = [field.strip() for field in fields[_FIXED_FIELDS:]]
    n_thresholds = next((n for n, text in enumerate(rest[:N_THRESHOLDS]) if not _is_number(text)), N_THRESHOLDS)
    chips, optics, timing = _parse_blocks(rest[n_thresholds:])
    return FrameHeader(
        sequence=_integer(fields[1], "sequence number"),
        header_bytes=header_bytes,
        n_chips=n_chips,
        file_cols=_integer(fields[4], "X size"),
        file_rows=_integer(fields[5], "Y size"),
        pixel_type=fields[6].strip(),
        layout=fields[7].strip().replace("X", "x"),  # acquisition headers write it large
        chip_select=_integer(fields[8], "chip select", base=16),
        timestamp=fields[9].strip(),
        exposure_s=_number(fields[10], "shutter time"),
        counter=_integer(fields[11], "counter"),
        colour_mode=_integer(fields[12], "colour mode"),
        gain=_gain(_integer(fields[13], "gain")),
        thresholds_kev=tuple(float(text) for text in rest[:n_thresholds]),
        chips=chips,
        optics=optics,
        timestamp_utc=timing.timestamp_utc if timing else "",
        exposure_ns=timing.exposure_ns if timing else None,
        depth_bits=timing.depth_bits if timing else depth_bits,
    )


def _check_offset(header_bytes: int, n_chips: int) -> None:
    needed = 256 + 128 * n_chips
    if header_bytes < needed:
        raise ValueError(f"the data offset is {header_bytes}, but a header of {n_chips} chips takes {needed} bytes")


class _Timing(NamedTuple):
    """The MQ1A block."""

    timestamp_utc: str
    exposure_ns: int
    depth_bits: int


def _parse_blocks(fields: list[str]) -> tuple[tuple[ChipSettings, ...], Optics | None, _Timing | None]:
    """Read the optional blocks after the thresholds, each known by its first field."""
    chips: list[ChipSettings] = []
    optics = timing = None
    while fields:
        name, *_ = _take(fields, 1, "")
        if name == "OPT1":
            x, y, width, height = (_integer(text, "region of interest") for text in _take(fields, 4, name))
            profile_mask, end = _take(fields, 2, name)
            if end != "END1":
                raise ValueError(f"the OPT1 block ends with {end!r}; allowed: 'END1'")
            optics = Optics(x=x, y=y, width=width, height=height, profile_mask=profile_mask)
        elif name == "MQ1A":
            timestamp_utc, exposure, depth = _take(fields, 3, name)
            timing = _Timing(
                timestamp_utc=timestamp_utc,
                exposure_ns=_integer(exposure.removesuffix("ns"), "exposure of the MQ1A block"),
                depth_bits=_integer(depth, "counter depth"),
            )
        elif name:
            texts = _take(fields, len(DAC_FIELDS), name)
            codes = {dac: _integer(text, dac) for dac, text in zip(DAC_FIELDS, texts, strict=True)}
            chips.append(ChipSettings(revision=name, dacs=codes))
    return tuple(chips), optics, timing


def _take(fields: list[str], n: int, block: str) -> list[str]:
    if len(fields) < n:
        raise ValueError(f"the block {block!r} of the header has {len(fields)} fields; allowed: {n}")
    taken, fields[:n] = fields[:n], []
    return taken


def _integer(text: str, name: str, base: int = 10) -> int:
    try:
        value = int(text, base)
    except ValueError as error:
        raise ValueError(f"the {name} is {text!r}; allowed: a whole number") from error
    if value < 0:
        raise ValueError(f"the {name} is {value}; allowed: 0 or more")
    return value


def _number(text: str, name: str) -> float:
    if not _is_number(text):
        raise ValueError(f"the {name} is {text!r}; allowed: a number")
    return float(text)


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None


def _gain(code: int) -> Gain:
    if code >= len(GAINS):
        raise ValueError(f"the gain is {code}; allowed: 0 (SLGM) to 3 (SHGM)")
    return GAINS[code]


def decode_pixels(header: FrameHeader, data: bytes) -> NDArray[np.unsignedinteger]:
    """Turn the bytes after a header into counts.

    Returns
    -------
    counts : (rows, cols) uint8, uint16, uint32 or uint64
        Row 0 is the lowest row.
    """
    if len(data) != header.pixel_bytes:
        raise ValueError(f"the pixels take {header.pixel_bytes} bytes, but there are {len(data)}")
    if not header.is_raw:
        kind = np.dtype(PIXEL_TYPES[header.pixel_type])
        return np.frombuffer(data, dtype=kind).reshape(header.shape).astype(kind.newbyteorder("="))
    if header.depth_bits == 24:
        half = header.pixel_bytes // 2
        high, low = (_assemble(header, _raw_values(part, 12)) for part in (data[:half], data[half:]))
        return np.bitwise_or(np.left_shift(high, 12, dtype=np.uint32), low)
    return _assemble(header, _raw_values(data, header.depth_bits or 0))


def _raw_values(data: bytes, depth_bits: int) -> NDArray[np.unsignedinteger]:
    """Undo the order inside the 64-bit words of the readout: (n_pixels,) uint8 or uint16."""
    words = np.frombuffer(data, dtype=np.uint8).reshape(-1, 8)[:, ::-1]
    if depth_bits == 1:
        return np.unpackbits(words, bitorder="little")
    if depth_bits == 6:
        return words.reshape(-1)
    return np.ascontiguousarray(words).reshape(-1).view("<u2").astype(np.uint16)


def _assemble(header: FrameHeader, values: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
    """Put the chips of a raw frame to their places: (n_pixels,) to (rows, cols)."""
    if RAW_CHIPS[header.layout] == 1:
        return np.ascontiguousarray(values.reshape(header.shape))
    fourth, third, second, first = np.moveaxis(values.reshape(header.file_rows, 4, COLS), 1, 0)
    return np.block([[first, second], [third[::-1, ::-1], fourth[::-1, ::-1]]])


def parse_acquisition_header(data: bytes) -> dict[str, str]:
    """Read the text of a .hdr file, or the HDR packet of the data channel, as its keys and values.

    Keys lose their colon; both lose the blanks around them. Lines after ``End`` are padding.
    """
    lines = data.decode("latin-1").replace("\0", "").split("\n")
    if not lines[0].startswith("HDR"):
        raise ValueError(f"it starts with {lines[0][:8]!r}; allowed: 'HDR'")
    values: dict[str, str] = {}
    for line in lines[1:]:
        if line.strip() == "End":
            return values
        key, separator, value = line.partition("\t")
        if not separator:
            key, separator, value = line.partition(":")
        if separator and (name := key.strip().removesuffix(":").strip()):
            values.setdefault(name, value.strip(" \t\r\0"))
    raise ValueError("it has no line 'End'")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MerlinFile:
    """One .mib file, and what its .hdr file says.

    Attributes
    ----------
    path : Path
    header : dict of str to str
        The acquisition header; empty where there is no .hdr file.
    frames : sequence of MerlinFrame
        Decoded when they are asked for.
    """

    path: Path
    header: Mapping[str, str]
    frames: Sequence[MerlinFrame]

    def groups(self) -> tuple[tuple[int, ...], NDArray[np.int64]]:
        """Find which frames belong together: counters or colour layers of one exposure.

        A new exposure begins where a layer comes again.

        Returns
        -------
        layers : tuple of int
            Counter or colour layer of each member of a group, rising.
        indices : (n_exposures, n_layers) int64
            Index into `frames`.
        """
        groups: list[dict[int, int]] = [{}]
        for index, layer in enumerate(_layers(self.frames)):
            if layer in groups[-1]:
                groups.append({})
            groups[-1][layer] = index
        layers = tuple(sorted(groups[0]))
        for group in groups:
            if tuple(sorted(group)) != layers:
                raise BadFile(
                    f"{self.path}, frame {min(group.values()) + 1}: its exposure has the layers {sorted(group)}, "
                    f"but the first has {list(layers)}; allowed: the same layers in every exposure",
                    hint="the acquisition was interrupted or its mode changed; cut the file off before this frame",
                )
        return layers, np.array([[group[layer] for layer in layers] for group in groups])

    def stack(self) -> NDArray[np.unsignedinteger]:
        """Return all counts: (n_exposures, n_layers, rows, cols), layers rising as in `groups`."""
        _, indices = self.groups()
        return np.stack([np.stack([self.frames[int(i)].counts for i in group]) for group in indices])


def _layers(frames: Sequence[MerlinFrame]) -> Iterator[int]:
    if isinstance(frames, _MappedFrames):
        return (frames.header(index).counter for index in range(len(frames)))
    return (frame.header.counter for frame in frames)


class _MappedFrames(Sequence[MerlinFrame]):
    """The frames of a file in memory or mapped into it; equal in size, checked beforehand."""

    def __init__(self, path: Path, data: bytes | mmap.mmap, first: FrameHeader) -> None:
        self._path, self._data, self._first = path, data, first
        self._frame_bytes = first.header_bytes + first.pixel_bytes
        self._check_sizes()

    def _check_sizes(self) -> None:
        first_fields = self._size_fields(0)
        for index in range(len(self)):
            start = index * self._frame_bytes
            n_left = len(self._data) - start
            if n_left >= 4 and self._data[start : start + 4] != MAGIC + b",":
                raise BadFile(
                    f"{self._path}, frame {index + 1}: expected a header {MAGIC.decode()!r} at byte {start}, found "
                    f"{bytes(self._data[start : start + 4])!r}",
                    hint="a frame before it has another size than its header tells, or bytes are missing",
                )
            if n_left >= _FIRST_FIELDS_BYTES and (fields := self._size_fields(index)) != first_fields:
                raise BadFile(
                    f"{self._path}, frame {index + 1}: its size fields are {fields}, but those of frame 1 are "
                    f"{first_fields}; allowed: frames of one size",
                    hint="split the file where the settings changed",
                )
            if n_left < self._frame_bytes:
                raise BadFile(
                    f"{self._path}, frame {index + 1}: expected {self._frame_bytes} bytes, found {n_left}",
                    hint="the file is cut; copy it again, or drop its last frame",
                )

    def _size_fields(self, index: int) -> str:
        start = index * self._frame_bytes
        fields = self._data[start : start + _FIRST_FIELDS_BYTES].split(b",")[2:8]
        return ",".join(field.decode("latin-1").strip() for field in fields)

    def header(self, index: int) -> FrameHeader:
        """Parse the header of one frame."""
        start = index * self._frame_bytes
        data = self._data[start : start + self._first.header_bytes]
        try:
            header = parse_frame_header(data, depth_bits=self._first.depth_bits)
        except ValueError as error:
            raise BadFile(f"{self._path}, frame {index + 1}: {error}") from error
        if header.depth_bits != self._first.depth_bits:
            raise BadFile(
                f"{self._path}, frame {index + 1}: the counter depth is {header.depth_bits} bits, but that of frame 1 "
                f"is {self._first.depth_bits}; allowed: one depth in a file"
            )
        return header

    def __len__(self) -> int:
        return -(-len(self._data) // self._frame_bytes)

    @overload
    def __getitem__(self, index: int) -> MerlinFrame: ...
    @overload
    def __getitem__(self, index: slice) -> list[MerlinFrame]: ...
    def __getitem__(self, index: int | slice) -> MerlinFrame | list[MerlinFrame]:
        """Decode one frame, or a list of some."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"frame index {index} is out of range; allowed: 0 to {len(self) - 1}")
        index %= len(self)
        header = self.header(index)
        start = index * self._frame_bytes + header.header_bytes
        return MerlinFrame(header=header, counts=decode_pixels(header, self._data[start : start + header.pixel_bytes]))


def read_mib(path: str | Path) -> MerlinFile:
    """Open a .mib file, with the .hdr file beside it where there is one.

    The file is mapped into memory: the sizes of all frames are checked at once, their pixels decoded when asked for.

    Raises
    ------
    BadFile
        Foreign, empty, truncated or inconsistent; the message names the file, the frame, and expected and found bytes.
    """
    path = Path(path)
    header = _read_hdr_beside(path)
    data = _map(path)
    depth = header.get("Counter Depth (number)", "")
    try:
        first = parse_frame_header(
            data[: 10**_OFFSET_DIGITS], depth_bits=int(depth) if depth.isdigit() and int(depth) in RAW_BITS else None
        )
    except ValueError as error:
        raise BadFile(
            f"{path}, frame 1: {error}", hint="allowed: a .mib file written by a Merlin readout, not cut in its header"
        ) from error
    return MerlinFile(path=path, header=header, frames=_MappedFrames(path, data, first))


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise BadFile(f"{path}, frame 1: expected at least 384 bytes, found 0", hint="the file is empty")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror or error}") from error


def read_hdr(path: str | Path) -> dict[str, str]:
    """Read the acquisition header of a .hdr file."""
    path = Path(path)
    try:
        return parse_acquisition_header(path.read_bytes())
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise BadFile(f"{path} is no acquisition header of Merlin: {error}") from error


def _read_hdr_beside(path: Path) -> dict[str, str]:
    beside = next((p for p in (path.with_suffix(".hdr"), path.with_suffix(".HDR")) if p.is_file()), None)
    return read_hdr(beside) if beside is not None and beside != path else {}
