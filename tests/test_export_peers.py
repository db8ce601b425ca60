"""Exports as the reference reader of OME-Zarr and the definitions of NeXus see them, in environments of their own.

`make peers` makes those environments; MPXCT_OME_ZARR_PYTHON and MPXCT_NEXUS_PYTHON name others. Without one its tests
are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.gui.export_volumes import ORIGIN_MM, VOXEL_MM, exported, materials

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

READER = Path(__file__).parent / "peers" / "ome_zarr_reader.py"


def python_of(peer: str, variable: str) -> Path:
    """Return the Python of an environment, or skip, saying how to make it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    python = Path(os.environ.get(variable, cache / "mpxct" / peer / "bin" / "python"))
    if not python.exists():
        pytest.skip(f"there is no {python}; make it by `make peers`")
    return python


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_reads_every_voxel_at_its_place(tmp_path: Path, version: str) -> None:
    python = python_of("ome-zarr", "MPXCT_OME_ZARR_PYTHON")
    volume = materials((70, 5, 7))
    (path,) = exported(volume, tmp_path / "a.ome.zarr", zarr_version=version)
    command = [python, READER, path, tmp_path / "values.npy"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["shapes"] == [[3, 70, 5, 7], [3, 35, 3, 4]]
    assert [axis["name"] for axis in found["axes"]] == ["c", "z", "y", "x"]
    assert found["channels"] == ["water (mg/mL)", "iodine (mg/mL)", "Gold µ/ü (mg/mL)"]
    scale, translation = found["transformations"][0]
    assert scale["scale"] == pytest.approx([1, VOXEL_MM, VOXEL_MM, VOXEL_MM])
    assert translation["translation"][2:] == pytest.approx(ORIGIN_MM[1::-1])
    np.testing.assert_array_equal(np.load(tmp_path / "values.npy"), volume.values * np.float32(1000))


def test_the_definitions_of_nexus_know_it_all(tmp_path: Path) -> None:
    python = python_of("nexus", "MPXCT_NEXUS_PYTHON")
    (path,) = exported(materials(), tmp_path / "a.nxs")
    command = [python.parent / "punx", "validate", "--report", "ERROR,WARN,NOTE", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert "summary statistics" in done.stdout, done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("/")]
    assert any(" NOTE " in line for line in lines), "it has not even noted how names are spelled: has it looked?"
    assert [line for line in lines if " ERROR " in line or " WARN " in line] == []
