"""Light and dark, and the colours that plots are drawn with: one place, so that all pages agree.

# Ref: the plots' colours: Okabe and Ito 2008, "Color Universal Design", as in `gui.colour`.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyqtgraph as pg
from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c", "#b2a300")
"""Of the lines of a plot, in their order: thresholds from low to high, materials, before and after."""
WARN, BAD = "#e69f00", "#d55e00"
"""Of frames and marks; words have the colours of their theme."""
ALARM = "#a84300"
"""White words stand on it."""

STYLE = "fusion"
TITLE_PT = 15.0
JUDGED = "judged"
"""Property of a widget whose words are coloured by what they say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """Colours of one of the two looks; `field` is what one writes and ticks in, `base` what is drawn on.

    `good`, `warn` and `bad` are of words: the colours of marks are too pale to read on one ground or the other. A
    state is never told by its colour alone.
    """

    is_dark: bool
    window: str
    field: str
    base: str
    text: str
    faint: str
    line: str
    accent: str
    good: str
    warn: str
    bad: str


LIGHT = Theme(
    is_dark=False,
    window="#f3f4f6",
    field="#ffffff",
    base="#ffffff",
    text="#1b1f24",
    faint="#5b6470",
    line="#d0d5dc",
    accent="#0072b2",
    good="#00694d",
    warn="#7a5200",
    bad="#a84300",
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
    good="#3fc79a",
    warn="#e69f00",
    bad="#ff8c4d",
)


def apply(app: QtWidgets.QApplication, theme: Theme) -> None:
    """Give the whole program a look; plots that are there already keep their own until they are made again.

    There is no style sheet for all: with one, a change of colours takes more than a second for all widgets of the
    window, and to make a widget twice as long.
    """
    if app.style().name() != STYLE:
        app.setStyle(STYLE)
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
    QtWidgets.QToolTip.setPalette(palette)
    for widget in app.allWidgets():  # those with a sheet of their own keep the colours in which it was read
        if widget.property(JUDGED) is not None:
            judge(widget, is_good=widget.property(JUDGED))
        elif widget.styleSheet():
            widget.setStyleSheet(widget.styleSheet())
    pg.setConfigOptions(imageAxisOrder="row-major", background=theme.base, foreground=theme.text, antialias=False)


def now() -> Theme:
    """Return the look that was applied last."""
    return DARK if QtWidgets.QApplication.palette().window().color().lightness() < 128 else LIGHT


def judge(label: QtWidgets.QWidget, *, is_good: bool) -> None:
    """Let a text that tells whether something is well be read as that, whatever the look and the next."""
    label.setProperty(JUDGED, is_good)
    colour = now().good if is_good else now().bad
    # Of a text that stands back (`make_faint`) the colour alone would be halved.
    label.setStyleSheet(f"color: {colour}; placeholder-text-color: {colour}; font-weight: 600;")


def say(label: QtWidgets.QWidget, sheet: str) -> None:
    """Give a text a sheet of its own, whatever it was judged before."""
    label.setProperty(JUDGED, None)
    label.setStyleSheet(sheet)


def make_faint(label: QtWidgets.QLabel) -> None:
    """Let a text stand back, whatever the look."""
    label.setForegroundRole(QtGui.QPalette.ColorRole.PlaceholderText)


def make_title(label: QtWidgets.QLabel) -> None:
    """Let a text be a heading."""
    font = QtGui.QFont(label.font())
    font.setPointSizeF(TITLE_PT)
    font.setWeight(QtGui.QFont.Weight.DemiBold)
    label.setFont(font)


def system_theme() -> Theme:
    """Return the look that the desktop asks for."""
    scheme = QtGui.QGuiApplication.styleHints().colorScheme()
    return DARK if scheme == QtCore.Qt.ColorScheme.Dark else LIGHT
