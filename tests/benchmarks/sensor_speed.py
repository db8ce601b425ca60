"""How fast the simulated sensor is: photons followed one by one, and frames of the expectation.

Photons: those that arrive at a CdTe sensor of 1 mm with 128 x 128 pixels of 110 um, 120 kVp behind 2 mm of aluminium,
in charge summing with all eight thresholds, noise, dispersion, defects and pile-up.

Frames: eight counters of 128 x 128 pixels of the same sensor, 3000 photons each, exposed again and again to one scene,
whose means are kept (`frames_per_s`), and to another scene each time (`views_per_s`); `draws_per_s` is the draw alone.

Figures per `cpu_s` count the time of the processor that was really had, times two: what two cores give that do nothing
else.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a script finds the packages of its own checkout

from calibration.spectrum import tube_spectrum
from firmware_iface import chip
from sim import draw
from sim.events import EventSensor
from sim.sensor import Sensor, Settings

ENERGIES_KEV = np.arange(11.0, 121.0, 2.0)
THRESHOLDS_KEV = (6, 10, 15, 25, 30, 35, 45, 60)
EXPOSURE_S = 0.1


def light(n_photons: float) -> np.ndarray:
    """Return photons on 128 x 128 pixels, of a tube's spectrum: (n_energies, 128, 128) float32."""
    spectrum = tube_spectrum(120.0, ENERGIES_KEV, {"aluminium": 2.0})
    photons = np.broadcast_to(spectrum[:, None, None], (len(spectrum), 128, 128))
    return (photons * (n_photons / photons.sum())).astype(np.float32)


def settings_of(sensor: Sensor) -> Settings:
    """Return thresholds at THRESHOLDS_KEV in charge summing."""
    steps = sensor.gain_dac_per_kev(chip.Gain.HGM) * np.array(THRESHOLDS_KEV)
    planes = (chip.N_THRESHOLDS, 128, 128)
    return Settings(
        threshold_dac=np.round(sensor.front_end.baseline_dac + steps).astype(int),
        trim=np.full(planes, 16, dtype=np.uint8), is_masked=np.zeros(planes, dtype=bool), disc_l=90, disc_h=90,
        gain=chip.Gain.HGM, is_csm=True, is_equalization=False,
    )  # fmt: skip


def photons_per_s(is_quick: bool) -> dict[str, float]:
    """Return the best of a few exposures, by the clock and by the processor's time."""
    sensor, rng = EventSensor(), np.random.default_rng(1)
    settings, n_photons = settings_of(sensor), 1e6 if is_quick else 5e6
    sensor.expose(light(1e4), ENERGIES_KEV, EXPOSURE_S, settings, rng)
    photons = light(n_photons)
    walls_s, cpus_s = [], []
    for _ in range(3 if is_quick else 5):
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        sensor.expose(photons, ENERGIES_KEV, EXPOSURE_S, settings, rng)
        walls_s.append(time.perf_counter() - wall_s)
        cpus_s.append(time.process_time() - cpu_s)
    return {"photons_per_s": n_photons / min(walls_s), "photons_per_cpu_s": 2 * n_photons / min(cpus_s)}


def per_s(act: Callable[[int], object], n: int, name: str) -> dict[str, float]:
    """Return how often per second something can be done, by the clock and by the processor's time."""
    act(-1)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    for i in range(n):
        act(i)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return {f"{name}_per_s": n / wall_s, f"{name}_per_cpu_s": 2 * n / cpu_s}


def frames_per_s(is_quick: bool) -> dict[str, float]:
    """Return frames of one scene, views of changing ones, and draws."""
    sensor, rng = Sensor(), np.random.default_rng(1)
    settings, photons = settings_of(sensor), light(3000.0 * 128 * 128)
    shadows = np.random.default_rng(2).uniform(0.2, 1, (4, 1, 128, 128)).astype(np.float32)
    views = [photons * shadow for shadow in shadows]
    photons.flags.writeable = False
    for one in views:
        one.flags.writeable = False
    mean = sensor.expected(photons, ENERGIES_KEV, 1.0, settings)
    mixing, load = sensor.ties(photons, ENERGIES_KEV, 1.0, settings)
    n = 100 if is_quick else 500
    frames = per_s(lambda _: sensor.expose(photons, ENERGIES_KEV, 1.0, settings, rng), n, "frames")
    draws = per_s(lambda _: draw.draw_counts(mean, load, mixing, rng), n, "draws")
    changing = per_s(lambda i: sensor.expose(views[i % 4], ENERGIES_KEV, 1.0, settings, rng), n // 4, "views")
    return frames | draws | changing


MEASUREMENTS: Mapping[str, Callable[[bool], dict[str, float]]] = {"photons": photons_per_s, "frames": frames_per_s}
"""What is measured: each returns figures by their names in the JSON object."""


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer photons")
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    for measure in MEASUREMENTS.values():
        figures |= measure(arguments.quick)
    if arguments.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:20} {figure:14,.0f}" for name, figure in figures.items()))


if __name__ == "__main__":
    main()
