"""The scene around the simulated detector: stage, sample changer, tube and calibration sources, over one text line.

    *IDN?                      who answers
    ROT <deg>, LIFT <mm>, SHIFT <mm>         start to turn, to lift the sample, to shift the camera along its rows
    ROT:SWEEP <deg> <mm> <mm> <n> <s>        start to go there evenly, with n pulses on the TTL trigger input
    ROT?, LIFT?, SHIFT?        where it stands, as its encoder says
    BUSY?, STOP, SAFE          whether it moves (1 or 0); stand at once; that, and the beam off
    LIMITS?                    what stage and tube allow
    SAMP <name>|OUT, SAMP?, SAMP:LIST?       start to change the sample
    SOUR <name>, SOUR?, SOUR:LIST?
    TUBE <kvp> <ma>, TUBE?, TUBE:STATE?, TUBE:WARM, TUBE:CLEAR
    BEAM ON|OFF, BEAM?

Commands answer ``OK``; whatever is wrong answers ``ERR`` and why. `sim.stage` tells how the stage moves and fails,
`sim.tube` the tube. An exposure during a move is the mean over the way that passes, in parts of at most a quarter of a
degree and at least three. The lift moves the sample along +z, the shift the detector along +u.

# Ref: protocol of MARS studies, CMMI 2018, 2136840: 118 kVp, 1.8 + 2 mm Al, source to detector 250 mm, to object
#      200 mm.
# Ref: K lines and Am-241 for the energy scale: Panta et al. 2014 (abstract), through `calibration.spectrum`.

The sources' rate and window, and the tube's ripple, are choices. Sources shine evenly on the bare detector: the sample
changer stands out of their way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from calibration.geometry import Geometry
from calibration.spectrum import emission, transmission, tube_spectrum
from firmware_iface import chip
from firmware_iface.errors import MpxctError, WrongUsage
from sim.mars import multi_contrast_phantom, raja_phantom
from sim.phantom import (
    CELLS_MG_ML,
    THICK_CELL_MM,
    THICK_CELLS_MG_ML,
    Insert,
    Phantom,
    beads_phantom,
    cell,
    stack,
    vials_phantom,
)
from sim.photons import expected_photons, flood
from sim.stage import AXES, Place, Silent, Stage
from sim.tube import HIGHEST_KVP, HIGHEST_MA, HIGHEST_W, LOWEST_KVP, Tube

IDENTITY = "mpxct,simulated gantry,1"
TUBE = "TUBE"
LINE_SOURCES = ("Am-241", "Mo", "Ag", "In", "Sn", "Gd", "W", "Pb")
SOURCE_PHOTONS_PER_PIXEL_S = 200.0
SOURCE_WINDOW_MM = {"aluminium": 1.0}
TUBE_FILTERS_MM = {"aluminium": 3.8}
TUBE_ENERGIES_KEV = np.arange(8.5, HIGHEST_KVP)
"""Below 8 keV nothing passes the filters."""
TUBE_RIPPLE = 5e-4
"""Relative sigma of the tube's output from one exposure to the next."""
PLATES_MM: Mapping[str, tuple[float, ...]] = {
    "pmma": (1, 2, 5, 10, 15, 20, 25, 30, 40),
    "aluminium": (0.5, 1, 2, 3, 4, 6),
    "water": (8,),
}
"""The step wedge: a plate ``pmma-10`` for each thickness."""
STACKS_MM = ({"pmma": 10.0, "aluminium": 1.0}, {"pmma": 20.0, "aluminium": 2.0}, {"pmma": 5.0, "aluminium": 3.0})
"""Plates one behind the other, as ``pmma-10+aluminium-1``."""
GEOMETRY = Geometry(
    source_to_detector_mm=250.0,
    source_to_object_mm=200.0,
    pitch_mm=chip.COLOUR_PITCH_MM,
    rows=chip.ROWS // 2,
    cols=chip.COLS // 2,
)


