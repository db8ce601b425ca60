"""The scene around the simulated detector: stage, sample changer, tube and calibration sources, over one text line.

    *IDN?                      who answers
    ROT <degrees>, ROT?        turn source and detector; answers when in position
    SAMP <name>|OUT, SAMP?, SAMP:LIST?
    SOUR <name>, SOUR?, SOUR:LIST?
    TUBE <kvp> <ma>, TUBE?
    BEAM ON|OFF, BEAM?

Commands answer ``OK``; whatever is wrong answers ``ERR`` and why.

# Ref: protocol of MARS studies, CMMI 2018, 2136840: 118 kVp, 1.8 + 2 mm Al, source to detector 250 mm, to object
#      200 mm.
# Ref: K lines and Am-241 for the energy scale: Panta et al. 2014 (abstract), through `calibration.spectrum`.

The sources' rate and window, and the tube's ripple, are choices. Sources shine evenly on the bare detector: the sample
changer stands out of their way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from calibration.geometry import Geometry
from calibration.spectrum import emission, transmission, tube_spectrum
from firmware_iface import chip
from firmware_iface.errors import MpxctError, WrongUsage
from sim.phantom import CELLS_MG_ML, Insert, Phantom, beads_phantom, cell, stack, vials_phantom
from sim.photons import expected_photons, flood

IDENTITY = "mpxct,simulated gantry,1"
TUBE = "TUBE"
LINE_SOURCES = ("Am-241", "Mo", "Ag", "In", "Sn", "Gd", "W", "Pb")
SOURCE_PHOTONS_PER_PIXEL_S = 200.0
SOURCE_WINDOW_MM = {"aluminium": 1.0}
TUBE_FILTERS_MM = {"aluminium": 3.8}
LOWEST_KVP, HIGHEST_KVP, HIGHEST_MA = 20.0, 120.0, 1.0
TUBE_ENERGIES_KEV = np.arange(8.5, HIGHEST_KVP)
"""Below 8 keV nothing passes the filters."""
DEFAULT_KVP, DEFAULT_MA = 118.0, 0.0057
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


class Gantry:
    """Everything in front of the sensor, as its controller's text line leaves it.

    Parameters
    ----------
    seed : int
        Draws the ripple of the tube.
    geometry : Geometry
        Where source and detector are in truth, whatever a plan takes them for.
    """

    def __init__(self, seed: int = 1, geometry: Geometry = GEOMETRY) -> None:
        self.geometry = geometry
        self._rng = np.random.default_rng(seed)
        self._samples: dict[str, Phantom] = {"vials": vials_phantom()}
        self._samples |= {f"cell-{name}": cell(name) for name in CELLS_MG_ML}
        plates = [*({name: t} for name, thicknesses_mm in PLATES_MM.items() for t in thicknesses_mm), *STACKS_MM]
        self._samples |= {"+".join(f"{name}-{t:g}" for name, t in plate.items()): stack(plate) for plate in plates}
        self._samples["beads"] = beads_phantom()
        self._angle_deg = 0.0
        self._sample: str | None = None
        self._source = TUBE
        self._kvp, self._ma = DEFAULT_KVP, DEFAULT_MA
        self._is_beam_on = False
        self._per_mas = lru_cache(maxsize=4)(self._photons_per_mas)  # flats and cells repeat one pose many times
        self._spectrum = lru_cache(maxsize=4)(lambda kvp: tube_spectrum(kvp, TUBE_ENERGIES_KEV, TUBE_FILTERS_MM))
        self._per_s = lru_cache(maxsize=2)(self._line_photons_per_s)
        self._commands: dict[str, Callable[[list[str]], str]] = {
            "*IDN?": lambda _: IDENTITY,
            "ROT": self._rotate,
            "ROT?": lambda _: f"{self._angle_deg:.9g}",
            "SAMP": self._select_sample,
            "SAMP?": lambda _: self._sample or "OUT",
            "SAMP:LIST?": lambda _: ",".join(self._samples),
            "SOUR": self._select_source,
            "SOUR?": lambda _: self._source,
            "SOUR:LIST?": lambda _: ",".join((TUBE, *LINE_SOURCES)),
            "TUBE": self._set_tube,
            "TUBE?": lambda _: f"{self._kvp:.9g} {self._ma:.9g}",
            "BEAM": self._switch_beam,
            "BEAM?": lambda _: "ON" if self._is_beam_on else "OFF",
        }

    @property
    def inserts(self) -> tuple[Insert, ...]:
        """What the labels in the selected sample state."""
        return self._samples[self._sample].inserts if self._sample else ()

    def line(self, text: str) -> str:
        """Answer one text line."""
        command, *words = text.split() or [""]
        act = self._commands.get(command.upper())
        if act is None:
            return f"ERR no command {command!r}; known: {' '.join(self._commands)}"
        if command.endswith("?") and words:
            return f"ERR {command} takes nothing, not {' '.join(words)!r}"
        try:
            return act(words)
        except MpxctError as refused:
            return f"ERR {refused}"

    def photons(self, duration_s: float) -> tuple[NDArray[np.float32] | None, NDArray[np.float64]]:
        """Return the mean photons on each pixel during an exposure, and their energies.

        Returns
        -------
        photons : (n_energies, rows, cols) float32, or None without beam
        energies_kev : (n_energies,) float64
        """
        if not self._is_beam_on:
            return None, np.zeros(0)
        if self._source != TUBE:
            per_s, energies_kev = self._per_s(self._source)
            return per_s * np.float32(duration_s), energies_kev
        angle_deg = self._angle_deg if self._sample else 0.0  # the open beam is the same at every angle
        output = self._ma * duration_s * self._rng.normal(1.0, TUBE_RIPPLE)
        return self._per_mas(self._sample, angle_deg, self._kvp) * np.float32(output), TUBE_ENERGIES_KEV

    def _photons_per_mas(self, sample: str | None, angle_deg: float, kvp: float) -> NDArray[np.float32]:
        pose = self.geometry.views(math.radians(angle_deg))
        phantom = self._samples[sample] if sample else None
        return expected_photons(phantom, pose, self._spectrum(kvp), TUBE_ENERGIES_KEV, 1.0, self.geometry)

    def _line_photons_per_s(self, source: str) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        energies_kev = np.array([line.energy_kev for line in emission(source)])
        passed = np.array([line.fraction for line in emission(source)]) * transmission(SOURCE_WINDOW_MM, energies_kev)
        return flood(SOURCE_PHOTONS_PER_PIXEL_S * passed / passed.sum(), self.geometry), energies_kev

    def _rotate(self, words: list[str]) -> str:
        (self._angle_deg,) = _numbers("ROT", words, 1)
        return "OK"

    def _select_sample(self, words: list[str]) -> str:
        name = " ".join(words)
        if name != "OUT" and name not in self._samples:
            raise WrongUsage(f"no sample {name!r}; known: OUT {' '.join(self._samples)}")
        self._sample = None if name == "OUT" else name
        return "OK"

    def _select_source(self, words: list[str]) -> str:
        name = " ".join(words)
        if name not in (TUBE, *LINE_SOURCES):
            raise WrongUsage(f"no source {name!r}; known: {TUBE} {' '.join(LINE_SOURCES)}")
        self._source = name
        return "OK"

    def _set_tube(self, words: list[str]) -> str:
        kvp, ma = _numbers("TUBE", words, 2)
        if not (LOWEST_KVP <= kvp <= HIGHEST_KVP and 0 <= ma <= HIGHEST_MA):
            raise WrongUsage(
                f"{kvp:g} kVp and {ma:g} mA; allowed: {LOWEST_KVP:g} to {HIGHEST_KVP:g} kVp, 0 to {HIGHEST_MA:g} mA"
            )
        self._kvp, self._ma = kvp, ma
        return "OK"

    def _switch_beam(self, words: list[str]) -> str:
        if words not in (["ON"], ["OFF"]):
            raise WrongUsage(f"BEAM {' '.join(words)}; allowed: ON, OFF")
        self._is_beam_on = words == ["ON"]
        return "OK"


def _numbers(command: str, words: list[str], n: int) -> list[float]:
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if len(values) != n or not all(map(math.isfinite, values)):
        raise WrongUsage(f"{command} {' '.join(words)}; allowed: {n} finite number{'s' * (n > 1)}")
    return values
