"""A stage behind a G-code controller on a serial port: ``gcode:/dev/ttyUSB0?dialect=grbl&rot=X&lift=Z``.

One unit of the turning axis is a degree, one of the others a mm: the steps per unit are set in the controller. Axes
that the URL does not name are not there. Not tried on hardware.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from acquisition.gantry import halted
from acquisition.gcode import CONTROLLERS, LETTERS, Controller
from acquisition.limits import Limits, Range
from acquisition.motion import await_stand, expect_arrival, refuse_beyond, timeout_s
from acquisition.serial_line import SerialLine, read_address, whole_number
from acquisition.steps import Pose
from firmware_iface.errors import MpxctError, TransportError, WrongUsage

FORMS = {
    "gcode:PORT": "a stage behind Grbl or Marlin (?dialect=grbl&baud=115200&rot=X&lift=Z); not tried on hardware",
}
OPTIONS: Mapping[str, str] = {
    "baud": "115200", "dialect": "grbl", "rot": "X", "lift": "", "shift": "", "home": "0", "pulses": "none",
    "range_deg": "", "lift_range_mm": "", "shift_range_mm": "", "settle_s": "0",
}  # fmt: skip
"""`home=1` homes it on opening. `pulses=encoder` says that a divider on the encoder gives the detector its pulses: the
controllers have no such output, and without it there are no sweeps."""
_SPEEDS = {"angle_rad": "speed_rad_s", "lift_mm": "lift_speed_mm_s", "shift_mm": "shift_speed_mm_s"}


def open_gcode(address: str, _: Any = None) -> GcodeStage:
    """Open the stage at an address.

    Raises
    ------
    WrongUsage
        The address is wrong.
    StageStuck
        It is in alarm; ``home=1`` homes it.
    TransportError
        There is no port, or no answer.
    """
    port, options = read_address(address, OPTIONS)
    if options["dialect"] not in CONTROLLERS:
        raise WrongUsage(f"dialect is {options['dialect']!r}; allowed: {', '.join(CONTROLLERS)}")
    for key, allowed in (("home", ("0", "1")), ("pulses", ("none", "encoder"))):
        if options[key] not in allowed:
            raise WrongUsage(f"{key} is {options[key]!r}; allowed: {', '.join(allowed)}")
    named = {"angle_rad": options["rot"], "lift_mm": options["lift"], "shift_mm": options["shift"]}
    axes = {axis: letter for axis, letter in named.items() if letter}
    if "angle_rad" not in axes or any(letter not in LETTERS for letter in axes.values()):
        raise WrongUsage(f"axes are {named}; allowed: rot, and lift and shift where they are, each one of {LETTERS}")
    if len(set(axes.values())) < len(axes):
        raise WrongUsage(f"axes are {named}; allowed: a letter of its own for each")
    limits = _limits_of(options)
    line = SerialLine(port, whole_number("baud", options["baud"]))
    try:
        controller: Controller = CONTROLLERS[options["dialect"]](line)
        if options["home"] == "1":
            controller.home()
        controller.greet()
        return GcodeStage(line, controller, axes, limits, has_pulses=options["pulses"] == "encoder")
    except BaseException:
        line.close()
        raise


class GcodeStage:
    """A stage that is moved by G-code; see `acquisition.gantry.Stage`.

    Parameters
    ----------
    line : SerialLine
        The port, which `close` gives back.
    controller : Controller
    axes : mapping of str to str
        Letter of the controller's axis by the field of a `Pose`.
    limits : Limits
        What is known without the controller, which tells its speeds.
    has_pulses : bool
        Whether something gives the detector a pulse at each position of a sweep.
    """

    def __init__(
        self, line: SerialLine, controller: Controller, axes: Mapping[str, str], limits: Limits, *, has_pulses: bool
    ) -> None:
        self._line, self._controller, self._axes, self._has_pulses = line, controller, dict(axes), has_pulses
        self._limits = _with_speeds(limits, self._axes, controller.speeds_per_min())
        self._target: Pose | None = None
        self._allowed_s = 0.0

    def move_to(self, pose: Pose) -> None:
        """Go to a pose; return when it stands there."""
        self._refuse(pose)
        self._begin(self.pose, pose)
        self._controller.go(self._places(pose))
        self.wait()

    def sweep(self, start: Pose, end: Pose, n_positions: int, duration_s: float) -> None:
        """Go to the start, then begin to go to the end with an even feed; something else gives the pulses."""
        if not self._has_pulses:
            raise WrongUsage(
                "this stage gives the detector no pulses, so it cannot sweep",
                hint="scan by steps, or wire a divider to its encoder and say pulses=encoder in the URL",
            )
        if n_positions < 1 or not 0 < duration_s < math.inf:
            raise WrongUsage(f"a sweep of {n_positions} positions in {duration_s} s; allowed: 1 or more, above 0 s")
        self._refuse(end)
        self.move_to(start)
        self._begin(start, end, duration_s)
        begin, finish = self._places(start), self._places(end)
        length = math.dist(begin.values(), finish.values())
        self._controller.go(finish, feed_per_min=60 * length / duration_s)

    def wait(self) -> None:
        """Return when it stands where the last move or sweep ends."""
        try:
            await_stand(self._controller.is_moving, self._allowed_s)
            if self._target is not None:
                expect_arrival(self._target, self.pose)
        except MpxctError as error:
            self._target = None
            if not isinstance(error, TransportError):
                halted(self)
            raise

    def halt(self) -> None:
        """Stand at once, wherever it is."""
        self._target = None
        self._controller.halt()

    @property
    def pose(self) -> Pose:
        """Where it stands, as its controller counts; 0 for an axis that it does not have."""
        places = self._controller.places()
        stands = {axis: places[letter] for axis, letter in self._axes.items()}
        return Pose(**(stands | {"angle_rad": math.radians(stands["angle_rad"])}))

    def limits(self) -> Limits:
        """Return what the URL and the controller say."""
        return self._limits

    def close(self) -> None:
        """Give the port back."""
        self._line.close()

    def _begin(self, start: Pose, end: Pose, duration_s: float = 0.0) -> None:
        self._target, self._allowed_s = end, 2 * duration_s + timeout_s(self._limits, start, end)

    def _refuse(self, pose: Pose) -> None:
        refuse_beyond(self._limits, pose)
        for axis in set(_SPEEDS) - set(self._axes):
            if getattr(pose, axis):
                raise WrongUsage(
                    f"{axis} {getattr(pose, axis):g}: this stage has no such axis; allowed: 0",
                    hint="name its letter in the URL, such as lift=Z",
                )

    def _places(self, pose: Pose) -> dict[str, float]:
        return {
            letter: math.degrees(getattr(pose, axis)) if axis == "angle_rad" else getattr(pose, axis)
            for axis, letter in self._axes.items()
        }


def _limits_of(options: Mapping[str, str]) -> Limits:
    def allowed(key: str) -> Range | None:
        if not options[key]:
            return None
        try:
            low, high = map(float, options[key].split(":"))
        except ValueError:
            low, high = math.nan, math.nan
        if not low <= high:
            raise WrongUsage(f"{key} is {options[key]!r}; allowed: LOW:HIGH")
        return low, high

    turn = allowed("range_deg")
    try:
        settle_s = float(options["settle_s"])
    except ValueError:
        settle_s = math.nan
    if not 0 <= settle_s < math.inf:
        raise WrongUsage(f"settle_s is {options['settle_s']!r}; allowed: 0 or more")
    return Limits(
        angle_rad=None if turn is None else (math.radians(turn[0]), math.radians(turn[1])),
        lift_mm=allowed("lift_range_mm"),
        shift_mm=allowed("shift_range_mm"),
        settle_s=settle_s,
    )


def _with_speeds(limits: Limits, axes: Mapping[str, str], per_min: Mapping[str, float]) -> Limits:
    speeds: dict[str, Any] = {_SPEEDS[axis]: per_min[letter] / 60 for axis, letter in axes.items() if letter in per_min}
    if "speed_rad_s" in speeds:
        speeds["speed_rad_s"] = math.radians(speeds["speed_rad_s"])
    return limits.or_else(Limits(**speeds))
