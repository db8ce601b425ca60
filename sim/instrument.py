"""The simulated instrument that an address names: a scene, its sensor, chips, board and USB device.

The same address gives the same instrument, and the same data for the same commands.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from numpy.typing import NDArray

from firmware_iface import chip
from firmware_iface.errors import WrongUsage
from sim.board import LAYOUTS, Board
from sim.chip import SILICON_KEYS, Silicon, SimulatedChip, silicon_of_query
from sim.environment import CLIMATE_KEYS, Climate, climate_of_query
from sim.faults import FAULT_KEYS, faults_of_query
from sim.sensor import Settings
from sim.triggers import Pulser
from sim.usb_model import Speed, UsbDevice

if TYPE_CHECKING:
    from sim.gantry import Gantry
    from sim.sensor import Sensor

INSTRUMENTS = ("demo", "fine")
"""The demo's sensor of 110 um pixels in colour, or one of 55 um pixels for fine pitch; scene and chip are the same."""
DEFAULT_SEED = 1
FIRST_CHIP = 5
"""Number in the name of the first chip; the others of an assembly follow."""
_SEEDS_APART = 1_000_000_007
FIDELITIES = ("expectation", "events")
"""Counts drawn from tables with the right statistics, or of photons followed one by one: slow, and free of tables."""
SPEEDS = {"high": Speed.HIGH, "super": Speed.SUPER}


def simulated_device(address: str) -> UsbDevice:
    """Build a simulated instrument as a USB device.

    Parameters
    ----------
    address : str
        Name of the instrument and its options, such as ``demo?seed=2&drop=17&unplug_after=100``; ``chips=2x2`` or
        ``chips=4x1`` for an assembly, ``fidelity=events`` for a sensor that follows every photon,
        ``pulser_us=1000:100`` for pulses of 100 us every 1000 us on the TTL input, ``temperature_c=45`` or
        ``polarisation=0.1:600`` for what surrounds the sensor.

    Raises
    ------
    WrongUsage
        A name or an option that is not known, or a value that cannot be.
    """
    parts = urlsplit(address)
    if parts.path not in INSTRUMENTS:
        raise WrongUsage(
            f"there is no simulated instrument {parts.path!r}; known: {', '.join(INSTRUMENTS)}",
            hint="for example sim:demo or sim:demo?seed=2",
        )
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    own = ("seed", "fidelity", "usb_speed", "chips", "pulser_us")
    known = (*own, *SILICON_KEYS, *CLIMATE_KEYS, *FAULT_KEYS)
    unknown = sorted(set(query) - set(known))
    if unknown:
        raise WrongUsage(f"unknown option {', '.join(unknown)} in {address!r}; known: {', '.join(known)}")
    seed = _seed_of(query.pop("seed", str(DEFAULT_SEED)))
    fidelity = _fidelity_of(query.pop("fidelity", FIDELITIES[0]))
    speed = _speed_of(query.pop("usb_speed", "high"))
    layout = _layout_of(query.pop("chips", "1x1"))
    inputs = _inputs_of(query.pop("pulser_us", ""))
    silicon, climate = silicon_of_query(query), climate_of_query(query)
    faults = faults_of_query(query)

    gantry = scene_of(parts.path, seed)
    serial = f"{parts.path.upper()}-{seed}"
    numbers = range(layout[0] * layout[1])
    sensed = [chip_of(parts.path, seed, gantry, number, silicon, climate, fidelity) for number in numbers]

    def on_bias(bias_v: float) -> None:
        for _, sensor in sensed:
            sensor.environment.bias_v = bias_v

    board = Board(
        [chip_ for chip_, _ in sensed], gantry.line, serial, faults, layout=layout, inputs=inputs, on_bias=on_bias,
        temperature_c=climate.temperature_c,
    )  # fmt: skip
    for _, sensor in sensed:
        sensor.environment.clock = lambda: board.now_s
    return UsbDevice(board, serial, speed=speed)


