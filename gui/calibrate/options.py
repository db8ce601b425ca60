"""What a person may set for each calibration step: parts of the plan, shown and read back as text.

Everything a plan refuses is refused here with the plan's own sentence, so that a field can be checked as it is typed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from acquisition.beam_plan import layers_mm
from acquisition.plan import EQUALISATION_METHODS, Cell, Plan
from firmware_iface.errors import WrongUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One value of a plan.

    Attributes
    ----------
    path : str
        Names of the plan's sections and of the value, with dots between them.
    label, unit, tip : str
        For people.
    choices : tuple of str
        What it may be; empty: anything that the plan allows.
    """

    path: str
    label: str
    unit: str = ""
    tip: str = ""
    choices: tuple[str, ...] = ()


def _option(path: str, label: str, unit: str = "", tip: str = "", choices: Sequence[str] = ()) -> Option:
    return Option(path=f"calibration.{path}", label=label, unit=unit, tip=tip, choices=tuple(choices))


_FLATS = _option("n_flat_frames", "Flat frames", "frames", "Frames of the open beam; more make the flats less noisy.")
_ENERGY_EXPOSURE = _option("energy_exposure_s", "Exposure of a point", "s", "How long each threshold setting counts.")
_PLATE_FRAMES = _option("wedge.n_frames", "Frames a plate", "frames", "How many frames are taken behind each plate.")

OPTIONS: Mapping[str, tuple[Option, ...]] = {
    "bias": (
        _option("bias.tolerance_v", "Tolerance", "V", "How near each voltage has to come to its target."),
        _option("bias.n_readings", "Readings", "a code", "How many readings are averaged; more against noise."),
    ),
    "equalise": (
        _option(
            "equalisation.method", "Look for", "", "By what each pixel's threshold is found.", EQUALISATION_METHODS
        ),
        _option("equalisation_exposure_s", "Exposure, noise", "s", "How long noise is counted at each code."),
        _option(
            "equalisation.spacing", "Spacing", "pixels",
            "One pixel of so many by so many counts at a time; 0: as close as the method allows.",
        ),
        _option("equalisation.max_rounds", "Rounds at most", "", "How often pixels may be moved to come closer."),
        _option("equalisation.n_pulses", "Test pulses", "a code", "Only with pulses."),
        _option("equalisation.pulse_e", "Size of a pulse", "electrons", "Only with pulses."),
        _option("equalisation.source", "Source", "", "Only with a source: whose edge is looked for."),
        _option("equalisation.source_exposure_s", "Exposure, source", "s", "Only with a source."),
        _option("equalisation.pair_ev", "Energy a pair", "eV", "Of the sensor; 4.43 eV for CdTe, 3.62 eV for silicon."),
    ),
    "energy": (
        _option("sources", "Sources", "", "Sources with known lines, at least two; names with commas between them."),
        _ENERGY_EXPOSURE,
        _option("energy.end_point_kvp", "End-point check", "kV", "The tube's voltage for the check; 0: no check."),
        _option("energy.end_point_ma", "Its current", "mA", "Of the tube, for the check at the end of the spectrum."),
        _option("energy.end_point_frames", "Its frames", "a code", "Frames at each threshold setting of the check."),
    ),
    "pixels": (
        _option("n_dark_frames", "Dark frames", "frames", "Frames without beam, to find what fires by itself."),
        _FLATS,
    ),
    "count-rate": (
        _option("count_rate.lowest_ratio", "First current", "of the scan's", "Where the sweep of the current begins."),
        _option("count_rate.growth_ratio", "Growth a step", "times", "Each current is so many times the one before."),
        _option(
            "count_rate.highest_loss_share", "Stop at a loss of", "share", "The sweep ends when this share is lost."
        ),
        _option("count_rate.highest_ma", "Never above", "mA", "The highest current that the tube is set to."),
        _option("count_rate.n_frames", "Frames a current", "frames", "Frames at each current."),
    ),
    "materials": (
        _option(
            "cells", "Cells", "",
            "Cells of the sample changer: name, material, mg/mL (0 for water) and mm, with semicolons between cells.",
        ),
        _option("n_cell_frames", "Frames a cell", "frames", "Frames behind each cell."),
        _FLATS,
    ),
    "geometry": (
        _option("beads.sample", "Bead phantom", "", "Its name in the sample changer."),
        _option("beads.n_beads", "Beads", "", "How many beads it has."),
        _option("beads.diameter_mm", "Diameter", "mm", "Of a bead."),
        _option("beads.length_mm", "Length", "mm", "Between the centres of the lowest and the highest bead."),
        _option("beads.length_error_mm", "Its error", "mm", "How well that length is known (standard error)."),
        _option("beads.n_views", "Views", "", "Over a whole circle."),
        _option("beads.frames_per_view", "Frames a view", "frames", "Frames averaged in each view."),
        _FLATS,
    ),
    "wedge": (
        _option("wedge.plates", "Plates", "", "Names like pmma-10 (material and mm), with commas between them."),
        _option("wedge.material", "Teach", "", "The material whose thickness each pixel is taught."),
        _option("wedge.reference_mm", "Reference", "mm", "Thicknesses are told as if all were attenuated like this."),
        _PLATE_FRAMES,
        _option("wedge.n_flat_frames", "Flats around it", "frames", "Frames of the open beam around each plate."),
    ),
    "response": (
        _option("response.sources", "Sources", "", "Whose lines are scanned; names with commas between them."),
        _option("response.checks", "Held-back plates", "", "Plates that the fit does not see, to check it."),
        _option("response.n_points", "Points a scan", "", "Threshold settings of each source's scan."),
        _option("response.n_frames_per_point", "Frames a point", "frames", "Frames at each threshold setting."),
        _ENERGY_EXPOSURE,
        _option("response.lowest_kev", "Scan from", "keV", "The lowest energy of the scans."),
        _option("response.sensor_material", "Sensor", "", "Its material: cdte, czt, gaas or silicon."),
        _option("response.sensor_thickness_mm", "Its thickness", "mm", "Of the sensor."),
        _PLATE_FRAMES,
    ),
}  # fmt: skip
"""Of each step, in the order in which people think of them."""


