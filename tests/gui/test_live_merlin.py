"""A live view of a Merlin, over its own two sockets: its thresholds in keV, its frames, a flat, and its end."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from acquisition.plan import Plan
from acquisition.runner import RunHealth
from firmware_iface.errors import WrongUsage
from firmware_iface.frame import Lost
from firmware_iface.merlin_device import MerlinDetector
from gui.live.by_energy import look_by_energy
from gui.live.frames import FrameStore
from gui.live.run import LiveRun, live_plan
from sim.merlin_server import MerlinServer
from tests.gui.live_fakes import a_frame
from tests.test_merlin_server import merlin_of

DETECTOR = msgspec.structs.replace(Plan().detector, exposure_s=0.002)


def test_a_merlin_is_looked_at_with_the_thresholds_that_are_asked_for() -> None:
    merlin = merlin_of()
    with (
        MerlinServer(merlin, command_port=0, data_port=0) as server,
        MerlinDetector("127.0.0.1", server.command_port, server.data_port) as detector,
    ):
        instrument = SimpleNamespace(detector=detector, gantry=None)
        told: list[RunHealth] = []
        run = LiveRun(FrameStore(), live_plan(Plan(), DETECTOR), None, on_health=told.append)
        looking = run.work(instrument)  # pyright: ignore[reportArgumentType]
        while run.store.status().n_received < 1:
            next(looking)
        assert "by its own calibration" in run.underway.note
        assert [(health.n_frames, health.n_lost) for health in told] == [(1, 0)]
        newest = run.store.newest()
        assert newest is not None
        assert newest.counts.shape == (4, 128, 128)
        assert newest.thresholds == DETECTOR.thresholds
        assert np.ptp(newest.counts) > 0
        for number, energy_kev in zip(DETECTOR.thresholds, DETECTOR.thresholds_kev, strict=True):
            assert float(merlin.answer(f"GET,THRESHOLD{number}").split(",")[2]) == pytest.approx(energy_kev, abs=0.5)
        has_kev = [float(merlin.answer(f"GET,THRESHOLD{number}").split(",")[2]) for number in DETECTOR.thresholds]
        assert run.underway.thresholds_kev == pytest.approx(has_kev), "as the Merlin has them"
        n_begun = run.n_begun
        run.take_flat(1)
        while run.flat is None:
            next(looking)
        assert run.flat.n_frames == 1
        assert run.flat.thresholds_kev == run.underway.thresholds_kev
        while run.n_begun == n_begun or not run.store.status().n_received:
            next(looking)  # and on it goes
        run.stop()
        list(looking)
        assert list(detector.frames(1, 0.001)), "it is idle, and can be asked for more"


def test_what_a_merlin_loses_and_what_thresholds_it_has_is_told() -> None:
    lost = Lost(run_id=1, first_sequence=1, n_frames=3, reason="gone")
    detector = SimpleNamespace(
        configure=lambda _: None,
        set_thresholds_kev=lambda asked: {number: energy_kev - 0.25 for number, energy_kev in asked.items()},
        frames=lambda *_: (each for each in (a_frame(0), lost)),
    )
    told: list[RunHealth] = []
    has_kev: list[tuple[float, ...]] = []
    list(look_by_energy(detector, live_plan(Plan(), DETECTOR), lambda _: None, told.append, has_kev.append))
    assert has_kev == [tuple(energy_kev - 0.25 for energy_kev in DETECTOR.thresholds_kev)], "whatever was asked for"
    assert [(health.n_frames, health.n_lost) for health in told] == [(1, 0), (4, 3)]


def test_sums_of_exposures_are_refused_of_a_merlin_in_words() -> None:
    summed = msgspec.structs.replace(DETECTOR, accumulate=3)
    run = LiveRun(FrameStore(), live_plan(Plan(), summed), None)
    instrument = SimpleNamespace(detector=SimpleNamespace(set_thresholds_kev=dict), gantry=None)
    with pytest.raises(WrongUsage, match="the sum of 3 exposures; allowed with this detector: 1"):
        list(run.work(instrument))  # pyright: ignore[reportArgumentType]
