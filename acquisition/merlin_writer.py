"""Scan files become Merlin files: a .mib with every counter as an image, and the .hdr beside it.

Merlin files know exposures, counters and thresholds; angles, flats and losses they do not. A lost frame is left out,
and the sequence numbers skip it. What a scan does not tell is left out too, where the format can do without.

# Ref: frame header, order of counters (counter 1 first), one image per colour layer: `firmware_iface/merlin.py`, and
#      Merlin manual v0.7 p35, p46 to 47. U08 for 1 and 6 bits, U16, U32: medipix3rx reference 9.3.
"""

from __future__ import annotations

import math
import os
from collections.abc import Generator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from acquisition.calibrate.exposures import operating_dacs
from acquisition.scan import ImageKey, Readout
from acquisition.scan_file import Scan, read_scan
from calibration.progress import Progress
from firmware_iface.chip import COLOUR_PITCH_MM, COLS, DAC_FIELDS, N_THRESHOLDS, Gain
from firmware_iface.errors import BadFile, WrongUsage
from firmware_iface.merlin import GAINS, PIXEL_TYPES, ChipSettings, FrameHeader

HDR_BYTES = 2048
EPOCH_FROM_NS = 10**18
"""Time stamps above it count from 1970; those below count from the board's power-up."""
_BLOCK_FRAMES = 64
_PIXEL_TYPE_UP_TO_BITS = ((8, "U08"), (16, "U16"), (32, "U32"))
_REVISION = "3RX"


def encode_frame_header(header: FrameHeader) -> bytes:
    """Return the bytes of a frame header, `FrameHeader.header_bytes` of them, the inverse of `parse_frame_header`."""
    exposure_ns = round(header.exposure_s * 1e9) if header.exposure_ns is None else header.exposure_ns
    fields = [
        "MQ1", f"{header.sequence:06d}", f"{header.header_bytes:05d}", f"{header.n_chips:02d}",
        f"{header.file_cols:04d}", f"{header.file_rows:04d}", header.pixel_type, f"{header.layout:>6}",
        f"{header.chip_select:02X}", header.timestamp, f"{header.exposure_s:.6f}", str(header.counter),
        str(header.colour_mode), str(GAINS.index(header.gain)), *map(_scientific, header.thresholds_kev),
    ]  # fmt: skip
    for chip in header.chips:
        fields += [chip.revision, *(f"{chip.dacs[name]:03d}" for name in DAC_FIELDS)]
    if header.depth_bits is not None:
        fields += ["MQ1A", header.timestamp_utc, f"{exposure_ns}ns", str(header.depth_bits), ""]
    text = ",".join(fields).encode("latin-1")
    if len(text) > header.header_bytes:
        raise ValueError(f"the header takes {len(text)} bytes; allowed: {header.header_bytes}")
    return text.ljust(header.header_bytes, b"\0")


def _scientific(value: float) -> str:
    """Write 120.0 as 1.200000E+2: the exponent has no leading zero."""
    mantissa, exponent = f"{value:.6E}".split("E")
    return f"{mantissa}E{exponent[0]}{int(exponent[1:])}"


