"""A form made of rows of options: a box for yes or no, a list for choices, a line for numbers, each with its unit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from pyqtgraph.Qt import QtCore, QtWidgets

from firmware_iface.errors import WrongUsage
from gui.controls import allow, put_in_turn
from gui.reconstruct.options import Row, meant

LABEL_PX = 104
"""Names of all forms end at the same place."""


class OptionForm(QtWidgets.QWidget):
    """Shows rows of options and tells what was filled in.

    Signals
    -------
    changed
        Something was typed or chosen.
    """

    changed = QtCore.Signal()

    def __init__(self) -> None:
        super().__init__()
        self._form = QtWidgets.QFormLayout(self)
        self._form.setContentsMargins(0, 0, 0, 0)
        self._form.setLabelAlignment(QtCore.Qt.AlignmentFlag.AlignRight)
        self._form.setFieldGrowthPolicy(QtWidgets.QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self._rows: dict[str, tuple[Row, QtWidgets.QWidget]] = {}

    def show_rows(self, rows: Iterable[Row]) -> None:
        """Show other rows than before, filled with their defaults."""
        while self._form.rowCount():
            self._form.removeRow(0)
        self._rows = {}
        for row in rows:
            widget = self._widget_of(row)
            must = " It must be set." if row.default is None else f" Default: {_said(row)}."
            tip = f"{row.tip or f'The option {row.name} of the method.'}{must}"
            widget.setToolTip(tip)
            label = QtWidgets.QLabel(f"{row.label}, {row.unit}" if row.unit else row.label)
            label.setToolTip(tip)
            label.setMinimumWidth(LABEL_PX)
            label.setAlignment(QtCore.Qt.AlignmentFlag.AlignRight | QtCore.Qt.AlignmentFlag.AlignVCenter)
            self._form.addRow(label, widget)
            self._rows[row.name] = (row, widget)
        put_in_turn(self, self)
        self.setVisible(bool(self._rows))

    def values(self) -> dict[str, object]:
        """Return what differs from the defaults; raises WrongUsage where text stands for a number."""
        found = {name: meant(row, _read(widget)) for name, (row, widget) in self._rows.items()}
        return {name: value for name, value in found.items() if value is not None}

    def fill(self, values: Mapping[str, object]) -> None:
        """Fill in values, and defaults where there are none."""
        for name, (row, widget) in self._rows.items():
            _write(widget, values.get(name, row.default))

    def _widget_of(self, row: Row) -> QtWidgets.QWidget:
        if row.kind == "yes or no":
            box = QtWidgets.QCheckBox()
            box.toggled.connect(lambda _: self.changed.emit())
            widget: QtWidgets.QWidget = box
        elif row.kind == "choice":
            combo = QtWidgets.QComboBox()
            combo.addItems(list(row.choices))
            combo.currentIndexChanged.connect(lambda _: self.changed.emit())
            widget = combo
        else:
            line = QtWidgets.QLineEdit()
            line.editingFinished.connect(self.changed.emit)
            widget = line
        widget.setObjectName(row.name)
        _write(widget, row.default)
        return widget


def _said(row: Row) -> str:
    if isinstance(row.default, bool):
        return "yes" if row.default else "no"
    return str(row.default) or "nothing"


def _read(widget: QtWidgets.QWidget) -> object:
    if isinstance(widget, QtWidgets.QCheckBox):
        return widget.isChecked()
    if isinstance(widget, QtWidgets.QComboBox):
        return widget.currentText()
    assert isinstance(widget, QtWidgets.QLineEdit)
    return widget.text()


def _write(widget: QtWidgets.QWidget, value: object) -> None:
    widget.blockSignals(True)
    if isinstance(widget, QtWidgets.QCheckBox):
        widget.setChecked(bool(value))
    elif isinstance(widget, QtWidgets.QComboBox):
        widget.setCurrentText(str(value))
    elif isinstance(widget, QtWidgets.QLineEdit):
        widget.setText("" if value is None else f"{value:g}" if isinstance(value, float) else str(value))
    widget.blockSignals(False)


class Choice(QtWidgets.QComboBox):
    """A list whose entries stand for values: what is shown, what it means, and its explanation."""

    chosen = QtCore.Signal()

    def __init__(self, tip: str, entries: Iterable[tuple[str, object, str]] = ()) -> None:
        super().__init__()
        self._tip, self._why_not = tip, ""
        self.setSizeAdjustPolicy(QtWidgets.QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(10)
        self.offer(entries)
        self.activated.connect(lambda _: self.chosen.emit())
        self.currentIndexChanged.connect(lambda _: self._explain())

    def offer(self, entries: Iterable[tuple[str, object, str]]) -> None:
        """Offer other entries; the value stays where it is among them."""
        before = self.value()
        self.blockSignals(True)
        self.clear()
        for number, (text, value, tip) in enumerate(entries):
            self.addItem(text, value)
            self.setItemData(number, tip, QtCore.Qt.ItemDataRole.ToolTipRole)
        self.put(before)
        self.blockSignals(False)
        self._explain()

    def value(self) -> object:
        """Return what is chosen."""
        return self.currentData()

    def put(self, value: object) -> None:
        """Choose an entry by its value; what is not among them changes nothing."""
        for number in range(self.count()):
            if self.itemData(number) == value:
                self.blockSignals(True)
                self.setCurrentIndex(number)
                self.blockSignals(False)
                self._explain()
                return

    def allow(self, why_not: str) -> None:
        """Let something be chosen, or say why it cannot be."""
        self._why_not = why_not
        self._explain()

    def _explain(self) -> None:
        own = self.itemData(self.currentIndex(), QtCore.Qt.ItemDataRole.ToolTipRole) or ""
        allow(self, f"{self._tip}\n\n{own}" if own else self._tip, self._why_not)


class Line(QtWidgets.QLineEdit):
    """A line of text that says when it was changed."""

    entered = QtCore.Signal()

    def __init__(self, tip: str, placeholder: str = "") -> None:
        super().__init__()
        self.setToolTip(tip)
        self.setPlaceholderText(placeholder)
        self.editingFinished.connect(self._tell)
        self._told = ""

    def put(self, text: str) -> None:
        """Fill in a text."""
        self._told = text
        self.setText(text)

    def _tell(self) -> None:
        if self.text() != self._told:
            self._told = self.text()
            self.entered.emit()


class FileLine(QtWidgets.QWidget):
    """A line for a file's path, with a button to look for it."""

    entered = QtCore.Signal()

    def __init__(self, tip: str, placeholder: str, pattern: str) -> None:
        super().__init__()
        self._pattern = pattern
        self.line = Line(tip, placeholder)
        self.line.entered.connect(self.entered.emit)
        look = QtWidgets.QPushButton("…")
        look.setToolTip(f"Look for the file. {tip}")
        look.setMaximumWidth(36)
        look.clicked.connect(self._look)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.line, 1)
        row.addWidget(look)

    @property
    def path(self) -> Path | None:
        """The file; None where nothing is filled in, and refused where nothing is there."""
        text = self._text()
        if text and not Path(text).is_file():
            raise WrongUsage(f"there is no file {text}; allowed: the path of one, or nothing")
        return Path(text) if text else None

    def put(self, text: str) -> None:
        """Fill in a path."""
        self.line.put(text)

    def _text(self) -> str:
        return self.line.text().strip()

    def _look(self) -> None:
        dialog = QtWidgets.QFileDialog(self, "Choose a file", self._text(), self._pattern)
        dialog.setFileMode(QtWidgets.QFileDialog.FileMode.ExistingFile)
        dialog.fileSelected.connect(self._take)
        dialog.open()

    def _take(self, path: str) -> None:
        self.put(path)
        self.entered.emit()


