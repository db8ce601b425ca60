"""The whole walk as a user walks it: the demo, its stages as separate commands, and what may go wrong on the way."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import mpxct as front_door
from acquisition.scan import ImageKey
from acquisition.scan_file import read_scan
from calibration import store
from reconstruction.volume import load_volume

ROOT = Path(__file__).resolve().parent.parent
SMALL_PLAN = """
[scan]
n_views = 12
frames_per_view = 1
flats_every_n_views = 6
n_flats = 4
"""
SMALL_DEMO = """
[scan]
n_views = 24
frames_per_view = 1
flats_every_n_views = 12
n_flats = 4

[calibration]
sources = ["Am-241", "Pb"]
n_dark_frames = 5
n_flat_frames = 10
n_cell_frames = 10

[calibration.equalisation]
max_rounds = 1

[calibration.energy]
end_point_kvp = 0.0
"""
"""Each step of the demo, and each but a little: what must agree to the bit needs no statistics."""

pytestmark = pytest.mark.timeout(1000)


def mpxct(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error::UserWarning", str(ROOT / "mpxct.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=900, check=False)


def here(*arguments: str | Path) -> int:
    """Run a command in this process, which knows its sensor already, and return the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mpxct", *map(str, arguments)])
        try:
            front_door.main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def succeed(*arguments: str | Path, cwd: Path) -> dict:
    done = mpxct(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if "--json" in arguments else {"text": done.stdout}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("walk")
    return folder / "demo", succeed("demo", "--out", "demo", "--json", cwd=folder)


def test_demo_measures_its_materials(demo: tuple[Path, dict]) -> None:
    _, figures = demo
    assert set(figures) == {"seconds", "materials", "crosstalk_rmse_mg_ml", "threshold_sigma_kev", "lost_frames"}
    assert set(figures["materials"]) == {"iodine", "gadolinium", "hydroxyapatite"}
    for name, measured in figures["materials"].items():
        assert set(measured) == {"r2", "slope", "offset_mg_ml", "worst_mg_ml"}
        assert measured["r2"] >= 0.99, name
        assert 0.97 <= measured["slope"] <= 1.03, name
    assert figures["materials"]["iodine"]["worst_mg_ml"] < 0.5
    assert figures["materials"]["gadolinium"]["worst_mg_ml"] < 0.7
    assert figures["crosstalk_rmse_mg_ml"] < 2
    assert figures["threshold_sigma_kev"]["after"] < 0.3 < 2 < figures["threshold_sigma_kev"]["before"]
    assert figures["lost_frames"] == 0


def test_demo_leaves_its_files(demo: tuple[Path, dict]) -> None:
    folder, _ = demo
    names = {
        "scan.h5",
        "scan.log",
        "scan.jsonl",
        "calibration.h5",
        "volume.h5",
        "materials.h5",
        "phantom.toml",
        "picture.png",
        "report.html",
    }
    assert {path.name for path in folder.iterdir()} == names
    html = (folder / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", html), "the report must need no other file"
    for word in ("iodine", "gadolinium", "hydroxyapatite", "slope", "keV"):
        assert word in html
    scan = read_scan(folder / "scan.h5")
    assert scan.calibration_identity == store.load(folder / "calibration.h5").identity
    assert load_volume(folder / "materials.h5").provenance.calibration_identity == scan.calibration_identity


def test_the_demo_is_judged_by_its_own_phantom(demo: tuple[Path, dict]) -> None:
    folder, figures = demo
    told = succeed("quality", folder / "materials.h5", folder / "phantom.toml", "--json", cwd=folder.parent)
    assert abs(told["pose"]["x_mm"]) + abs(told["pose"]["y_mm"]) < 0.1
    assert told["matched"]["mtf50_per_mm"] > 1
    for name, measured in told["matched"]["materials"].items():
        assert 0.97 <= measured["slope"] <= 1.03, name
        assert measured["r2"] >= 0.99, name
        assert measured["auc"] > 0.8, name
    assert set(told["matched"]["materials"]) == set(figures["materials"])


@pytest.mark.slow
def test_separate_commands_give_what_the_demo_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.toml").write_text(SMALL_DEMO)
    device = ("--device", "sim:demo")
    succeed("calibrate", "all", *device, "--plan", "plan.toml", "-o", "calibration.h5", cwd=tmp_path)
    succeed("acquire", "plan.toml", *device, "--calibration", "calibration.h5", "-o", "scan.h5", cwd=tmp_path)
    succeed("reconstruct", "scan.h5", "-o", "volume.h5", cwd=tmp_path)
    succeed("decompose", "volume.h5", "-o", "materials.h5", cwd=tmp_path)
    succeed("view", "materials.h5", "--png", "picture.png", cwd=tmp_path)
    assert here("demo", "--plan", "plan.toml", "--out", "demo") == 0
    ours, theirs = read_scan(tmp_path / "scan.h5"), read_scan(tmp_path / "demo" / "scan.h5")
    np.testing.assert_array_equal(ours.counts(), theirs.counts())
    np.testing.assert_allclose(
        load_volume(tmp_path / "materials.h5").values, load_volume(tmp_path / "demo" / "materials.h5").values, atol=1e-4
    )
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"


def test_each_file_of_the_demo_tells_what_it_is(demo: tuple[Path, dict], capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("calibration.h5", "scan.h5", "volume.h5", "materials.h5"):
        assert here("info", demo[0] / name, "--json") == 0
        assert json.loads(capsys.readouterr().out)["kind"] in name + "materials.h5 is a volume"


def test_real_bins_become_materials_and_a_picture(test_data: Path, tmp_path: Path) -> None:
    folder = test_data / "mr-bmd"
    arguments = ("decompose", folder, "--matrix", folder / "decomposition_matrix.csv", "--scale", "0.0453")
    figures = succeed(*arguments, "-o", "mouse.h5", "--json", cwd=tmp_path)
    assert set(figures["cuvettes"]) == {"iodine", "barium", "gadolinium"}
    for agent, cuvette in figures["cuvettes"].items():
        agents = {name: cuvette["mean_g_cm3"][name] for name in figures["cuvettes"]}
        assert max(agents, key=agents.__getitem__) == agent
        assert 0.025 < agents[agent] < 0.045
    assert (tmp_path / "mouse.png").stat().st_size > 100_000


@pytest.fixture
def small(demo: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str | Path, ...]:
    """Go to `tmp_path` and return the arguments of a short scan there, to which a device is added."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.toml").write_text(SMALL_PLAN)
    return ("acquire", "plan.toml", "--calibration", demo[0] / "calibration.h5", "-o", "scan.h5")


def test_lost_frames_are_told_and_survive_the_reconstruction(
    small: tuple[str | Path, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert here(*small, "--device", "sim:demo?drop=9&corrupt=14") == 3
    assert "2 of 24 frames were lost" in capsys.readouterr().err
    scan = read_scan("scan.h5")
    assert scan.n_lost == 2
    np.testing.assert_array_equal(scan.indices(ImageKey.INVALID), [9, 14])


def test_unplugged_device_leaves_a_partial_file_and_the_scan_is_resumed(
    small: tuple[str | Path, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert here(*small, "--device", "sim:demo?unplug_after=10", "--reconnect-s", "0") == 3
    # The plug is pulled once ten frames have left the board; the last of them may be on its way then.
    said = capsys.readouterr().err
    assert "--resume" in said
    told = re.search(r"(\d+) of 24 frames", said)
    assert told is not None, said
    assert int(told[1]) in (8, 9, 10)
    assert not Path("scan.h5").exists()
    assert len(read_scan("scan.partial.h5", allow_partial=True).image_key) == int(told[1])
    assert here("reconstruct", "scan.partial.h5") == 1
    capsys.readouterr()
    assert here(*small, "--device", "sim:demo", "--resume", "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["n_frames"], figures["n_lost"], figures["status"]) == (24, 0, "complete")
    assert figures["n_resumed"] + figures["n_repeated"] == int(told[1])


def test_a_device_that_is_plugged_in_again_goes_on(
    small: tuple[str | Path, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert here(*small, "--device", "sim:demo?unplug_after=10", "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["n_frames"], figures["n_lost"], figures["status"]) == (24, 0, "complete")
    kinds = [event.kind for event in read_scan("scan.h5").events]
    assert kinds.count("reconnected") >= 2


def test_interrupt_stops_cleanly(small: tuple[str | Path, ...], tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(SMALL_PLAN.replace("n_views = 12", "n_views = 5000"))
    command = [sys.executable, str(ROOT / "mpxct.py"), *map(str, small), "--device", "sim:demo"]
    running = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    assert any(line.startswith("scan") for line in running.stderr), "no line for the first frame"
    time.sleep(1.0)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert "Traceback" not in said
    assert len(read_scan(tmp_path / "scan.partial.h5", allow_partial=True).image_key) > 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("demo", "--nonsense"), 2, "nonsense"),
        (("nonsense",), 2, "nonsense"),
        (("acquire", "none.toml", "--device", "sim:demo"), 2, "none.toml"),
        (("calibrate", "all", "--device", "nowhere:1", "-o", "c.h5"), 2, "usb"),
        (("calibrate", "all", "--device", "sim:nothing", "-o", "c.h5"), 2, "demo"),
        (("acquire", "wrong.toml", "--device", "sim:demo"), 2, "n_vews"),
        (("acquire", "value.toml", "--device", "sim:demo"), 2, "n_views"),
        (("acquire", "good.toml", "--device", "sim:demo"), 1, "calibration"),
        (("acquire", "good.toml", "--device", "sim:demo", "--calibration", "foreign.h5"), 1, "foreign.h5"),
        (("info", "foreign.h5"), 1, "foreign.h5"),
        (("info", "empty.mib"), 1, "empty.mib"),
        (("info", "missing.mib"), 1, "missing.mib"),
        (("view", "foreign.h5", "--png", "x.png"), 1, "foreign.h5"),
        (("convert", "foreign.h5", "x.h5"), 1, "foreign.h5"),
        (("reconstruct", "foreign.h5"), 1, "foreign.h5"),
        (("decompose", "foreign.h5"), 1, "foreign.h5"),
        (("decompose", ".", "--matrix", "missing.csv"), 1, ""),
    ],
)
def test_bad_input_is_one_sentence_and_an_exit_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.toml").write_text(SMALL_PLAN)
    (tmp_path / "wrong.toml").write_text("[scan]\nn_vews = 12\n")
    (tmp_path / "value.toml").write_text("[scan]\nn_views = -3\n")
    (tmp_path / "foreign.h5").write_bytes(b"this is a letter, not a file of data" * 40)
    (tmp_path / "empty.mib").write_bytes(b"")
    before = {path.name for path in tmp_path.iterdir()}
    assert here(*arguments) == code
    said = capsys.readouterr().err
    assert words in said
    assert 1 <= len(said.strip().splitlines()) <= 6, said
    assert {path.name for path in tmp_path.iterdir()} == before, "nothing half-written may stay"


def test_a_command_that_fails_tells_so_outside_this_process_too(tmp_path: Path) -> None:
    done = mpxct("reconstruct", "missing.h5", cwd=tmp_path)
    assert done.returncode == 1
    assert "missing.h5" in done.stderr
    assert "Traceback" not in done.stderr
