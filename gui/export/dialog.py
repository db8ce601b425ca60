"""The dialog Export: what of a volume, in which format and unit, where to; and how far it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

from gui.controls import ActionButton, JobBar, allow, hint, labelled
from gui.export.choice import Choice, can_be_together, level_for, shared_units, suggested
from gui.export.content import content_of
from gui.export.formats import FORMATS, SURFACES, ZARR_VERSIONS, Format, Options, default_unit
from gui.session import Session
from gui.state import Action
from gui.volume.looks import MaterialLook
from gui.workers import Job, JobStatus
from reconstruction.volume import HOUNSFIELD, MG_PER_ML, Volume

BEAT_MS = 100
NAME, UNIT, LEVEL = range(3)
CHECKED, UNCHECKED = QtCore.Qt.CheckState.Checked, QtCore.Qt.CheckState.Unchecked


class ExportDialog(QtWidgets.QDialog):
    """Exports what a session holds; several may follow each other without closing it.

    Parameters
    ----------
    looks : callable
        Returns the colours and windows that materials have in the window now; none: chosen by their values.
    """

    def __init__(
        self,
        session: Session,
        parent: QtWidgets.QWidget | None = None,
        *,
        looks: Callable[[], Sequence[MaterialLook]] = tuple,
    ) -> None:
        super().__init__(parent)
        self.session = session
        self._looks = looks
        self._job: Job[list[Path]] | None = None
        self._is_named = self._is_closed = False
        self._written: list[Path] = []
        self._choice: Choice | None = None
        self.setWindowTitle("Export")
        self.setMinimumWidth(620)
        self.setAttribute(QtCore.Qt.WidgetAttribute.WA_DeleteOnClose)
        self.finished.connect(self._closed)
        self._build()
        self._timer = QtCore.QTimer(self)
        self._timer.timeout.connect(self.refresh)
        self._timer.start(BEAT_MS)
        self._take_volumes()

    def choice(self) -> Choice | None:
        """Return what is chosen now; None where there is no volume."""
        return self._choice

    def refresh(self) -> None:
        """Show how far the export is, and whether another may begin."""
        if not self.isVisible():
            return
        self.bar.refresh()
        self.export_button.refresh()

    # What it is made of

    def _build(self) -> None:
        self.source = QtWidgets.QComboBox()
        self.source.setToolTip("The volume to export.")
        self.source.currentIndexChanged.connect(self._take_channels)
        self.table = QtWidgets.QTableWidget(0, 3)
        self.table.setToolTip("Tick what is to be exported.")
        self.table.verticalHeader().setVisible(False)
        self.table.setSelectionMode(QtWidgets.QAbstractItemView.SelectionMode.NoSelection)
        header = self.table.horizontalHeader()
        header.setDefaultAlignment(QtCore.Qt.AlignmentFlag.AlignLeft | QtCore.Qt.AlignmentFlag.AlignVCenter)
        header.setSectionResizeMode(NAME, QtWidgets.QHeaderView.ResizeMode.Stretch)
        self.table.setColumnWidth(LEVEL, 150)
        self.table.setMinimumHeight(150)
        self.table.itemChanged.connect(self._changed)
        self.unit = QtWidgets.QComboBox()
        self.unit.setToolTip("The unit of the numbers in the file.")
        self.unit.currentIndexChanged.connect(self._unit_changed)
        self.format = QtWidgets.QComboBox()
        self.format.setToolTip("Each line says who opens it.")
        for kind in FORMATS:
            ending = f"folder of {kind.endings[0]}" if kind.name == "dicom" else kind.endings[0]
            self.format.addItem(f"{kind.title}  ({ending})", kind)
        self.format.currentIndexChanged.connect(self._format_changed)
        self.opens = hint()
        self.together = QtWidgets.QCheckBox("All channels in one file")
        self.together.toggled.connect(self._changed)
        self.zarr = QtWidgets.QComboBox()
        self.zarr.addItems([f"OME-Zarr {version}" for version in ZARR_VERSIONS])
        self.zarr.setToolTip("0.4 is what most programs read today; 0.5 is the newer one, of Zarr 3.")
        self.zarr.currentIndexChanged.connect(self._changed)
        self.smoothing = QtWidgets.QSpinBox()
        self.smoothing.setRange(0, 100)
        self.smoothing.setSuffix(" steps of smoothing")
        self.smoothing.setToolTip(
            "Takes the steps of the voxels away without shrinking the surface; 0 leaves it alone."
        )
        self.smoothing.setMinimumHeight(self.smoothing.sizeHint().height())
        self.smoothing.valueChanged.connect(self._changed)
        self.specimen = QtWidgets.QLineEdit()
        self.specimen.setToolTip("Name of what was scanned; in DICOM it stands where a patient's does.")
        self.specimen.textChanged.connect(self._changed)
        self.name = QtWidgets.QLineEdit()
        self.name.setToolTip("File, or folder, to write.")
        self.name.textEdited.connect(self._named)
        self.name.textChanged.connect(self._changed)
        browse = QtWidgets.QPushButton("Browse…")
        browse.setToolTip("Choose the place in a dialog of the system.")
        browse.clicked.connect(self._browse)
        place = QtWidgets.QHBoxLayout()
        place.addWidget(self.name, 1)
        place.addWidget(browse)
        self.replacing = QtWidgets.QCheckBox("Replace what is there")
        self.replacing.setToolTip("An export of this name that is there already is replaced when the new one is whole.")
        self.replacing.toggled.connect(self._changed)
        self.estimate = hint()
        self._form = labelled(
            [
                ("Volume", self.source),
                ("Channels", self.table),
                ("Format", self.format),
                ("", self.opens),
                ("Unit", self.unit),
                ("Files", self.together),
                ("Version", self.zarr),
                ("Surface", self.smoothing),
                ("Specimen", self.specimen),
            ]
        )
        self._form.addRow("Write to", place)
        self._form.addRow("", self.replacing)
        self._form.addRow("", self.estimate)
        self.bar = JobBar("Stop", "Break the export off; nothing unfinished is left behind.")
        self.outcome = hint()
        self.show_folder = QtWidgets.QPushButton("Show folder")
        self.show_folder.setToolTip("Open the folder of what was written.")
        self.show_folder.clicked.connect(self._open_folder)
        self.show_folder.setVisible(False)
        self.export_button = ActionButton("Export", "Write the file, in the background.", self._why_not, self._export)
        self.export_button.setDefault(True)
        close = QtWidgets.QPushButton("Close")
        close.setToolTip("Close the dialog; an export that runs goes on.")
        close.clicked.connect(self.close)
        buttons = QtWidgets.QHBoxLayout()
        buttons.addWidget(self.show_folder)
        buttons.addStretch(1)
        buttons.addWidget(close)
        buttons.addWidget(self.export_button)
        column = QtWidgets.QVBoxLayout(self)
        column.addLayout(self._form)
        column.addWidget(self.outcome)
        column.addWidget(self.bar)
        column.addLayout(buttons)

    # What is chosen

    def _take_volumes(self) -> None:
        state = self.session.state
        self._volumes: list[tuple[Volume, Path | None, str]] = []
        for volume, path, name in (
            (state.materials, state.materials_path, "materials"),
            (state.bins, state.bins_path, "bins"),
        ):
            if volume is not None:
                self._volumes.append((volume, path, name))
        with QtCore.QSignalBlocker(self.source):
            self.source.clear()
            for _, path, name in self._volumes:
                self.source.addItem(f"{name.capitalize()}: {path.name if path else 'not saved yet'}")
        self._take_channels()

    def _take_channels(self) -> None:
        """Show the channels of another volume."""
        with QtCore.QSignalBlocker(self.table):
            volume = self._volume()
            self.table.setRowCount(0 if volume is None else len(volume.channels))
            for row, name in enumerate(volume.channels if volume is not None else ()):
                item = QtWidgets.QTableWidgetItem(name)
                item.setFlags(QtCore.Qt.ItemFlag.ItemIsEnabled | QtCore.Qt.ItemFlag.ItemIsUserCheckable)
                item.setCheckState(CHECKED)
                self.table.setItem(row, NAME, item)
                unit = QtWidgets.QTableWidgetItem()
                unit.setFlags(QtCore.Qt.ItemFlag.ItemIsEnabled)
                self.table.setItem(row, UNIT, unit)
                level = QtWidgets.QDoubleSpinBox()
                level.setRange(-1e6, 1e6)
                level.setToolTip("The surface stands where the value passes this.")
                level.valueChanged.connect(self._changed)
                self.table.setCellWidget(row, LEVEL, level)
        self._is_named = False
        self._format_changed()

    def _format_changed(self) -> None:
        """Show what a format can, and what it is good for."""
        kind, volume = self._kind(), self._volume()
        self.opens.setText(f"Opened by: {kind.opens}.")
        is_surface = kind.name in SURFACES
        self.table.setHorizontalHeaderLabels(["Channel", "Unit", "Surface at"])
        self.table.setColumnHidden(LEVEL, not is_surface)
        self._form.setRowVisible(self.zarr, kind.name == "ome-zarr")
        self._form.setRowVisible(self.smoothing, is_surface)
        self._form.setRowVisible(self.together, kind.holds.name == "EITHER")
        if volume is not None:
            self.specimen.setPlaceholderText(content_of(volume).specimen or "not known")
            with QtCore.QSignalBlocker(self.unit):
                self.unit.clear()
                self.unit.addItems(shared_units(volume, volume.channels))
                self.unit.setCurrentText(default_unit(kind, volume) or self.unit.itemText(0))
            why = "" if self.unit.count() > 1 else "these channels have this unit only."
            allow(self.unit, "The unit of the numbers in the file.", why)
            if not self._is_named:
                _, path, name = self._volumes[self.source.currentIndex()]
                folder = self.session.state.folder if path is None else path.parent
                self.name.setText(str(suggested(folder, path, name, kind)))
        self._unit_changed()

    def _unit_changed(self) -> None:
        """Show the unit of each channel, and suggest where its surface is."""
        volume = self._volume()
        with QtCore.QSignalBlocker(self.table):
            for row, name in enumerate(volume.channels if volume is not None else ()):
                assert volume is not None
                chosen = self.unit.currentText()
                units = shared_units(volume, [name])
                unit = chosen if chosen in units else units[0]
                item, level = self.table.item(row, UNIT), self.table.cellWidget(row, LEVEL)
                assert item is not None
                if isinstance(level, QtWidgets.QDoubleSpinBox) and item.text() != unit:
                    with QtCore.QSignalBlocker(level):
                        level.setDecimals(2 if unit in (MG_PER_ML, HOUNSFIELD) else 5)
                        level.setSuffix(f" {unit}")
                        level.setValue(level_for(name, unit))
                item.setText(unit)
        self._changed()

    def _changed(self) -> None:
        """Take everything that is chosen into one record."""
        volume, kind = self._volume(), self._kind()
        if volume is None:
            self._choice = None
            self.estimate.setText("")
        else:
            rows = [row for row in range(self.table.rowCount()) if self._is_ticked(row)]
            channels = tuple(volume.channels[row] for row in rows)
            self._choice = Choice(
                volume=volume,
                channels=channels,
                kind=kind,
                target=Path(self.name.text()).expanduser() if self.name.text().strip() else Path(),
                unit=self.unit.currentText() or None,
                specimen=self.specimen.text().strip(),
                options=Options(
                    is_together=self.together.isChecked(),
                    is_overwriting=self.replacing.isChecked(),
                    zarr_version=ZARR_VERSIONS[max(self.zarr.currentIndex(), 0)],
                    levels={volume.channels[row]: self._level(row) for row in rows} if kind.name in SURFACES else {},
                    smoothing_steps=self.smoothing.value(),
                ),
                looks=tuple(self._looks()),
            )
            self.estimate.setText(self._choice.why_not() or self._choice.summary())
            why = "" if can_be_together(kind, channels) else "only one channel is chosen."
            allow(self.together, "As a vector in each voxel, instead of a file for each channel.", why)
        self.export_button.refresh()

    def _volume(self) -> Volume | None:
        index = self.source.currentIndex()
        return self._volumes[index][0] if 0 <= index < len(self._volumes) else None

    def _kind(self) -> Format:
        return self.format.currentData() or FORMATS[0]

    def _is_ticked(self, row: int) -> bool:
        item = self.table.item(row, NAME)
        return item is not None and item.checkState() == CHECKED

    def _level(self, row: int) -> float:
        level = self.table.cellWidget(row, LEVEL)
        return level.value() if isinstance(level, QtWidgets.QDoubleSpinBox) else 0.0

    def _named(self) -> None:
        self._is_named = True

    def _browse(self) -> None:
        kind = self._kind()
        if kind.is_folder:
            title, suggestion = "Folder to write", self.name.text()
            chosen, _ = QtWidgets.QFileDialog.getSaveFileName(self, title, suggestion)
        else:
            endings = " ".join(f"*{ending}" for ending in kind.endings)
            chosen, _ = QtWidgets.QFileDialog.getSaveFileName(
                self, "File to write", self.name.text(), f"{kind.title} ({endings})"
            )
        if chosen:
            self._is_named = True
            self.name.setText(chosen)

    # What is done

    def _why_not(self) -> str:
        if why := self.session.why_not(Action.EXPORT):
            return why
        if why := self.session.why_busy("compute"):
            return why
        return self._choice.why_not() if self._choice is not None else "There is no volume yet."

    def _export(self) -> None:
        assert self._choice is not None
        title = f"Export to {self._choice.target.name}"
        self.outcome.setText("")
        self.show_folder.setVisible(False)
        self._job = self.session.compute(title, self._choice.work(), self._done, otherwise=self._ended)
        self.bar.watch(self._job)
        self.export_button.refresh()

    def _closed(self) -> None:
        """Let an export that runs go on without it: the window shows it too."""
        self._is_closed = True
        self._timer.stop()

    def _done(self, written: list[Path]) -> None:
        if self._is_closed:
            return
        self._written = written
        more = f" and {len(written) - 1} more" if len(written) > 1 else ""
        self.outcome.setText(f"Written: {written[0].name}{more}")
        self.show_folder.setVisible(True)
        self.bar.watch(None)
        self._is_named = False
        self._format_changed()  # another name, for this one is taken now

    def _ended(self, status: JobStatus) -> None:
        if self._is_closed:
            return
        is_stopped = status is JobStatus.STOPPED
        self.outcome.setText("Stopped; nothing was written." if is_stopped else "It failed; nothing was written.")
        self.bar.watch(None)

    def _open_folder(self) -> None:
        QtGui.QDesktopServices.openUrl(QtCore.QUrl.fromLocalFile(str(self._written[0].absolute().parent)))
