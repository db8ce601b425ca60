"""The text of a plan, coloured, with the line marked that keeps it from being one."""

from __future__ import annotations

import re
from collections.abc import Callable

from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

from gui import theme
from gui.controls import hint
from gui.scan.document import Document

PAUSE_MS = 800
"""What is typed without a longer pause is one edit, to be taken back together."""


class PlanText(QtWidgets.QWidget):
    """Shows a document as text, and what is wrong with it under that."""

    def __init__(
        self,
        document: Document,
        changed: Callable[[], None],
        undo: Callable[[], None],
        redo: Callable[[], None],
    ) -> None:
        super().__init__()
        self._document, self._changed = document, changed
        self._is_showing = False
        self.editor = _Editor(undo, redo)
        self.editor.setToolTip("The plan as a TOML file has it. Form and text are the same plan: change either.")
        self.editor.setLineWrapMode(QtWidgets.QPlainTextEdit.LineWrapMode.NoWrap)
        self.editor.setFont(QtGui.QFontDatabase.systemFont(QtGui.QFontDatabase.SystemFont.FixedFont))
        self._highlighter = _Highlighter(self.editor.document())
        self.told = hint()
        self._typing = QtCore.QTimer(self)
        self._typing.setSingleShot(True)
        self._typing.setInterval(PAUSE_MS)
        self._typing.timeout.connect(document.lift_hand)
        self.editor.textChanged.connect(self._typed)
        column = QtWidgets.QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.editor)
        column.addWidget(self.told)

    def refresh(self) -> None:
        """Show the document as it is now."""
        document = self._document
        if self.editor.toPlainText() != document.text:
            self._is_showing = True
            bar = self.editor.verticalScrollBar()
            place = bar.value()
            self.editor.setPlainText(document.text)
            bar.setValue(place)
            self._is_showing = False
        fault = document.fault
        line = f"Line {fault.line}: " if fault is not None and fault.line else ""
        self.told.setText(f"{line}{fault.sentence}" if fault is not None else "The plan is good.")
        theme.judge(self.told, is_good=fault is None)
        self._mark(fault.line if fault is not None else None)

    def restyle(self) -> None:
        """Colour it anew."""
        self._highlighter.rehighlight()

    def _typed(self) -> None:
        if self._is_showing:
            return
        self._typing.start()
        self._document.edit(self.editor.toPlainText(), "text")
        self._changed()

    def _mark(self, line: int | None) -> None:
        marks: list[QtWidgets.QTextEdit.ExtraSelection] = []
        if line is not None:
            mark = QtWidgets.QTextEdit.ExtraSelection()
            colour = QtGui.QColor(theme.BAD)
            colour.setAlpha(60)
            mark.format.setBackground(colour)  # pyright: ignore[reportAttributeAccessIssue]
            mark.format.setProperty(  # pyright: ignore[reportAttributeAccessIssue]
                QtGui.QTextFormat.Property.FullWidthSelection, True
            )
            mark.cursor = QtGui.QTextCursor(  # pyright: ignore[reportAttributeAccessIssue]
                self.editor.document().findBlockByNumber(line - 1)
            )
            marks.append(mark)
        self.editor.setExtraSelections(marks)


class _Editor(QtWidgets.QPlainTextEdit):
    """An editor whose edits are taken back by the document's own history, with those of the form."""

    def __init__(self, undo: Callable[[], None], redo: Callable[[], None]) -> None:
        super().__init__()
        self._ways = ((QtGui.QKeySequence.StandardKey.Undo, undo), (QtGui.QKeySequence.StandardKey.Redo, redo))
        self.setUndoRedoEnabled(False)
        self.setTabChangesFocus(True)  # no plan needs a tab, and the keyboard must get out

    def keyPressEvent(self, event: QtGui.QKeyEvent) -> None:
        for key, does in self._ways:
            if event.matches(key):
                does()
                return
        super().keyPressEvent(event)


class _Highlighter(QtGui.QSyntaxHighlighter):
    """Sections stand out, comments stand back."""

    def highlightBlock(self, text: str) -> None:
        section, comment = QtGui.QTextCharFormat(), QtGui.QTextCharFormat()
        section.setFontWeight(QtGui.QFont.Weight.Bold)
        comment.setForeground(QtWidgets.QApplication.palette().color(QtGui.QPalette.ColorRole.PlaceholderText))
        if text.lstrip().startswith("["):
            self.setFormat(0, len(text), section)
        found = re.search(r"""#(?=(?:[^"]*"[^"]*")*[^"]*$)""", text)
        if found is not None:
            self.setFormat(found.start(), len(text) - found.start(), comment)
