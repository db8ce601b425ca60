"""LiberTEM-live, which shares no code with us, on the other end of the wire: sums of every pixel must be the same.

LiberTEM is heavy (1.3 GB) and lives in an environment of its own: `make peers` makes it, and MPXCT_LIBERTEM_PYTHON
names another. Without one these tests are skipped.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from acquisition.merlin_writer import export_merlin
from acquisition.scan import ImageKey, Readout
from acquisition.scan_writer import ScanWriter
from firmware_iface.chip import PITCH_MM
from firmware_iface.configuration import Configuration
from firmware_iface.errors import TransportError
from firmware_iface.frame import Frame
from firmware_iface.merlin_device import MerlinDetector
from firmware_iface.trigger import Trigger, TriggerStart
from sim.merlin_chip import Image
from sim.merlin_server import MerlinServer, simulated_merlin

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CLIENT = Path(__file__).parent / "peers" / "libertem_client.py"
SIDE = 8
"""Frames are taken as a square of this many by this many."""
START_S = 90.0


@pytest.fixture(scope="module")
def libertem() -> Path:
    """Return the Python of LiberTEM's environment, or skip, saying how to make it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    python = Path(os.environ.get("MPXCT_LIBERTEM_PYTHON", cache / "mpxct" / "libertem" / "bin" / "python"))
    if not python.exists():
        pytest.skip(f"LiberTEM-live is not at {python}; make it by `make peers`, or set MPXCT_LIBERTEM_PYTHON")
    return python


# ---- its client, our server ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 6, 12, 24])
def test_its_client_sums_what_our_server_took(
    libertem: Path, tmp_path: Path, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    merlin = simulated_merlin("demo?seed=3")
    taken: list[np.ndarray] = []
    deliver = merlin.deliver

    def note(exposure: object, images: list[Image]) -> None:
        taken.extend(image.counts.astype(np.uint64) for image in images)
        deliver(exposure, images)

    monkeypatch.setattr(merlin, "deliver", note)
    for command in ("SET,COLOURMODE,0", "SET,THRESHOLD0,20", f"SET,COUNTERDEPTH,{depth}"):
        assert merlin.answer(command).endswith(",0")
    with MerlinServer(merlin, command_port=0, data_port=0) as server:
        ports = (str(server.command_port), str(server.data_port))
        command = [libertem, CLIENT, *ports, str(SIDE), str(SIDE), tmp_path / "sums.npz"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    sums = np.load(tmp_path / "sums.npz")
    assert len(taken) == SIDE * SIDE
    assert np.sum(taken) > 0
    assert np.array_equal(sums["total"], np.sum(taken, axis=0))
    assert np.array_equal(sums["per_frame"].ravel(), [image.sum() for image in taken])


# ---- its simulator, our driver ---------------------------------------------------------------------------------------


def write_mib(folder: Path, depth: int, side: tuple[int, int]) -> np.ndarray:
    """Write random frames as a Merlin file, and return them: (n_frames, rows, cols)."""
    readout = Readout(shape=(1, *side), depth_bits=depth, thresholds=(0,), thresholds_kev=(12.0,), pitch_mm=PITCH_MM)
    rng = np.random.default_rng(depth)
    counts = rng.integers(0, 1 << depth, (SIDE * SIDE, 1, *side)).astype(readout.dtype)
    with ScanWriter(folder / "a.h5", readout, n_frames=len(counts)) as writer:
        for place, each in enumerate(counts):
            writer.write(
                Frame(
                    counts=each, thresholds=(0,), sequence=place, timestamp_ns=place, exposure_ns=1_000_000, run_id=0
                ),
                ImageKey.PROJECTION,
            )
        writer.finish()
    list(export_merlin(folder / "a.h5", folder / "a.mib"))
    return counts[:, 0]


@contextmanager
def its_simulator(libertem: Path, folder: Path, ports: tuple[int, int, int]) -> Iterator[None]:
    """Run LiberTEM's simulator on a Merlin file until the block ends."""
    command = [
        libertem.parent / "libertem-live-mib-sim", folder / "a.hdr", "--nav-shape", str(SIDE), str(SIDE),
        "--host", "127.0.0.1", "--wait-trigger", "--cached", "NONE",
        "--control-port", str(ports[0]), "--data-port", str(ports[1]), "--trigger-port", str(ports[2]),
    ]  # fmt: skip
    with (folder / "simulator.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def connect(ports: tuple[int, int, int], log: Path) -> MerlinDetector:
    deadline_s = time.monotonic() + START_S
    while True:
        try:
            return MerlinDetector("127.0.0.1", ports[0], ports[1])
        except TransportError:
            if time.monotonic() > deadline_s:
                raise AssertionError(f"the simulator did not start:\n{log.read_text()[-2000:]}") from None
            time.sleep(0.5)


def free_ports() -> tuple[int, int, int]:
    import socket

    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = tuple(each.getsockname()[1] for each in sockets)
    for each in sockets:
        each.close()
    return ports  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize(
    ("depth", "side"), [(1, (256, 256)), (6, (256, 256)), (12, (256, 256)), (24, (256, 256)), (12, (512, 512))]
)
def test_our_driver_takes_what_its_simulator_sends(
    libertem: Path, tmp_path: Path, depth: int, side: tuple[int, int]
) -> None:
    sent = write_mib(tmp_path, depth, side)
    ports = free_ports()
    with its_simulator(libertem, tmp_path, ports), connect(ports, tmp_path / "simulator.log") as detector:
        detector.configure(Configuration(is_colour=False, is_csm=False, counters=(0,), depth_bits=depth))
        detector.set_trigger(Trigger(start=TriggerStart.SOFTWARE, frames_per_trigger=len(sent)))
        for _ in range(2):  # the second run shows that the first left nothing behind
            came = []
            frames = detector.frames(len(sent), 0.001, on_armed=detector.trigger)
            for frame in frames:
                assert isinstance(frame, Frame)
                came.append(frame)
            assert [frame.sequence for frame in came] == list(range(len(sent)))
            assert np.array_equal(np.stack([frame.counts[0] for frame in came]), sent)
            assert np.sum([frame.counts.sum(dtype=np.uint64) for frame in came]) == sent.sum(dtype=np.uint64)
            assert {frame.exposure_ns for frame in came} == {1_000_000}
        assert detector.acquisition_header["Counter Depth (number)"] == str(depth)
