"""The simulated instrument that an address names: a scene, its sensor, chips, board and USB device.

The same address gives the same instrument, and the same data for the same commands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from numpy.typing import NDArray

from firmware_iface import chip
from firmware_iface.errors import WrongUsage
from sim.board import LAYOUTS, Board
from sim.chip import SILICON_KEYS, Silicon, SimulatedChip
from sim.environment import Climate
from sim.faults import FAULT_KEYS, faults_of_query
from sim.sensor import Settings
from sim.specimen import FrontEnd
from sim.stage import Mechanics, Stage
from sim.triggers import Input, Pulser
from sim.tube import Tube, TubeFaults
from sim.usb_model import SlowLine, Speed, UsbDevice

if TYPE_CHECKING:
    from sim.gantry import Gantry
    from sim.sensor import Sensor

INSTRUMENTS = ("demo", "fine")
"""The demo's sensor of 110 um pixels in colour, or one of 55 um pixels for fine pitch; scene and chip are the same."""
DEFAULT_SEED = 1
FIRST_CHIP = 5
"""Number in the name of the first chip; the others of an assembly follow."""
_SEEDS_APART = 1_000_000_007
_MAX_LINE_S = 60.0
_SPEEDS = {"high": Speed.HIGH, "super": Speed.SUPER}


# What an address may say


class Option(NamedTuple):
    """What an address may say under one key, in words, and how it is read; ValueError or KeyError refuse it."""

    allowed: str
    read: Callable[[str], Any]


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise ValueError
    return int(text)


def _layout(text: str) -> tuple[int, int]:
    columns, rows = map(_number, text.split("x"))
    if (rows, columns) not in LAYOUTS:
        raise ValueError
    return rows, columns


def _pulser(text: str) -> Pulser:
    period_us, high_us = map(_number, text.split(":"))
    return Pulser(period_ns=1000 * period_us, high_ns=1000 * high_us)


