"""Which pages the window has, and how they come to be: loaded in a thread, and built piece by piece between beats.

A page that nobody has seen yet costs the window's start nothing, and building it never holds the window up.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from gui.page import Page
from gui.session import Session

_log = logging.getLogger("mpxct.window")


@dataclass(frozen=True, slots=True, kw_only=True)
class PageKind:
    """A page that can be built.

    Attributes
    ----------
    title, tip : str
        On its tab, and what it is for in a sentence.
    module, name : str
        Where its class is.
    """

    title: str
    tip: str
    module: str
    name: str

    def load(self) -> type[Page]:
        """Return the class, which may take a while the first time; any thread may ask."""
        return getattr(importlib.import_module(self.module), self.name)


PAGES = (
    PageKind(
        title="Instrument",
        tip="Choose an instrument, and see how it is.",
        module="gui.connect.page",
        name="ConnectPage",
    ),
    PageKind(
        title="Live",
        tip="Look at frames as they come.",
        module="gui.live.page",
        name="LivePage",
    ),
    PageKind(
        title="Calibrate",
        tip="Calibrate the detector step by step.",
        module="gui.calibrate.page",
        name="CalibratePage",
    ),
    PageKind(
        title="Scan",
        tip="Plan a scan, see what it costs, run it, and watch what it sees.",
        module="gui.scan.page",
        name="ScanPage",
    ),
    PageKind(
        title="Reconstruct",
        tip="Turn a scan into volumes of energy bins, and of materials.",
        module="gui.reconstruct.page",
        name="ReconstructPage",
    ),
    PageKind(
        title="Volume",
        tip="Look at volumes: slices, colours, measurements, three dimensions.",
        module="gui.volume.page",
        name="VolumePage",
    ),
)


class Pages(Mapping[str, Page]):
    """The pages by title; to ask for one builds it at once, `build_on` does it little by little.

    Parameters
    ----------
    house : callable
        Gets each page as soon as it is whole.

    Attributes
    ----------
    built : dict of str to Page
        Those that are whole.
    """

    def __init__(self, session: Session, house: Callable[[Page], None], kinds: Sequence[PageKind] = PAGES) -> None:
        self._session, self._house = session, house
        self.built: dict[str, Page] = {}
        self._kinds = {kind.title: kind for kind in kinds}
        self._begun: dict[str, Iterator[None]] = {}
        self._loaded: set[str] = set()
        self._broken: set[str] = set()
        self._wanted = ""
        self._has_time = self._is_closed = False
        self._may_load = threading.Event()
        self._loading = threading.Lock()
        """One thread at a time prepares: where two read a plan for the first time, the program ends."""
        self._loader: threading.Thread | None = None

    def __getitem__(self, title: str) -> Page:
        kind = self._kinds[title]
        if title not in self.built:
            self._load(title)
            for _ in self._pieces(kind):
                pass
        return self.built[title]

    def __contains__(self, title: object) -> bool:
        """Whether there is such a page, which need not be built to tell."""
        return title in self._kinds

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def build_on(self, title: str, *, others: bool = True) -> bool:
        """Build one more piece, of this page or where it is whole of another; return whether something was built.

        Whatever goes wrong is raised once, and the page is not tried again before somebody asks for it.

        Parameters
        ----------
        others : bool
            Whether there is time for pages other than this one; loading them holds the window up a little, too.
        """
        wanted = [title, *self._kinds] if others else [title]
        missing = [each for each in wanted if each not in self.built and each not in self._broken]
        self._wanted, self._has_time = title, others
        if others or title not in self._loaded:
            self._may_load.set()
        if missing and self._loader is None:
            self._loader = threading.Thread(target=self._load_all, name="pages", daemon=True)
            self._loader.start()
        if not missing or missing[0] not in self._loaded:
            return False
        try:
            next(self._pieces(self._kinds[missing[0]]), None)
        except Exception:
            self._broken.add(missing[0])
            raise
        return True

    def close(self) -> None:
        """Load nothing any more, and build what was begun to its end: its parts would outlive the window."""
        for title in list(self._begun):
            try:
                self[title]
            except Exception:  # noqa: BLE001 - whatever it is, the window is to close
                _log.exception("%s could not be built", title)
        self._is_closed = True
        self._may_load.set()

    def _load_all(self) -> None:
        """Load all pages, one each time that there is time, the one that is wanted then before the others."""
        while len(self._loaded) < len(self._kinds):
            self._may_load.wait()
            if self._is_closed:
                return
            self._may_load.clear()
            if self._wanted not in self._loaded or self._has_time:
                missing = (each for each in (self._wanted, *self._kinds) if each not in self._loaded)
                self._load(next(missing, self._wanted))

    def _load(self, title: str) -> None:
        with self._loading:
            if title in self._loaded:
                return
            try:
                self._kinds[title].load().prepare()
            except Exception as error:  # noqa: BLE001 - whoever builds the page meets it too, and tells
                _log.debug("%s could not be loaded: %s", title, error)
            self._loaded.add(title)

    def _pieces(self, kind: PageKind) -> Iterator[None]:
        if kind.title not in self._begun:
            self._begun[kind.title] = self._build(kind)
        return self._begun[kind.title]

    def _build(self, kind: PageKind) -> Iterator[None]:
        try:
            page = kind.load()(self._session, is_whole=False)
            yield
            yield from page.pieces
            self._house(page)
            self.built[kind.title] = page
        finally:
            del self._begun[kind.title]
