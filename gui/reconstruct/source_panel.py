"""What is reconstructed or decomposed: open it, drop it, and see what it tells of itself."""

from __future__ import annotations

from html import escape

from pyqtgraph.Qt import QtCore, QtWidgets

from gui.controls import hint
from gui.reconstruct.form import Line, labelled_rows
from gui.reconstruct.sources import Facts, SourceKind

PATTERNS = "Scans and volumes (*.h5);;All files (*)"


class SourcePanel(QtWidgets.QGroupBox):
    """Shows a source.

    Signals
    -------
    opened : str
        A path that was chosen.
    told : no value
        What images do not tell of themselves was filled in.
    """

    opened = QtCore.Signal(str)
    told = QtCore.Signal()

    def __init__(self) -> None:
        super().__init__("1  Scan")
        self.name = QtWidgets.QLabel()
        self.name.setWordWrap(True)
        self.name.setTextInteractionFlags(QtCore.Qt.TextInteractionFlag.TextSelectableByMouse)
        self.lines = hint()
        self.lines.setTextFormat(QtCore.Qt.TextFormat.RichText)
        self.warning = hint()
        open_file = QtWidgets.QPushButton("Open…")
        open_file.setToolTip("Open a scan file, or a volume of energy bins (both .h5). Or drop one on this page.")
        open_file.clicked.connect(self._open_file)
        open_folder = QtWidgets.QPushButton("Images…")
        open_folder.setToolTip("Open a folder with one TIFF for each energy bin, of another program's making.")
        open_folder.clicked.connect(self._open_folder)
        self.scale = Line("The grey value that means an attenuation of 1 per cm.", "1")
        self.pixel = Line("Edge of a pixel in mm; empty: not known, lengths count pixels.", "not known")
        self.scale.entered.connect(self.told.emit)
        self.pixel.entered.connect(self.told.emit)
        self._images = QtWidgets.QWidget()
        form = labelled_rows([("grey for 1/cm", self.scale), ("pixel, mm", self.pixel)])
        form.setContentsMargins(0, 0, 0, 0)
        self._images.setLayout(form)
        top = QtWidgets.QHBoxLayout()
        top.addWidget(self.name, 1)
        top.addWidget(open_file)
        top.addWidget(open_folder)
        layout = QtWidgets.QVBoxLayout(self)
        layout.addLayout(top)
        for widget in (self.lines, self.warning, self._images):
            layout.addWidget(widget)
        self.show_nothing()

    def show_nothing(self) -> None:
        """Say that there is no source, and how one is had."""
        self.setTitle("1  Scan")
        self.name.setText("No scan yet")
        self.lines.setText("Make one on the page Scan, open a scan file, or drop one here; volumes of bins too.")
        for widget in (self.warning, self._images):
            widget.setVisible(False)

    def show_reading(self, name: str) -> None:
        """Say that a source is being read."""
        self.name.setText(f"<b>{escape(name)}</b>")
        self.lines.setText("being read …")
        self.warning.setVisible(False)

    def show_facts(self, facts: Facts) -> None:
        """Show what a source tells."""
        self.setTitle(f"1  {facts.kind.value.capitalize()}")
        self.name.setText(f"<b>{escape(facts.path.name)}</b>")
        self.name.setToolTip(str(facts.path))
        rows = "".join(
            f"<tr><td style='padding-right:8px'>{escape(what)}</td><td>{escape(how)}</td></tr>"
            for what, how in facts.lines
        )
        self.lines.setText(f"<table cellspacing='0'>{rows}</table>")
        self.warning.setText("⚠ " + " ".join(facts.warnings))
        self.warning.setVisible(bool(facts.warnings))
        self._images.setVisible(facts.kind is SourceKind.IMAGES)

    def _open_file(self) -> None:
        dialog = QtWidgets.QFileDialog(self, "Open a scan or a volume of bins", "", PATTERNS)
        dialog.setFileMode(QtWidgets.QFileDialog.FileMode.ExistingFile)
        dialog.fileSelected.connect(self.opened.emit)
        dialog.open()

    def _open_folder(self) -> None:
        dialog = QtWidgets.QFileDialog(self, "Open a folder of bin images")
        dialog.setFileMode(QtWidgets.QFileDialog.FileMode.Directory)
        dialog.fileSelected.connect(self.opened.emit)
        dialog.open()
