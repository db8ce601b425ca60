"""What is looked at again and again, in a thread of its own, while somebody wants to know: the USB bus, or the disk.

No Qt here. The thread ends by itself soon after nobody asks any more, or with the program.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
_WAKE_S = 0.1
"""How often a waiting thread looks whether the program ends."""
_log = logging.getLogger(__name__)


class Lookout(Generic[T]):
    """Calls `look` every few seconds as long as somebody asks for what it returned.

    Parameters
    ----------
    look : callable
        May take its time; what it raises is in `error` until it succeeds again.
    every_s : float
        From the end of one look to the next.

    Attributes
    ----------
    error : str
        Why the last look failed; empty: it did not.
    n_looks : int
        How often it has looked.
    """

    def __init__(self, name: str, look: Callable[[], T], every_s: float) -> None:
        self.name, self.error, self.n_looks = name, "", 0
        self._look, self._every_s = look, every_s
        self._newest: T | None = None
        self._asked_s = 0.0
        self._asking = threading.Lock()
        self._soon = threading.Event()
        self._thread: threading.Thread | None = None

    def newest(self) -> T | None:
        """Return what was seen last, None before the first time; asking keeps the looking going."""
        with self._asking:
            self._asked_s = time.monotonic()
            if self._thread is None:
                # No daemon: libusb must not be let go at the end of the program while it looks at the bus.
                self._thread = threading.Thread(target=self._run, name=self.name)
                self._thread.start()
        return self._newest

    def look_now(self) -> None:
        """Do not wait for the next time."""
        self._soon.set()

    def _run(self) -> None:
        while self._is_wanted():
            try:
                self._newest = self._look()
                self.error = ""
            except Exception as error:  # noqa: BLE001 - a look that fails now may do later, and what failed is told
                if str(error) != self.error and threading.main_thread().is_alive():
                    _log.warning("%s: %s", self.name, error)
                self.error = str(error) or type(error).__name__
            self.n_looks += 1
            self._wait()

    def _wait(self) -> None:
        until_s = time.monotonic() + self._every_s
        while time.monotonic() < until_s and threading.main_thread().is_alive():
            if self._soon.wait(min(_WAKE_S, self._every_s)):
                break
        self._soon.clear()

    def _is_wanted(self) -> bool:
        """Whether somebody asked since the last look; if not, the next who asks begins anew."""
        with self._asking:
            is_asked = time.monotonic() - self._asked_s <= max(self._every_s, 1.0)
            is_wanted = is_asked and threading.main_thread().is_alive()
            if not is_wanted:
                self._thread = None
            return is_wanted