FINEST_PARTS, BLUR_DEG, MOST_PARTS = 3, 0.25, 32
"""Into how many places an exposure on the way is cut: at least, so long at most, and not more."""
SAME_PLACE = 1e4
"""Parts of a degree or mm within which two places are one where exposures are repeatable: 9 nm at the demo's edge."""
_GRID_OFF = 0.2871  # so that no place of a plan lies where two cells of that grid meet


class Gantry:
    """Everything in front of the sensor, as its controller's text line leaves it.

    Parameters
    ----------
    seed : int
        Draws the ripple of the tube.
    geometry : Geometry
        Where source and detector are in truth, whatever a plan takes them for.
    stage : Stage, optional
    tube : Tube, optional
    is_repeatable : bool
        An exposure depends on the seed, on what shines through what and from where, and on its number in its run, and
        on nothing that was before.
    """

    def __init__(
        self,
        seed: int = 1,
        geometry: Geometry = GEOMETRY,
        *,
        stage: Stage | None = None,
        tube: Tube | None = None,
        is_repeatable: bool = False,
    ) -> None:
        self.geometry = geometry
        self.stage, self.tube = stage or Stage(), tube or Tube()
        self.is_repeatable = is_repeatable
        self.number_in_run: Callable[[], int] = lambda: 0
        """Of the frame that is being taken."""
        self.exposure_name = b""
        """What the last exposure depended on."""
        self._seed = seed
        self._rng = np.random.default_rng(seed)
        self._samples: dict[str, Phantom] = {
            "vials": vials_phantom(),
            "mars-multi": multi_contrast_phantom(),
            "mars-raja": raja_phantom(),
        }
        self._samples |= {f"cell-{name}": cell(name) for name in CELLS_MG_ML}
        self._samples |= {
            f"cell-{THICK_CELL_MM:g}-{name}": cell(name, THICK_CELL_MM, THICK_CELLS_MG_ML) for name in THICK_CELLS_MG_ML
        }
        plates = [*({name: t} for name, thicknesses_mm in PLATES_MM.items() for t in thicknesses_mm), *STACKS_MM]
        self._samples |= {"+".join(f"{name}-{t:g}" for name, t in plate.items()): stack(plate) for plate in plates}
        self._samples["beads"] = beads_phantom()
        self._sample: str | None = None
        self._source = TUBE
        self._per_mas = lru_cache(maxsize=4)(self._photons_per_mas)  # flats and cells repeat one pose many times
        self._spectrum = lru_cache(maxsize=4)(lambda kvp: tube_spectrum(kvp, TUBE_ENERGIES_KEV, TUBE_FILTERS_MM))
        self._per_s = lru_cache(maxsize=2)(self._line_photons_per_s)
        self._commands: dict[str, Callable[[list[str]], str]] = {
            "*IDN?": lambda _: IDENTITY,
            **{axis: partial(self._go, axis) for axis in AXES},
            **{f"{axis}?": partial(self._place, axis) for axis in AXES},
            "ROT:SWEEP": self._sweep,
            "BUSY?": self._is_busy,
            "STOP": self._halt,
            "SAFE": self._make_safe,
            "LIMITS?": self._limits,
            "SAMP": self._select_sample,
            "SAMP?": lambda _: self._sample or "OUT",
            "SAMP:LIST?": lambda _: ",".join(self._samples),
            "SOUR": self._select_source,
            "SOUR?": lambda _: self._source,
            "SOUR:LIST?": lambda _: ",".join((TUBE, *LINE_SOURCES)),
            "TUBE": self._set_tube,
            "TUBE?": lambda _: f"{self.tube.kvp:.9g} {self.tube.ma:.9g}",
            "TUBE:STATE?": lambda _: self.tube.state(self.stage.clock),
            "TUBE:WARM": self._warm_tube,
            "TUBE:CLEAR": self._clear_tube,
            "BEAM": self._switch_beam,
            "BEAM?": lambda _: "ON" if self.tube.is_on else "OFF",
        }

    @property
    def inserts(self) -> tuple[Insert, ...]:
        """What the labels in the selected sample state."""
        return self._samples[self._sample].inserts if self._sample else ()

    def line(self, text: str) -> str | None:
        """Answer one text line; None where nobody answers any more."""
        command, *words = text.split() or [""]
        act = self._commands.get(command.upper())
        if act is None:
            return f"ERR no command {command!r}; known: {' '.join(self._commands)}"
        if words and (command.endswith("?") or command in ("STOP", "SAFE", "TUBE:WARM", "TUBE:CLEAR")):
            return f"ERR {command} takes nothing, not {' '.join(words)!r}"
        try:
            return act(words)
        except Silent:
            return None
        except MpxctError as refused:
            return f"ERR {refused}"

    def photons(self, duration_s: float) -> tuple[NDArray[np.float32] | None, NDArray[np.float64]]:
        """Return the mean photons on each pixel during an exposure, and their energies.

        Returns
        -------
        photons : (n_energies, rows, cols) float32, or None without beam
        energies_kev : (n_energies,) float64
        """
        begin_ns, end_ns = self.stage.clock.exposure_ns(duration_s)
        is_shining = self.tube.expose(duration_s)
        places = self._places(begin_ns, end_ns)
        if self.is_repeatable:
            self._name_exposure(places, duration_s, is_shining=is_shining)
        if not is_shining:
            return None, np.zeros(0)
        if self._source != TUBE:
            per_s, energies_kev = self._per_s(self._source)
            return per_s * np.float32(duration_s), energies_kev
        if not self._sample:  # the open beam is the same at every angle and height
            places = [Place(0.0, 0.0, place.shift) for place in places]
        output = self.tube.ma * duration_s * self._rng.normal(1.0, TUBE_RIPPLE)
        per_mas = self._per_mas(self._sample, places[0], self.tube.kvp)
        if any(place != places[0] for place in places):
            per_mas = np.mean([self._per_mas(self._sample, place, self.tube.kvp) for place in places], axis=0)
        return per_mas * np.float32(output), TUBE_ENERGIES_KEV

    def make_safe(self) -> None:
        """Switch the beam off and stop the stage, whatever its controller is doing."""
        self.tube.is_on = False
        self.stage.halt()

    def _places(self, begin_ns: int, end_ns: int) -> list[Place]:
        """Return where the stage truly is in the middle of each of the parts of an exposure; one where it stands."""
        first, last = self.stage.truth(begin_ns), self.stage.truth(end_ns)
        longest = max(abs(a - b) for a, b in zip(first, last, strict=True))
        if longest < 1 / SAME_PLACE:
            return [self._snapped(last)]
        n_parts = min(max(FINEST_PARTS, math.ceil(longest / BLUR_DEG)), MOST_PARTS)
        part_ns = (end_ns - begin_ns) / n_parts
        return [self._snapped(self.stage.truth(begin_ns + round((n + 0.5) * part_ns))) for n in range(n_parts)]

    def _snapped(self, place: Place) -> Place:
        """Return the place itself, or, for exposures that are to repeat, the nearest of a fine grid."""
        if not self.is_repeatable:
            return place
        return Place(*(math.floor(axis * SAME_PLACE + 0.5 + _GRID_OFF) / SAME_PLACE for axis in place))

    def _name_exposure(self, places: list[Place], duration_s: float, *, is_shining: bool) -> None:
        """Draw by what the exposure is; its number in the run counts where it stands: on the way no place repeats."""
        number = self.number_in_run() if len(places) == 1 else -1
        what = (
            self._seed,
            self._sample,
            self._source,
            self.tube.kvp,
            self.tube.ma,
            is_shining,
            duration_s,
            number,
            places,
        )
        self.exposure_name = repr(what).encode()
        digest = blake2b(self.exposure_name, digest_size=8).digest()
        self._rng = np.random.default_rng(int.from_bytes(digest, "big"))

    def _photons_per_mas(self, sample: str | None, place: Place, kvp: float) -> NDArray[np.float32]:
        shifted = replace(self.geometry, offset_u_mm=self.geometry.offset_u_mm + place.shift)
        pose = shifted.views(math.radians(place.rot))
        lifted_mm = np.array([0.0, 0.0, place.lift])  # the frame is the sample's: what it climbs, all else sinks
        pose = replace(pose, source_mm=pose.source_mm - lifted_mm, detector_mm=pose.detector_mm - lifted_mm)
        phantom = self._samples[sample] if sample else None
        return expected_photons(phantom, pose, self._spectrum(kvp), TUBE_ENERGIES_KEV, 1.0, shifted)

    def _line_photons_per_s(self, source: str) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        energies_kev = np.array([line.energy_kev for line in emission(source)])
        passed = np.array([line.fraction for line in emission(source)]) * transmission(SOURCE_WINDOW_MM, energies_kev)
        return flood(SOURCE_PHOTONS_PER_PIXEL_S * passed / passed.sum(), self.geometry), energies_kev

    def _go(self, axis: str, words: list[str]) -> str:
        (target,) = _numbers(axis, words, 1)
        self.stage.go(axis, target)
        return "OK"

    def _place(self, axis: str, _: list[str]) -> str:
        self.stage.expect_alive()
        return f"{self.stage.encoder(axis):.9g}"

    def _sweep(self, words: list[str]) -> str:
        rot, lift, shift, n_positions, duration_s = _numbers("ROT:SWEEP", words, 5)
        if n_positions != int(n_positions):
            raise WrongUsage(f"{n_positions:g} positions; allowed: a whole number")
        self.stage.sweep(Place(rot, lift, shift), int(n_positions), duration_s)
        return "OK"

    def _is_busy(self, _: list[str]) -> str:
        self.stage.expect_alive()
        return str(int(self.stage.is_moving()))

    def _halt(self, _: list[str]) -> str:
        self.stage.expect_alive()
        self.stage.halt()
        return "OK"

    def _make_safe(self, _: list[str]) -> str:
        self.make_safe()
        return "OK"

    def _limits(self, _: list[str]) -> str:
        mechanics = self.stage.mechanics
        axes = [
            f"{axis} {low:g} {high:g} {mechanics.speed_per_s(axis):g}"
            for axis in AXES
            for low, high in (mechanics.allowed(axis),)
        ]
        tube = (f"KVP {LOWEST_KVP:g} {HIGHEST_KVP:g}", f"MA 0 {HIGHEST_MA:g}", f"POWER {HIGHEST_W:g}")
        return ",".join((*axes, f"SETTLE {mechanics.settle_s:g}", f"SAMPLE {mechanics.sample_change_s:g}", *tube))

    def _select_sample(self, words: list[str]) -> str:
        name = " ".join(words)
        if name != "OUT" and name not in self._samples:
            raise WrongUsage(f"no sample {name!r}; known: OUT {' '.join(self._samples)}")
        wanted = None if name == "OUT" else name
        if wanted != self._sample:
            self.stage.change_sample()
        self._sample = wanted
        return "OK"

    def _select_source(self, words: list[str]) -> str:
        name = " ".join(words)
        if name not in (TUBE, *LINE_SOURCES):
            raise WrongUsage(f"no source {name!r}; known: {TUBE} {' '.join(LINE_SOURCES)}")
        self._source = name
        return "OK"

    def _set_tube(self, words: list[str]) -> str:
        kvp, ma = _numbers("TUBE", words, 2)
        self.tube.set(kvp, ma)
        return "OK"

    def _warm_tube(self, _: list[str]) -> str:
        self.tube.warm(self.stage.clock)
        return "OK"

    def _clear_tube(self, _: list[str]) -> str:
        self.tube.clear()
        return "OK"

    def _switch_beam(self, words: list[str]) -> str:
        if words not in (["ON"], ["OFF"]):
            raise WrongUsage(f"BEAM {' '.join(words)}; allowed: ON, OFF")
        self.tube.switch(is_on=words == ["ON"], clock=self.stage.clock)
        return "OK"


def _numbers(command: str, words: list[str], n: int) -> list[float]:
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if len(values) != n or not all(map(math.isfinite, values)):
        raise WrongUsage(f"{command} {' '.join(words)}; allowed: {n} finite number{'s' * (n > 1)}")
    return values
