"""Volumes to export, with no symmetry at all: a flip, a turn or a swap of axes or channels shows."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

from calibration.material_basis import MaterialBasis
from calibration.progress import Progress
from gui.export.content import Content, content_of
from gui.export.formats import Options, export, format_for
from reconstruction.volume import Grid, Provenance, Volume

SHAPE = (4, 5, 7)
VOXEL_MM = 0.11
CENTRE_MM = (1.25, -3.5, 20.0)
ORIGIN_MM = (1.25 - 3 * 0.11, -3.5 - 2 * 0.11, 20.0 - 1.5 * 0.11)
"""Of the centre of the first voxel, by hand: half of n - 1 voxels before the middle."""
MATERIALS = ("water", "iodine", "Gold µ/ü")
BASIS = MaterialBasis(
    materials=("water", "iodine"),
    attenuation_per_mm_per_g_cm3=np.array([[0.03, 0.6], [0.02, 0.9]]),
    thresholds_kev=(20.0, 33.0),
    tube_kvp=118.0,
)
PROVENANCE = Provenance(
    source_file="Gehäuse 7.h5",
    software="0.1.0",
    calibration_identity="864f28b4",
    steps=("360 views", "FDK"),
    plan_json='{"scan": {"sample": "mouse ü-3"}}',
)


def materials(shape: tuple[int, int, int] = SHAPE, **others: Any) -> Volume:
    """Return three materials of random concentrations in g/cm3, no two values alike."""
    values = np.random.default_rng(7).uniform(-0.01, 0.05, (3, *shape)).astype(np.float32)
    values[0] += 1
    return _volume(values, others, channels=MATERIALS, unit="g/cm3")


def bins(shape: tuple[int, int, int] = SHAPE, **others: Any) -> Volume:
    """Return two bins in 1/mm."""
    values = np.random.default_rng(8).uniform(0, 0.06, (2, *shape)).astype(np.float32)
    return _volume(values, others, channels=("20-33 keV", "33+ keV"), unit="1/mm")


def _volume(values: np.ndarray, others: dict[str, Any], **parts: Any) -> Volume:
    grid = Grid(shape=values.shape[1:], voxel_mm=VOXEL_MM, centre_mm=CENTRE_MM)
    known = {"values": values, "grid": grid, "thresholds_kev": (20.0, 33.0), "basis": BASIS, "provenance": PROVENANCE}
    return Volume(**(known | parts | others))


def run(work: Generator[Progress, None, Any]) -> Any:
    """Take a long work to its end; its progress must come to one, stage by stage."""
    last: dict[str, Progress] = {}
    while True:
        try:
            step = next(work)
        except StopIteration as end:
            assert last, "it told no progress"
            assert all(step.done == step.total for step in last.values() if step.stage.startswith("write")), last
            return end.value
        last[step.stage] = step


def exported(volume: Volume | Content, target: Path, name: str | None = None, **options: Any) -> list[Path]:
    """Export a whole volume in its default units."""
    content = volume if isinstance(volume, Content) else content_of(volume)
    return run(export(content, target, format_for(target, name), Options(**options)))
