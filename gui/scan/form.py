"""The form of a plan: a field for each key, with its unit and what it means, and under it what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pyqtgraph.Qt import QtCore, QtWidgets

from gui import theme
from gui.controls import allow_inside, put_in_turn
from gui.scan.document import Document
from gui.scan.fields import Field, FieldKind, groups, shown
from gui.scan.words import KINDS

LABEL_WIDTH_PX, UNIT_WIDTH_PX, MOST_WIDTH_PX = 130, 34, 520


class FieldRow:
    """The widgets of one field; `typed` is called with what somebody typed or chose."""

    def __init__(self, field: Field, typed: Callable[[Field, str], None], lifted: Callable[[], None]) -> None:
        self.field = field
        self.label = QtWidgets.QLabel(field.label)
        self.label.setMinimumWidth(LABEL_WIDTH_PX)
        self.unit = QtWidgets.QLabel(field.unit)
        self.unit.setMinimumWidth(UNIT_WIDTH_PX)
        theme.make_faint(self.unit)
        self.fault = QtWidgets.QLabel()
        self.fault.setWordWrap(True)
        self.fault.hide()
        self.editor: QtWidgets.QComboBox | QtWidgets.QLineEdit
        if field.kind is FieldKind.CHOICE:
            box = QtWidgets.QComboBox()
            box.addItems(list(field.choices))
            for place, choice in enumerate(field.choices if field.key == "scan.kind" else ()):
                box.setItemData(place, KINDS[choice], QtCore.Qt.ItemDataRole.ToolTipRole)
            box.textActivated.connect(lambda text: typed(field, text))
            box.setFocusPolicy(QtCore.Qt.FocusPolicy.StrongFocus)
            box.installEventFilter(_NoWheel(box))
            self.editor = box
        else:
            line = QtWidgets.QLineEdit()
            line.textEdited.connect(lambda text: typed(field, text))
            line.editingFinished.connect(lifted)
            self.editor = line
        for widget in (self.label, self.editor, self.unit):
            widget.setToolTip(f"{field.tip}\n\n{field.key} in the text")
        self.label.setBuddy(self.editor)

    def show_value(self, value: object) -> None:
        """Show a value; what somebody is typing is left alone where it means the same."""
        text, editor = shown(value), self.editor
        if isinstance(editor, QtWidgets.QComboBox):
            if editor.findText(text) < 0:
                editor.addItem(text)  # wrong, and to be seen as it is
            editor.setCurrentText(text)
        elif not editor.hasFocus() and editor.text() != text:
            editor.setText(text)
            editor.setCursorPosition(0)

    def show_fault(self, sentence: str) -> None:
        """Tell what is wrong with it; nothing takes the sentence away."""
        if self.fault.text() == sentence:
            return
        _tell(self.fault, sentence)
        self.editor.setStyleSheet(f"border: 1px solid {theme.BAD};" if sentence else "")


class _NoWheel(QtCore.QObject):
    """Lets the wheel scroll the form, and not change what is chosen in it."""

    def eventFilter(self, watched: QtCore.QObject, event: QtCore.QEvent) -> bool:
        if event.type() == QtCore.QEvent.Type.Wheel:
            event.ignore()
            return True
        return super().eventFilter(watched, event)


class PlanForm(QtWidgets.QScrollArea):
    """Shows a document as a form.

    Attributes
    ----------
    rows : dict of str to FieldRow
        By key; made anew where the kind of scan changes.
    """

    def __init__(self, document: Document, changed: Callable[[], None]) -> None:
        super().__init__()
        self._document, self._changed = document, changed
        self.rows: dict[str, FieldRow] = {}
        self._section_faults: dict[str, QtWidgets.QLabel] = {}
        self._kind = ""
        self.setWidgetResizable(True)
        self.setHorizontalScrollBarPolicy(QtCore.Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setFrameShape(QtWidgets.QFrame.Shape.NoFrame)
        self.setMinimumWidth(360)
        self.setMaximumWidth(MOST_WIDTH_PX)

    def refresh(self) -> None:
        """Show the document as it is now."""
        document = self._document
        if document.kind != self._kind:
            for _ in self.pieces():
                pass
        is_toml = document.judgement.tree is not None
        allow_inside(self, "" if is_toml else "the text beside has an error; mend it there first, or undo.")
        fault = document.fault
        for key, row in self.rows.items():
            if is_toml:
                row.show_value(document.value(key))
            row.show_fault(fault.sentence if fault is not None and fault.key == key else "")
        for section, label in self._section_faults.items():
            is_here = fault is not None and fault.key not in self.rows and fault.key.split(".")[0] == section
            _tell(label, fault.sentence if is_here and fault is not None else "")

    def pieces(self) -> Iterator[None]:
        """Make the widgets of the document's kind of scan, in pieces."""
        kind = self._document.kind
        self.rows.clear()
        self._section_faults.clear()
        body = QtWidgets.QWidget()
        column = QtWidgets.QVBoxLayout(body)
        column.setContentsMargins(0, 0, 8, 0)
        for group in groups(kind):
            box = QtWidgets.QGroupBox(group.title)
            grid = QtWidgets.QGridLayout(box)
            grid.setColumnStretch(1, 1)
            grid.setVerticalSpacing(3)
            section = group.fields[0].key.split(".")[0]
            if section not in self._section_faults:
                label = QtWidgets.QLabel()
                label.setWordWrap(True)
                grid.addWidget(label, 0, 0, 1, 3)
                self._section_faults[section] = label
            for number, field in enumerate(group.fields):
                row = self.rows[field.key] = FieldRow(field, self._typed, self._document.lift_hand)
                grid.addWidget(row.label, 2 * number + 1, 0)
                grid.addWidget(row.editor, 2 * number + 1, 1)
                grid.addWidget(row.unit, 2 * number + 1, 2)
                grid.addWidget(row.fault, 2 * number + 2, 0, 1, 3)
            column.addWidget(box)
            yield
        column.addStretch(1)
        self.setWidget(body)
        put_in_turn(body, self)
        self._kind = kind

    def _typed(self, field: Field, text: str) -> None:
        self._document.set(field, text)
        self._changed()


def _tell(label: QtWidgets.QLabel, fault: str) -> None:
    """Tell a fault, or nothing; it is styled when there is one, for that takes longer than all else of a row."""
    label.setText(fault)
    label.setVisible(bool(fault))
    if fault:
        theme.judge(label, is_good=False)
