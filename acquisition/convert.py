"""Merlin files become scan files: the same writer, what Merlin knows kept as it is, nothing invented.

# Ref: what a Merlin header tells, and that its layers are counters or colour thresholds: `firmware_iface/merlin.py`.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from acquisition.scan import ImageKey, Readout
from acquisition.scan_layout import Attribute
from acquisition.scan_writer import ScanWriter
from calibration.progress import Progress
from firmware_iface.chip import COLOUR_PITCH_MM, PITCH_MM
from firmware_iface.errors import BadFile
from firmware_iface.frame import Frame
from firmware_iface.merlin import FrameHeader, MerlinFile, read_mib

DEPTHS_BITS: Mapping[str, int] = {"U01": 1, "U08": 8, "U16": 16, "U32": 24}
"""Bits to keep where the header does not tell the counter's depth; 24 is the deepest counter of the chip."""
UNKNOWN_TIME_NS = -1


def convert_merlin(
    source: str | Path, target: str | Path, *, overwrite: bool = False
) -> Generator[Progress, None, Path]:
    """Write the frames of a .mib file into a scan file, with no calibration and all angles 0.

    Raises
    ------
    BadFile
        The file is not a whole Merlin file, or holds what a scan file cannot.
    """
    merlin = read_mib(source)
    layers, groups = merlin.groups()
    first = merlin.frames[int(groups[0, 0])].header
    try:
        readout = merlin_readout(first, layers)
        with ScanWriter(
            target,
            readout,
            n_frames=len(groups),
            attributes=_attributes(merlin, first),
            overwrite=overwrite,
        ) as writer:
            for place, group in enumerate(groups.tolist()):
                try:
                    writer.write(merlin_frame(merlin, group, layers), ImageKey.PROJECTION)
                except (BadFile, ValueError):
                    writer.discard()  # the source is still there, and would be refused again
                    raise
                yield Progress("convert", place + 1, len(groups))
            writer.finish()
    except ValueError as error:
        raise BadFile(f"{source} cannot become a scan: {error}") from error
    return writer.path


def merlin_readout(header: FrameHeader, layers: tuple[int, ...]) -> Readout:
    """Return what the frames of a Merlin file have in common, by the header of the first.

    Raises
    ------
    ValueError
        A scan file cannot hold such frames.
    """
    depth_bits = header.depth_bits or DEPTHS_BITS.get(header.pixel_type)
    if depth_bits is None:
        raise ValueError(f"its pixels are {header.pixel_type}; allowed: {', '.join(DEPTHS_BITS)}")
    energies_kev = header.thresholds_kev
    return Readout(
        shape=(len(layers), *header.shape),
        depth_bits=depth_bits,
        thresholds=layers,
        thresholds_kev=tuple(energies_kev[layer] for layer in layers) if max(layers) < len(energies_kev) else (),
        pitch_mm=COLOUR_PITCH_MM if header.colour_mode else PITCH_MM,
    )


def merlin_frame(merlin: MerlinFile, group: list[int], layers: tuple[int, ...]) -> Frame:
    """Return one exposure of a Merlin file: the frames of a group, one for each counter or layer."""
    members = [merlin.frames[index] for index in group]
    header = members[0].header
    exposure_ns = header.exposure_ns if header.exposure_ns is not None else round(header.exposure_s * 1e9)
    return Frame(
        counts=np.stack([member.counts for member in members]),
        thresholds=layers,
        sequence=header.sequence,
        timestamp_ns=_time_ns(header.timestamp_utc),
        exposure_ns=exposure_ns,
        run_id=0,
    )


def _time_ns(timestamp_utc: str) -> int:
    """Return nanoseconds since 1970 of the MQ1A block's time (to the microsecond), or UNKNOWN_TIME_NS."""
    try:
        time = datetime.fromisoformat(timestamp_utc.removesuffix("Z")[:26])
    except ValueError:
        return UNKNOWN_TIME_NS
    since = time.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1000


def _attributes(merlin: MerlinFile, first: FrameHeader) -> dict[str, Attribute]:
    """Return everything else that the files tell, by name."""
    attributes: dict[str, Attribute] = {
        "note": "converted from a Merlin file, which knows no angles (all are 0 here) and brings no calibration",
        "converted from": merlin.path.name,
        "pixel type": first.pixel_type,
        "layout": first.layout,
        "gain": first.gain.name,
        "colour mode": first.colour_mode,
        "shutter opened": first.timestamp,
        "thresholds in keV": ", ".join(f"{energy_kev:g}" for energy_kev in first.thresholds_kev),
    }
    for number, chip in enumerate(first.chips, start=1):
        attributes[f"chip {number}"] = chip.revision
        attributes |= {f"chip {number} {name}": code for name, code in chip.dacs.items()}
    return attributes | {f"hdr {key}": value for key, value in merlin.header.items()}
