"""A window that is killed in the middle of a scan: the next one offers the scan, goes on with it, and it is whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from acquisition.plan import plan_from_toml
from acquisition.scan import ImageKey, ScanStatus
from acquisition.scan_file import read_scan
from acquisition.scan_layout import partial_path
from calibration.store import save
from tests.gui.killed_run import CALIBRATION, PLAN
from tests.rough_calibration import rough_calibration

SCRIPT = Path(__file__).with_name("killed_run.py")
N_VIEWS, N_FRAMES = 20, 20 + 3 * 2
SMALL = f"""
[scan]
n_views = {N_VIEWS}
frames_per_view = 1
flats_every_n_views = 10
n_flats = 2

[detector]
exposure_s = 0.05
"""
KILLED_AT = 8
"""The flats and some views are there by then, and most are missing."""


def window(what: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), what, str(folder)]
    environment = os.environ | {"QT_QPA_PLATFORM": "offscreen"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_window_that_is_killed_in_a_scan_is_opened_again_and_the_scan_ends_whole(tmp_path: Path) -> None:
    plan = plan_from_toml(SMALL)
    (tmp_path / PLAN).write_text(SMALL)
    save(rough_calibration(plan), tmp_path / CALIBRATION)
    with window("begin", tmp_path) as first:
        assert first.stdout is not None
        n_there = next(int(line) for line in first.stdout if int(line) >= KILLED_AT)
        first.kill()
    path = tmp_path / "vials.h5"
    left = read_scan(partial_path(path), allow_partial=True)
    assert left.status is ScanStatus.RUNNING
    assert 0 < left.shape[0] <= n_there + 2

    with window("go-on", tmp_path) as second:
        out, _ = second.communicate()
    assert second.returncode == 0, out
    made = json.loads(out.splitlines()[-1])
    assert made["failures"] == []
    assert f"{left.shape[0]} of {N_FRAMES} frames" in made["offered"]
    assert f"is complete: {N_FRAMES} frames" in made["told"]
    assert "none lost" in made["told"]
    assert not made["is_offered_still"]
    assert (made["page"], made["n_tries"]) == ("Reconstruct", 1)

    scan = read_scan(path)
    assert (scan.status, scan.shape[0], scan.n_lost) == (ScanStatus.COMPLETE, N_FRAMES, 0)
    views = scan.indices(ImageKey.PROJECTION)
    angles_deg, n_times = np.unique(np.degrees(scan.angles_rad[views]).round(6), return_counts=True)
    assert angles_deg.tolist() == (np.arange(N_VIEWS) * 360 / N_VIEWS).tolist()
    assert set(n_times) == {1}
    assert len(scan.indices(ImageKey.FLAT)) == 6
    assert not partial_path(path).exists()
