"""Plans: what a scan will do, checked before anything moves; `acquisition.steps` expands and times it.

A plan is a TOML file of sections; every key has a default, and `Plan()` is the demonstration scan. Degrees exist in the
file only; the steps have radians.

# Ref: the default protocol (118 kVp, CSM, thresholds 18/33/50/75 keV, source to detector 250 mm, source to object
#      200 mm, as many flats as projections): MARS scanners, Hindawi et al. 2018, Contrast Media Mol. Imaging 2136840,
#      with the second threshold between the iodine edge (33.17 keV) and the gadolinium edge (50.24 keV) of the third.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, get_args

import msgspec

from acquisition.beam_plan import CountRatePlan, ResponsePlan, WedgePlan
from acquisition.coverage import coverage
from acquisition.refusals import refuse_outside, refuse_unlisted, refuse_unspeakable
from acquisition.scan_plan import MOST_STEPS, AnyScan, HelicalPlan, ScanPlan, ThresholdScanPlan, Turning
from calibration.geometry import Geometry
from firmware_iface.chip import COLOUR_PITCH_MM, COLS, DEPTH_CODES, PITCH_MM, ROWS, Gain
from firmware_iface.errors import WrongUsage


class Mode(NamedTuple):
    """What a named operating mode of the chip reads."""

    is_colour: bool
    is_csm: bool
    counters: tuple[int, ...]
    thresholds: tuple[int, ...]


MODES: Mapping[str, Mode] = {
    "colour-csm": Mode(True, True, (1,), (1, 3, 5, 7)),
    "colour-spm": Mode(True, False, (0, 1), (0, 1, 2, 3, 4, 5, 6, 7)),
    "fine-csm": Mode(False, True, (1,), (1,)),
    "fine-spm": Mode(False, False, (0, 1), (0, 1)),
}
"""Charge summing needs counter 0 and the even thresholds for arbitration; without it every threshold counts."""

DEPTHS_BITS = tuple(depth for depth in DEPTH_CODES if depth <= 12)
"""24 bits join both counters of a pixel into one, which leaves no second threshold for a spectrum."""


def _refuse_thresholds(name: str, energies_kev: tuple[float, ...], mode: str, arbitration_kev: float) -> None:
    n_thresholds = len(MODES[mode].thresholds)
    if len(energies_kev) != n_thresholds:
        raise ValueError(f"{name} has {len(energies_kev)} values; mode {mode} takes {n_thresholds}")
    for energy_kev in energies_kev:
        refuse_outside(name, energy_kev, 1, 200, "keV")
    if any(low >= high for low, high in pairwise(energies_kev)):
        raise ValueError(f"{name} is {energies_kev}; allowed: ascending energies")
    refuse_outside("arbitration_kev", arbitration_kev, 1, energies_kev[0], f"keV, the lowest of {name}")


class DetectorPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the chip counts. `arbitration_kev` is the local threshold of charge summing, just above the noise.

    `bias_v` is what the board is told; which sign depletes the sensor is the board's and the sensor's affair. Each
    frame is the sum of `accumulate` exposures of `exposure_s`, which no counter could hold at once.
    """

    mode: str = "colour-csm"
    gain: str = "HGM"
    depth_bits: int = 12
    thresholds_kev: tuple[float, ...] = (18.0, 33.0, 50.0, 75.0)
    arbitration_kev: float = 7.0
    bias_v: float = 500.0
    exposure_s: float = 1.0
    accumulate: int = 1

    def __post_init__(self) -> None:
        refuse_unlisted("mode", self.mode, tuple(MODES))
        refuse_unlisted("gain", self.gain, tuple(gain.name for gain in Gain))
        refuse_unlisted("depth_bits", self.depth_bits, DEPTHS_BITS)
        _refuse_thresholds("thresholds_kev", self.thresholds_kev, self.mode, self.arbitration_kev)
        refuse_outside("bias_v", self.bias_v, -1000, 1000, "V")
        refuse_outside("exposure_s", self.exposure_s, 1e-6, 3600, "s")
        refuse_outside("accumulate", self.accumulate, 1, 10_000)

    @property
    def is_colour(self) -> bool:
        """Whether 2 x 2 pixels make one with up to eight thresholds."""
        return MODES[self.mode].is_colour

    @property
    def is_csm(self) -> bool:
        """Whether the charge of neighbours is summed."""
        return MODES[self.mode].is_csm

    @property
    def counters(self) -> tuple[int, ...]:
        """The counters that are read, by their number in a pixel."""
        return MODES[self.mode].counters

    @property
    def thresholds(self) -> tuple[int, ...]:
        """The number (0 to 7) of each threshold in `thresholds_kev`."""
        return MODES[self.mode].thresholds


class SourcePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The X-ray tube. At the default current the open beam fills about three quarters of a 12-bit counter."""

    kvp: float = 118.0
    current_ma: float = 0.006

    def __post_init__(self) -> None:
        refuse_outside("kvp", self.kvp, 10, 160, "kVp")
        refuse_outside("current_ma", self.current_ma, 0, 1000, "mA")


class Cell(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A flat cell of the sample changer: `material` dissolved in water, or water itself at 0 mg/mL."""

    name: str
    material: str
    concentration_mg_ml: float = 0.0
    thickness_mm: float = 8.0

    def __post_init__(self) -> None:
        refuse_unspeakable("name", self.name)
        if (self.material == "water") != (self.concentration_mg_ml == 0):
            raise ValueError(
                f"concentration_mg_ml of {self.material} is {self.concentration_mg_ml}; "
                "allowed: 0 for water, more than 0 for a solute in water"
            )
        refuse_outside("concentration_mg_ml", self.concentration_mg_ml, 0, 5000, "mg/mL")
        refuse_outside("thickness_mm", self.thickness_mm, 0.01, 1000, "mm")


class BiasPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How near GND, FBK and Cas are brought to their voltages, and how many readings make one."""

    tolerance_v: float = 0.004
    n_readings: int = 3

    def __post_init__(self) -> None:
        refuse_outside("tolerance_v", self.tolerance_v, 1e-4, 0.1, "V")
        refuse_outside("n_readings", self.n_readings, 1, 1000)


EQUALISATION_METHODS = ("noise", "pulses", "source")


class EqualisationPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """By what each pixel's threshold is found: its noise, test pulses of `pulse_e` electrons, or the edge of a source.

    `spacing` lets one pixel of each `spacing` x `spacing` count at a time; 0 is as close as the method allows: all at
    once, but for pulses in charge summing every third. `pair_ev` is the sensor's energy per electron (CdTe by default).
    """

    method: str = "noise"
    spacing: int = 0
    max_rounds: int = 8
    n_pulses: int = 200
    pulse_e: float = 5000.0
    source: str = "Am-241"
    source_exposure_s: float = 1.0
    pair_ev: float = 4.43

    def __post_init__(self) -> None:
        refuse_unlisted("method", self.method, EQUALISATION_METHODS)
        refuse_outside("spacing", self.spacing, 0, 16)
        refuse_outside("max_rounds", self.max_rounds, 0, 32)
        refuse_outside("n_pulses", self.n_pulses, 10, 4000)
        refuse_outside("pulse_e", self.pulse_e, 100, 30_000, "electrons")
        refuse_unspeakable("source", self.source)
        refuse_outside("source_exposure_s", self.source_exposure_s, 1e-6, 3600, "s")
        refuse_outside("pair_ev", self.pair_ev, 1, 10, "eV")


class EnergyPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the scale is checked: the tube's voltage whose end is looked for, 0 for no check, and frames per step."""

    end_point_kvp: float = 80.0
    end_point_ma: float = 0.002
    end_point_frames: int = 6

    def __post_init__(self) -> None:
        refuse_outside("end_point_kvp", self.end_point_kvp, 0, 160, "kVp")
        refuse_outside("end_point_ma", self.end_point_ma, 0, 1000, "mA")
        refuse_outside("end_point_frames", self.end_point_frames, 1, 10_000)


class BeadsPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The bead phantom of the sample changer, and the views that are taken of it over a whole circle.

    `length_mm` is between the centres of the lowest and the highest bead, `length_error_mm` its standard error.
    """

    sample: str = "beads"
    n_beads: int = 12
    diameter_mm: float = 0.6
    length_mm: float = 8.8
    length_error_mm: float = 0.005
    n_views: int = 180
    frames_per_view: int = 1

    def __post_init__(self) -> None:
        refuse_unspeakable("sample", self.sample)
        refuse_outside("n_beads", self.n_beads, 3, 1000)
        refuse_outside("diameter_mm", self.diameter_mm, 0.001, 100, "mm")
        refuse_outside("length_mm", self.length_mm, 0.001, 1000, "mm")
        refuse_outside("length_error_mm", self.length_error_mm, 0, self.length_mm, "mm")
        refuse_outside("n_views", self.n_views, 8, 100_000)
        refuse_outside("frames_per_view", self.frames_per_view, 1, 100_000)


class CalibrationPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the calibration looks at, and for how long; `steps` are those of `mpxct calibrate all`."""

    steps: tuple[str, ...] = ("bias", "equalise", "energy", "pixels", "materials")
    sources: tuple[str, ...] = ("In", "Gd", "Am-241", "Pb")
    cells: tuple[Cell, ...] = (
        Cell(name="cell-water", material="water"),
        Cell(name="cell-iodine", material="iodine", concentration_mg_ml=4.0),
        Cell(name="cell-gadolinium", material="gadolinium", concentration_mg_ml=4.0),
        Cell(name="cell-hydroxyapatite", material="hydroxyapatite", concentration_mg_ml=40.0),
    )
    beads: BeadsPlan = BeadsPlan()
    equalisation_exposure_s: float = 0.001
    energy_exposure_s: float = 1.0
    n_dark_frames: int = 20
    n_flat_frames: int = 50
    n_cell_frames: int = 150
    bias: BiasPlan = BiasPlan()
    equalisation: EqualisationPlan = EqualisationPlan()
    energy: EnergyPlan = EnergyPlan()
    wedge: WedgePlan = WedgePlan()
    count_rate: CountRatePlan = CountRatePlan()
    response: ResponsePlan = ResponsePlan()

    def __post_init__(self) -> None:
        for source in self.sources:
            refuse_unspeakable("sources", source)
        if len(set(self.sources)) < 2:
            raise ValueError(f"sources is {self.sources}; allowed: at least 2 different ones")
        materials = [cell.material for cell in self.cells]
        if "water" not in materials or len(set(materials)) != len(materials):
            raise ValueError(f"cells hold {', '.join(materials) or 'nothing'}; allowed: water once, each solute once")
        refuse_outside("equalisation_exposure_s", self.equalisation_exposure_s, 1e-6, 3600, "s")
        refuse_outside("energy_exposure_s", self.energy_exposure_s, 1e-6, 3600, "s")
        for name in ("n_dark_frames", "n_flat_frames", "n_cell_frames"):
            refuse_outside(name, getattr(self, name), 1, 100_000)


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole plan; `Plan()` is the demonstration scan, the same as `plans/demo.toml`."""

    detector: DetectorPlan = DetectorPlan()
    source: SourcePlan = SourcePlan()
    geometry: Geometry = Geometry(
        source_to_detector_mm=250.0, source_to_object_mm=200.0, pitch_mm=0.110, rows=128, cols=128
    )
    scan: AnyScan = ScanPlan()
    calibration: CalibrationPlan = CalibrationPlan()

    def __post_init__(self) -> None:
        for field in fields(self.geometry):
            refuse_outside(f"geometry.{field.name}", getattr(self.geometry, field.name), -1e5, 1e5)
        if isinstance(self.scan, ThresholdScanPlan):
            refuse_unlisted("scan.threshold", self.scan.threshold, ("all", *self.detector.thresholds))
            if self.detector.is_csm:
                refuse_outside("detector.arbitration_kev", self.detector.arbitration_kev, 1, self.scan.start_kev, "keV")
            highest_kev = max(map(max, passes_kev(self)))
            refuse_outside("the highest threshold at scan.stop_kev", highest_kev, 1, 200, "keV")
            return
        self._refuse_dark("detector.thresholds_kev", self.detector.thresholds_kev)
        if isinstance(self.scan, Turning):
            for energies_kev in self.scan.passes_kev:
                _refuse_thresholds("scan.passes_kev", energies_kev, self.detector.mode, self.detector.arbitration_kev)
                self._refuse_dark("scan.passes_kev", energies_kev)
            n_steps = self.scan.views * len(self.scan.shifts_mm) * len(passes_kev(self))
            refuse_outside("the number of views in all passes at all positions", n_steps, 1, MOST_STEPS)
            refuse_unseen(self.geometry, self.scan)

    def _refuse_dark(self, name: str, energies_kev: tuple[float, ...]) -> None:
        if energies_kev[-1] >= self.source.kvp:
            raise ValueError(f"{name} goes up to {energies_kev[-1]} keV; allowed: below source.kvp, {self.source.kvp}")


def refuse_unseen(geometry: Geometry, scan: Turning) -> None:
    """Refuse a scan whose camera leaves gaps in what it is to see."""
    seen = coverage(geometry, scan.shifts_mm)
    if isinstance(scan, HelicalPlan):
        if seen.is_wide:
            raise ValueError(
                f"scan.shifts_mm is {list(scan.shifts_mm)}; allowed in a helical scan: as far to one side as the other"
            )
        refuse_outside("scan.pitch_mm", scan.pitch_mm, 0, seen.highest_pitch_mm, "mm a turn, by the camera's height")
    elif seen.is_wide and (arc_deg := math.degrees(scan.angle_rad(scan.views))) < 360 - 1e-9:
        raise ValueError(
            f"scan.arc_deg is {arc_deg:g}; allowed with the camera to one side of the axis (scan.shifts_mm "
            f"{list(scan.shifts_mm)}): 360 or more, for the other side is seen half a turn later"
        )


def passes_kev(plan: Plan) -> tuple[tuple[float, ...], ...]:
    """Return the thresholds of each pass over the object, in keV and in the order of the detector's thresholds."""
    scan, own_kev = plan.scan, plan.detector.thresholds_kev
    if isinstance(scan, Turning):
        return scan.passes_kev or (own_kev,)
    if not isinstance(scan, ThresholdScanPlan):
        return (own_kev,)
    if scan.threshold == "all":
        return tuple(tuple(at_kev + kev - own_kev[0] for kev in own_kev) for at_kev in scan.positions_kev)
    place = plan.detector.thresholds.index(int(scan.threshold))
    return tuple((*own_kev[:place], at_kev, *own_kev[place + 1 :]) for at_kev in scan.positions_kev)


