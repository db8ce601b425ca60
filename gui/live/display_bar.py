"""What of the frames is shown, and how: the two rows of controls over the image."""

from __future__ import annotations

from pyqtgraph.Qt import QtWidgets

from gui.image_panel import ImagePanel, LevelMode
from gui.levels import COLOUR_MAPS
from gui.live.measures import Kind, Selection
from gui.live.shown import Source, View, energy_name, name_of


class DisplayBar(QtWidgets.QWidget):
    """Chooses the view, and sets levels and colours of the panel.

    Attributes
    ----------
    n_changes : int
        Goes up with every choice, so that whoever shows knows that something is to be drawn anew.
    """

    def __init__(self, panel: ImagePanel) -> None:
        super().__init__()
        self._panel = panel
        self._thresholds_kev: tuple[float, ...] = ()
        self.n_changes = 0
        self.what = QtWidgets.QComboBox()
        self.what.setToolTip("A threshold counts all above its energy; a bin what lies between two thresholds.")
        self.what.setMinimumContentsLength(18)
        self.low = QtWidgets.QComboBox()
        self.high = QtWidgets.QComboBox()
        self.low.setToolTip("From the counts above this energy ...")
        self.high.setToolTip("... those above this one are taken away.")
        self._minus = QtWidgets.QLabel("minus")
        self.source = QtWidgets.QComboBox()
        self.source.addItems([source.value for source in Source])
        self.source.setToolTip("One frame, or many: sums show more, and follow changes more slowly.")
        self.n_last = QtWidgets.QSpinBox()
        self.n_last.setRange(2, 1000)
        self.n_last.setValue(10)
        self.n_last.setSuffix(" frames")
        self.n_last.setToolTip("How many of the last frames are summed.")
        self.flat = QtWidgets.QCheckBox("flat field")
        self.flat.setToolTip(
            "Divide by the open beam: 1 is where nothing absorbs. The flat is the one that you took here, or the\n"
            "calibration's, where thresholds and tube are as they were then; the line below says which."
        )
        self.levels = QtWidgets.QComboBox()
        self.levels.addItems(["levels stay", "levels follow"])
        self.levels.setToolTip(
            "stay: brightness means the same in every frame; drag at the histogram to change it.\n"
            "follow: each frame sets them, leaving 0.2 % of the pixels beyond either end."
        )
        self.auto = QtWidgets.QPushButton("Set levels")
        self.auto.setToolTip("Set the levels once by the image that is shown, so that a few odd pixels do not matter.")
        self.log = QtWidgets.QCheckBox("log")
        self.log.setToolTip("Brightness goes with the logarithm: shows faint and bright at once.")
        self.colours = QtWidgets.QComboBox()
        self.colours.addItems(list(COLOUR_MAPS))
        self.colours.setToolTip("Colours of the image; viridis and cividis are safe for colour-blind eyes.")
        self.fit = QtWidgets.QPushButton("Fit")
        self.fit.setToolTip("Show the whole image; a zoom stays until you press this. Wheel: zoom, drag: move.")
        self._lay_out()
        self._connect()
        self.set_thresholds((18.0,))

    def view(self) -> View:
        """Return what is chosen."""
        return View(
            source=list(Source)[self.source.currentIndex()],
            n_last=self.n_last.value(),
            selection=self.selection(),
            is_flat=self.flat.isChecked(),
        )

    def selection(self) -> Selection:
        """Return which threshold, bin or difference is chosen."""
        chosen = self.what.currentData()
        if chosen is None:
            return Selection()
        if chosen.kind is Kind.DIFFERENCE:
            return Selection(kind=Kind.DIFFERENCE, first=self.low.currentIndex(), second=self.high.currentIndex())
        return chosen

    def select(self, selection: Selection) -> None:
        """Choose something; what is not there is left alone."""
        for place in range(self.what.count()):
            offered = self.what.itemData(place)
            if offered.kind is selection.kind and (
                selection.kind in (Kind.DIFFERENCE, Kind.COMPOSITE) or offered.first == selection.first
            ):
                self.what.setCurrentIndex(place)
        if selection.kind is Kind.DIFFERENCE:
            self.low.setCurrentIndex(selection.first)
            self.high.setCurrentIndex(selection.second)

    def set_thresholds(self, energies_kev: tuple[float, ...]) -> None:
        """Offer these thresholds; what was chosen stays chosen by its place."""
        if energies_kev == self._thresholds_kev:
            return
        before, self._thresholds_kev = self.selection(), energies_kev
        offered = [
            Selection(kind=kind, first=n) for kind in (Kind.THRESHOLD, Kind.BIN) for n in range(len(energies_kev))
        ]
        if len(energies_kev) > 1:
            offered += [Selection(kind=Kind.DIFFERENCE), Selection(kind=Kind.COMPOSITE)]
        for box in (self.what, self.low, self.high):
            box.blockSignals(True)
            box.clear()
        for selection in offered:
            is_difference = selection.kind is Kind.DIFFERENCE
            self.what.addItem("difference of two" if is_difference else name_of(selection, energies_kev), selection)
        for box in (self.low, self.high):
            box.addItems([energy_name(energy, n) for n, energy in enumerate(energies_kev)])
        self.high.setCurrentIndex(min(1, len(energies_kev) - 1))
        self.select(before)
        for box in (self.what, self.low, self.high):
            box.blockSignals(False)
        self._changed()

    def _lay_out(self) -> None:
        first, second = QtWidgets.QHBoxLayout(), QtWidgets.QHBoxLayout()
        for widget in (QtWidgets.QLabel("Show"), self.what, self.low, self._minus, self.high):
            first.addWidget(widget)
        for widget in (QtWidgets.QLabel("of"), self.source, self.n_last):
            first.addWidget(widget)
        first.addStretch(1)
        for widget in (
            self.flat,
            self.levels,
            self.auto,
            self.log,
            QtWidgets.QLabel("colours"),
            self.colours,
            self.fit,
        ):
            second.addWidget(widget)
        second.addStretch(1)
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        layout.addLayout(first)
        layout.addLayout(second)

    def _connect(self) -> None:
        for box in (self.what, self.low, self.high, self.source):
            box.currentIndexChanged.connect(lambda _: self._changed())
        self.n_last.valueChanged.connect(lambda _: self._changed())
        self.flat.toggled.connect(lambda _: self._changed(is_new_unit=True))
        self.levels.currentIndexChanged.connect(lambda _: self._set_level_mode())
        self.auto.clicked.connect(lambda: self.set_levels())
        self.log.toggled.connect(self._panel.set_log)
        self.colours.currentTextChanged.connect(self._panel.set_colour_map)
        self.fit.clicked.connect(lambda: self._panel.fit())

    def set_levels(self) -> None:
        """Set the levels once, by the image that is shown."""
        self._panel.forget_levels()
        self.n_changes += 1

    def _set_level_mode(self) -> None:
        self._panel.level_mode = LevelMode.AUTO if self.levels.currentIndex() else LevelMode.KEPT
        self.n_changes += 1

    def _changed(self, *, is_new_unit: bool = False) -> None:
        is_difference = self.selection().kind is Kind.DIFFERENCE and self.what.count() > 0
        for widget in (self.low, self._minus, self.high):
            widget.setVisible(is_difference)
        self.n_last.setVisible(self.view().source is Source.LAST)
        if is_new_unit:
            self._panel.forget_levels()
        self.n_changes += 1
