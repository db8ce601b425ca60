"""Light and dark, and the colours that plots are drawn with: one place, so that all pages agree.

# Ref: the plots' colours: Okabe and Ito 2008, "Color Universal Design", as in `gui.colour`.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyqtgraph as pg
from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c", "#b2a300")
"""Of the lines of a plot, in their order: thresholds from low to high, materials, before and after."""
GOOD, WARN, BAD = "#009e73", "#e69f00", "#d55e00"
"""A state is never told by its colour alone: a word stands beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """Colours of one of the two looks; `field` is what one writes and ticks in, `base` what is drawn on."""

    is_dark: bool
    window: str
    field: str
    base: str
    text: str
    faint: str
    line: str
    accent: str


LIGHT = Theme(
    is_dark=False,
    window="#f3f4f6",
    field="#ffffff",
    base="#ffffff",
    text="#1b1f24",
    faint="#5b6470",
    line="#d0d5dc",
    accent="#0072b2",
)
DARK = Theme(
    is_dark=True,
    window="#1b1e23",
    field="#2b313a",
    base="#121417",
    text="#e6e8eb",
    faint="#9aa3ad",
    line="#353b44",
    accent="#56b4e9",
)


def apply(app: QtWidgets.QApplication, theme: Theme) -> None:
    """Give the whole program a look; plots that are there already keep their own until they are made again."""
    app.setStyle("Fusion")
    palette = QtGui.QPalette()
    role = QtGui.QPalette.ColorRole
    for which, colour in (
        (role.Window, theme.window), (role.Base, theme.field), (role.AlternateBase, theme.window),
        (role.Text, theme.text), (role.WindowText, theme.text), (role.ButtonText, theme.text),
        (role.Button, theme.window), (role.ToolTipBase, theme.base), (role.ToolTipText, theme.text),
        (role.PlaceholderText, theme.faint), (role.Highlight, theme.accent), (role.Link, theme.accent),
        (role.HighlightedText, theme.base if theme.is_dark else "#ffffff"),
    ):  # fmt: skip
        palette.setColor(which, QtGui.QColor(colour))
    for which in (role.Text, role.WindowText, role.ButtonText):
        palette.setColor(QtGui.QPalette.ColorGroup.Disabled, which, QtGui.QColor(theme.faint))
    app.setPalette(palette)
    app.setStyleSheet(_STYLE.format(line=theme.line, accent=theme.accent, faint=theme.faint, base=theme.base))
    pg.setConfigOptions(imageAxisOrder="row-major", background=theme.base, foreground=theme.text, antialias=False)


_STYLE = """
QToolTip {{ border: 1px solid {line}; padding: 4px; }}
QGroupBox {{ border: 1px solid {line}; border-radius: 4px; margin-top: 1.1em; padding: 6px; font-weight: 600; }}
QGroupBox::title {{ subcontrol-origin: margin; left: 8px; padding: 0 3px; }}
QPushButton {{ padding: 4px 12px; }}
QLabel[role="hint"] {{ color: {faint}; }}
QLabel[role="title"] {{ font-size: 15pt; font-weight: 600; }}
"""


def system_theme() -> Theme:
    """Return the look that the desktop asks for."""
    scheme = QtGui.QGuiApplication.styleHints().colorScheme()
    return DARK if scheme == QtCore.Qt.ColorScheme.Dark else LIGHT
