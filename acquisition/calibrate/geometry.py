"""The step `geometry`: where source and detector are, from views of beads around the whole circle."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from acquisition.calibrate.exposures import (
    Instrument,
    Work,
    beam,
    frame,
    operating_dacs,
    refuse_full,
    select_open_beam,
    set_up_detector,
    take,
)
from acquisition.calibrate.watch import TracksFound, is_watched, show
from acquisition.plan import Plan
from acquisition.steps import Pose
from calibration import pixels
from calibration.alignment import align_beads
from calibration.beads import Shadows, find_shadows, join_tracks
from calibration.geometry import Geometry
from calibration.progress import Progress
from calibration.store import Calibration
from firmware_iface.errors import WrongUsage

LEAST_COUNTS = 0.5
PLACE_STEPS = 4
PLACE_STEP_MM = 1e-3


def geometry(instrument: Instrument, plan: Plan, calibration: Calibration) -> Work:
    """Take views of the bead phantom, and find all distances, offsets and tilts that bring its shadows where they are.

    Raises
    ------
    WrongUsage
        There is no such phantom, or not all its beads are seen: the known length is between two of them.
    """
    beads = plan.calibration.beads
    samples = instrument.gantry.samples()
    if samples is not None and beads.sample not in samples:
        raise WrongUsage(
            f"the sample changer has no {beads.sample!r}; it has {', '.join(samples)}",
            hint="name the bead phantom in the plan: calibration.beads.sample",
        )
    angles_rad = np.arange(beads.n_views) * 2 * np.pi / beads.n_views
    views = yield from _views(instrument, plan, calibration, angles_rad)
    radius_px = beads.diameter_mm / 2 * plan.geometry.magnification / plan.geometry.pitch_mm
    yield Progress("fit", 0, 2)
    shadows = find_shadows(views, n_beads=beads.n_beads, radius_px=radius_px, is_bad=calibration.is_bad)
    tracks = join_tracks(shadows, angles_rad, n_beads=beads.n_beads, radius_px=radius_px)
    if len(tracks) != beads.n_beads:
        raise WrongUsage(
            f"{len(tracks)} beads were followed; the plan's phantom has {beads.n_beads}",
            hint="move the phantom so that all its beads are in the field, or mend calibration.beads in the plan",
        )
    yield Progress("fit", 1, 2)
    alignment = align_beads(
        tracks, angles_rad, plan.geometry, length_mm=beads.length_mm, length_error_mm=beads.length_error_mm
    )
    if is_watched(instrument):
        at_px = _tracks_px(tracks, len(angles_rad), plan.geometry)
        show(instrument, TracksFound(at_px=at_px, rests_px=_rests_px(at_px, angles_rad, alignment.geometry)))
    yield Progress("fit", 2, 2)
    return replace(calibration, alignment=alignment)


def _views(
    instrument: Instrument, plan: Plan, calibration: Calibration, angles_rad: NDArray[np.float64]
) -> Generator[Progress, None, NDArray[np.float64]]:
    """Return the line integrals above the lowest threshold, bad pixels filled: (n_views, rows, cols) float64."""
    detector, gantry, beads = instrument.detector, instrument.gantry, plan.calibration.beads
    set_up_detector(detector, plan, calibration, operating_dacs(calibration, plan))
    select_open_beam(gantry, plan)
    taken = []
    with beam(gantry):
        flats = yield from take(detector, "flats", plan.calibration.n_flat_frames, plan.detector.exposure_s)
        refuse_full(flats, plan, "flats")
        gantry.select_sample(beads.sample)
        for done, angle_rad in enumerate(angles_rad):
            yield Progress("beads", done, len(angles_rad))
            gantry.move_to(Pose(angle_rad=float(angle_rad)))
            frames = [frame(detector, plan.detector.exposure_s).counts[0] for _ in range(beads.frames_per_view)]
            taken.append(np.mean(frames, axis=0))
        gantry.select_sample(None)
    flat = flats[:, 0].mean(axis=0)
    is_bad = calibration.is_bad | (flat <= 0)
    values = np.log(np.where(is_bad, 1.0, flat)) - np.log(np.maximum(taken, LEAST_COUNTS))
    return np.asarray(pixels.fill(values.astype(np.float32), is_bad), dtype=np.float64)


def _tracks_px(tracks: Sequence[Shadows], n_views: int, geometry: Geometry) -> NDArray[np.float64]:
    """Return where each bead was seen from the detector's centre: (n_beads, n_views, 2), NaN where it was not."""
    at_px = np.full((len(tracks), n_views, 2), np.nan)
    for track, seen in zip(at_px, tracks, strict=True):
        track[seen.view] = seen.at_px - np.array([geometry.cols - 1, geometry.rows - 1]) / 2
    return at_px


def _rests_px(at_px: NDArray[np.float64], angles_rad: NDArray[np.float64], found: Geometry) -> NDArray[np.float64]:
    """Return how far each shadow stands from where it belongs, if every bead is at its best place in this geometry."""
    views = found.views(angles_rad)
    places_mm = np.zeros((len(at_px), 3))
    for _ in range(PLACE_STEPS):
        here = views.shadows_px(places_mm)
        slopes = np.stack([views.shadows_px(places_mm + step) - here for step in np.eye(3) * PLACE_STEP_MM], axis=-1)
        for bead, seen in enumerate(at_px):
            is_seen = np.isfinite(seen[:, 0])
            slope = slopes[is_seen, bead].reshape(-1, 3) / PLACE_STEP_MM
            rest = (seen[is_seen] - here[is_seen, bead]).ravel()
            places_mm[bead] += np.linalg.lstsq(slope, rest)[0]
    return at_px - views.shadows_px(places_mm).swapaxes(0, 1)
