"""How far a long piece of work has come, and what shows it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import NamedTuple, Protocol, TypeVar

T = TypeVar("T")
LOOK_S = 0.2
"""How often it is looked whether work without steps has ended."""


class Progress(NamedTuple):
    """One step of a long work, of 0 where nobody knows of how many; the generator that yields it returns the result.

    The same generator serves a test's ``for``, the command line's bar and a window's worker, and all can stop it.
    """

    stage: str
    done: int
    total: int


def finished(work: Generator[Progress, None, T]) -> T:
    """Run a work to its end, with nobody looking on, and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def retold(work: Generator[Progress, None, T], tell: Callable[[Progress], Progress]) -> Generator[Progress, None, T]:
    """Run a work, and tell each of its steps as `tell` has it; returns its result, and ends it where this is ended."""
    try:
        while True:
            try:
                progress = next(work)
            except StopIteration as end:
                return end.value
            yield tell(progress)
    finally:
        work.close()


def telling(work: Callable[[Callable[[Progress], None]], T]) -> Generator[Progress, None, T]:
    """Run what cannot yield by itself, such as the solver of a library that calls a function of ours again and again.

    It runs in a thread of its own, for it must be left alone between two steps. Where this is ended, it ends at the
    next step that it tells.

    Parameters
    ----------
    work : callable
        Gets what it shall tell each of its steps to, and returns the result.
    """
    steps: SimpleQueue[Progress | None] = SimpleQueue()
    is_ended = Event()

    def tell(progress: Progress) -> None:
        if is_ended.is_set():
            raise _Ended
        steps.put(progress)

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="telling") as pool:
        running = pool.submit(work, tell)
        running.add_done_callback(lambda _: steps.put(None))
        try:
            while (progress := steps.get()) is not None:
                yield progress
            return running.result()
        finally:
            is_ended.set()


class _Ended(Exception):
    """Nobody wants the result any more."""


def beside(stage: str, work: Callable[[], T]) -> Generator[Progress, None, T]:
    """Run what has no steps in a thread of its own; where this is ended, it goes on, and its result is thrown away.

    Parameters
    ----------
    work : callable
        Computes, and changes nothing that anybody else has.
    """
    running: Future[T] = Future()

    def run() -> None:
        try:
            running.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            running.set_exception(error)

    Thread(target=run, name=stage, daemon=True).start()
    while not wait([running], LOOK_S).done:
        yield Progress(stage, 0, 0)
    return running.result()


class Console(Protocol):
    """What a command line gets to show things with; `mpxct.py` makes it and hands it down as typer's ``ctx.obj``."""

    def track(self, work: Generator[Progress, None, T], stop: Callable[[], object] | None = None) -> T:
        """Run a long work to its end under a progress bar and return its result.

        Parameters
        ----------
        stop : callable, optional
            What the first Ctrl-C, or a SIGTERM, does instead of breaking the work off; the second breaks it off.
        """
        ...

    def say(self, text: str) -> None:
        """Tell the person something; standard error, so that figures on standard output stay clean."""
        ...

    def emit(self, figures: Mapping[str, object], text: str, *, as_json: bool) -> None:
        """Print the result on standard output: as one JSON object, or as text for people."""
        ...

    def picture(self, file: Path) -> Path:
        """Draw a file of ours beside it, under its own name, and return the picture's path."""
        ...

    def report(self, file: Path) -> Path:
        """Write the report of a calibration file beside it, under its own name, and return the report's path."""
        ...
