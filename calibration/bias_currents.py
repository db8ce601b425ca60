"""GND, FBK and Cas to their voltages: which code brings a DAC to a voltage, though the converter is noisy.

A search asks for codes and is sent voltages, so that it needs no device: first a sweep, which shows whether the voltage
is within reach at all and where, then halving between the two neighbours, then the codes around the crossing once more,
each of which has to be read several times.

# Ref: 0.65, 0.90, 0.85 V, in this order, tolerance 4 mV, starts 145, 190, 180: EXCALIBUR `excaliburtestappinterface`
#      and `docs/userguide.rst`, reference on the Medipix3RX, section 4.3; 0.01 V in its `definitions.py` 20-24.
# Ref: to be repeated on each chip and in each mode: Merlin manual v0.7 p42. That manual names no tolerance.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from firmware_iface.errors import TheirMistake

TOLERANCE_V = 0.004
LAST_CODE = 255
N_SWEPT = 18
FINE_CODES = 2
"""How many codes on either side of the crossing are read once more."""

Search = Generator[int, float, "Tuned"]
"""Yields the code to set, is sent the voltage that was read, returns what it found."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tuned:
    """The best code of one DAC.

    Attributes
    ----------
    voltage_v : float
        What was read with it.
    swept_codes, swept_v : (n_codes,) int64, float64
        The whole sweep.
    """

    name: str
    target_v: float
    code: int
    voltage_v: float
    swept_codes: NDArray[np.int64]
    swept_v: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BiasCurrents:
    """The tuned DACs of every chip.

    Attributes
    ----------
    names : tuple of str
        The DACs, in the order in which they were tuned.
    target_v : (n_dacs,) float64
    tolerance_v : float
    codes : (n_chips, n_dacs) int64
    voltage_v : (n_chips, n_dacs) float64
        As read at the end, with all of them set.
    swept_codes : (n_codes,) int64
    swept_v : (n_chips, n_dacs, n_codes) float64
        The sweeps, for a plot.
    """

    names: tuple[str, ...]
    target_v: NDArray[np.float64]
    tolerance_v: float
    codes: NDArray[np.int64] = field(metadata={"units": "DAC code"})
    voltage_v: NDArray[np.float64]
    swept_codes: NDArray[np.int64] = field(metadata={"units": "DAC code"})
    swept_v: NDArray[np.float64]

    def __post_init__(self) -> None:
        planes = (len(self.codes), len(self.names))
        if self.codes.shape != planes or self.voltage_v.shape != planes or self.target_v.shape != planes[1:]:
            raise ValueError(
                f"codes of shape {self.codes.shape}, voltages {self.voltage_v.shape}; allowed: one per chip and DAC"
            )

    def dacs(self, chip_number: int) -> dict[str, int]:
        """Return the codes of one chip by name."""
        return {name: int(code) for name, code in zip(self.names, self.codes[chip_number], strict=True)}


def swept_codes(last_code: int = LAST_CODE) -> NDArray[np.int64]:
    """Return the codes of a sweep: evenly spread from end to end."""
    return np.rint(np.linspace(0, last_code, N_SWEPT)).astype(np.int64)


def search(name: str, target_v: float, *, tolerance_v: float = TOLERANCE_V, last_code: int = LAST_CODE) -> Search:
    """Look for the code that brings a DAC nearest to a voltage.

    Raises
    ------
    TheirMistake
        The DAC does not reach the voltage, does not move, or comes no nearer than the tolerance.
    """
    swept = []
    codes = swept_codes(last_code)
    for code in codes:
        read_v = yield int(code)
        swept.append(read_v)
    volts = np.asarray(swept, dtype=np.float64)
    crossings = np.flatnonzero(np.diff(np.sign(volts - target_v)) != 0)
    if not len(crossings):
        raise TheirMistake(
            f"{name} reads {volts.min():.3f} to {volts.max():.3f} V over its codes 0 to {last_code}; "
            f"wanted: {target_v:.3f} V",
            hint="check the chip's supply and the converter at its sense pad",
        )
    # Noise may cross more than once where the sweep is flat; the steepest crossing is the DAC's.
    place = crossings[np.argmax(np.abs(np.diff(volts))[crossings])]
    low, high = int(codes[place]), int(codes[place + 1])
    rises = volts[place + 1] > volts[place]
    while high - low > 1:
        middle = (low + high) // 2
        is_above = (yield middle) > target_v
        low, high = (low, middle) if is_above == rises else (middle, high)
    near = range(max(low - FINE_CODES + 1, 0), min(high + FINE_CODES, last_code + 1))
    read = []
    for code in near:
        read_v = yield code
        read.append(read_v)
    slope, at_zero = np.polyfit(near, read, 1)  # a line through them reads less noise than the nearest one does
    best = int(np.clip(round((target_v - at_zero) / slope), near[0], near[-1])) if slope else low
    voltage_v = yield best
    if abs(voltage_v - target_v) > tolerance_v:
        raise TheirMistake(
            f"{name} comes to {voltage_v:.4f} V at its best code {best}; allowed: {target_v:.3f} V, give or take "
            f"{1000 * tolerance_v:g} mV",
            hint="allow more tolerance in the plan, or read more often if the converter is noisy",
        )
    return Tuned(name=name, target_v=target_v, code=best, voltage_v=voltage_v, swept_codes=codes, swept_v=volts)
