"""Abort in mid-calibration, on the whole simulated instrument: the beam is off, the chip usable, nothing changed."""

from __future__ import annotations

from dataclasses import replace

import msgspec
from pytestqt.qtbot import QtBot

from acquisition.plan import Plan
from gui.calibrate.desk import Desk
from gui.session import Session
from gui.state import Link
from tests.gui.calibration_stand import record
from tests.rough_calibration import rough_calibration

TIMEOUT_MS = 60_000


def test_abort_under_the_beam_leaves_the_simulated_instrument_safe_and_usable(qtbot: QtBot, session: Session) -> None:
    replaced = msgspec.structs.replace
    calibration = replaced(Plan().calibration, n_dark_frames=1, n_flat_frames=400)
    plan = replaced(Plan(), calibration=calibration, detector=replaced(Plan().detector, exposure_s=0.02))
    rough = rough_calibration(plan)
    in_use = replace(rough, offset_dac=rough.offset_dac + 60, history=(record("equalise"), record("energy")))
    session.change(plan=plan, calibration=in_use)
    session.rig.connect("sim:demo?seed=1")
    desk = Desk(session)

    def until(condition) -> None:
        def look() -> bool:
            session.beat()
            return bool(condition())

        qtbot.waitUntil(look, timeout=TIMEOUT_MS)

    until(lambda: session.rig.snapshot().link is Link.READY)
    desk.run(["pixels"])
    until(lambda: desk.watch is not None and any(each.stage == "flats" for each in desk.watch.newest.series))
    assert desk.job is not None
    desk.job.abort()
    until(lambda: desk.job is None and session.job("instrument") is None)
    assert session.state.calibration is in_use
    assert desk.candidate is None
    assert not session.failures
    until(lambda: session.rig.snapshot().link is Link.READY and session.rig.snapshot().source is not None)
    source = session.rig.snapshot().source
    assert source is not None
    assert source.is_beam_on is False
    quick = replaced(calibration, n_flat_frames=2)
    session.change(plan=replaced(plan, calibration=quick))
    desk.run(["pixels"])
    until(lambda: desk.job is None and session.job("instrument") is None)
    assert not session.failures
    assert desk.candidate is not None
    assert desk.candidate.history[-1].step == "pixels"
