"""The page Volume: slices and colour rendering of what was reconstructed, measured where one points."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

from gui.controls import allow, restore_sizes
from gui.page import Page
from gui.volume.annotations import Tool
from gui.volume.cursor import mean_spectrum
from gui.volume.cursor_panel import CursorPanel
from gui.volume.desk import Desk
from gui.volume.looks_panel import LooksPanel
from gui.volume.measure_panel import MeasurePanel
from gui.volume.panes import Panes
from gui.volume.pictures import PictureMenu
from gui.volume.presets import PresetButton
from gui.volume.slicing import Cut, Slab
from gui.volume.solid import Solid

FILE_FILTER = "Volumes (*.h5 *.hdf5);;All files (*)"
SOLID_TAB = 3
EMPTY = "No volume yet.\n\nOpen one, drop a file here, or reconstruct\na scan on the page Reconstruct."


class VolumePage(Page):
    """Look at volumes: slices, colours, measurements, three dimensions.

    Attributes
    ----------
    desk : Desk
        All it shows, without a widget.
    export_asked : Signal()
        Somebody wishes to write volumes for other programs; the window knows how.
    """

    export_asked = QtCore.Signal()

    title = "Volume"

    @staticmethod
    def prepare() -> None:
        """Load what three dimensions are drawn with, and last what needs OpenGL, which may not be there."""
        for name in ("scipy.ndimage", "gui.volume.scene"):
            importlib.import_module(name)
        importlib.import_module("gui.volume.gl_view").load_driver()

    def build(self) -> Iterator[None]:
        """Make the widgets in pieces."""
        self.desk = Desk(self.session)
        self.panes = Panes(self.desk)
        yield
        self.looks = LooksPanel()
        yield
        self.readout = CursorPanel()
        yield
        self.measure = MeasurePanel()
        yield from self.measure.pieces
        self.presets = PresetButton(self.desk)
        self.solid = Solid(self.desk)
        yield
        self.side = QtWidgets.QTabWidget()
        for widget, name, tip in (
            (self._looks_tab(), "Look", "What is shown, and in which colours."),
            (_scrolled(self.readout), "Cursor", "What stands under the mouse."),
            (_scrolled(self.measure), "Measure", "Regions, lengths, angles, histograms."),
            (self.solid.controls, "View", "Three dimensions: side, opacity, cut, surfaces, pictures, movies."),
        ):
            self.side.setTabToolTip(self.side.addTab(widget, name), tip)
        self.side.setTabVisible(SOLID_TAB, False)
        self.side.setMinimumWidth(320)
        self._slices_tab = 0
        self.splitter = QtWidgets.QSplitter()
        self.places = QtWidgets.QTabWidget()
        self.places.setDocumentMode(True)
        self.places.tabBar().setDrawBase(False)
        self.places.addTab(self.panes, "Slices")
        self.places.addTab(self.solid, "Three dimensions")
        self.places.setTabToolTip(0, "Three linked slices and a slanted cut.")
        self.places.setTabToolTip(1, "The materials in three dimensions: light, clip box, surfaces, movie.")
        self.splitter.addWidget(self.places)
        self.splitter.addWidget(self.side)
        self.splitter.setStretchFactor(0, 1)
        self.splitter.setCollapsible(0, False)
        self.splitter.setSizes([926, 354])
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(8, 8, 8, 8)
        layout.addLayout(self._bar())
        layout.addWidget(self.splitter, 1)
        self._connect()
        self._shortcuts()
        self._shown_version = -1
        self._buttons()
        yield

    def refresh(self) -> None:
        """Take what is new in the session and from the background, and show it."""
        self.desk.beat()
        if self.desk.version != self._shown_version:
            self._shown_version = self.desk.version
            self._show()
        if self.desk.has_new_reading and self.desk.reading is not None:
            self.desk.has_new_reading = False
            self.readout.show_reading(self.desk.reading, is_scale_known=self.desk.is_scale_known)
        if self.desk.has_new_histogram:
            self.desk.has_new_histogram = False
            self.measure.show_histogram(*self.desk.histogram)
        self.panes.refresh()
        self.solid.refresh()

    def restyle(self) -> None:
        """Take the colours of another theme; pictures stay on black in both."""
        self.readout.restyle()
        self.measure.restyle()
        self.solid.restyle()

    def save(self) -> dict[str, object]:
        """Return presets and the layout."""
        return {
            "presets": self.desk.presets_plain(),
            "splitter": list(self.splitter.sizes()),
            "tab": self._slices_tab if self._is_solid else self.side.currentIndex(),
            "crosshair": self.crosshair.isChecked(),
            "panel": self.fold.isChecked(),
            "solid": self.solid.save(),
        }

    def restore(self, saved: dict[str, object]) -> None:
        """Take presets and the layout of an earlier start."""
        self.desk.take_presets(saved.get("presets"))
        restore_sizes(self.splitter, saved.get("splitter"))
        if isinstance(tab := saved.get("tab"), int) and 0 <= tab < SOLID_TAB:
            self.side.setCurrentIndex(tab)
        for name, box in (("crosshair", self.crosshair), ("panel", self.fold)):
            if isinstance(is_set := saved.get(name), bool):
                box.setChecked(is_set)
        if isinstance(solid := saved.get("solid"), dict):
            self.solid.restore(solid)

    @property
    def can_undo(self) -> bool:
        """Whether there is a change of looks or drawings to take back."""
        return self.desk.can_undo

    @property
    def can_redo(self) -> bool:
        """Whether there is a change of looks or drawings to make again."""
        return self.desk.can_redo

    def undo(self) -> None:
        """Take the last change of looks or drawings back."""
        self.desk.undo()

    def redo(self) -> None:
        """Make it again."""
        self.desk.redo()

    def keys(self) -> dict[str, str]:
        """Return the keys of this page."""
        return {
            "Up, Down": "next slice, slice before",
            "Page up, Page down": "ten slices on, or back",
            "R": "show the whole volume, crosshair in the middle",
            "C": "crosshair on or off",
            "P": "panel on the right shown, or folded away",
            "Esc": "put the drawing tool away",
            "Ctrl+Shift+C": "copy all panes as a picture",
        }

    def end(self) -> None:
        """Compute nothing any more."""
        self.desk.close()

    def open_file(self, path: Path) -> None:
        """Open a volume file, in the background."""
        self.desk.open(path)

    def _show(self) -> None:
        desk = self.desk
        self._name.setText(desk.name)
        self._name.setToolTip(desk.description)
        self.looks.offer_where_new(desk.bins, desk.materials, desk.view)
        if desk.look is not None:
            self.looks.show_looks(desk.look, desk.spans, desk.unit)
        self.measure.offer_channels(desk.channels)
        self.measure.show_drawings(desk.drawings, desk.figures, desk.chosen)
        known = desk.figures.get(self.measure.chosen_name)
        self.measure.show_spectrum(None if known is None else mean_spectrum(known, desk.bins, desk.materials))
        self.panes.show_all(EMPTY)
        self._buttons()

    def _buttons(self) -> None:
        """Grey what cannot be done, and say why."""
        desk = self.desk
        why = "no volume is open." if desk.grid is None else ""
        for widget, tip in self._needs_volume:
            allow(widget, tip, why)
        allow(self.undo_button, "Take the last change back (Ctrl+Z).", "" if desk.can_undo else "nothing was changed.")
        allow(self.redo_button, "Make it again (Ctrl+Shift+Z).", "" if desk.can_redo else "nothing was taken back.")
        self.presets.refresh()
        self.measure.allow(why)
        self.looks.allow(why)

    def _looks_tab(self) -> QtWidgets.QWidget:
        tab = QtWidgets.QWidget()
        layout = QtWidgets.QVBoxLayout(tab)
        layout.setContentsMargins(0, 0, 0, 6)
        layout.addWidget(self.looks, 1)
        row = QtWidgets.QHBoxLayout()
        row.setContentsMargins(6, 0, 6, 0)
        self.undo_button, self.redo_button = QtWidgets.QPushButton("Undo"), QtWidgets.QPushButton("Redo")
        row.addWidget(self.presets)
        row.addStretch(1)
        row.addWidget(self.undo_button)
        row.addWidget(self.redo_button)
        layout.addLayout(row)
        return tab

    def _bar(self) -> QtWidgets.QLayout:
        row = QtWidgets.QHBoxLayout()
        self._open = QtWidgets.QPushButton("Open…")
        self._open.setToolTip("Open a volume file; it can also be dropped on the page.")
        self._open.clicked.connect(self._choose_file)
        self._name = QtWidgets.QLabel("no volume")
        self._name.setSizePolicy(QtWidgets.QSizePolicy.Policy.Ignored, QtWidgets.QSizePolicy.Policy.Preferred)
        self.slab = QtWidgets.QDoubleSpinBox()
        self.slab.setRange(0, 500)
        self.slab.setDecimals(2)
        self.slab.setSingleStep(0.1)
        self.slab.setSuffix(" mm")
        self.slab.setSpecialValueText("one slice")
        self.slab_kind = QtWidgets.QComboBox()
        self.slab_kind.addItems([kind.value for kind in Slab])
        self.crosshair = QtWidgets.QCheckBox("Crosshair")
        self.crosshair.setChecked(True)
        self.reset = QtWidgets.QPushButton("Reset")
        self.picture = PictureMenu(self.panes, self.session)
        self.export = QtWidgets.QPushButton("Export…")
        self.export.clicked.connect(lambda: self.export_asked.emit())
        self.fold = QtWidgets.QToolButton()
        self.fold.setText("Panel")
        self.fold.setCheckable(True)
        self.fold.setChecked(True)
        self.fold.setToolTip("Show the panel on the right, or fold it away to give its room to the picture (P).")
        self._needs_volume: list[tuple[QtWidgets.QWidget, str]] = [
            (self.slab, "How much each slice shows of what lies before and behind it."),
            (self.slab_kind, "What a thick slice shows: the mean of its voxels, or the largest."),
            (self.crosshair, "Show the crosshair (C)."),
            (self.reset, "Show the whole volume; among slices, crosshair in the middle, slanted cut upright (R)."),
            (self.picture, "Save or copy what is seen, with scale bar and legend."),
            (self.export, "Write volumes for other programs: NRRD, NIfTI, TIFF, DICOM and others."),
        ]
        row.addWidget(self._open)
        row.addWidget(self._name, 1)
        self._of_slices = (QtWidgets.QLabel("Slab"), self.slab, self.slab_kind, self.crosshair, self.picture)
        for widget in (*self._of_slices[:-1], self.reset, self.picture, self.export, self.fold):
            row.addWidget(widget)
        return row

    def _connect(self) -> None:
        desk = self.desk
        self.looks.view_changed.connect(desk.choose_view)
        self.looks.looks_changed.connect(desk.choose_look)
        self.looks.auto_asked.connect(desk.ask_auto)
        self.undo_button.clicked.connect(lambda: desk.undo())
        self.redo_button.clicked.connect(lambda: desk.redo())
        self.slab.valueChanged.connect(lambda _: self._slab())
        self.slab_kind.currentIndexChanged.connect(lambda _: self._slab())
        self.crosshair.toggled.connect(desk.show_crosshair)
        self.reset.clicked.connect(self._reset)
        self.measure.tool_chosen.connect(self.panes.choose_tool)
        self.measure.edited.connect(desk.edit_drawings)
        self.measure.chosen.connect(desk.choose_drawing)
        self.measure.histogram_asked.connect(self._histogram)
        self.measure.copy_asked.connect(self._copy_table)
        self.panes.drawn.connect(self._drawn)
        self.places.currentChanged.connect(self._turn_over)
        self.fold.toggled.connect(self.side.setVisible)

    def _shortcuts(self) -> None:
        for keys, does in (
            ("R", self._reset), ("C", self.crosshair.toggle), ("P", self.fold.toggle), ("Esc", self._put_away),
            ("Ctrl+Shift+C", self.picture.copy_all),
        ):  # fmt: skip
            shortcut = QtGui.QShortcut(QtGui.QKeySequence(keys), self)
            shortcut.setContext(QtCore.Qt.ShortcutContext.WidgetWithChildrenShortcut)
            shortcut.activated.connect(does)

    def _slab(self) -> None:
        self.desk.choose_slab(self.slab.value(), list(Slab)[self.slab_kind.currentIndex()])

    @property
    def _is_solid(self) -> bool:
        return self.places.currentWidget() is self.solid

    def _turn_over(self) -> None:
        """Have the controls of slices beside slices, and those of three dimensions beside these."""
        if self._is_solid:
            self._slices_tab = self.side.currentIndex()
        for n in range(self.side.count()):
            self.side.setTabVisible(n, n == 0 or (n == SOLID_TAB) == self._is_solid)
        self.side.setCurrentIndex(SOLID_TAB if self._is_solid else self._slices_tab)
        for widget in self._of_slices:
            widget.setVisible(not self._is_solid)

    def _reset(self) -> None:
        if self._is_solid:
            self.solid.reset()
            return
        self.desk.reset()
        self.panes.fit()

    def _put_away(self) -> None:
        self.measure.put_tool_away()
        self.panes.choose_tool(None)

    def _drawn(self, tool: Tool, points: list[tuple[float, float]], cut: Cut) -> None:
        self.desk.draw(tool, points, cut, self.measure.thickness.value())
        self._histogram()

    def _histogram(self) -> None:
        measure = self.measure
        self.desk.ask_histogram(
            measure.across.currentText(),
            measure.upwards.currentText() if measure.upwards.currentIndex() > 0 else "",
            measure.chosen_name if measure.where.currentIndex() else "",
        )

    def _copy_table(self) -> None:
        QtWidgets.QApplication.clipboard().setText(self.desk.table_csv())

    def _choose_file(self) -> None:
        chosen, _ = QtWidgets.QFileDialog.getOpenFileName(
            self, "Open a volume", str(self.session.state.folder), FILE_FILTER
        )
        if chosen:
            self.open_file(Path(chosen))


def _scrolled(widget: QtWidgets.QWidget) -> QtWidgets.QScrollArea:
    """Return a panel that a low window does not squeeze."""
    area = QtWidgets.QScrollArea()
    area.setWidget(widget)
    area.setWidgetResizable(True)
    area.setFrameShape(QtWidgets.QFrame.Shape.NoFrame)
    area.setHorizontalScrollBarPolicy(QtCore.Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    return area
