"""The left side of the page Calibrate: the steps and how they stand, what the chosen one does, and its options."""

from __future__ import annotations

from html import escape

from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

from firmware_iface.errors import WrongUsage
from gui import theme
from gui.calibrate.dates import time_words
from gui.calibrate.desk import Desk
from gui.calibrate.options import OPTIONS, Option, text_of, value_of
from gui.calibrate.sequence import DOES, IN_BEAM, TITLES, Standing, StepView, estimate, needs_words
from gui.controls import ActionButton, hint, put_in_turn

SIGNS = {
    Standing.NOT_DONE: ("\N{WHITE CIRCLE}", ""),
    Standing.WAITS: ("\N{WHITE CIRCLE}", ""),
    Standing.COMING: ("\N{HORIZONTAL ELLIPSIS}", ""),
    Standing.LEFT_OUT: ("\N{EN DASH}", "warn"),
    Standing.DONE: ("\N{CHECK MARK}", "good"),
    Standing.NEW: ("\N{CHECK MARK}", ""),
    Standing.OLD: ("!", "warn"),
    Standing.RUNNING: ("\N{BLACK RIGHT-POINTING TRIANGLE}", "good"),
    Standing.FAILED: ("\N{BALLOT X}", "bad"),
    Standing.STOPPED: ("\N{BALLOT X}", "warn"),
}
"""Of each standing, a sign and a colour of the theme's words; the word stands beside."""
UNIT_WIDTH_PX = 76
MOST_LETTERS = 24
"""Longer values do not fit into their fields, and stand in the tooltip too."""