def export_merlin(
    source: str | Path, target: str | Path, *, gain: Gain = Gain.HGM, overwrite: bool = False
) -> Generator[Progress, None, Path]:
    """Write a scan file as a .mib file and its .hdr file.

    Parameters
    ----------
    gain : Gain
        What the headers tell where neither calibration, plan nor notes of the scan do.

    Raises
    ------
    BadFile
        The scan is no whole scan, or no Merlin has its pixels.
    WrongUsage
        The target exists, or is not named .mib.
    """
    target = Path(target)
    if target.suffix.lower() != ".mib":
        raise WrongUsage(f"a Merlin file is named {target.name!r}; allowed ending: .mib")
    for path in (target, target.with_suffix(".hdr")):
        if path.exists() and not overwrite:
            raise WrongUsage(f"{path} exists already", hint="choose another name, or allow overwriting (--overwrite)")
    scan = read_scan(source)
    try:
        template = _template(scan, gain)
    except ValueError as error:
        raise BadFile(f"{source} cannot become a Merlin file: {error}") from error
    partial = target.with_name(f"{target.stem}.partial{target.suffix}")
    try:
        with partial.open("wb") as file:
            for first in range(0, scan.shape[0], _BLOCK_FRAMES):
                places = np.arange(first, min(first + _BLOCK_FRAMES, scan.shape[0]))
                for place, counts in zip(places.tolist(), scan.counts(places), strict=True):
                    if scan.image_key[place] != ImageKey.INVALID:
                        file.writelines(_images(scan, template, place, counts))
                yield Progress("export", int(places[-1]) + 1, scan.shape[0])
            file.flush()
            os.fsync(file.fileno())
        target.with_suffix(".hdr").write_bytes(_acquisition_header(scan, template))
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _images(scan: Scan, template: FrameHeader, place: int, counts: np.ndarray) -> Generator[bytes, None, None]:
    thresholds = scan.readout.thresholds
    kind = PIXEL_TYPES[template.pixel_type]
    local, utc = _times(scan, place)
    exposure_s = float(scan.exposures_s[place])
    # Counter 1 leaves the chip before counter 0.
    for image, plane in enumerate(sorted(range(len(thresholds)), key=lambda n: (-(thresholds[n] % 2), thresholds[n]))):
        header = FrameHeader(
            sequence=place * len(thresholds) + image + 1,
            header_bytes=template.header_bytes,
            n_chips=template.n_chips,
            file_cols=template.file_cols,
            file_rows=template.file_rows,
            pixel_type=template.pixel_type,
            layout=template.layout,
            chip_select=template.chip_select,
            timestamp=local,
            exposure_s=exposure_s,
            counter=thresholds[plane],
            colour_mode=template.colour_mode,
            gain=template.gain,
            thresholds_kev=template.thresholds_kev,
            chips=template.chips,
            timestamp_utc=utc,
            exposure_ns=round(exposure_s * 1e9),
            depth_bits=template.depth_bits,
        )
        yield encode_frame_header(header)
        yield counts[plane].astype(kind).tobytes()


