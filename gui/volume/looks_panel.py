"""The panel that chooses what the panes show, and in which colours and windows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

from calibration.attenuation import MG_ML_PER_G_CM3
from gui.controls import allow, hint, put_in_turn
from gui.volume.looks import MAPS, GreyLook, Levels, MaterialLook, colour_choices, map_table
from gui.volume.marks import rgb
from gui.volume.painting import Looks, with_window
from gui.volume.range_slider import RangeSlider
from gui.volume.views import Shown, View, bin_name, k_edges, why_not
from reconstruction.volume import Volume

KEV = (15, 150)
SWATCH_PX = 18


class LooksPanel(QtWidgets.QWidget):
    """Shows and changes the view and its looks; what it holds is what it was shown last.

    Attributes
    ----------
    view_changed : Signal(object)
        A `View`.
    looks_changed : Signal(object)
        A tuple of `MaterialLook`, or a `GreyLook`.
    auto_asked : Signal()
    """

    view_changed = QtCore.Signal(object)
    looks_changed = QtCore.Signal(object)
    auto_asked = QtCore.Signal()

    def __init__(self) -> None:
        super().__init__()
        self._bins: Volume | None = None
        self._materials: Volume | None = None
        self._is_silent = False
        self.view = View(shown=Shown.MATERIALS)
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(6, 6, 6, 6)
        layout.addWidget(self._view_box())
        self.rows = _MaterialRows(lambda looks: self.looks_changed.emit(looks))
        self.grey = _GreyRow(lambda grey: self.looks_changed.emit(grey))
        self.stack = QtWidgets.QStackedWidget()
        self.stack.addWidget(self.rows)
        self.stack.addWidget(self.grey)
        layout.addWidget(self.stack, 1)
        self.auto = QtWidgets.QPushButton("Auto windows")
        self.auto.clicked.connect(lambda: self.auto_asked.emit())
        layout.addWidget(self.auto)

    def allow(self, why_not: str) -> None:
        """Grey what needs a volume, and say why."""
        tip = "Set all windows by the values of the volume, and the colours to the usual ones."
        allow(self.auto, tip, why_not)

    def offer_where_new(self, bins: Volume | None, materials: Volume | None, view: View) -> None:
        """Offer what these volumes can show where they are others than before, and show the view."""
        if bins is not self._bins or materials is not self._materials:
            self.offer(bins, materials, view)
        elif view != self.view:
            self.show_view(view)

    def offer(self, bins: Volume | None, materials: Volume | None, view: View) -> None:
        """Offer what these volumes can show."""
        self._bins, self._materials = bins, materials
        self._is_silent = True
        self.bin.clear()
        for name in bins.channels if bins is not None else ():
            self.bin.addItem(bin_name(bins, name) if bins is not None else name, name)
        self.element.clear()
        for edge in k_edges(bins, materials) if bins is not None else ():
            self.element.addItem(f"{edge.element}, {edge.energy_kev:.1f} keV", edge.element)
        self._is_silent = False
        self._say_what_cannot_be()
        self.show_view(view)

    def show_view(self, view: View) -> None:
        """Show this choice."""
        self._is_silent = True
        self.view = view
        self.shown.setCurrentIndex(list(Shown).index(view.shown))
        if view.channel:
            self.bin.setCurrentIndex(max(self.bin.findData(view.channel), 0))
        if view.element:
            self.element.setCurrentIndex(max(self.element.findData(view.element), 0))
        self.energy.setValue(round(view.energy_kev))
        self.hu.setChecked(view.is_hu)
        self._is_silent = False
        self._arrange()

    def show_looks(self, looks: Looks | GreyLook, spans: tuple[Levels, ...], unit: str) -> None:
        """Show how the present view looks."""
        if isinstance(looks, GreyLook):
            self.grey.show_look(looks, spans[0] if spans else looks.levels, unit)
            self.stack.setCurrentWidget(self.grey)
        else:
            self.rows.show_looks(looks, spans)
            self.stack.setCurrentWidget(self.rows)

    def _view_box(self) -> QtWidgets.QWidget:
        box = QtWidgets.QGroupBox("What is shown")
        form = QtWidgets.QFormLayout(box)
        self.shown = QtWidgets.QComboBox()
        self.shown.setToolTip("What the panes show of the volume; what cannot be shown says why.")
        for kind in Shown:
            self.shown.addItem(kind.value)
        self.bin = QtWidgets.QComboBox()
        self.bin.setToolTip("The energy bin, or other quantity, that is shown.")
        self.element = QtWidgets.QComboBox()
        self.element.setToolTip("The element whose K edge lies between the two bins.")
        self.energy = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal)
        self.energy.setRange(*KEV)
        self.energy.setToolTip("The picture that X-rays of this one energy would give, computed from the materials.")
        self.energy_kev = QtWidgets.QSpinBox()
        self.energy_kev.setRange(*KEV)
        self.energy_kev.setSuffix(" keV")
        self.energy_kev.setToolTip(self.energy.toolTip())
        self.energy.valueChanged.connect(self.energy_kev.setValue)
        self.energy_kev.valueChanged.connect(self.energy.setValue)
        self.hu = QtWidgets.QCheckBox("Hounsfield units")
        energy = QtWidgets.QHBoxLayout()
        energy.addWidget(self.energy, 1)
        energy.addWidget(self.energy_kev)
        self._energy = QtWidgets.QWidget()
        energy.setContentsMargins(0, 0, 0, 0)
        self._energy.setLayout(energy)
        self._why = hint()
        form.addRow(self.shown)
        form.addRow("Bin", self.bin)
        form.addRow("Element", self.element)
        form.addRow("Energy", self._energy)
        form.addRow(self.hu)
        form.addRow(self._why)
        self._form = form
        self.shown.currentIndexChanged.connect(self._chosen)
        self.bin.currentIndexChanged.connect(self._chosen)
        self.element.currentIndexChanged.connect(self._chosen)
        self.energy.valueChanged.connect(self._chosen)
        self.hu.toggled.connect(self._chosen)
        self._arrange()
        return box

    def _read(self) -> View:
        return View(
            shown=list(Shown)[self.shown.currentIndex()],
            channel=self.bin.currentData() or "",
            element=self.element.currentData() or "",
            energy_kev=float(self.energy.value()),
            is_hu=self.hu.isChecked(),
        )

    def _chosen(self) -> None:
        if self._is_silent:
            return
        view = self._read()
        if why_not(view, self._bins, self._materials) and view.is_hu:
            view = replace(view, is_hu=False)
        self.show_view(view)
        if not why_not(view, self._bins, self._materials):
            self.view_changed.emit(view)

    def _arrange(self) -> None:
        """Show only what belongs to the view, and say why something cannot be had."""
        shown = self.view.shown
        for widget, kinds in (
            (self.bin, (Shown.BIN,)), (self.element, (Shown.K_EDGE,)), (self._energy, (Shown.MONO,)),
            (self.hu, (Shown.BIN, Shown.MONO)),
        ):  # fmt: skip
            self._form.setRowVisible(widget, shown in kinds)
        no_hu = why_not(replace(self._read(), is_hu=True), self._bins, self._materials)
        allow(self.hu, "Relative to water (0 HU) and nothing (-1000 HU), instead of attenuation in 1/mm.", no_hu)
        why = why_not(self.view, self._bins, self._materials)
        self._why.setText(why)
        self._form.setRowVisible(self._why, bool(why))

    def _say_what_cannot_be(self) -> None:
        model = self.shown.model()
        assert isinstance(model, QtGui.QStandardItemModel)
        for n, kind in enumerate(Shown):
            why = why_not(View(shown=kind), self._bins, self._materials)
            model.item(n).setEnabled(not why)
            model.item(n).setToolTip(why)


class _MaterialRows(QtWidgets.QScrollArea):
    """One row of controls per material."""

    def __init__(self, changed: Callable[[Looks], object]) -> None:
        super().__init__()
        self.setWidgetResizable(True)
        self.setFrameShape(QtWidgets.QFrame.Shape.NoFrame)
        self.rows: list[MaterialRow] = []
        self._changed = changed
        self._inside = QtWidgets.QWidget()
        self._layout = QtWidgets.QVBoxLayout(self._inside)
        self._layout.setContentsMargins(0, 0, 0, 0)
        self._layout.addStretch(1)
        self.setWidget(self._inside)
        for part in (self.viewport(), self._inside):
            part.setAutoFillBackground(False)  # it lies on a tab, whose colour is another than the window's

    def show_looks(self, looks: Looks, spans: tuple[Levels, ...]) -> None:
        if [row.look.material for row in self.rows] != [look.material for look in looks]:
            for row in self.rows:
                self._layout.removeWidget(row)
                row.deleteLater()
            self.rows = [MaterialRow(look, self._tell) for look in looks]
            for n, row in enumerate(self.rows):
                self._layout.insertWidget(n, row)
            put_in_turn(self._inside, self)
        for n, (row, look) in enumerate(zip(self.rows, looks, strict=True)):
            row.show_look(look, spans[n] if n < len(spans) else (look.low_g_cm3, look.high_g_cm3))

    def _tell(self) -> None:
        self._changed(tuple(row.look for row in self.rows))


class MaterialRow(QtWidgets.QFrame):
    """Colour, opacity and window of one material."""

    def __init__(self, look: MaterialLook, changed: Callable[[], object]) -> None:
        super().__init__()
        self.look = look
        self._tell, self._is_silent = changed, False
        self._span_mg_ml = (0.0, 1.0)
        self.setFrameShape(QtWidgets.QFrame.Shape.StyledPanel)
        self.visible = QtWidgets.QCheckBox(look.material)
        self.visible.setToolTip(f"Show {look.material}.")
        self.colour = QtWidgets.QToolButton()
        self.colour.setPopupMode(QtWidgets.QToolButton.ToolButtonPopupMode.InstantPopup)
        self.colour.setIconSize(QtCore.QSize(2 * SWATCH_PX, SWATCH_PX))
        self.colour.setToolTip(f"The colour of {look.material}; those of the list stay apart for the colour-blind.")
        self.colour.setMenu(self._colours())
        self.opacity = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal)
        self.opacity.setRange(0, 100)
        self.opacity.setMinimumWidth(60)
        self.opacity.setToolTip("Opacity: how much of its colour is added, 0 to 100 %.")
        self._percent = QtWidgets.QLabel()
        self._percent.setMinimumWidth(self.fontMetrics().horizontalAdvance("opacity 100 %"))
        self._percent.setToolTip(self.opacity.toolTip())
        tip = "Where the colour begins, and where it is full, in mg/mL."
        self.window_slider = RangeSlider(tip)
        self.low, self.high = (_spin(" mg/mL", tip) for _ in range(2))
        grid = QtWidgets.QGridLayout(self)
        grid.setContentsMargins(6, 4, 6, 4)
        grid.setVerticalSpacing(3)
        grid.addWidget(self.visible, 0, 0)
        grid.addWidget(self.colour, 0, 1)
        grid.addWidget(self.opacity, 0, 2)
        grid.addWidget(self._percent, 0, 3)
        grid.addWidget(self.window_slider, 1, 0, 1, 4)
        ends = QtWidgets.QHBoxLayout()
        ends.addWidget(self.low)
        ends.addStretch(1)
        ends.addWidget(self.high)
        grid.addLayout(ends, 2, 0, 1, 4)
        grid.setColumnStretch(0, 1)
        grid.setColumnStretch(2, 1)
        self.visible.toggled.connect(lambda on: self._edit(is_visible=on))
        self.opacity.valueChanged.connect(lambda percent: self._edit(opacity=percent / 100))
        self.window_slider.changed.connect(self._window)
        for spin in (self.low, self.high):
            spin.valueChanged.connect(lambda _: self._window(self.low.value(), self.high.value()))

    def show_look(self, look: MaterialLook, span_g_cm3: Levels) -> None:
        """Show this, without telling."""
        self._is_silent = True
        self.look = look
        self._span_mg_ml = (span_g_cm3[0] * MG_ML_PER_G_CM3, span_g_cm3[1] * MG_ML_PER_G_CM3)
        low, high = look.low_g_cm3 * MG_ML_PER_G_CM3, look.high_g_cm3 * MG_ML_PER_G_CM3
        self.visible.setChecked(look.is_visible)
        self.opacity.setValue(round(100 * look.opacity))
        self._percent.setText(f"opacity {round(100 * look.opacity)} %")
        self.window_slider.show_range(low, high, self._span_mg_ml)
        self.window_slider.show_colours(((0, 0, 0), rgb(look.colour)))
        for spin, value in ((self.low, low), (self.high, high)):
            if abs(spin.value() - value) > 10.0 ** -spin.decimals() / 2:
                spin.setValue(value)
        self.colour.setIcon(swatch(rgb(look.colour)))
        self._is_silent = False

    def _edit(self, **parts: object) -> None:
        if not self._is_silent:
            self.show_look(replace(self.look, **parts), self._span_g_cm3())
            self._tell()

    def _window(self, low_mg_ml: float, high_mg_ml: float) -> None:
        if not self._is_silent:
            self.show_look(with_window(self.look, low_mg_ml, high_mg_ml), self._span_g_cm3())
            self._tell()

    def _span_g_cm3(self) -> Levels:
        return self._span_mg_ml[0] / MG_ML_PER_G_CM3, self._span_mg_ml[1] / MG_ML_PER_G_CM3

    def _colours(self) -> QtWidgets.QMenu:
        menu = QtWidgets.QMenu(self)
        for name, colour in colour_choices().items():
            action = menu.addAction(swatch(rgb(colour)), name)
            action.triggered.connect(lambda _=False, chosen=colour: self._edit(colour=chosen))
        menu.addSeparator()
        menu.addAction("Another colour…").triggered.connect(self._any_colour)
        return menu

    def _any_colour(self) -> None:
        chosen = QtWidgets.QColorDialog.getColor(QtGui.QColor(*rgb(self.look.colour)), self, self.look.material)
        if chosen.isValid():
            self._edit(colour=(chosen.redF(), chosen.greenF(), chosen.blueF()))


class _GreyRow(QtWidgets.QGroupBox):
    """Colour map and window of what is no material."""

    def __init__(self, changed: Callable[[GreyLook], object]) -> None:
        super().__init__("Grey levels")
        self.look = GreyLook(levels=(0.0, 1.0))
        self._changed, self._is_silent = changed, False
        self._span: Levels = (0.0, 1.0)
        self.map_name = QtWidgets.QComboBox()
        self.map_name.addItems(list(MAPS))
        self.map_name.setToolTip("Which colours stand for which values.")
        tip = "Where black ends, and where white begins."
        self.window_slider = RangeSlider(tip)
        self.low, self.high = (_spin("", tip) for _ in range(2))
        form = QtWidgets.QFormLayout(self)
        form.addRow("Colours", self.map_name)
        form.addRow(self.window_slider)
        form.addRow("From", self.low)
        form.addRow("To", self.high)
        self.map_name.currentTextChanged.connect(lambda name: self._edit(map_name=name))
        self.window_slider.changed.connect(lambda low, high: self._edit(levels=(low, high)))
        for spin in (self.low, self.high):
            spin.valueChanged.connect(lambda _: self._edit(levels=(self.low.value(), self.high.value())))

    def show_look(self, look: GreyLook, span: Levels, unit: str) -> None:
        """Show this, without telling."""
        self._is_silent = True
        self.look, self._span = look, span
        self.map_name.setCurrentText(look.map_name)
        self.window_slider.show_range(*look.levels, span)
        self.window_slider.show_colours([(int(r), int(g), int(b)) for r, g, b in map_table(look.map_name)[::32]])
        wide = max(span[1] - span[0], 1e-9)
        decimals = min(max(3 - math.floor(math.log10(wide)), 1), 9)  # a thousandth of the span can be typed
        for spin, value in zip((self.low, self.high), look.levels, strict=True):
            spin.setDecimals(decimals)
            spin.setSingleStep((span[1] - span[0]) / 100 or 1.0)
            spin.setSuffix("" if unit in ("", "1") else f" {unit}")
            spin.setRange(-1e6, 1e6)
            if abs(spin.value() - value) > 10.0**-decimals / 2:
                spin.setValue(value)
        self._is_silent = False

    def _edit(self, **parts: object) -> None:
        if self._is_silent:
            return
        try:
            look = replace(self.look, **parts)
        except ValueError:
            return  # while one end is typed it may stand beyond the other for a moment
        unit = self.low.suffix().strip()
        self.show_look(look, self._span, unit)
        self._changed(look)


def _spin(suffix: str, tip: str) -> QtWidgets.QDoubleSpinBox:
    spin = QtWidgets.QDoubleSpinBox()
    spin.setRange(0, 25_000)
    spin.setDecimals(2)
    spin.setSuffix(suffix)
    spin.setToolTip(tip)
    spin.setKeyboardTracking(False)
    spin.setStepType(QtWidgets.QAbstractSpinBox.StepType.AdaptiveDecimalStepType)
    return spin


def swatch(colour: tuple[int, int, int]) -> QtGui.QIcon:
    """Return a patch of colour."""
    pixmap = QtGui.QPixmap(2 * SWATCH_PX, SWATCH_PX)
    pixmap.fill(QtGui.QColor(*colour))
    return QtGui.QIcon(pixmap)
