"""Small controls beside a volume in three dimensions: sliders with their value in words, one for each material."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

from gui.colour import Colour
from gui.controls import put_in_turn

STEPS = 200
"""Of a slider, from end to end."""


class Slider(QtWidgets.QWidget):
    """A slider from 0 to 1 (or -1 to 1) with its value in words beside it.

    Parameters
    ----------
    words : callable
        Turns the value into what stands beside the slider, unit included.
    changed : callable
        Called with the value whenever a person moves it.
    """

    def __init__(
        self,
        tip: str,
        words: Callable[[float], str],
        changed: Callable[[float], object],
        *,
        at: float = 0.0,
        least: float = 0.0,
    ) -> None:
        super().__init__()
        self._words, self._least = words, least
        self._slider = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal)
        self._slider.setRange(0, STEPS)
        self._slider.setMinimumWidth(40)
        self._label = QtWidgets.QLabel()
        self._label.setMinimumWidth(self._label.fontMetrics().horizontalAdvance("-00.00 mm"))
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider, 1)
        layout.addWidget(self._label)
        self.setToolTip(tip)
        self.value = at
        self._slider.valueChanged.connect(lambda _: (self.retell(), changed(self.value)))

    @property
    def value(self) -> float:
        """Where it stands; setting it tells nobody."""
        return self._least + (1 - self._least) * self._slider.value() / STEPS

    @value.setter
    def value(self, value: float) -> None:
        self._slider.blockSignals(True)
        self._slider.setValue(round(STEPS * (value - self._least) / (1 - self._least)))
        self._slider.blockSignals(False)
        self.retell()

    def retell(self) -> None:
        """Write the value anew: what it means may be another."""
        self._label.setText(self._words(self.value))


class Span(QtWidgets.QWidget):
    """Two sliders, from where to where; neither passes the other."""

    def __init__(self, tip: str, words: Callable[[float], str], changed: Callable[[], object]) -> None:
        super().__init__()
        self._changed = changed
        self.low = Slider(f"{tip} Left end.", words, lambda value: self._move(self.high, max(self.high.value, value)))
        self.high = Slider(
            f"{tip} Right end.", words, lambda value: self._move(self.low, min(self.low.value, value)), at=1.0
        )
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.low)
        layout.addWidget(self.high)

    def _move(self, other: Slider, value: float) -> None:
        other.value = value
        self._changed()


class SolidityList(QtWidgets.QWidget):
    """One slider for each material: how much it hides what is behind it."""

    def __init__(self, changed: Callable[[], object]) -> None:
        super().__init__()
        self._changed = changed
        self._sliders: dict[str, Slider] = {}
        self._form = QtWidgets.QFormLayout(self)
        self._form.setContentsMargins(0, 0, 0, 0)
        self._form.setLabelAlignment(QtCore.Qt.AlignmentFlag.AlignLeft | QtCore.Qt.AlignmentFlag.AlignVCenter)

    def show_materials(self, names: Sequence[str], colours: Sequence[Colour], at: Sequence[float]) -> None:
        """Have sliders for these; those that were there already keep their place."""
        kept = self.values()
        while self._form.rowCount():
            self._form.removeRow(0)
        self._sliders = {}
        for name, colour, first in zip(names, colours, at, strict=True):
            slider = Slider(
                _solidity_tip(name),
                lambda value: f"{100 * value * value:.2g} %",
                lambda _: self._changed(),
                at=kept.get(name, first) ** 0.5,
            )
            self._sliders[name] = slider
            self._form.addRow(_swatch(name, colour), slider)
        put_in_turn(self, self)

    def tell(self, notes: Mapping[str, str]) -> None:
        """Add what is known of a material to the tip of its slider."""
        for name, slider in self._sliders.items():
            slider.setToolTip("\n\n".join([_solidity_tip(name), *filter(None, [notes.get(name)])]))

    def values(self) -> dict[str, float]:
        """Opacity of each material; the sliders are finer near 0, where it matters."""
        return {name: slider.value**2 for name, slider in self._sliders.items()}


def _solidity_tip(name: str) -> str:
    return f"How much {name} hides what is behind it: 0 % is not there, a few % are a haze, 90 % are solid."


def _swatch(name: str, colour: Colour) -> QtWidgets.QWidget:
    box = QtWidgets.QWidget()
    patch = QtWidgets.QLabel()
    pixels = QtGui.QPixmap(12, 12)
    pixels.fill(QtGui.QColor.fromRgbF(*colour))
    patch.setPixmap(pixels)
    label = QtWidgets.QLabel(name)
    layout = QtWidgets.QHBoxLayout(box)
    layout.setContentsMargins(0, 0, 0, 0)
    layout.addWidget(patch)
    layout.addWidget(label)
    return box


def choice(options: Sequence[str], at: str, tip: str, changed: Callable[[str], object]) -> QtWidgets.QComboBox:
    """Return a list to choose one from."""
    box = QtWidgets.QComboBox()
    box.addItems(list(options))
    box.setCurrentText(at)
    box.setToolTip(tip)
    box.currentTextChanged.connect(changed)
    return box


def check(text: str, tip: str, changed: Callable[[bool], object], *, is_set: bool = False) -> QtWidgets.QCheckBox:
    """Return a box to tick."""
    box = QtWidgets.QCheckBox(text)
    box.setToolTip(tip)
    box.setChecked(is_set)
    box.toggled.connect(changed)
    return box


class Fold(QtWidgets.QWidget):
    """Widgets under each other, under a heading that folds them away."""

    def __init__(
        self, title: str, *parts: QtWidgets.QWidget | QtWidgets.QLayout, tip: str, is_open: bool = True
    ) -> None:
        super().__init__()
        self.title = title
        self._head = QtWidgets.QToolButton()
        self._head.setText(title)
        self._head.setToolTip(f"{tip} Click to fold it away, or to open it.")
        self._head.setAutoRaise(True)
        self._head.setToolButtonStyle(QtCore.Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        font = self._head.font()
        font.setBold(True)
        self._head.setFont(font)
        self._body = QtWidgets.QWidget()
        inside = QtWidgets.QVBoxLayout(self._body)
        inside.setContentsMargins(8, 0, 4, 6)
        inside.setSpacing(4)
        for part in parts:
            if isinstance(part, QtWidgets.QWidget):
                inside.addWidget(part)
            else:
                inside.addLayout(part)
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        layout.addWidget(self._head)
        layout.addWidget(self._body)
        self._head.clicked.connect(lambda: setattr(self, "is_open", not self.is_open))
        self.is_open = is_open

    @property
    def is_open(self) -> bool:
        """Whether what it holds is seen."""
        return not self._body.isHidden()

    @is_open.setter
    def is_open(self, is_wanted: bool) -> None:
        self._body.setVisible(is_wanted)
        kind = QtCore.Qt.ArrowType
        self._head.setArrowType(kind.DownArrow if is_wanted else kind.RightArrow)


def beside(*widgets: QtWidgets.QWidget) -> QtWidgets.QHBoxLayout:
    """Return widgets in a row."""
    layout = QtWidgets.QHBoxLayout()
    layout.setContentsMargins(0, 0, 0, 0)
    for widget in widgets:
        layout.addWidget(widget)
    return layout
