"""A picture of the live view as a file: TIFF with the values themselves, with all that tells how they were taken."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from acquisition.plan import plan_to_json
from gui.live.run import Underway
from gui.live.shown import Shown


def settings_of(shown: Shown, name: str, underway: Underway) -> dict[str, object]:
    """Return everything that tells how a picture was taken, for people and scripts."""
    from calibration.store import software_version  # heavy, and the window is to be there first

    return {
        "what": name,
        "unit": shown.unit,
        "n_frames": shown.picture.n_frames,
        "exposure_s": shown.picture.exposure_s,
        "thresholds": list(shown.picture.thresholds),
        "thresholds_kev": [energy for energy in underway.thresholds_kev if math.isfinite(energy)],
        "calibration": "" if underway.calibration is None else underway.calibration.identity,
        "note": underway.note,
        "row_0": "lowest",
        "pixel_mm": underway.readout.pitch_mm,
        "saved": datetime.now(UTC).isoformat(timespec="seconds"),
        "software": f"mpxct {software_version()}",
        "plan": None if underway.plan is None else json.loads(plan_to_json(underway.plan)),
    }


def save_tiff(path: Path, shown: Shown, settings: dict[str, object]) -> None:
    """Write the image as TIFF, and behind it, as further pages, the counts of every threshold.

    The first page is the image as shown (32-bit float, or 8-bit colour), its row 0 last, so that viewers of TIFF
    show it lowest; so are the counts. Settings are JSON in the description of the first page.
    """
    import tifffile  # not needed before somebody saves

    image = shown.image if shown.is_colour else shown.image.astype(np.float32)
    counts = shown.picture.counts
    per_cm = 10.0 / float(settings["pixel_mm"])  # pyright: ignore[reportArgumentType]
    with tifffile.TiffWriter(path) as file:
        file.write(
            image[::-1],
            photometric="rgb" if shown.is_colour else "minisblack",
            description=json.dumps({**settings, "row_0": "last"}, ensure_ascii=True),
            resolution=(per_cm, per_cm),
            resolutionunit="CENTIMETER",
            software=str(settings["software"]),
            metadata=None,
        )
        for plane, number in zip(counts, shown.picture.thresholds, strict=True):
            is_whole = np.issubdtype(plane.dtype, np.integer) and int(plane.max(initial=0)) < 1 << 32
            kind = np.uint32 if is_whole else np.float64
            file.write(plane[::-1].astype(kind), description=f"counts above threshold {number}", metadata=None)
