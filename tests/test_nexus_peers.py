"""Readers of NeXus that share no code with us: ESRF's nxtomo and tomoscan, and punx, which knows the definitions.

They are heavy (0.5 GB) and live in an environment of their own: `make peers` makes it, and MPXCT_NEXUS_PYTHON names
another. Without one these tests are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest

from acquisition.plan import Plan
from acquisition.scan import ImageKey, readout_of
from acquisition.scan_layout import partial_path
from acquisition.scan_writer import ScanWriter
from acquisition.steps import expand
from firmware_iface.frame import Frame

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

READERS = Path(__file__).parent / "peers" / "nexus_readers.py"


@pytest.fixture(scope="module")
def peers() -> Path:
    """Return the Python of the readers' environment, or skip, saying how to make it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    python = Path(os.environ.get("MPXCT_NEXUS_PYTHON", cache / "mpxct" / "nexus" / "bin" / "python"))
    if not python.exists():
        pytest.skip(f"nxtomo, tomoscan and punx are not at {python}; make them by `make peers`")
    return python


@pytest.fixture(scope="module", params=["whole", "part"])
def scan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[ImageKey], int]:
    """Return a scan, what each of its frames is, and how many were written."""
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    plan = Plan()
    plan = msgspec.structs.replace(
        plan, scan=msgspec.structs.replace(plan.scan, n_views=7, n_flats=2, flats_every_n_views=3)
    )
    readout = readout_of(plan)
    steps = [step for step in expand(plan) for _ in range(step.n_frames)]
    n_written = len(steps) if request.param == "whole" else len(steps) - 4
    with ScanWriter(path, readout, n_frames=len(steps), plan=plan, sample="vials", source="TUBE") as writer:
        for n, step in enumerate(steps[:n_written]):
            frame = Frame(
                counts=counts(n, readout.shape), thresholds=readout.thresholds, sequence=n, timestamp_ns=n,
                exposure_ns=10**8, run_id=0,
            )  # fmt: skip
            writer.write(frame, ImageKey[step.kind.name], step.pose)
        if n_written == len(steps):
            writer.finish()
    return (path if path.exists() else partial_path(path)), [ImageKey[step.kind.name] for step in steps], n_written


def counts(n: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 4096, shape, np.uint16)


@pytest.mark.parametrize("plane", [0, 3])
def test_tomography_readers_find_every_frame(peers: Path, scan: tuple[Path, list[ImageKey], int], plane: int) -> None:
    path, keys, n_written = scan
    readout = readout_of(Plan())
    entry = f"entry_threshold_{readout.thresholds[plane]}"
    done = subprocess.run([peers, READERS, path, entry], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["keys"] == [*keys[:n_written], *[ImageKey.INVALID] * (len(keys) - n_written)]
    assert found["pixel_mm"] == pytest.approx(readout.pitch_mm)
    assert found["distance_mm"] == pytest.approx(
        Plan().geometry.source_to_detector_mm - Plan().geometry.source_to_object_mm
    )
    for name, key in (("projections", ImageKey.PROJECTION), ("flats", ImageKey.FLAT)):
        places = [n for n in range(n_written) if keys[n] is key]
        assert {int(place): total for place, total in found[name].items()} == {
            n: int(counts(n, readout.shape)[plane].sum()) for n in places
        }


def test_definitions_know_everything_but_the_channels(peers: Path, scan: tuple[Path, list[ImageKey], int]) -> None:
    """The definitions that punx brings are of 2018, and NXdetector_channel is younger."""
    command = [peers.parent / "punx", "validate", "--report", "ERROR", scan[0]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    errors = [line for line in done.stdout.splitlines() if " ERROR " in line and line.startswith("/")]
    assert "summary statistics" in done.stdout, done.stderr[-2000:]
    assert errors, "it does not even miss the channels: has it looked?"
    assert [line for line in errors if "NXdetector_channel" not in line] == []