def calibrated_kev(plan: Plan) -> tuple[tuple[float, ...], ...]:
    """Return the thresholds that bins are calibrated at: of each pass around a sample, else the detector's own."""
    return passes_kev(plan) if isinstance(plan.scan, Turning) else (plan.detector.thresholds_kev,)


def at_thresholds(plan: Plan, energies_kev: tuple[float, ...]) -> Plan:
    """Return the plan with the thresholds of one of its passes, and without passes."""
    scan = msgspec.structs.replace(plan.scan, passes_kev=()) if isinstance(plan.scan, Turning) else plan.scan
    detector = msgspec.structs.replace(plan.detector, thresholds_kev=energies_kev)
    return msgspec.structs.replace(plan, detector=detector, scan=scan)


def refuse_foreign_pixels(plan: Plan) -> None:
    """Refuse a plan whose geometry has not the pixels of the chip in the plan's mode."""
    detector, geometry = plan.detector, plan.geometry
    pixels = (ROWS // 2, COLS // 2, COLOUR_PITCH_MM) if detector.is_colour else (ROWS, COLS, PITCH_MM)
    if (geometry.rows, geometry.cols, geometry.pitch_mm) != pixels:
        raise WrongUsage(
            f"the plan's detector has {geometry.rows} x {geometry.cols} pixels of {geometry.pitch_mm} mm; "
            f"allowed in mode {detector.mode}: {pixels[0]} x {pixels[1]} of {pixels[2]} mm"
        )


def load_plan(path: str | Path) -> Plan:
    """Read a plan from a TOML file; what the file leaves out keeps its default.

    Raises
    ------
    WrongUsage
        The file cannot be read, is not TOML, or has a wrong key or value; the message names it and what is allowed.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # some editors put a mark of the encoding first
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise WrongUsage(
            f"cannot read the plan {path}: {reason}", hint="start from a copy of acquisition/plans/demo.toml"
        ) from error
    return plan_from_toml(text, str(path))


def plan_from_toml(text: str, name: str = "plan") -> Plan:
    """Make a plan of TOML text; `name` stands for it in messages."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise WrongUsage(f"{name} is not valid TOML: {error}") from error
    try:
        if isinstance(tree.get("scan"), dict):
            tree["scan"].setdefault("kind", ScanPlan().kind)
        _refuse_unknown_keys(tree, Plan, "")
        return msgspec.convert(tree, Plan)
    except msgspec.ValidationError as error:
        raise WrongUsage(f"{name}: {_explain(str(error), tree)}") from error
    except ValueError as error:
        raise WrongUsage(f"{name}: {error}") from error


def plan_to_toml(plan: Plan) -> str:
    """Write a plan as TOML, every key of it; `plan_from_toml` gives the same plan back."""
    return tree_to_toml(msgspec.to_builtins(plan))


def tree_to_toml(tree: Mapping[str, Any]) -> str:
    """Write the sections and keys of a plan, or of a part of it, as TOML."""
    return "\n".join(_toml_lines(tree, "")) + "\n"


def plan_to_json(plan: Plan) -> str:
    """Write a plan as one JSON object."""
    return msgspec.json.encode(plan).decode()


def _toml_lines(table: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Write plain values first, as TOML wants them, then the sections; lists of tables become [[sections]]."""
    sections: list[tuple[str, Mapping[str, Any]]] = []
    for key, value in table.items():
        if isinstance(value, dict):
            sections.append((f"[{prefix}{key}]", value))
        elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            sections += [(f"[[{prefix}{key}]]", row) for row in value]
        else:
            yield f"{key} = {json.dumps(value, ensure_ascii=False)}"
    for header, section in sections:
        yield f"\n{header}"
        yield from _toml_lines(section, f"{header.strip('[]')}.")


def _refuse_unknown_keys(tree: object, kind: object, where: str) -> None:
    """Refuse keys that a section does not have (msgspec lets them pass in dataclasses, and lists no allowed ones)."""
    if isinstance(tree, list):
        for item in tree:
            _refuse_unknown_keys(item, next(iter(get_args(kind)), None), where)
    if not isinstance(tree, dict):
        return
    of_kind = ""
    if kind == AnyScan:
        kinds = {str(one.__struct_config__.tag): one for one in get_args(AnyScan)}
        refuse_unlisted(f"{where}kind", tree["kind"], tuple(kinds))
        kind, of_kind = kinds[tree["kind"]], f" of kind {tree['kind']!r}"
    members = _members(kind)
    for key, value in tree.items() if members else ():
        if key not in members:
            raise ValueError(f"{where}{key} = {value!r} is not a key of a plan{of_kind}; allowed: {', '.join(members)}")
        _refuse_unknown_keys(value, members[key], f"{where}{key}.")


def _members(kind: object) -> dict[str, object]:
    """Return the keys of a section, each with its type; nothing for a plain value."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        tag: dict[str, object] = {"kind": str} if kind.__struct_config__.tag else {}
        return tag | {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    if isinstance(kind, type) and is_dataclass(kind):
        return {field.name: field.type for field in fields(kind)}
    return {}


_PLAIN_TYPES: Mapping[str, str] = {
    "object": "a section of keys",
    "array": "a list",
    "str": "a text in quotes",
    "int": "a whole number",
    "float": "a number",
}


def _explain(message: str, tree: object) -> str:
    """Turn msgspec's "Expected `float`, got `str` - at `$.detector.bias_v`" into key, value and what is allowed."""
    reason, _, place = message.partition(" - at ")
    steps = re.findall(r"\.(\w+)|\[(\d+|\.\.\.)\]", place)
    key = ".".join(name or index for name, index in steps)
    for name, index in steps:
        if isinstance(tree, dict):
            tree = tree.get(name)
        elif isinstance(tree, list) and index.isdigit():
            tree = tree[int(index)]
    wrong_type = re.fullmatch(r"Expected `(.+)`, got `(.+)`", reason)
    if wrong_type:
        return f"{key} is {tree!r}; allowed: {_PLAIN_TYPES.get(wrong_type[1], f'a value of type {wrong_type[1]}')}"
    missing = re.fullmatch(r"Object missing required field `(.+)`", reason)
    if missing:
        return f"{key} has no {missing[1]}; allowed: a whole section, or none"
    return f"in [{key}]: {reason}" if key else reason


# What msgspec learns of these classes it learns at the first conversion, and two threads that make it at once crash the
# interpreter (msgspec 0.22): it is made here, where the import's lock lets one thread in.
msgspec.convert({}, Plan)
