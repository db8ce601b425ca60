"""How far a long piece of work has come, and what shows it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

T = TypeVar("T")


class Progress(NamedTuple):
    """One step of a long work; the generator that yields it returns the result.

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
