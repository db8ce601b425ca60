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
MOST_APART = 0.05
"""Mean difference of greys, 0 to 1; pages differ from each other by 0.03 to 0.4, one day from another by 0.004."""
MOVING = {"3-calibrating"}
"""Caught while its plots grow, at another moment each day."""

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


def test_the_graphics_card_drew_the_volume_to_its_end(day: tuple[Path, dict]) -> None:
    """Mesa's under Xvfb; a processor that stands in unasked would look nearly alike."""
    _, made = day
    assert made["has_gl"], f"the processor drew: {made['renderer']}"
    assert made["renderer"] not in ("", "starting")
    assert made["is_complete"]


def test_the_day_s_volume_is_exported(day: tuple[Path, dict]) -> None:
    folder, made = day
    assert {Path(path).suffix for path in made["exported"]} == {".nrrd"}
    assert all((folder / path).stat().st_size > 1000 for path in made["exported"])


def test_every_stage_looks_as_in_the_docs(day: tuple[Path, dict]) -> None:
    folder, made = day
    docs = {path.stem: coarse(path) for path in DOCS.glob("*.png")}
    assert set(made["pictures"]) == set(docs)
    for name in made["pictures"]:
        ours = coarse(folder / f"{name}.png")
        assert ours.std() > 0.02, f"{name} shows nothing"
        if name in MOVING:
            continue
        apart = {other: float(np.abs(ours - picture).mean()) for other, picture in docs.items()}
        assert min(apart, key=apart.__getitem__) == name, f"{name} looks rather like another: {apart}"
        assert apart[name] < MOST_APART, f"{name} is {apart[name]:.3f} from the docs'"


def coarse(path: Path) -> np.ndarray:
    """Return a picture as a few grey squares."""
    return resize(imread(path)[..., :3].mean(axis=2) / 255, COARSE, anti_aliasing=True)
