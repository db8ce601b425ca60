"""Fixtures of the window: an offscreen Qt, a session, and a window whose threads end with the test."""

from __future__ import annotations

import os

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from collections.abc import Iterator
from pathlib import Path

import pytest

from gui.session import Session


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    """Return a session with nothing attached that writes into a folder of its own."""
    session = Session(tmp_path)
    yield session
    session.close()