def _template(scan: Scan, gain: Gain) -> FrameHeader:
    """Return what all frame headers of the file have in common."""
    readout = scan.readout
    _, _, rows, cols = scan.shape
    is_colour = math.isclose(readout.pitch_mm, COLOUR_PITCH_MM, rel_tol=0.01)
    layout, n_chips = _assembly(rows, cols, COLS // 2 if is_colour else COLS)
    pixel_type = next(name for bits, name in _PIXEL_TYPE_UP_TO_BITS if readout.depth_bits <= bits)
    dacs = _dacs(scan)
    return FrameHeader(
        sequence=1,
        header_bytes=256 + 128 * n_chips,
        n_chips=n_chips,
        file_cols=cols,
        file_rows=rows,
        pixel_type=pixel_type,
        layout=layout,
        chip_select=(1 << n_chips) - 1,
        timestamp="",
        exposure_s=0.0,
        counter=0,
        colour_mode=int(is_colour),
        gain=_gain(scan, gain),
        thresholds_kev=_thresholds_kev(readout),
        chips=tuple(ChipSettings(revision=_REVISION, dacs=codes) for codes in dacs) if len(dacs) == n_chips else (),
        depth_bits=readout.depth_bits,
    )


def _assembly(rows: int, cols: int, side: int) -> tuple[str, int]:
    """Return layout and chips of an image, whose chips are `side` pixels wide; a few more columns are gaps."""
    if rows == side and cols % side < side // 4:
        n_chips = cols // side
        return (f"{n_chips}x1" if n_chips == 1 or cols % side == 0 else f"{n_chips}x1G"), n_chips
    if rows == cols and 2 * side <= rows < 2 * side + side // 4:
        return ("2x2" if rows == 2 * side else "2x2G"), 4
    raise ValueError(f"its images have {rows} x {cols} pixels; allowed: 1x1, Nx1 or 2x2 chips of {side} x {side}")


def _thresholds_kev(readout: Readout) -> tuple[float, ...]:
    """Return eight values in the order of their numbers; those that are not known are 0."""
    known = dict(zip(readout.thresholds, readout.thresholds_kev, strict=False))
    return tuple(float(known.get(number, 0.0)) for number in range(N_THRESHOLDS))


def _gain(scan: Scan, otherwise: Gain) -> Gain:
    if scan.calibration is not None:
        return Gain[scan.calibration.gain]
    if scan.plan is not None:
        return Gain[scan.plan.detector.gain]
    name = scan.header.get("gain")
    return Gain[str(name)] if name in Gain.__members__ else otherwise


def _dacs(scan: Scan) -> list[dict[str, int]]:
    """Return the DACs of each chip, as far as the scan tells all of them."""
    if scan.calibration is not None and scan.plan is not None:
        dacs = operating_dacs(scan.calibration, scan.plan)
        return [dacs] if set(DAC_FIELDS) <= set(dacs) else []
    chips = []
    while all(f"chip {len(chips) + 1} {name}" in scan.header for name in DAC_FIELDS):
        chips.append({name: int(scan.header[f"chip {len(chips) + 1} {name}"]) for name in DAC_FIELDS})
    return chips


def _times(scan: Scan, place: int) -> tuple[str, str]:
    """Return the time of a frame as both blocks write it, in UTC."""
    time_ns = int(scan.timestamps_ns[place])
    if time_ns < EPOCH_FROM_NS:  # the board's clock: the scan's first event stands at its first frame
        first_ns = next((int(t) for t in scan.timestamps_ns if t >= 0), 0)
        began_s = scan.events[0].time_s if scan.events else 0.0
        time_ns = round(began_s * 1e9) + time_ns - first_ns
    moment, fraction_ns = datetime.fromtimestamp(time_ns // 10**9, UTC), time_ns % 10**9
    return f"{moment:%Y-%m-%d %H:%M:%S}.{fraction_ns // 1000:06d}", f"{moment:%Y-%m-%dT%H:%M:%S}.{fraction_ns:09d}Z"


def _acquisition_header(scan: Scan, template: FrameHeader) -> bytes:
    """Return the text of the .hdr file, with what the scan tells."""
    counters = sorted({number % 2 for number in scan.readout.thresholds}, reverse=True)
    lines = {
        "Time and Date Stamp (yr, mnth, day, hr, min, s)": _times(scan, 0)[0] if scan.shape[0] else "",
        "Chip Type (Medipix 3.0, Medipix 3.1, Medipix 3RX)": "Medipix 3RX",
        "Assembly Size (NX1, 2X2)": template.layout,
        "Counter Depth (number)": str(scan.readout.depth_bits),
        "Gain": template.gain.name,
        "Active Counters": " and ".join(f"Counter {number}" for number in counters),
        "Thresholds (keV)": ",".join(map(_scientific, template.thresholds_kev)),
        "DACs": "; ".join(",".join(f"{chip.dacs[name]:03d}" for name in DAC_FIELDS) for chip in template.chips),
        "Acquisition Type (Normal, Th_scan, Config)": "Normal",
        "Frames in Acquisition (Number)": str(scan.shape[0] - scan.n_lost),
        "Frames per Trigger (Number)": "1",
        "Software Version": scan.software,
    }
    if scan.calibration is not None:
        lines = {"Chip ID": scan.calibration.chip_id} | lines
    text = "HDR,\n" + "".join(f"{key}:\t{value}\n" for key, value in lines.items()) + "End\t"
    return text.encode("latin-1", errors="replace").ljust(HDR_BYTES)
