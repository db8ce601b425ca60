"""Frames and calibrations for the tests of scan files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from acquisition.scan import ImageKey, Readout
from acquisition.scan_writer import ScanWriter
from acquisition.steps import Pose
from calibration.store import Calibration
from firmware_iface.frame import Frame

ROOT = Path(__file__).resolve().parent.parent
READOUT = Readout(shape=(2, 6, 5), depth_bits=12, thresholds=(1, 3), thresholds_kev=(18.0, 33.0), pitch_mm=0.11)


def frame(sequence: int, readout: Readout = READOUT, **changes: object) -> Frame:
    counts = np.random.default_rng(sequence).integers(0, 1 << readout.depth_bits, readout.shape)
    values = {
        "counts": counts.astype(readout.dtype),
        "thresholds": readout.thresholds,
        "sequence": sequence,
        "timestamp_ns": 1000 * sequence + 7,
        "exposure_ns": 500_000_000,
        "run_id": 9,
    }
    return Frame(**{**values, **changes})  # type: ignore[arg-type]


def calibration_record() -> Calibration:
    planes = (8, 4, 4)
    return Calibration(
        created="2026-01-01T00:00:00Z",
        software="1",
        device="board",
        chip_id="W1",
        gain="HGM",
        is_csm=True,
        is_colour=True,
        bias_v=300.0,
        dacs={"Threshold0": 20},
        trim=np.arange(128, dtype=np.uint8).reshape(planes) % 32,
        is_masked=np.zeros(planes, bool),
        pixel_class=np.zeros(planes[1:], np.uint8),
        target_dac=15.0,
        edges_before_dac=np.ones(planes, np.float32),
        edges_after_dac=np.ones(planes, np.float32),
        offset_dac=np.full(8, 10.0),
        gain_dac_per_kev=np.full(8, 4.0),
        lines=(),
        thresholds_kev=(18.0, 33.0),
    )


def shaped_like(calibration: Calibration, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    names = ("trim", "is_masked", "edges_before_dac", "edges_after_dac", "pixel_class")
    arrays = {name: getattr(calibration, name) for name in names}
    return {name: np.zeros((*array.shape[:-2], *shape), array.dtype) for name, array in arrays.items()}


def write_scan(path: Path, n_frames: int = 5, **options: object) -> list[Frame]:
    frames = [frame(n) for n in range(n_frames)]
    with ScanWriter(path, READOUT, n_frames=n_frames, **options) as writer:  # type: ignore[arg-type]
        for item in frames:
            writer.write(item, ImageKey.PROJECTION, Pose(angle_rad=0.1 * item.sequence))
        writer.finish()
    return frames


def fill_steps(writer: ScanWriter, first: int, stop: int) -> None:
    for n in range(first, stop):
        writer.write(frame(n), ImageKey.PROJECTION, Pose(angle_rad=0.1 * n, lift_mm=n, shift_mm=-n), pass_index=n % 2)