def scene_of(name: str, seed: int) -> Gantry:
    """Return what stands before the sensor of an instrument."""
    from sim.gantry import GEOMETRY, Gantry  # the scene costs tables and kernels: only for who opens it

    pixels = _pixels_of(name)
    return Gantry(seed=seed, geometry=replace(GEOMETRY, **pixels) if pixels else GEOMETRY)


def chip_of(
    name: str, seed: int, gantry: Gantry, number: int = 0, silicon: Silicon | None = None,
    climate: Climate | None = None, fidelity: str = FIDELITIES[0],
) -> tuple[SimulatedChip, Sensor]:  # fmt: skip
    """Return one chip with its own sensor; each of an assembly sees the scene as if it stood there alone."""
    if fidelity == "events":
        from sim.events import EventSensor as Kind
    else:
        from sim.sensor import Sensor as Kind

    own_seed = seed + number * _SEEDS_APART
    climate = climate or Climate()
    sensor = Kind(seed=own_seed, climate=climate, **_pixels_of(name))
    rng = np.random.default_rng((own_seed, 1))  # not the sequence that drew the pixels' truth
    pulse_rng = np.random.default_rng((own_seed, 2))

    def front_end(duration_s: float, settings: Settings) -> NDArray[np.uint32]:
        photons, energies_kev = gantry.photons(duration_s)
        return sensor.expose(photons, energies_kev, duration_s, settings, rng)

    def injection(n: int, charge_e: NDArray[np.float32], settings: Settings) -> NDArray[np.uint32]:
        return sensor.inject(n, charge_e, settings, pulse_rng)

    chip_id = chip_id_of(seed, FIRST_CHIP + number)
    made = SimulatedChip(
        front_end, chip_id=chip_id, silicon=silicon, injection=injection, temperature_c=climate.temperature_c
    )
    return made, sensor


def _pixels_of(name: str) -> dict[str, Any]:
    return {"rows": chip.ROWS, "cols": chip.COLS, "pitch_mm": chip.PITCH_MM} if name == "fine" else {}


def chip_id_of(seed: int, number: int = FIRST_CHIP) -> int:
    """Give every seed its own chip: another wafer of the same letter; seed 1 is W529_F5."""
    wafer, letter = (528 + seed) % 4096, 6
    return wafer << 8 | letter << 4 | number


def _seed_of(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise WrongUsage(f"seed is {text!r}; allowed: a whole number from 0 to 999999999")
    return int(text)


def _fidelity_of(text: str) -> str:
    if text not in FIDELITIES:
        raise WrongUsage(f"fidelity is {text!r}; allowed: {', '.join(FIDELITIES)}")
    return text


def _speed_of(text: str) -> Speed:
    if text not in SPEEDS:
        raise WrongUsage(f"usb_speed is {text!r}; allowed: {', '.join(SPEEDS)}")
    return SPEEDS[text]


def _layout_of(text: str) -> tuple[int, int]:
    words = text.split("x")
    numbers = [int(word) for word in words if word.isascii() and word.isdigit()]
    if len(words) != 2 or len(numbers) != 2 or (numbers[1], numbers[0]) not in LAYOUTS:
        raise WrongUsage(f"chips is {text!r}; allowed: 1x1 to 8x1 for a row, or 2x2")
    return numbers[1], numbers[0]


def _inputs_of(text: str) -> dict[str, Pulser]:
    if not text:
        return {}
    words = text.split(":")
    numbers = [int(word) for word in words if word.isascii() and word.isdigit()]
    if len(words) != 2 or len(numbers) != 2 or not 0 < numbers[1] < numbers[0]:
        raise WrongUsage(f"pulser_us is {text!r}; allowed: PERIOD:HIGH in us, such as 1000:100")
    return {"TTL": Pulser(period_ns=numbers[0] * 1000, high_ns=numbers[1] * 1000)}
