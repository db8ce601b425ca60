"""The run: how far it is, the newest picture, the sinogram as it grows, a slice of what is there, how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pyqtgraph.Qt import QtCore, QtWidgets

from gui import theme
from gui.controls import JobBar, allow, clock, hint, title
from gui.image_panel import ImagePanel, percentile_levels
from gui.scan.interrupted import PARTIAL
from gui.scan.preview import Preview
from gui.scan.run import ScanRun, told_at_end, told_of_health
from gui.session import Session
from gui.workers import Job, JobStatus

if TYPE_CHECKING:
    from acquisition.runner import ScanSummary

PICTURE_EVERY_S = 0.1
NOTHING = "No scan yet in this session: plan one on the left tab and start it there."


class RunPanel(QtWidgets.QWidget):
    """Shows a run while it goes on, and how it ended.

    Parameters
    ----------
    reconstruct : callable
        Goes to the page where the scan is reconstructed.
    """

    def __init__(self, session: Session, reconstruct: Callable[[], None]) -> None:
        super().__init__()
        self.session = session
        self._run: ScanRun | None = None
        self._job: Job | None = None
        self._shown = (-1, -1)
        self._shown_at_s = 0.0
        self._preview: Preview | None = None
        self._is_paused: bool | None = None
        self.heading = title("Scan")
        self.bar = JobBar("Stop after this frame", "End well: the beam off, the file valid, to be gone on with later.")
        self.pause = QtWidgets.QPushButton("Pause")
        self.pause.clicked.connect(self._toggle)
        self.told = hint(NOTHING)
        self.health = hint()
        self.axis = hint()
        self.lost = QtWidgets.QLabel()
        self.lost.setWordWrap(True)
        theme.judge(self.lost, is_good=False)
        self.lost.hide()
        self.reconstruct = QtWidgets.QPushButton("Reconstruct")
        self.reconstruct.setToolTip("Go to the page Reconstruct with this scan.")
        self.reconstruct.setStyleSheet("font-weight: 600;")
        self.reconstruct.clicked.connect(lambda: reconstruct())
        self.reconstruct.hide()
        self.threshold = QtWidgets.QComboBox()
        self.threshold.setSizeAdjustPolicy(QtWidgets.QComboBox.SizeAdjustPolicy.AdjustToContents)
        self.threshold.setToolTip("Which threshold picture, sinogram and slice are of; all of them are written.")
        self.threshold.currentIndexChanged.connect(self._choose)
        self.place = QtWidgets.QComboBox()
        self.place.setToolTip(
            "What sinogram and slice are of: a pass, one place of the camera or all joined, a slice of a helix. "
            "“newest” follows the scan."
        )
        self.place.setMaximumWidth(320)
        self.place.currentIndexChanged.connect(self._choose_place)
        self.place_name = QtWidgets.QLabel("Shown")
        column = QtWidgets.QVBoxLayout(self)
        column.setContentsMargins(0, 6, 0, 0)
        top = QtWidgets.QHBoxLayout()
        top.addWidget(self.heading)
        top.addWidget(self.bar, 1)
        top.addWidget(self.pause, 0, QtCore.Qt.AlignmentFlag.AlignRight)
        column.addLayout(top)
        below = QtWidgets.QHBoxLayout()
        below.addWidget(self.told, 1)
        below.addWidget(self.reconstruct)
        below.addWidget(self.place_name)
        below.addWidget(self.place)
        threshold_name = QtWidgets.QLabel("Threshold")
        below.addWidget(threshold_name)
        below.addWidget(self.threshold)
        column.addLayout(below)
        column.addWidget(self.lost)
        pictures = QtWidgets.QWidget()
        pictures.setLayout(self._pictures())
        column.addWidget(pictures, 1)
        column.addWidget(self.axis)
        column.addWidget(self.health)
        column.addStretch()
        self._of_a_run = (self.place_name, self.place, threshold_name, self.threshold, pictures, self.pause)
        for widget in self._of_a_run:
            widget.hide()
        self._show_pause()

    def watch(self, run: ScanRun, job: Job) -> None:
        """Show this run from now on."""
        for widget in self._of_a_run:
            widget.show()
        self._run, self._job, self._shown, self._preview = run, job, (-1, -1), None
        self._is_paused = None
        self.heading.setText(run.order.path.stem)
        self.bar.watch(job)
        self.reconstruct.hide()
        self.lost.hide()
        self.axis.setText("")
        self._name_thresholds(0)
        run.previewer.threshold = max(self.threshold.currentIndex(), 0)
        places = run.watch.places if not run.watch.why_no_slice() else ()
        self.place.blockSignals(True)
        self.place.clear()
        self.place.addItem("newest", None)
        for place in places:
            self.place.addItem(run.watch.told_of(place), place)
        self.place.blockSignals(False)
        for widget in (self.place, self.place_name):
            widget.setVisible(len(places) > 1)
        for panel in (self.picture, self.sinogram, self.slice):
            panel.clear()
        for told in (self.picture_told, self.sinogram_told, self.slice_told):
            told.setText("")

    def ended(self, summary: ScanSummary) -> None:
        """Tell how it ended, whole."""
        self.told.setText(told_at_end(summary))
        theme.judge(self.told, is_good=not summary.n_lost)
        self.reconstruct.show()
        self._over()

    def broken(self, status: JobStatus) -> None:
        """Tell that it ended before it was whole."""
        run = self._run
        assert run is not None
        pace = run.watch.pace()
        how = "was stopped" if status is JobStatus.STOPPED else "BROKE OFF"
        partial = run.order.path.with_name(run.order.path.stem + PARTIAL)
        if pace.n_frames and not partial.exists():
            rest = f"{partial.name} is NOT in {partial.parent}: it was taken away meanwhile, or never written."
        elif pace.n_frames:
            rest = (
                f"{pace.n_frames} of {pace.n_planned} frames are kept in {partial.name}; it is offered above to go on "
                "with."
            )
        else:
            rest = "No frame was taken, and no file is left."
        self.told.setText(f"The scan {how}. {rest}")
        theme.judge(self.told, is_good=status is JobStatus.STOPPED)
        self._over()

    def restyle(self) -> None:
        """Take the colours of another theme."""
        for panel in (self.picture, self.sinogram, self.slice):
            panel.restyle()

    def refresh(self) -> None:
        """Show what is new."""
        self.bar.refresh()
        run, job = self._run, self._job
        if run is None or job is None:
            return
        self._show_pause()
        if not job.is_over:
            self._show_progress(run)
        now_s = time.monotonic()
        if now_s - self._shown_at_s >= PICTURE_EVERY_S:
            self._shown_at_s = now_s
            self._show_newest(run)
            self._show_preview(run.previewer.newest)

    def _over(self) -> None:
        self.bar.refresh()
        self._show_pause()

    def _toggle(self) -> None:
        if self._run is not None:
            self._run.toggle_pause()

    def _choose(self, place: int) -> None:
        if self._run is not None and place >= 0:
            self._run.previewer.threshold = place
            self._shown = (-1, -1)

    def _choose_place(self, number: int) -> None:
        if self._run is not None and number >= 0:
            place = self._run.previewer.place = self.place.itemData(number)
            if place is not None:
                self._name_thresholds(place.pass_index)

    def _name_thresholds(self, pass_index: int) -> None:
        """Name the thresholds as they stand in a pass; which of them is chosen stays."""
        assert self._run is not None
        chosen = max(self.threshold.currentIndex(), 0)
        energies_kev = self._run.watch.passes_kev[pass_index]
        names = [
            f"{energy_kev:g} keV (number {number})"
            for number, energy_kev in zip(self._run.order.plan.detector.thresholds, energies_kev, strict=True)
        ]
        if names == [self.threshold.itemText(n) for n in range(self.threshold.count())]:
            return
        self.threshold.blockSignals(True)
        self.threshold.clear()
        self.threshold.addItems(names)
        self.threshold.setCurrentIndex(min(chosen, len(names) - 1))
        self.threshold.blockSignals(False)

    def _show_pause(self) -> None:
        run, job = self._run, self._job
        is_running = run is not None and job is not None and not job.is_over
        is_paused = is_running and run is not None and run.pause.is_closed
        if is_paused != self._is_paused:
            self._is_paused = is_paused
            self.pause.setText("Continue" if is_paused else "Pause")
        after_s = run.order.beam_off_after_s if run is not None else 0
        tip = (
            "Go on; a beam that was switched off meanwhile is switched on first."
            if is_paused
            else "Hold before the next view (a sweep is ended first); the beam goes off after "
            f"{after_s:g} s and on again when the scan goes on."
        )
        allow(self.pause, tip, "" if is_running else "no scan runs.")

    def _show_progress(self, run: ScanRun) -> None:
        pace = run.watch.pace()
        parts = []
        if run.pause.is_closed:
            where = "after the present view" if not run.pause.is_holding else f"for {clock(run.pause.held_s)}"
            parts.append(f"PAUSED {where}, beam {'off' if run.pause.is_beam_off else 'still on'}")
        elif pace.left_s is not None:
            ends = time.strftime("%H:%M", time.localtime(time.time() + pace.left_s))
            parts.append(f"{pace.rate_per_s:.3g} frames/s, until {ends}")
        elif pace.n_frames < pace.n_planned:
            parts.append("No frame yet" if not pace.n_frames else "Pace not known yet")
        parts.append(f"{pace.n_lost} LOST" if pace.n_lost else "none lost")
        text = "; ".join(parts)
        self.told.setText(f"{text[0].upper()}{text[1:]}.")
        theme.say(self.told, "")
        self.health.setText(told_of_health(self.session.rig.snapshot().run if pace.n_frames else None))
        lost = run.watch.lost()
        if lost:
            more = f" (and {len(lost) - 3} more)" if len(lost) > 3 else ""
            self.lost.setText(f"Degraded: {'; '.join(lost[-3:])}{more}. Marked in the file in their places.")
        self.lost.setVisible(bool(lost))

    def _show_newest(self, run: ScanRun) -> None:
        place = max(self.threshold.currentIndex(), 0)
        now = run.watch.version, place
        newest = run.watch.newest()
        if newest is None or now == self._shown:
            return
        self._shown = now
        frame, step, number = newest
        counts = frame.counts[min(place, len(frame.counts) - 1)]
        angle = np.degrees(step.pose_of(number).angle_rad)
        _show(self.picture, counts, pixel_mm=run.watch.geometry.pitch_mm)
        self.picture_told.setText(f"{step.kind.value.capitalize()} at {angle:.1f}°.")

    def _show_preview(self, preview: Preview) -> None:
        if preview is self._preview:
            return
        self._preview = preview
        self.slice_told.setText(preview.told)
        self.axis.setText(preview.axis_told)
        is_bad = preview.axis is not None and not preview.axis.is_good
        if is_bad:
            theme.judge(self.axis, is_good=False)
        else:
            theme.say(self.axis, "")
        rows = preview.rows
        if rows is not None and self.place.currentIndex() == 0:
            self._name_thresholds(rows.place.pass_index)
        if rows is not None and np.isfinite(rows.line_integrals).any():
            image = rows.line_integrals
            _show(self.sinogram, np.nan_to_num(image, nan=float(np.nanmax(image))))
            n_lost = int(rows.is_lost.sum())
            lost = f", {n_lost} LOST: bright lines" if n_lost else ""
            self.sinogram_told.setText(f"{len(image)} views, the newest on top{lost}.")
        if preview.slice_per_mm is not None:
            _show(self.slice, preview.slice_per_mm, pixel_mm=preview.voxel_mm)
            wide_mm = preview.voxel_mm * preview.slice_per_mm.shape[1]
            self.slice_told.setText(f"{preview.told} {wide_mm:.3g} mm wide.")

    def _pictures(self) -> QtWidgets.QGridLayout:
        grid = QtWidgets.QGridLayout()
        grid.setContentsMargins(0, 0, 0, 0)
        self.picture, self.sinogram, self.slice = (
            ImagePanel(unit, has_histogram=False) for unit in ("counts", "(line integral)", "1/mm")
        )
        self.sinogram.view.setAspectLocked(False)
        for panel in (self.picture, self.sinogram, self.slice):
            panel.setMinimumHeight(200)
        self.picture_told, self.sinogram_told, self.slice_told = hint(), hint(), hint()
        parts = (
            (
                "Newest frame",
                self.picture,
                self.picture_told,
                "The newest frame as it comes; row 0, the lowest, is at the bottom.",
            ),
            ("Sinogram", self.sinogram, self.sinogram_told, "Line integrals of the middle rows, a line for each view."),
            (
                "Slice",
                self.slice,
                self.slice_told,
                "A quick slice of the views so far; the real one comes by Reconstruct.",
            ),
        )
        for number, (name, panel, told, tip) in enumerate(parts):
            heading = QtWidgets.QLabel(name)
            heading.setStyleSheet("font-weight: 600;")
            told.setAlignment(QtCore.Qt.AlignmentFlag.AlignTop)
            told.setMinimumHeight(2 * self.fontMetrics().lineSpacing())
            for row, widget in enumerate((heading, told, panel)):
                widget.setToolTip(tip)
                grid.addWidget(widget, row, number)
            grid.setColumnStretch(number, 1)
        grid.setHorizontalSpacing(12)
        grid.setRowStretch(2, 1)
        return grid


def _show(panel: ImagePanel, image: NDArray[np.number], pixel_mm: float | None = None) -> None:
    """Show an image, all of it, between the levels that its values ask for."""
    panel.show_image(image, levels=percentile_levels(image), pixel_mm=pixel_mm)