def _within(low: float, high: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return read


def _polarisation(text: str) -> tuple[float, float]:
    share, time_s = map(float, text.split(":"))
    if not (0 <= share < 1 and 0 < time_s < math.inf):
        raise ValueError
    return share, time_s


def _front_end(text: str) -> FrontEnd:
    shgm, hgm, lgm, slgm = (float(word) for word in text.split(","))
    if not all(0 < share < 100 for share in (shgm, hgm, lgm, slgm)):
        raise ValueError
    return FrontEnd(gain_noise_relative=(shgm, hgm, lgm, slgm))


def _length_mm(text: str) -> float:
    length_mm = float(text)
    if not math.isfinite(length_mm):
        raise ValueError
    return length_mm


def _angle_rad(text: str) -> float:
    return math.radians(_length_mm(text))


def _choice(*values: str) -> Option:
    return Option("|".join(values), {value: value for value in values}.__getitem__)


def _flag() -> Option:
    return Option("0|1", {"0": False, "1": True}.__getitem__)


def _range(text: str) -> tuple[float, float]:
    low, high = map(float, text.split(":"))
    if not low <= high:
        raise ValueError
    return low, high


SEED = Option("NUMBER", _number)
INPUT_OPTIONS: Mapping[str, Option] = {
    "pulser_us": Option("PERIOD:HIGH", _pulser),
    "pulser_lvds_us": Option("PERIOD:HIGH", _pulser),
}
"""Generators of pulses on the trigger inputs, TTL and LVDS, in us."""
BOARD_OPTIONS: Mapping[str, Option] = {
    "usb_speed": Option("|".join(_SPEEDS), _SPEEDS.__getitem__),
    "chips": Option("1x1 to 8x1|2x2", _layout),
    "line_s": Option(f"SECONDS to {_MAX_LINE_S:g}", _within(0, _MAX_LINE_S)),
}
SENSOR_OPTIONS: Mapping[str, Option] = {
    "gain_noise_relative": Option("SHGM,HGM,LGM,SLGM", _front_end),
    "bonded_subpixel": Option("0|1|2|3", {str(n): n for n in range(4)}.__getitem__),
    "cluster_pulse": _choice("bonded", "sum"),
    "collects_holes": _flag(),
}
"""What no source settles about sensor and front end."""
FIDELITY_OPTIONS: Mapping[str, Option] = {"fidelity": _choice("expectation", "events"), "bit_serial": _flag()}
"""Whether counts are drawn from tables with the right statistics, or photons are followed one by one, slowly; whether
the chips count event by event and are read clock by clock: the same bits, slowly."""
CLIMATE_OPTIONS: Mapping[str, Option] = {
    "temperature_c": Option("-40 to 85", _within(-40, 85)),
    "drift_dac_per_k": Option("-10 to 10", _within(-10, 10)),
    "polarisation": Option("SHARE:SECONDS", _polarisation),
    "leakage_na": Option("0 to 20", _within(0, 20)),
}
"""What surrounds sensors and chips."""
SILICON_OPTIONS: Mapping[str, Option] = {
    key: Option("|".join(values), values.__getitem__) for key, values in SILICON_KEYS.items()
}
GEOMETRY_OPTIONS: Mapping[str, Option] = {
    **{f"{axis}_mm": Option("MM", _length_mm) for axis in ("offset_u", "offset_v")},
    **{f"{axis}_deg": Option("DEGREES", _angle_rad) for axis in ("roll", "tilt_u", "tilt_v")},
    **{f"{way}_mm": Option("MM", _length_mm) for way in ("source_to_detector", "source_to_object")},
}
"""What puts source and detector elsewhere than a plan says: the truth that a calibration is to find."""
STAGE_OPTIONS: Mapping[str, Option] = {
    "turn_deg_s": Option("0.001 to 1e6", _within(1e-3, 1e6)),
    "travel_mm_s": Option("0.001 to 1e6", _within(1e-3, 1e6)),
    "settle_s": Option("0 to 60", _within(0, 60)),
    "backlash_deg": Option("-10 to 10", _within(-10, 10)),
    "backlash_mm": Option("-10 to 10", _within(-10, 10)),
    "drift_per_h_deg": Option("-10 to 10", _within(-10, 10)),
    "noise_deg": Option("0 to 10", _within(0, 10)),
    **{key: Option("LOW:HIGH", _range) for key in ("range_deg", "lift_range_mm", "shift_range_mm")},
    **{f"stage_{how}_after": Option("MOVES", _number) for how in ("alarm", "silent", "hangs", "sticks")},
    "is_real": _flag(),
}
"""What the stage is like, and how it fails; fields of `sim.stage.Mechanics`."""
TUBE_OPTIONS: Mapping[str, Option] = {
    "tube_trips_after": Option("EXPOSURES", _number),
    "tube_trips_after_s": Option("SECONDS", _within(0, 1e9)),
    "interlock_opens_after": Option("EXPOSURES", _number),
    "warm_up_s": Option("SECONDS", _within(0, 1e6)),
    "lamp": _choice("dark", "lit"),
}
"""How the tube fails; fields of `sim.tube.TubeFaults`."""
SCENE_OPTIONS: Mapping[str, Option] = {**STAGE_OPTIONS, **TUBE_OPTIONS, "repeatable": _flag()}
"""`repeatable`: an exposure depends on what and where it is, and on its number in its run, never on what was before."""
INSTRUMENT_OPTIONS: Mapping[str, Option] = {
    "seed": SEED, **GEOMETRY_OPTIONS, **INPUT_OPTIONS, **FIDELITY_OPTIONS, **CLIMATE_OPTIONS, **SILICON_OPTIONS,
    **SENSOR_OPTIONS, **SCENE_OPTIONS,
}  # fmt: skip
"""What scene, chips and sensors may be, whatever reads them out."""


def read_address(
    address: str, options: Mapping[str, Option], others: Iterable[str] = ()
) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Take an address apart.

    Parameters
    ----------
    options : mapping of str to Option
        What it may say.
    others : iterable of str
        Keys that somebody else reads.

    Returns
    -------
    name : str
        Of the instrument.
    chosen : dict
        What was read, by its key; nothing of what is not said.
    rest : dict
        What stands under the other keys.

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
    known = (*options, *others)
    if unknown := sorted(set(query) - set(known)):
        raise WrongUsage(f"unknown option {', '.join(unknown)} in {address!r}; known: {', '.join(known)}")
    chosen: dict[str, Any] = {}
    for key in options:
        if key in query:
            text = query.pop(key)
            try:
                chosen[key] = options[key].read(text)
            except (ValueError, KeyError):
                raise WrongUsage(f"{key} is {text!r}; allowed: {options[key].allowed}") from None
    return parts.path, chosen, query


def inputs_of(chosen: Mapping[str, Any]) -> dict[str, Pulser]:
    """Return what an address connects to the trigger inputs "TTL" and "LVDS"."""
    lines = zip(("TTL", "LVDS"), INPUT_OPTIONS, strict=True)
    return {line: chosen[key] for line, key in lines if key in chosen}


# What it makes


def simulated_device(address: str) -> UsbDevice:
    """Build a simulated instrument as a USB device.

    Parameters
    ----------
    address : str
        Name of the instrument and its options, such as ``demo?seed=2&drop=17&unplug_after=100``; ``chips=2x2`` or
        ``chips=4x1`` for an assembly, ``pulser_us=1000:100`` for pulses of 100 us every 1000 us on the TTL input,
        ``fidelity=events`` for sensors that follow every photon, ``temperature_c=45`` or ``polarisation=0.1:600`` for
        what surrounds them, ``line_s=2`` for a gantry whose every answer takes 2 s of real time,
        ``offset_u_mm=0.13&roll_deg=0.4`` for a detector that stands elsewhere than it should (`GEOMETRY_OPTIONS`),
        ``stage_hangs_after=20&backlash_deg=0.1`` and ``tube_trips_after=300`` for a poor stage and tube
        (`SCENE_OPTIONS`).

    Raises
    ------
    WrongUsage
        A name or an option that is not known, or a value that cannot be.
    """
    name, chosen, fault_query = read_address(address, {**INSTRUMENT_OPTIONS, **BOARD_OPTIONS}, FAULT_KEYS)
    faults = faults_of_query(fault_query)
    seed, layout, line_s = chosen.get("seed", DEFAULT_SEED), chosen.get("chips", (1, 1)), chosen.get("line_s", 0.0)

    gantry = scene_of(name, seed, layout, misplaced_of(chosen), chosen)
    serial = f"{name.upper()}-{seed}"
    sensed = chips_of(name, chosen, gantry, layout)

    def on_bias(bias_v: float) -> None:
        for _, sensor in sensed:
            sensor.environment.bias_v = bias_v

    line = SlowLine(gantry.line, line_s) if line_s else gantry.line
    inputs: dict[str, Input] = {"TTL": gantry.stage.pulses, **inputs_of(chosen)}
    board = Board(
        [chip_ for chip_, _ in sensed], line, serial, faults, layout=layout, inputs=inputs, on_bias=on_bias,
        temperature_c=climate_of(chosen).temperature_c, make_safe=gantry.make_safe,
    )  # fmt: skip
    gantry.stage.clock = board.sequencer
    gantry.number_in_run = lambda: board.sequencer.n_done
    for _, sensor in sensed:
        sensor.environment.clock = lambda: board.now_s
    speed = chosen.get("usb_speed", Speed.HIGH)
    device = UsbDevice(board, serial, speed=speed, broken_writes=faults.break_command)
    if isinstance(line, SlowLine):
        line.device = device
    return device


def misplaced_of(chosen: Mapping[str, Any]) -> dict[str, float]:
    """Return where an address puts source and detector, as fields of a `Geometry`."""
    return {key.replace("_deg", "_rad"): chosen[key] for key in GEOMETRY_OPTIONS if key in chosen}


def climate_of(chosen: Mapping[str, Any]) -> Climate:
    """Return what an address says of the surroundings."""
    known = {key: chosen[key] for key in CLIMATE_OPTIONS if key in chosen}
    if "polarisation" in known:
        known["polarised_share"], known["polarisation_time_s"] = known.pop("polarisation")
    return Climate(**known)


def scene_of(
    name: str,
    seed: int,
    layout: tuple[int, int] = (1, 1),
    misplaced: Mapping[str, float] | None = None,
    chosen: Mapping[str, Any] | None = None,
) -> Gantry:
    """Return what stands before the sensors of an instrument, whose chips stand side by side around its centre.

    `misplaced` are fields of the geometry that differ from the nominal ones; `chosen` may have `SCENE_OPTIONS`.
    """
    from sim.gantry import GEOMETRY, Gantry  # the scene costs tables and kernels: only for who opens it

    try:
        geometry = replace(GEOMETRY, **_pixels_of(name), **(misplaced or {}))
    except ValueError as refused:
        raise WrongUsage(str(refused)) from refused
    rows, columns = layout
    chosen = chosen or {}
    mechanics = Mechanics(**{key: chosen[key] for key in STAGE_OPTIONS if key in chosen})
    faults = TubeFaults(**{key: chosen[key] for key in TUBE_OPTIONS if key in chosen})
    return Gantry(
        seed=seed,
        geometry=replace(geometry, rows=geometry.rows * rows, cols=geometry.cols * columns),
        stage=Stage(mechanics, seed),
        tube=Tube(faults),
        is_repeatable=chosen.get("repeatable", False),
    )


class Light:
    """What falls on each chip of an assembly: one exposure of the whole, cut up.

    Parameters
    ----------
    gantry : Gantry
        Whose geometry has the pixels of the whole assembly.
    layout : (rows, columns)
        How the chips stand.
    """

    def __init__(self, gantry: Gantry, layout: tuple[int, int]) -> None:
        self._gantry, self._layout = gantry, layout
        self._exposed = set(range(layout[0] * layout[1]))

    @property
    def exposure_name(self) -> bytes:
        """What the exposure depends on, where that is all; else nothing."""
        return self._gantry.exposure_name

    def on(self, number: int, duration_s: float) -> tuple[NDArray[np.float32] | None, NDArray[np.float64]]:
        """Return the mean photons on one chip, as the chip lies, and their energies.

        The chips are exposed together, one call each; a chip's next call is the next exposure.
        """
        if number in self._exposed:
            self._photons, self._energies_kev = self._gantry.photons(duration_s)
            self._exposed.clear()
        self._exposed.add(number)
        if self._photons is None:
            return None, self._energies_kev
        row, column = divmod(number, self._layout[1])
        rows, cols = (n // of for n, of in zip(self._photons.shape[1:], self._layout, strict=True))
        part = self._photons[:, row * rows : (row + 1) * rows, column * cols : (column + 1) * cols]
        turned = part[:, ::-1, ::-1] if row else part  # the upper row is turned by 180 degrees
        return np.ascontiguousarray(turned), self._energies_kev


def chips_of(
    name: str, chosen: Mapping[str, Any], gantry: Gantry, layout: tuple[int, int] = (1, 1)
) -> list[tuple[SimulatedChip, Sensor]]:
    """Return the chips of an assembly by their number, each with its own sensor.

    Parameters
    ----------
    chosen : mapping
        What the address says of seed, chips, silicon and sensors.
    """
    light = Light(gantry, layout)
    silicon = Silicon(**{key: chosen[key] for key in SILICON_OPTIONS if key in chosen})
    return [_chip_of(name, chosen, silicon, light, number) for number in range(layout[0] * layout[1])]


def _chip_of(
    name: str, chosen: Mapping[str, Any], silicon: Silicon, light: Light, number: int
) -> tuple[SimulatedChip, Sensor]:
    if chosen.get("fidelity") == "events":
        from sim.events import EventSensor as Sensor  # its kernels are loaded only for who asks for them
    else:
        from sim.sensor import Sensor

    seed = chosen.get("seed", DEFAULT_SEED)
    own_seed = seed + number * _SEEDS_APART
    options = {key: chosen[key] for key in SENSOR_OPTIONS if key in chosen}
    if "gain_noise_relative" in options:
        options["front_end"] = options.pop("gain_noise_relative")
    climate = climate_of(chosen)
    sensor = Sensor(seed=own_seed, climate=climate, **_pixels_of(name), **options)
    sensor.environment.is_still = chosen.get("repeatable", False)
    rng = np.random.default_rng((own_seed, 1))  # not the sequence that drew the pixels' truth
    pulse_rng = np.random.default_rng((own_seed, 2))

    def front_end(duration_s: float, settings: Settings) -> NDArray[np.uint32]:
        photons, energies_kev = light.on(number, duration_s)
        own = _rng_of(own_seed, light.exposure_name, settings) if light.exposure_name else rng
        return sensor.expose(photons, energies_kev, duration_s, settings, own)

    def injection(n: int, charge_e: NDArray[np.float32], settings: Settings) -> NDArray[np.uint32]:
        return sensor.inject(n, charge_e, settings, pulse_rng)

    made = SimulatedChip(
        front_end,
        chip_id=chip_id_of(seed, FIRST_CHIP + number),
        silicon=silicon,
        injection=injection,
        temperature_c=climate.temperature_c,
        is_bit_serial=chosen.get("bit_serial", False),
    )
    return made, sensor


def _rng_of(seed: int, exposure_name: bytes, settings: Settings) -> np.random.Generator:
    """Return the numbers of one exposure, which depend on what it is and on the chip's settings only."""
    digest = blake2b(exposure_name, digest_size=16)
    digest.update(str(seed).encode())
    for field in fields(settings):
        value = getattr(settings, field.name)
        digest.update(np.ascontiguousarray(value).tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return np.random.default_rng(int.from_bytes(digest.digest(), "big"))


def _pixels_of(name: str) -> dict[str, Any]:
    return {"rows": chip.ROWS, "cols": chip.COLS, "pitch_mm": chip.PITCH_MM} if name == "fine" else {}


def chip_id_of(seed: int, number: int = FIRST_CHIP) -> int:
    """Give every seed its own chip: another wafer of the same letter; seed 1 is W529_F5."""
    wafer, letter = (528 + seed) % 4096, 6
    return wafer << 8 | letter << 4 | number
