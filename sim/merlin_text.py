"""What a simulated Merlin writes: messages, acquisition headers, frame headers and pixels, as bytes.

# Ref: Merlin EPICS interface specification 2.0 section 7; MQ1A block and the acquisition header of 2020: LiberTEM-live
#      @73287359 `tests/detectors/merlin/test_headers.py`; 2049 bytes of the HDR message: streams of the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from sim.merlin_chip import Counting

HDR_BYTES = 2048
FRAME_HEADER_BYTES = 384
GAINS = ("SLGM", "LGM", "HGM", "SHGM")
FPGA_TEMPERATURE_C = 41.5
_TRIGGERS = {1: "Positive", 2: "Negative", 3: "Positive", 4: "Negative"}
_PIXELS = {1: ("U08", ">u1"), 6: ("U08", ">u1"), 12: ("U16", ">u2"), 24: ("U32", ">u4")}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderFacts:
    """What headers tell of the chip and of the settings; DACs in the order of the register."""

    chip_name: str
    counting: Counting
    gain_code: int
    thresholds_kev: tuple[float, ...]
    dacs: tuple[int, ...]
    n_frames: int
    frames_per_trigger: int
    trigger_start: int
    trigger_stop: int
    bias_v: float
    now_ns: int
    version: str


def message(body: bytes) -> bytes:
    """Put a body into a message: the length counts the comma before it."""
    return f"MPX,{len(body) + 1:010d},".encode("ascii") + body


def acquisition_header(facts: HeaderFacts, kind: str) -> bytes:
    """Return the body of the HDR message."""
    counting = facts.counting
    mode = {(0, 0): "SPM", (0, 1): "CSM", (1, 0): "CM", (1, 1): "CSCM"}[counting.is_colour, counting.is_csm]
    counters = "Alternating" if counting.is_continuous else " and ".join(f"Counter {n}" for n in counting.counters)
    lines = {
        "Time and Date Stamp (day, mnth, yr, hr, min, s)": _moment(facts.now_ns).strftime("%d/%m/%Y %H:%M:%S"),
        "Chip ID": facts.chip_name,
        "Chip Type (Medipix 3.0, Medipix 3.1, Medipix 3RX)": "Medipix 3RX",
        "Assembly Size (NX1, 2X2)": "   1x1",
        "Chip Mode  (SPM, CSM, CM, CSCM)": mode,
        "Counter Depth (number)": str(counting.depth_bits),
        "Gain": GAINS[facts.gain_code],
        "Active Counters": counters,
        "Thresholds (keV)": ",".join(_scientific(energy_kev) for energy_kev in facts.thresholds_kev),
        "DACs": ",".join(f"{code:03d}" for code in facts.dacs),
        "bpc File": "",
        "DAC File": "",
        "Gap Fill Mode": "None",
        "Flat Field File": "None",
        "Dead Time File": "Dummy (C:\\<NUL>\\)",
        "Acquisition Type (Normal, Th_scan, Config)": kind,
        "Frames in Acquisition (Number)": str(facts.n_frames),
        "Frames per Trigger (Number)": str(facts.frames_per_trigger),
        "Trigger Start (Positive, Negative, Internal)": _TRIGGERS.get(facts.trigger_start, "Internal"),
        "Trigger Stop (Positive, Negative, Internal)": _TRIGGERS.get(facts.trigger_stop, "Internal"),
        "Sensor Bias (V)": f"{facts.bias_v:g} V",
        "Sensor Polarity (Positive, Negative)": "Negative",
        "Temperature (C)": f"FPGA Temp {FPGA_TEMPERATURE_C:.6f} Deg C",
        "Humidity (%)": "",
        "Medipix Clock (MHz)": "120MHz",
        "Readout System": "Merlin Quad",
        "Software Version": facts.version,
    }
    text = "HDR,\n" + "".join(f"{key}:\t{value}\n" for key, value in lines.items()) + "End\t"
    return text.encode("latin-1").ljust(HDR_BYTES)


def frame_header(
    facts: HeaderFacts, *, sequence: int, layer: int, opened_ns: int, exposure_ns: int, shape: tuple[int, ...]
) -> bytes:
    """Return the header of one image of (rows, cols)."""
    rows, cols = shape
    kind, _ = _PIXELS[facts.counting.depth_bits]
    moment, fraction_ns = _moment(opened_ns), opened_ns % 1_000_000_000
    fields = [
        "MQ1", f"{sequence:06d}", f"{FRAME_HEADER_BYTES:05d}", "01", f"{cols:04d}", f"{rows:04d}", kind, "   1x1", "01",
        f"{moment:%Y-%m-%d %H:%M:%S}.{fraction_ns // 1000:06d}", f"{exposure_ns * 1e-9:.6f}",
        str(layer), str(int(facts.counting.is_colour)), str(facts.gain_code),
        *(_scientific(energy_kev) for energy_kev in facts.thresholds_kev),
        "3RX", *(f"{code:03d}" for code in facts.dacs),
        "MQ1A", f"{moment:%Y-%m-%dT%H:%M:%S}.{fraction_ns:09d}Z", f"{exposure_ns}ns",
        str(facts.counting.depth_bits), "",
    ]  # fmt: skip
    return ",".join(fields).encode("ascii").ljust(FRAME_HEADER_BYTES, b"\0")


def pixels(counts: NDArray[np.unsignedinteger], depth_bits: int) -> bytes:
    """Return pixels as they follow a header: big-endian, the lowest row first."""
    return counts.astype(_PIXELS[depth_bits][1]).tobytes()


def _scientific(value: float) -> str:
    """Write 120.0 as 1.200000E+2: the exponent has no leading zero."""
    mantissa, exponent = f"{value:.6E}".split("E")
    return f"{mantissa}E{exponent[0]}{int(exponent[1:])}"


def _moment(time_ns: int) -> datetime:
    return datetime.fromtimestamp(time_ns // 1_000_000_000, UTC)
