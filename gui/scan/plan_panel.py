"""The plan as form and as text side by side, and the ways to begin, open, save and take back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pyqtgraph.Qt import QtCore, QtWidgets

from acquisition.plan import Plan
from firmware_iface.errors import BadFile
from gui import theme
from gui.controls import allow
from gui.scan.document import Document, text_of
from gui.scan.form import PlanForm
from gui.scan.presets import presets
from gui.scan.text_panel import PlanText
from gui.session import Session


class PlanPanel(QtWidgets.QWidget):
    """Edits the plan of a session; empty before the first `show_document`.

    Attributes
    ----------
    document : Document
        What is edited; whatever of it is a plan goes into the session's state at once.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.document = Document(text_of(session.state.plan))
        self._plan: Plan = session.state.plan
        self._path: Path | None = None
        self._questions = session.questions("plan of a scan")
        self.form = PlanForm(self.document, self.changed)
        self.text = PlanText(self.document, self.changed, self.undo, self.redo)
        self.name = QtWidgets.QLabel()
        split = QtWidgets.QSplitter(QtCore.Qt.Orientation.Horizontal)
        split.addWidget(self.form)
        split.addWidget(self.text)
        split.setSizes([400, 400])
        split.setChildrenCollapsible(False)
        column = QtWidgets.QVBoxLayout(self)
        column.setContentsMargins(0, 6, 0, 0)
        column.addLayout(self._bar())
        column.addWidget(split, 1)

    def refresh(self) -> bool:
        """Take a plan that another page has put into the session, and return whether it is of a file."""
        plan, path = self.session.state.plan, self.session.state.plan_path
        is_other, is_file = plan is not self._plan, path is not self._path and path is not None
        self._plan, self._path = plan, path
        if path is not None and is_file and not (is_other and plan == self.document.plan):
            self.open_file(path)  # for its comments, and with its faults
        if is_other and plan != self.document.plan:
            self.begin_with(text_of(plan))
        return is_file

    def changed(self) -> None:
        """Show an edit everywhere, and give the session the plan where it is one."""
        plan = self.document.plan
        if plan is not None and plan != self.session.state.plan:
            self.session.change(plan=plan, plan_path=self.document.path)
        self._plan, self._path = self.session.state.plan, self.session.state.plan_path
        self.show_document()

    def show_document(self) -> None:
        """Show the document as it is now."""
        self.form.refresh()
        self.text.refresh()
        document = self.document
        name = document.path.name if document.path is not None else "not saved yet"
        self.name.setText(f"{name}{'' if document.is_saved or document.path is None else ', changed'}")
        allow(self._undo, "Take the last edit back (Ctrl+Z).", "" if document.can_undo else "there is none.")
        allow(self._redo, "Make it again (Ctrl+Shift+Z).", "" if document.can_redo else "nothing was taken back.")

    def undo(self) -> None:
        """Take the last edit back."""
        self.document.undo()
        self.changed()

    def redo(self) -> None:
        """Make it again."""
        self.document.redo()
        self.changed()

    def begin_with(self, text: str, path: Path | None = None) -> None:
        """Go on with another plan; the one before can be had back by undo."""
        self.document.lift_hand()
        self.document.edit(text)
        self.document.path = path
        if path is not None:
            self.document.saved(path)
        self.changed()

    def open_file(self, path: Path) -> None:
        """Open a plan, right or wrong; what is wrong with it is told beside it."""
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            self.session.fail("Open a plan", BadFile(f"cannot read {path}: {reason}", hint="choose a TOML file"))
            return
        self.begin_with(text, path)

    def open_scan(self, path: Path) -> None:
        """Take the plan that a scan file keeps; a moment later it is here."""
        self._questions.ask(
            "Settings of a scan file", lambda: _plan_in(path), lambda plan: self.begin_with(text_of(plan))
        )

    def save_file(self, path: Path) -> None:
        """Write the text as it is."""
        try:
            path.write_text(self.document.text, encoding="utf-8")
        except OSError as error:
            self.session.fail("Save the plan", BadFile(f"cannot write {path}: {error.strerror}", hint="choose another"))
            return
        self.document.saved(path)
        self.session.change(plan_path=path)
        self._path = path
        self.show_document()

    def _bar(self) -> QtWidgets.QHBoxLayout:
        row = QtWidgets.QHBoxLayout()
        self.presets = QtWidgets.QToolButton()
        self.presets.setText("Begin with …")
        self.presets.setToolTip("Protocols to begin with; each says where it comes from in its first lines.")
        self.presets.setPopupMode(QtWidgets.QToolButton.ToolButtonPopupMode.InstantPopup)
        menu = QtWidgets.QMenu(self.presets)
        menu.setToolTipsVisible(True)
        for preset in presets():
            action = menu.addAction(preset.name)
            action.setToolTip("\n".join(_wrapped(preset.told)))
            action.triggered.connect(lambda _=False, one=preset: self.begin_with(one.path.read_text(encoding="utf-8")))
        self.presets.setMenu(menu)
        row.addWidget(self.presets)
        folder = lambda: str(self.session.state.folder)  # noqa: E731
        dialog = QtWidgets.QFileDialog
        row.addWidget(
            _button(
                "Open …",
                "Open a plan, a TOML file.",
                lambda: _chosen(dialog.getOpenFileName(self, "Open a plan", folder(), PLANS), self.open_file),
            )
        )
        row.addWidget(
            _button(
                "From scan …",
                "Take the settings that a scan file was made with.",
                lambda: _chosen(dialog.getOpenFileName(self, "Settings of a scan", folder(), SCANS), self.open_scan),
            )
        )
        row.addWidget(
            _button(
                "Save as …",
                "Write the plan into a file, with its comments.",
                lambda: _chosen(dialog.getSaveFileName(self, "Save the plan", self._proposed(), PLANS), self.save_file),
            )
        )
        self._undo = _button("Undo", "", self.undo)
        self._redo = _button("Redo", "", self.redo)
        row.addWidget(self._undo)
        row.addWidget(self._redo)
        row.addStretch(1)
        theme.make_faint(self.name)
        row.addWidget(self.name)
        return row

    def _proposed(self) -> str:
        return str(self.document.path or self.session.state.folder / "plan.toml")


PLANS = "Plans (*.toml)"
SCANS = "Scans (*.h5)"


def _plan_in(path: Path) -> Plan:
    from acquisition.scan_file import read_scan

    scan = read_scan(path, allow_partial=True)
    if scan.plan is None:
        raise BadFile(f"{path.name} keeps no plan", hint="choose a scan that mpxct has made")
    return scan.plan


def _chosen(answer: tuple[str, str], does: Callable[[Path], None]) -> None:
    if answer[0]:
        does(Path(answer[0]))


def _button(text: str, tip: str, does: Callable[[], object]) -> QtWidgets.QPushButton:
    button = QtWidgets.QPushButton(text)
    button.setToolTip(tip)
    button.clicked.connect(lambda: does())
    return button


def _wrapped(text: str, width: int = 80) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)
