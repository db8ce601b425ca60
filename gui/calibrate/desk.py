"""What lies on the desk while one calibrates: the candidate, what runs, what failed, and the plan with its undo.

The calibration in use is changed by `accept` and by nothing else: whatever a run does or however it ends, the session
goes on with the one that it had.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from acquisition.calibrate.steps import STEPS
from acquisition.calibrate.watch import Watch
from acquisition.plan import Plan
from calibration.store import Calibration
from gui.calibrate.options import why_not_together, with_text
from gui.calibrate.run import calibrate, conditions_now
from gui.calibrate.sequence import TITLES, Standing, StepView, last_times_s, views
from gui.session import Session
from gui.state import Action
from gui.undo import History
from gui.workers import Job, JobStatus

LEFT_OUT = "left out: this detector cannot do it; run it alone to read why"


class Desk:
    """Works on a session.

    Attributes
    ----------
    candidate : Calibration, optional
        What was measured and is neither accepted nor discarded yet; on it the next step builds.
    discarded : Calibration, optional
        The candidate that was discarded last, until another is there.
    failed : dict of str to (Standing, str)
        How steps ended that did not end well when they were last tried, and why.
    took_s : dict of str to float
        How long each step took when it last ran here.
    watch : Watch, optional
        Of what runs, or ran last.
    is_forced : bool
        Whether steps go on upon a calibration of other conditions.
    run_plan : Plan, optional
        By which the run goes on, or went last: what is changed meanwhile is for the next.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.candidate: Calibration | None = None
        self.discarded: Calibration | None = None
        self.failed: dict[str, tuple[Standing, str]] = {}
        self.took_s: dict[str, float] = {}
        self.watch: Watch | None = None
        self.is_forced = False
        self.run_plan: Plan | None = None
        self._names: tuple[str, ...] = ()
        self._job: Job[Calibration] | None = None
        self._is_over = threading.Event()
        self._plans: History[Plan] = History(session.state.plan)

    @property
    def known(self) -> Calibration | None:
        """What the next step builds on: the candidate, or else the calibration in use."""
        return self.measured or self.session.state.calibration

    @property
    def measured(self) -> Calibration | None:
        """What is not accepted yet: the candidate, or what the run that goes on has done so far."""
        seen = self.watch.newest if self.job is not None and self.watch is not None else None
        return seen.calibration if seen is not None and seen.done and seen.calibration is not None else self.candidate

    @property
    def job(self) -> Job[Calibration] | None:
        """The run that goes on; None where none does."""
        return self._job if self._job is not None and not self._job.is_over else None

    @property
    def running(self) -> str:
        """The step that runs now; empty where none does."""
        return self.watch.newest.step if self.job is not None and self.watch is not None else ""

    @property
    def coming(self) -> tuple[str, ...]:
        """The steps of the run that follow the one that runs now."""
        running = self.running
        if self.job is None:
            return ()
        every = [name for name in STEPS if name in self._names]
        return tuple(every[every.index(running) + 1 :] if running else every)

    @property
    def steps(self) -> tuple[StepView, ...]:
        """How every step stands."""
        state = self.session.state
        now = conditions_now(state.plan, self.session.rig.snapshot(), self.known)
        return views(
            state.plan, state.calibration, self.measured, running=self.running, coming=self.coming, failed=self.failed,
            now=now,
        )  # fmt: skip

    def last_s(self, name: str) -> float | None:
        """Return how long a step took last time; None where that is not known."""
        history = self.known.history if self.known is not None else ()
        return self.took_s.get(name) or last_times_s(history).get(name)

    def why_not_run(self, name: str) -> str:
        """Return why a step cannot be run now; empty where it can."""
        if why := self.session.why_not(Action.CALIBRATE):
            return why
        return next(step.why_not for step in self.steps if step.name == name) or why_not_together(
            name, self.session.state.plan
        )

    def why_not_run_all(self) -> str:
        """Return why the plan's steps cannot be run now; empty where they can."""
        if why := self.session.why_not(Action.CALIBRATE):
            return why
        names = self.session.state.plan.calibration.steps
        unknown = [name for name in names if name not in STEPS]
        if unknown or not names:
            return f"The plan's calibration.steps names {', '.join(unknown) or 'nothing'}; allowed: {', '.join(STEPS)}."
        for name in names:
            lacking = [TITLES[need] for need in STEPS[name].needs if need not in names]
            if lacking:
                return f"The plan's steps lack {' and '.join(lacking)}, which {TITLES[name]} needs."
        return next((why for name in names if (why := why_not_together(name, self.session.state.plan))), "")

    def run(self, names: Sequence[str], *, is_new: bool = False) -> None:
        """Run some steps on the instrument, on what is known so far or from the beginning; ask `why_not_run` first."""
        self._is_over.clear()
        self.watch = watch = Watch()
        for name in names:
            self.failed.pop(name, None)
        base = None if is_new else self.known
        self._names, self.run_plan = tuple(names), self.session.state.plan
        work = calibrate(names, self.run_plan, base, watch, is_forced=self.is_forced, is_over=self._is_over.is_set)
        title = TITLES[names[0]] if len(names) == 1 else "Calibration"
        self._job = self.session.measure(title, work, self._take, stop=self._is_over.set, otherwise=self._take_part)

    def accept(self, found: Calibration, path: Path) -> None:
        """Make what was saved the calibration in use; another candidate that came meanwhile goes on waiting."""
        if self.candidate is found:
            self.candidate = None
        self.session.change(calibration=found, calibration_path=path)

    def discard(self) -> None:
        """Put the candidate away; `bring_back` takes it again."""
        self.discarded, self.candidate = self.candidate, None
        self.failed.clear()

    def bring_back(self) -> None:
        """Take the candidate that was discarded last."""
        self.candidate, self.discarded = self.discarded, None

    def edit(self, path: str, text: str) -> None:
        """Set a value of the plan as typed.

        Raises
        ------
        WrongUsage
            The plan does not allow it; nothing is changed.
        """
        self.take_plan()
        plan = with_text(self._plans.now, path, text)
        if plan != self._plans.now:
            self._plans.edit(plan)
            self.session.change(plan=plan)

    def take_plan(self) -> None:
        """Begin anew where the plan was changed elsewhere, which is to be taken back there."""
        if self._plans.now != self.session.state.plan:
            self._plans = History(self.session.state.plan)

    @property
    def can_undo(self) -> bool:
        """Whether a change of the plan can be taken back."""
        return self._plans.can_undo

    @property
    def can_redo(self) -> bool:
        """Whether a change of the plan can be made again."""
        return self._plans.can_redo

    def undo(self) -> None:
        """Take the last change of the plan back that was made here."""
        self.take_plan()
        self.session.change(plan=self._plans.undo())

    def redo(self) -> None:
        """Make the change of the plan again that was taken back."""
        self.take_plan()
        self.session.change(plan=self._plans.redo())

    def _take(self, found: Calibration) -> None:
        self._note_times()
        done = self.watch.newest.done if self.watch is not None else ()
        if done:
            self.candidate, self.discarded = found, None
        if not self._is_over.is_set():
            self.failed |= {name: (Standing.LEFT_OUT, LEFT_OUT) for name in self._names if name not in done}

    def _take_part(self, status: JobStatus) -> None:
        """Keep the steps that were done before one failed or was broken off."""
        self._note_times()
        assert self.watch is not None
        assert self._job is not None
        seen = self.watch.newest
        if seen.done and seen.calibration is not None:
            self.candidate, self.discarded = seen.calibration, None
        error = self._job.snapshot().error
        if status is JobStatus.FAILED and seen.step and error is not None:
            self.failed[seen.step] = (Standing.FAILED, f"failed: {error}")
        elif seen.step and seen.step not in seen.done:
            self.failed[seen.step] = (Standing.STOPPED, "broken off; what it had measured was not kept")

    def _note_times(self) -> None:
        if self.watch is not None:
            self.took_s |= self.watch.newest.took_s