def value_of(plan: Plan, path: str) -> Any:
    """Return a value of the plan."""
    value: Any = plan
    for name in path.split("."):
        value = getattr(value, name)
    return value


def text_of(plan: Plan, path: str) -> str:
    """Return a value of the plan as text that `with_text` reads back."""
    value = value_of(plan, path)
    if isinstance(value, tuple):
        if value and isinstance(value[0], Cell):
            return "; ".join(
                f"{cell.name}, {cell.material}, {cell.concentration_mg_ml:g}, {cell.thickness_mm:g}" for cell in value
            )
        return ", ".join(value)
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def with_text(plan: Plan, path: str, text: str) -> Plan:
    """Return the plan with a value as typed.

    Raises
    ------
    WrongUsage
        It is no number where one is needed, or nothing that the plan allows; the sentence says what is.
    """
    try:
        value = _read(value_of(plan, path), text.strip())
        found = _with_value(plan, path.split("."), value)
    except ValueError as error:
        raise WrongUsage(str(error)) from error
    _refuse_unknown(path.rsplit(".", 1)[-1], value)
    return found


def _refuse_unknown(name: str, value: Any) -> None:
    """Refuse sources and materials of which nobody knows anything, before time is spent on measuring them."""
    from calibration.attenuation import material
    from calibration.spectrum import emission

    values = value if isinstance(value, tuple) else (value,)
    if name in ("sources", "source"):
        if not values:
            raise WrongUsage("no source is named; allowed: one or more")
        for each in values:
            emission(each)
    elif name in ("material", "sensor_material"):
        material(str(value))
    elif name in ("plates", "checks"):
        for plate in values:
            for each in layers_mm(plate):
                material(each)
    elif name == "cells":
        for cell in values:
            material(cell.material)


def why_not_together(step: str, plan: Plan) -> str:
    """Return why a step cannot be measured with options that are each allowed; empty where it can."""
    if step != "wedge":
        return ""
    from calibration.thickness import FEWEST_THICKNESSES

    wanted = plan.calibration.wedge
    n_plates = len({plate for plate in wanted.plates if set(layers_mm(plate)) == {wanted.material}})
    if n_plates >= FEWEST_THICKNESSES:
        return ""
    return (
        f"{n_plates} of the plates are of {wanted.material} alone, whose thickness is to be taught; allowed: "
        f"{FEWEST_THICKNESSES} or more. Name other plates, or another material."
    )


def _with_value(record: Any, names: Sequence[str], value: Any) -> Any:
    first, *rest = names
    return msgspec.structs.replace(
        record, **{first: _with_value(getattr(record, first), rest, value) if rest else value}
    )


def _read(now: Any, text: str) -> Any:
    if isinstance(now, tuple):
        if now and isinstance(now[0], Cell):
            return tuple(_cell(part) for part in text.split(";") if part.strip())
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if isinstance(now, int):
        return _number(text, int, "a whole number")
    if isinstance(now, float):
        return _number(text.replace(",", "."), float, "a number")
    return text


def _number(text: str, kind: type, words: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{text!r} is not {words}" if text else f"nothing is typed; allowed: {words}") from None


def _cell(text: str) -> Cell:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4:
        raise ValueError(f"{text.strip()!r} is no cell; allowed: name, material, mg/mL, mm")
    name, material, concentration, thickness = parts
    return Cell(
        name=name,
        material=material,
        concentration_mg_ml=_number(concentration, float, "a number of mg/mL"),
        thickness_mm=_number(thickness, float, "a number of mm"),
    )
