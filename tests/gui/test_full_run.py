"""A whole day in the window under a screen that is not there, with pictures of every stage, held against the docs'.

Where `MPXCT_PICTURES` names a folder the pictures are kept there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from skimage.io import imread
from skimage.transform import resize

from calibration.store import load
from reconstruction.volume import load_volume

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "window"
SCREEN = "-screen 0 1600x1000x24 +extension GLX"
COARSE = (40, 64)
"""Pictures are compared so coarsely that fonts and noise do not count, and what stands where does."""

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("xvfb-run") is None, reason="no xvfb-run; sh .ci/desktop installs it"),
]


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("day")
    day = Path(__file__).with_name("full_run.py")
    command = ["xvfb-run", "-a", "-s", SCREEN, sys.executable, str(day), str(folder)]
    environment = {name: value for name, value in os.environ.items() if name != "QT_QPA_PLATFORM"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=850, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    kept = os.environ.get("MPXCT_PICTURES")
    if kept:
        shutil.copytree(folder, kept, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.h5"))
    return folder, json.loads(done.stdout.splitlines()[-1])


def test_the_day_ends_without_a_failure_and_with_its_files(day: tuple[Path, dict]) -> None:
    folder, made = day
    assert made["failures"] == 0
    calibration = load(next(folder.glob("calibration-*.h5")))
    assert calibration.sigmas_kev[1] < 0.3
    materials = load_volume(folder / "vials-materials.h5")
    assert set(materials.channels) == {"water", "iodine", "gadolinium", "hydroxyapatite"}
    assert materials.provenance.calibration_identity == calibration.identity
    assert "Traceback" not in (folder / "window.log").read_text()


def test_the_day_s_volume_is_exported(day: tuple[Path, dict]) -> None:
    folder, made = day
    assert {Path(path).suffix for path in made["exported"]} == {".nrrd"}
    assert all((folder / path).stat().st_size > 1000 for path in made["exported"])


def test_every_stage_looks_as_in_the_docs(day: tuple[Path, dict]) -> None:
    folder, made = day
    for name in made["pictures"]:
        ours, docs = (coarse(path) for path in (folder / f"{name}.png", DOCS / f"{name}.png"))
        assert ours.std() > 0.02, f"{name} shows nothing"
        likeness = np.corrcoef(ours.ravel(), docs.ravel())[0, 1]
        assert likeness > 0.8, f"{name} is {likeness:.2f} like the docs'"


def coarse(path: Path) -> np.ndarray:
    """Return a picture as a few grey squares."""
    return resize(imread(path)[..., :3].mean(axis=2) / 255, COARSE, anti_aliasing=True)