def labelled_rows(rows: Iterable[tuple[str, QtWidgets.QWidget]]) -> QtWidgets.QFormLayout:
    """Return widgets under each other, the names before them of one width, with the widgets' own explanations."""
    form = QtWidgets.QFormLayout()
    form.setFieldGrowthPolicy(QtWidgets.QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
    for name, widget in rows:
        label = QtWidgets.QLabel(name)
        label.setMinimumWidth(LABEL_PX)
        label.setAlignment(QtCore.Qt.AlignmentFlag.AlignRight | QtCore.Qt.AlignmentFlag.AlignVCenter)
        label.setToolTip(widget.toolTip())
        form.addRow(label, widget)
    return form


def check(text: str, tip: str) -> QtWidgets.QCheckBox:
    """Return a box for yes or no."""
    box = QtWidgets.QCheckBox(text)
    box.setToolTip(tip)
    return box


def number_of(text: str, what: str) -> float | None:
    """Read a number, or nothing."""
    if not text.strip():
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise WrongUsage(f"{what} is {text!r}; allowed: a number, or nothing")
    return number


def whole_number_of(text: str, what: str) -> int | None:
    """Read a whole number, or nothing."""
    if not text.strip():
        return None
    try:
        return int(text)
    except ValueError:
        raise WrongUsage(f"{what} is {text!r}; allowed: a whole number, or nothing") from None
