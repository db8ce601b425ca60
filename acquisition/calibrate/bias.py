"""The step `bias`: GND, FBK and Cas of every chip to their voltages, through the sense DAC.

# Ref: all three again with all of them set, since one amplifier takes them all: our addition.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import replace

import numpy as np

from acquisition.calibrate.exposures import Instrument, Work, configure
from acquisition.plan import BiasPlan, Plan
from calibration.bias_currents import LAST_CODE, BiasCurrents, Tuned, search, swept_codes
from calibration.progress import Progress
from calibration.store import Calibration
from firmware_iface.chip import OPERATING_POINT_V
from firmware_iface.device import Detector
from firmware_iface.errors import TheirMistake

PASSES = 3
"""How often the three are tuned in turn, should one move another."""


def bias(instrument: Instrument, plan: Plan, calibration: Calibration) -> Work:
    """Tune the three DACs of every chip one after the other, in their order, and check them together.

    Raises
    ------
    TheirMistake
        A DAC does not reach its voltage, or the three do not come to rest.
    OurMistake
        The board has no converter at the sense pads.
    """
    detector, wanted = instrument.detector, plan.calibration.bias
    configure(detector, plan)
    detector.set_dacs(calibration.dacs)
    tuned: list[tuple[Mapping[str, Tuned], Mapping[str, float]]] = []
    for number in range(detector.info.n_chips):
        chip = yield from _tune_chip(detector, number, wanted)
        tuned.append(chip)
    names = tuple(OPERATING_POINT_V)
    record = BiasCurrents(
        names=names,
        target_v=np.asarray(list(OPERATING_POINT_V.values())),
        tolerance_v=wanted.tolerance_v,
        codes=np.asarray([[found[name].code for name in names] for found, _ in tuned]),
        voltage_v=np.asarray([[read[name] for name in names] for _, read in tuned]),
        swept_codes=swept_codes(),
        swept_v=np.asarray([[found[name].swept_v for name in names] for found, _ in tuned]),
    )
    return replace(calibration, dacs={**calibration.dacs, **record.dacs(0)}, bias_currents=record)


def _tune_chip(
    detector: Detector, number: int, wanted: BiasPlan
) -> Generator[Progress, None, tuple[dict[str, Tuned], dict[str, float]]]:
    """Tune one chip: what was found of each DAC, and what all of them read at the end."""
    off: dict[str, float] = {}
    for _ in range(PASSES):
        found: dict[str, Tuned] = {}
        for done, (name, target_v) in enumerate(OPERATING_POINT_V.items()):
            looking = search(name, target_v, tolerance_v=wanted.tolerance_v)
            code = next(looking)
            while name not in found:
                yield Progress(f"chip {number + 1}: {name}", done * (LAST_CODE + 1) + code, 3 * (LAST_CODE + 1))
                detector.set_dacs({name: code}, number)
                try:
                    code = looking.send(_read_v(detector, name, number, wanted.n_readings))
                except StopIteration as end:
                    found[name] = end.value
        read = {name: _read_v(detector, name, number, wanted.n_readings) for name in OPERATING_POINT_V}
        off = {name: read[name] - target_v for name, target_v in OPERATING_POINT_V.items()}
        if max(map(abs, off.values())) <= wanted.tolerance_v:
            return found, read
    told = ", ".join(f"{name} {1000 * by_v:+.1f} mV" for name, by_v in off.items())
    raise TheirMistake(
        f"chip {number + 1}: after {PASSES} passes the voltages still stand off by {told}; allowed: "
        f"{1000 * wanted.tolerance_v:g} mV",
        hint="allow more tolerance in the plan (calibration.bias.tolerance_v), or check the chip's supply",
    )


def _read_v(detector: Detector, name: str, number: int, n_readings: int) -> float:
    return float(np.mean([detector.sense_v(name, number) for _ in range(n_readings)]))
