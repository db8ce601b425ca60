"""What each key of a plan is called in the form, and what it means: one sentence for people who write no files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Word(NamedTuple):
    """The name of a key, and what it does."""

    label: str
    tip: str


UNITS: Mapping[str, str] = {
    "kev": "keV", "kvp": "kVp", "ma": "mA", "mm": "mm", "deg": "°", "rad": "rad", "s": "s", "v": "V", "bits": "bit",
}  # fmt: skip
"""By the end of a key."""

KINDS: Mapping[str, str] = {
    "circular": "Circle, step and shoot: the stage stands still for each view.",
    "continuous": "Circle without a stop: the stage turns, and its pulses start the frames.",
    "helical": "Helix: the sample climbs while the stage turns, for samples taller than the camera.",
    "snap": "One frame.",
    "frames": "Frames of one run, as fast as they come.",
    "live": "Frames without end, which are shown and never written: for the page Live.",
    "burst": "Each edge on the trigger input starts some frames.",
    "flats": "A series of flats: the open beam, nothing in it.",
    "threshold-scan": "One threshold, or all, over a range of energies: a spectrum in every pixel.",
}

WORDS: Mapping[str, Word] = {
    "detector.mode": Word(
        "Mode",
        "colour: 2 × 2 pixels make one of 0.110 mm with more thresholds; fine: single pixels of 0.055 mm. csm: the "
        "charge of neighbours is summed, for true energies; spm: it is not, for higher count rates.",
    ),
    "detector.gain": Word("Gain", "Of the preamplifier, from super high to super low; a calibration holds for one."),
    "detector.depth_bits": Word("Counter depth", "12 bits count to 4095; fewer are read out faster."),
    "detector.thresholds_kev": Word(
        "Thresholds",
        "Ascending energies, as many as the mode has: 4 in colour-csm, 8 in colour-spm, 1 in fine-csm, 2 in fine-spm.",
    ),
    "detector.arbitration_kev": Word(
        "Arbitration", "Local threshold of charge summing, just above the noise and below the lowest threshold."
    ),
    "detector.bias_v": Word("Bias", "Voltage over the sensor, as the board is told it."),
    "detector.exposure_s": Word("Exposure", "How long one exposure counts; the open beam must not fill the counters."),
    "detector.accumulate": Word("Sum of", "Exposures that are summed into each frame, which no counter could hold."),
    "source.kvp": Word("Tube voltage", "Photons have energies up to this many keV; thresholds must be below."),
    "source.current_ma": Word("Tube current", "Photons, and the dose, grow with it; too much fills the counters."),
    "geometry.source_to_detector_mm": Word("Source to detector", "From the focal spot to the sensor."),
    "geometry.source_to_object_mm": Word("Source to axis", "From the focal spot to the axis of rotation."),
    "geometry.pitch_mm": Word("Pixel", "0.110 mm in colour, 0.055 mm in fine pitch."),
    "geometry.rows": Word("Rows", "128 in colour, 256 in fine pitch."),
    "geometry.cols": Word("Columns", "128 in colour, 256 in fine pitch."),
    "geometry.offset_u_mm": Word("Offset along rows", "Of the detector's centre from the ray through the axis."),
    "geometry.offset_v_mm": Word("Offset along columns", "Of the detector's centre from the source's plane."),
    "geometry.roll_rad": Word("Roll", "Turn of the detector in its own plane."),
    "geometry.tilt_u_rad": Word("Tilt about rows", "The highest row comes nearer to the source."),
    "geometry.tilt_v_rad": Word("Tilt about columns", "The last column goes away from the source."),
    "scan.kind": Word("Kind of scan", "What the stage does while frames are taken."),
    "scan.sample": Word("Sample", "As the sample changer calls it; without a changer any name of one word."),
    "scan.n_frames": Word("Frames", "How many."),
    "scan.n_bursts": Word("Bursts", "How many edges are waited for."),
    "scan.frames_per_view": Word("Frames per view", "More frames, less noise, and as much more time and dose."),
    "scan.trigger": Word("Trigger input", "Where the pulses of the stage come in, and which edge counts."),
    "scan.n_flats": Word(
        "Flats in a series", "Frames of the open beam, which views are divided by; 0: the calibration's."
    ),
    "scan.flats_every_n_views": Word("Flats every … views", "A series comes before so many views, and at the end."),
    "scan.threshold": Word("Threshold that goes", "Its number; all: the lowest, and the others keep their distances."),
    "scan.start_kev": Word("From", "Where the threshold begins."),
    "scan.stop_kev": Word("To", "Where it ends."),
    "scan.step_kev": Word("Step", "From one position to the next."),
    "scan.shifts_mm": Word(
        "Camera at", "Places along its rows, ascending: several see a sample wider than the camera. 0 is the middle."
    ),
    "scan.passes_kev": Word(
        "Passes",
        "Thresholds of each pass over the sample, passes parted by |, instead of those of the detector: more energies "
        "than the chip has thresholds. Empty: one pass.",
    ),
    "scan.direction": Word("Direction", "both: scan backwards too; forward: go back first, for a stage with backlash."),
    "scan.n_views": Word("Views", "Angles at which the sample is looked at; as many as 1.5 times the columns see all."),
    "scan.arc_deg": Word("Arc", "360 is a circle; a short scan is 180 and the fan."),
    "scan.tile_order": Word("Order of places", "tile: a whole scan at one place first; view: each view at all places."),
    "scan.pass_order": Word("Order of passes", "scan: a whole scan in one pass first; view: each view in all passes."),
    "scan.period_s": Word("Time per view", "While the stage turns; 0: as short as exposure and readout allow."),
    "scan.length_mm": Word("Length", "Of the sample along the axis; the helix is half a turn longer at each end."),
    "scan.pitch_mm": Word("Pitch", "How far the sample climbs in a turn; the camera's height sets the most."),
    "scan.centre_mm": Word("Centre", "The lift at which the middle of the sample is in the beam."),
    "scan.views_per_turn": Word("Views per turn", "Angles at which the sample is looked at in each turn."),
    "scan.motion": Word("Motion", "step: stands still for each view; continuous: turns and climbs without a stop."),
}
"""Every key of a plan but those of its calibration, which the page Calibrate has."""