class StepList(QtWidgets.QTreeWidget):
    """The steps in their order: name, how it stands, and how long it takes."""

    chosen = QtCore.Signal(str)

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self._desk = desk
        self._shown: tuple[object, ...] = ()
        self.setHeaderLabels(["Step", "State", "Takes"])
        self.setRootIsDecorated(False)
        self.setUniformRowHeights(True)
        self.setToolTip("Choose a step to see what it does and to set its options.")
        self.setEditTriggers(QtWidgets.QAbstractItemView.EditTrigger.NoEditTriggers)
        for name in TITLES:
            item = QtWidgets.QTreeWidgetItem([TITLES[name], "", ""])
            item.setData(0, QtCore.Qt.ItemDataRole.UserRole, name)
            self.addTopLevelItem(item)
        header = self.header()
        header.setSectionResizeMode(0, QtWidgets.QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(1, QtWidgets.QHeaderView.ResizeMode.Stretch)
        header.setSectionResizeMode(2, QtWidgets.QHeaderView.ResizeMode.ResizeToContents)
        header.setStretchLastSection(False)
        rows = self.sizeHintForRow(0) * len(TITLES)
        self.setFixedHeight(rows + header.sizeHint().height() + 10)
        self.currentItemChanged.connect(lambda *_: self.chosen.emit(self.name))

    @property
    def name(self) -> str:
        """The step that is chosen."""
        item = self.currentItem()
        return str(item.data(0, QtCore.Qt.ItemDataRole.UserRole)) if item is not None else next(iter(TITLES))

    def choose(self, name: str) -> None:
        """Choose a step; a name that there is not is left alone."""
        item = self.topLevelItem(list(TITLES).index(name)) if name in TITLES else None
        if item is not None:
            self.setCurrentItem(item)

    def refresh(self) -> None:
        """Show how the steps stand now."""
        steps, plan = self._desk.steps, self._desk.session.state.plan
        times = tuple(self._time(step) for step in steps)
        look = theme.now()
        if (steps, times, look) == self._shown:
            return
        self._shown = (steps, times, look)
        for number, (step, (told, tip)) in enumerate(zip(steps, times, strict=True)):
            item = self.topLevelItem(number)
            assert item is not None
            sign, colour = SIGNS[step.standing]
            item.setText(1, f"{sign} {step.standing.value}")
            item.setText(2, told)
            brush = QtGui.QBrush(QtGui.QColor(getattr(look, colour))) if colour else QtGui.QBrush()
            item.setForeground(1, brush)
            bold = QtGui.QFont(self.font())
            bold.setBold(step.name in plan.calibration.steps)
            item.setFont(0, bold)
            in_plan = "It is one of the plan's steps (bold)." if bold.bold() else "The plan does not name it."
            item.setToolTip(0, f"{DOES[step.name]}\n\n{in_plan}")
            item.setToolTip(1, step.words)
            item.setToolTip(2, tip)

    def _time(self, step: StepView) -> tuple[str, str]:
        last_s = self._desk.last_s(step.name)
        guessed = estimate(step.name, self._desk.session.state.plan, self._desk.known)
        if last_s is not None:
            return time_words(last_s), f"As long as the last time. By the plan: {guessed.words}."
        if guessed.duration_s != guessed.duration_s:  # not known
            return "-", "Nobody can tell before it runs."
        return f"~{time_words(guessed.duration_s)}", f"By the plan: {guessed.words}; frames times exposure."


class StepDetails(QtWidgets.QWidget):
    """What the chosen step does and needs, and its options, checked as they are typed."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self._desk = desk
        self._name = ""
        self._fields: dict[str, OptionField] = {}
        self._words = QtWidgets.QLabel()
        self._words.setWordWrap(True)
        self._words.setTextFormat(QtCore.Qt.TextFormat.RichText)
        self._words.setAlignment(QtCore.Qt.AlignmentFlag.AlignTop)
        self._options = QtWidgets.QWidget()
        self.undo = ActionButton(
            "Undo", "Take the last change back that was made here (Ctrl+Z).", self._why_not_undo, self.take_back
        )
        self.redo = ActionButton("Redo", "Make the change again (Ctrl+Shift+Z).", self._why_not_redo, self.make_again)
        buttons = QtWidgets.QHBoxLayout()
        buttons.addWidget(self.undo)
        buttons.addWidget(self.redo)
        buttons.addStretch(1)
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 6, 0)
        layout.addWidget(self._words)
        layout.addWidget(self._options)
        layout.addLayout(buttons)
        layout.addStretch(1)

    @property
    def wrong(self) -> str:
        """What is wrong with what is typed; empty where all is well."""
        return next((field.wrong for field in self._fields.values() if field.wrong), "")

    @property
    def fields(self) -> dict[str, OptionField]:
        """The fields of the chosen step by the path of their value."""
        return self._fields

    def show_step(self, name: str) -> None:
        """Show a step."""
        self._name = name
        self._rebuild()
        self.refresh()

    def refresh(self) -> None:
        """Show how the step stands, and the plan's values where they were changed elsewhere."""
        if not self._name:
            return
        self._desk.take_plan()
        step = next(step for step in self._desk.steps if step.name == self._name)
        plan = self._desk.session.state.plan
        last_s = self._desk.last_s(self._name)
        last = f"; last time {time_words(last_s)}" if last_s is not None else ""
        rows = [
            ("State", step.words),
            ("Needs", needs_words(self._name) or "no other step"),
            ("In the beam", IN_BEAM[self._name]),
            ("Takes", estimate(self._name, plan, self._desk.known).words + last),
        ]
        table = "".join(
            f'<tr><td style="padding-right:10px"><b>{name}</b></td><td>{escape(text)}</td></tr>' for name, text in rows
        )
        text = f"<p>{escape(DOES[self._name])}</p><table>{table}</table>"
        if text != self._words.text():
            self._words.setText(text)
        for field in self._fields.values():
            field.refresh()
        self.undo.refresh()
        self.redo.refresh()

    def _rebuild(self) -> None:
        old = self._options
        self._options = QtWidgets.QGroupBox("Options")
        form = QtWidgets.QFormLayout(self._options)
        form.setFieldGrowthPolicy(QtWidgets.QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.setVerticalSpacing(4)
        self._fields = {}
        for option in OPTIONS[self._name]:
            field = OptionField(self._desk, option)
            self._fields[option.path] = field
            label = QtWidgets.QLabel(option.label)
            label.setToolTip(field.tip)
            form.addRow(label, field)
        layout = self.layout()
        assert isinstance(layout, QtWidgets.QVBoxLayout)
        layout.replaceWidget(old, self._options)
        put_in_turn(self._options, self)
        old.hide()
        old.deleteLater()

    def _why_not_undo(self) -> str:
        return "" if self._desk.can_undo else "nothing was changed here since the plan came."

    def _why_not_redo(self) -> str:
        return "" if self._desk.can_redo else "nothing was taken back."

    def take_back(self) -> None:
        """Take the last change of the plan back, where there is one."""
        if self._desk.can_undo:
            self._desk.undo()
            self.refresh()

    def make_again(self) -> None:
        """Make the change again that was taken back, where there is one."""
        if self._desk.can_redo:
            self._desk.redo()
            self.refresh()


class OptionField(QtWidgets.QWidget):
    """One value of the plan, to be typed or chosen; what the plan refuses is told under it and changes nothing."""

    def __init__(self, desk: Desk, option: Option) -> None:
        super().__init__()
        self._desk, self._option = desk, option
        self.wrong = ""
        self.tip = f"{option.tip}\n\nIn the plan: {option.path}"
        self._shown = ""
        self.box: QtWidgets.QComboBox | None = None
        self.line = QtWidgets.QLineEdit()
        self._says = hint()
        theme.judge(self._says, is_good=False)
        self._says.hide()
        row = QtWidgets.QHBoxLayout()
        row.setContentsMargins(0, 0, 0, 0)
        if option.choices:
            self.box = QtWidgets.QComboBox()
            self.box.addItems(option.choices)
            self.box.setToolTip(self.tip)
            self.box.textActivated.connect(self._take)
            row.addWidget(self.box, 1)
        else:
            self.line.setToolTip(self.tip)
            self.line.textEdited.connect(self._take)
            self.line.editingFinished.connect(self._settle)
            row.addWidget(self.line, 1)
        if option.unit:
            unit = QtWidgets.QLabel(option.unit)
            unit.setMinimumWidth(UNIT_WIDTH_PX)
            row.addWidget(unit)
        elif not isinstance(value_of(desk.session.state.plan, option.path), tuple):  # lists need all the room
            row.addSpacing(UNIT_WIDTH_PX + row.spacing())
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(1)
        layout.addLayout(row)
        layout.addWidget(self._says)
        self.refresh()

    def refresh(self) -> None:
        """Show what the plan says, unless something wrong stands here that is still being typed."""
        text = text_of(self._desk.session.state.plan, self._option.path)
        if text == self._shown:
            return
        self._shown = text
        if self.box is not None:
            self.box.setCurrentText(text)
        elif not self.line.hasFocus() or self.wrong:
            self._set(text)

    def _set(self, text: str) -> None:
        self.line.setText(text)
        self.line.setCursorPosition(0)
        self.line.setToolTip(f"{text}\n\n{self.tip}" if len(text) > MOST_LETTERS else self.tip)
        self._tell("")

    def _take(self, text: str) -> None:
        try:
            self._desk.edit(self._option.path, text)
        except WrongUsage as error:
            self._tell(str(error))
            return
        self._shown = text_of(self._desk.session.state.plan, self._option.path)
        self._tell("")

    def _settle(self) -> None:
        """Write what was typed as the plan has it."""
        if not self.wrong:
            self._set(self._shown)

    def _tell(self, wrong: str) -> None:
        self.wrong = wrong
        self._says.setText(wrong)
        self._says.setVisible(bool(wrong))
