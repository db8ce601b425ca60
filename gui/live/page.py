"""The page Live: the newest frame, and all that can be asked of it.

The instrument's thread pushes every frame into a store; the page paints the newest at the pace of the screen, and what
it leaves out nobody loses.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray
from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

from acquisition.plan import Plan
from firmware_iface.errors import WrongUsage
from gui.controls import ActionButton, hint
from gui.image_panel import ImagePanel, LevelMode
from gui.live import measures
from gui.live.display_bar import DisplayBar
from gui.live.frames import FrameStore, Picture, Rate, StoreStatus
from gui.live.grid import GridView
from gui.live.kept_levels import KeptLevels, frames_in
from gui.live.measures import Flat
from gui.live.picture_actions import PictureActions
from gui.live.pixel_panel import PixelPanel
from gui.live.playback import PlaybackBar
from gui.live.recording import Recording
from gui.live.region_panel import ProfilePanel, RegionPanel
from gui.live.run import Known, LiveRun, Underway, tube_of
from gui.live.settings_panel import SettingsPanel
from gui.live.shown import Shown, Source, count_alike, flat_of, name_of, show, side_by_side, taken
from gui.page import Page
from gui.state import Action
from gui.workers import JobStatus

if TYPE_CHECKING:
    from calibration.store import Calibration

TITLE = "Live view"
MEASURE_EVERY_S = 0.15
SCREEN_MS = 16
"""Of a picture on a screen, for frames that come faster than the window beats."""
"""Words, tables and plots follow more slowly than the image: nobody reads thirty times a second, and each new word
lets Qt lay out the whole page."""
N_FLATS = 50
NO_CALIBRATION = (
    "There is no calibration: the noise will be looked for first, which takes a few seconds with the beam off, and "
    "thresholds will be nominal above it."
)


class LivePage(Page):
    """Look at frames as they come.

    Attributes
    ----------
    store : FrameStore
    panel : ImagePanel
    n_painted : int
        Images that were painted since the page was made.
    n_flats : int
        Frames that make a flat.
    """

    title = "Live"

    def build(self) -> Iterator[None]:
        """Make the widgets in pieces."""
        self.store = FrameStore()
        self.run: LiveRun | None = None
        self.flat: Flat | None = None
        self.underway: Underway | None = None
        self._known: Known = {}
        self.n_painted = 0
        self.n_flats = N_FLATS
        self._plan: Plan | None = None
        self._seen: tuple[object, ...] = ()
        self._shown: Shown | None = None
        self._frozen: Picture | None = None
        self._measured_s = 0.0
        self._paints = Rate()
        yield from self._build()
        self.follow_state()
        yield

    # What is done

    def start(self) -> None:
        """Look on the instrument with the settings of the page."""
        self.store = FrameStore()
        run = self.run = LiveRun(
            self.store, self.settings.plan(), self.session.state.calibration, on_health=self.session.rig.note_run,
            known=self._known,
        )  # fmt: skip
        self._given = self.settings.plan(), self.session.state.calibration
        self.playback.let_go()
        self.session.measure(TITLE, run.work, stop=run.stop, otherwise=self._ended)

    def stop(self) -> None:
        """End the live view after the present frame."""
        job = self.session.job("instrument")
        if self.is_running and job is not None:
            job.stop()

    def take_flat(self) -> None:
        """Take a flat, between frames where the view is running."""
        if self.is_running and self.run is not None:
            self.run.take_flat(self.n_flats)
            return
        plan, calibration = self.settings.plan(), self.session.state.calibration
        run = self.run = LiveRun(self.store, plan, calibration, n_flats=self.n_flats, known=self._known)
        self.session.measure("Flat of the live view", run.work, stop=run.stop)

    @property
    def is_running(self) -> bool:
        """Whether the live view is on the instrument now."""
        job = self.session.job("instrument")
        return job is not None and job.title == TITLE and not job.is_over

    # What is shown

    def refresh(self) -> None:
        """Paint what is new."""
        self.follow_state()
        run, status = self.run, self.store.status()
        if run is not None:
            if run.flat is not None:
                self.flat = run.flat
            if run.n_begun and run.underway is not self.underway:
                self._begin(run.underway)
        self._paint(status)
        self._tell_pixel()
        now_s = time.monotonic()
        if now_s - self._measured_s >= MEASURE_EVERY_S:
            self._measured_s = now_s
            self._tell(status)
            self.playback.follow(status)
            self._measure()
            for refreshed in (self.start_button, self.flat_button, self.plan_button, self.pictures):
                refreshed.refresh()

    @property
    def beat_ms(self) -> int:
        """As often as the screen shows, where frames come so fast."""
        beat_ms = super().beat_ms
        return SCREEN_MS if self.store.status().rate_per_s > 1e3 / beat_ms else beat_ms

    def follow_state(self) -> None:
        """Take another plan or calibration from the session, and give a changed one to the chip."""
        state = self.session.state
        if state.plan is not self._plan:
            self._plan = state.plan
            self.settings.read(state.plan)
            if self.underway is None:
                self.display.set_thresholds(state.plan.detector.thresholds_kev)
            self._settings_changed()
        if state.calibration is not self._calibration:
            self._calibration = state.calibration
            self._kept_flat = flat_of(state.calibration)
            self.pixels.follow(state.calibration)
            self._settings_changed()
        if state.recording is not self._recording:
            self._recording = state.recording
            if isinstance(state.recording, Recording):
                self._show_recording(state.recording)

    def begin(self, underway: Underway) -> None:
        """Show a store that is filled by somebody else, with frames taken as told."""
        self._begin(underway)

    @property
    def can_undo(self) -> bool:
        """Whether there is an edit of the mask to take back."""
        return self.pixels.can_undo

    @property
    def can_redo(self) -> bool:
        """Whether there is an edit of the mask to make again."""
        return self.pixels.can_redo

    def undo(self) -> None:
        """Take the last edit of the mask back."""
        self.pixels.take_back()

    def redo(self) -> None:
        """Make the edit of the mask again that was taken back."""
        self.pixels.make_again()

    def _show_recording(self, recording: Recording) -> None:
        """Look at the frames of a file; a view that runs is ended."""
        self.stop()
        self.run, self.store = None, recording.store
        self._begin(recording.underway)

    def save(self) -> dict[str, object]:
        """Return how the page shows things."""
        return {
            "colours": self.panel.colour_map_name,
            "is_log": self.panel.is_log,
            "levels_follow": self.panel.level_mode is LevelMode.AUTO,
            "tab": self.tabs.currentIndex(),
            "n_last": self.display.n_last.value(),
            "marks": [name for name, check in self.pixels.marks.items() if check.isChecked()],
        }

    def restore(self, saved: dict[str, object]) -> None:
        """Show things as before."""
        self.display.colours.setCurrentText(str(saved.get("colours", self.panel.colour_map_name)))
        self.display.log.setChecked(saved.get("is_log") is True)
        self.display.levels.setCurrentIndex(int(saved.get("levels_follow") is True))
        for name, widget in (("tab", self.tabs.setCurrentIndex), ("n_last", self.display.n_last.setValue)):
            value = saved.get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                widget(value)
        marks = saved.get("marks")
        if isinstance(marks, list):
            for name, check in self.pixels.marks.items():
                check.setChecked(name in marks)

    def restyle(self) -> None:
        """Take the colours of another theme."""
        for graphics in (self.panel, self.grid, self.regions, self.profile):
            graphics.restyle()
        self.note.setText("")  # a link keeps the colour that it was written in

    # Painting

    def _begin(self, underway: Underway) -> None:
        self.underway = underway
        self.playback.let_go()
        self.display.set_thresholds(underway.thresholds_kev)
        self.pixels.set_frames(underway.calibration)
        pitch_mm = underway.readout.pitch_mm
        self.regions.set_pixel(pitch_mm)
        self.profile.set_pixel(pitch_mm)
        self._seen = ()

    def _paint(self, status: StoreStatus) -> None:
        view = self.display.view()
        seen = (
            None if self.playback.is_held else status.end, self.playback.again, self._frozen, view,
            self.display.n_changes, self.panel.is_log, self.flat, self._kept_flat, self.underway,
            self.tabs_of_image.currentIndex(),
        )  # fmt: skip
        if seen == self._seen or status.end == 0:
            return
        self._seen = seen
        picture, lost = taken(self.store, replace(view, again=self.playback.again))
        if self._frozen is not None:
            picture, lost = self._frozen, None
        if picture is None:
            return
        thresholds_kev = self.thresholds_kev
        flats = [] if self.underway is None else self._flats(self.underway)
        shown = self._shown = show(
            picture, view, flats, lost, thresholds_kev=thresholds_kev, tube=self.underway and tube_of(self.underway),
            colour_counts=self._levels.colours(picture),
        )  # fmt: skip
        if shown.colour_counts:
            self._levels.keep_colours(picture, shown.colour_counts)
        pixel_mm = self.underway.readout.pitch_mm if self.underway is not None else None
        self.panel.set_unit(shown.unit)
        if self.tabs_of_image.currentIndex():
            planes, names = self._planes(shown)
            is_left_out = self.pixels.left_out(planes.shape[1:])
            self.grid.show_planes(
                planes, names, pixel_mm or 1.0, self.panel.colour_map_name, unit=shown.unit,
                n_frames=frames_in(shown), is_following=self.panel.level_mode is LevelMode.AUTO,
                is_log=self.panel.is_log, is_left_out=is_left_out,
            )  # fmt: skip
        else:
            self._levels.follow(shown, view)
            is_left_out = self.pixels.left_out(shown.image.shape[:2])
            self.panel.show_image(shown.image, pixel_mm=pixel_mm, is_left_out=is_left_out)
        self.caption.setText(self._caption(shown))
        self.n_painted += 1
        self._paints.count()

    def _flats(self, underway: Underway) -> list[Flat]:
        """Return the flats whose thresholds stood as they do now: the one of this page, the calibration's."""
        flats = [flat for flat in (self.flat, self._kept_flat) if flat is not None]
        return [flat for flat in flats if count_alike(flat.calibration, underway.calibration)]

    def _planes(self, shown: Shown) -> tuple[NDArray[np.number], list[str]]:
        kind = measures.Kind.BIN if self.grid_of.currentIndex() == 1 else measures.Kind.THRESHOLD
        planes = side_by_side(shown, kind)
        names = [
            name_of(measures.Selection(kind=kind, first=n), self.thresholds_kev) for n in range(len(planes))
        ]  # fmt: skip
        return planes, names

    @property
    def thresholds_kev(self) -> tuple[float, ...]:
        """Of what is in the store."""
        return self._taken.thresholds_kev

    @property
    def _taken(self) -> Underway:
        """How what is in the store was taken, or would be."""
        return self.underway or Underway.of(self.session.state.plan)

    def _caption(self, shown: Shown) -> str:
        if shown.lost is not None:
            lost = shown.lost
            return f"<b>{lost.n_frames} frames were lost here</b> ({lost.reason})"
        name = name_of(self.display.selection(), self.thresholds_kev)
        source = self.display.view().source
        how = "held" if self.playback.is_held else source.value
        of = f", {shown.picture.n_frames} frames" if source in (Source.LAST, Source.RUNNING) else ""
        note = f" &nbsp; <b>{shown.note}</b>" if shown.note else ""
        by = f", divided by {shown.flat.origin}" if shown.flat is not None else ""
        is_beside = bool(self.tabs_of_image.currentIndex())
        name = self.grid_of.currentText() if is_beside else name
        legend = _legend(self.thresholds_kev) if shown.is_colour and not is_beside else ""
        return f"{name}: {how}{of}, {shown.picture.exposure_s:.4g} s{by}{legend}{note}"

    def _measure(self) -> None:
        shown, newest = self._shown, self.store.newest()
        if shown is None or newest is None:
            return
        shape = shown.picture.counts.shape[1:]
        full = self._taken.readout.saturation
        plane = shown.picture.counts[0] if shown.is_colour else shown.image
        frame = shown.picture if shown.picture.is_frame else newest
        has_frame = frame.counts.shape[1:] == shape
        tab = self.tabs.currentWidget()
        if tab is self.pixels:
            self.pixels.show_pixel(shown.picture, self.thresholds_kev)
        if has_frame and shown.lost is None:
            self.pixels.show_marks(shown.picture, frame, plane, full)
        if tab is self.regions:
            is_full = measures.is_saturated(frame.counts, full) if has_frame else None
            self.regions.show_values(shown, self.thresholds_kev, self.pixels.left_out(shape), is_full)
        elif tab is self.profile:
            self.profile.show_values(shown)

    def _tell(self, status: StoreStatus) -> None:
        lost = f"<b>{status.n_lost} lost</b>" if status.n_lost else "0 lost"
        rate = f"{status.rate_per_s:.0f} frames/s" if self.is_running else "not running"
        painted = f", {self._paints.per_s():.0f} painted/s" if self.is_running else ""
        kept = f"{status.end - status.first} are in memory, {status.n_bytes / 1e6:.0f} MB"
        late = f", {status.n_late} late" if status.n_late else ""
        _set(self.rates, f"{rate}{painted} · {status.n_received} frames, {lost}{late}")
        tip = f"Frames that came and were lost, whether painted or not; the image shows the newest. {kept}."
        if self.rates.toolTip() != tip:
            self.rates.setToolTip(tip)
        note = self.underway.note if self.underway is not None else ""
        if not note and self.session.state.calibration is None:
            note = NO_CALIBRATION
        if "nominal" in note:
            note = f'{escape(note)} <a href="Calibrate">Calibrate first</a>'
        dark = self._why_dark()
        if dark:
            note = (
                f'<b>The beam is off: {escape(dark)}.</b> Stop, and see the page <a href="Instrument">Instrument</a>.'
            )
        _set(self.note, note)
        self.note.setVisible(bool(note))
        running = self.is_running
        _set(self.start_button, "Stop" if running else "Start")

    def _why_dark(self) -> str:
        """Return why the frames that come are dark, where the source says so."""
        source = self.session.rig.snapshot().source
        if not self.is_running or source is None or source.is_beam_on is not False:
            return ""
        if source.fault:
            return f"the tube tripped ({source.fault})"
        return "the interlock is open" if source.is_interlock_closed is False else ""

    def _tell_pixel(self) -> None:
        at, shown = self.panel.pixel_under_mouse(), self._shown
        if at is None or shown is None or at[0] >= shown.image.shape[0] or at[1] >= shown.image.shape[1]:
            _set(self.under, "")
            return
        value = shown.image[at]
        told = ", ".join(f"{part}" for part in value) if shown.is_colour else f"{value:.6g} {shown.unit}"
        _set(self.under, f"column {at[1]}, row {at[0]}: {told}")

    # Orders

    def _settings_changed(self) -> None:
        if not self.is_running or self.run is None or self.settings.why_not():
            return
        plan, calibration = self.settings.plan(), self.session.state.calibration
        if plan != self._given[0] or calibration is not self._given[1]:
            self._given = plan, calibration
            self.run.change(plan, calibration)

    def _ended(self, status: JobStatus) -> None:
        if status is JobStatus.FAILED:
            self.playback.let_go()

    def _start_or_stop(self) -> None:
        if self.is_running:
            self.stop()
        else:
            self.start()

    def _why_no_start(self) -> str:
        if self.is_running:
            return ""
        return self.session.why_not(Action.LIVE) or self.settings.why_not()

    def _why_no_flat(self) -> str:
        return "" if self.is_running else self._why_no_start()

    def _picture(self) -> tuple[Shown, str, Underway] | None:
        """Return what is shown, its name, and how it was taken."""
        if self._shown is None:
            return None
        name = name_of(self.display.selection(), self.thresholds_kev)
        return self._shown, name, self._taken

    def _held(self) -> None:
        """Keep the very picture that is shown, also a sum, where no item of the store is looked at."""
        is_picture = self.playback.is_held and self.playback.again is None and self._shown is not None
        self._frozen = self._shown.picture if is_picture and self._shown is not None else None
        self._seen = ()

    def _plan_of_settings(self) -> Plan:
        plan, looks = self.session.state.plan, self.settings.plan()
        return msgspec.structs.replace(plan, detector=looks.detector, geometry=looks.geometry)

    def _why_no_plan(self) -> str:
        try:
            made = self._plan_of_settings()
        except (ValueError, WrongUsage) as error:
            return str(error)
        return "The plan has these settings already." if made == self.session.state.plan else ""

    def put_into_plan(self) -> None:
        """Let scans and calibrations count as the live view does."""
        self.session.change(plan=self._plan_of_settings())

    # Widgets

    def _build(self) -> Iterator[None]:
        self._given: tuple[Plan | None, Calibration | None] = (None, None)
        self._calibration: Calibration | None = None
        self._kept_flat: Flat | None = None
        self._recording: object | None = None
        self.panel = ImagePanel(is_whole=False)
        yield from self.panel.pieces
        self._levels = KeptLevels(self.panel)
        self.display = DisplayBar(self.panel)
        yield
        self.settings = SettingsPanel(self.session.state.plan, self._settings_changed)
        self.start_button = ActionButton(
            "Start", "Look at frames as they come; nothing is written. Press again to stop. (F5)", self._why_no_start,
            self._start_or_stop,
        )  # fmt: skip
        self.flat_button = ActionButton(
            "Take flat", f"Take {N_FLATS} frames of the open beam, to divide by; the view goes on afterwards.",
            self._why_no_flat, self.take_flat,
        )  # fmt: skip
        self.plan_button = ActionButton(
            "Use for scans", "Put mode, gain, depth, exposure and thresholds into the plan of scans and calibrations.",
            self._why_no_plan, self.put_into_plan,
        )  # fmt: skip
        self.pictures = PictureActions(self.session, self.panel, self._picture)
        self.playback = PlaybackBar(self._held, lambda: self.store.memory())
        yield
        self.pixels = PixelPanel(self.session, self.panel)
        yield
        self.regions = RegionPanel(self.panel)
        yield
        self.profile = ProfilePanel(self.panel)
        yield
        self.tabs = QtWidgets.QTabWidget()
        for widget, name in ((self.pixels, "Pixel"), (self.regions, "Regions"), (self.profile, "Profile")):
            self.tabs.addTab(widget, name)
        split = QtWidgets.QSplitter()
        for widget, stretch in ((self._left(), 0), (self._middle(), 1), (self.tabs, 0)):
            split.addWidget(widget)
            split.setStretchFactor(split.count() - 1, stretch)
        split.setSizes([220, 640, 380])
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(8, 8, 8, 8)
        layout.addWidget(split)
        for key, does in (("F5", self.start_button.click), ("F6", self.playback.hold.click)):
            QtGui.QShortcut(QtGui.QKeySequence(key), self, does)

    def _left(self) -> QtWidgets.QWidget:
        side = QtWidgets.QWidget()
        column = QtWidgets.QVBoxLayout(side)
        column.setContentsMargins(0, 0, 6, 0)
        column.addWidget(self.start_button)
        column.addWidget(self.settings)
        self.note = hint()
        self.note.linkActivated.connect(lambda page: setattr(self.session, "page_wanted", page))
        column.addWidget(self.note)
        column.addStretch(1)
        for widget in (self.flat_button, self.plan_button, self.pictures):
            column.addWidget(widget)
        return side

    def _middle(self) -> QtWidgets.QWidget:
        self.grid = GridView()
        self.grid_of = QtWidgets.QComboBox()
        self.grid_of.addItems(["every threshold", "every bin"])
        self.grid_of.setToolTip("What is shown side by side; a zoom in one is a zoom in all.")
        self.grid_of.currentIndexChanged.connect(lambda _: self._anew())
        self.display.auto.clicked.connect(self._forget_levels)
        self.display.fit.clicked.connect(lambda: self.grid.fit())
        beside = QtWidgets.QWidget()
        column = QtWidgets.QVBoxLayout(beside)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.grid_of, alignment=QtCore.Qt.AlignmentFlag.AlignLeft)
        column.addWidget(self.grid, 1)
        self.tabs_of_image = QtWidgets.QTabWidget()
        self.tabs_of_image.setDocumentMode(True)
        self.tabs_of_image.addTab(self.panel, "One image")
        self.tabs_of_image.addTab(beside, "Side by side")
        self.tabs_of_image.currentChanged.connect(lambda _: self._anew())
        self.caption = QtWidgets.QLabel("Press Start to look at frames as they come.")
        self.caption.setWordWrap(True)
        self.caption.setSizePolicy(QtWidgets.QSizePolicy.Policy.Ignored, QtWidgets.QSizePolicy.Policy.Minimum)
        self.rates = QtWidgets.QLabel()
        self.rates.setSizePolicy(QtWidgets.QSizePolicy.Policy.Ignored, QtWidgets.QSizePolicy.Policy.Preferred)
        middle = QtWidgets.QWidget()
        column = QtWidgets.QVBoxLayout(middle)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.display)
        column.addWidget(self.caption)
        column.addWidget(self.tabs_of_image, 1)
        column.addWidget(self.playback)
        self.under = QtWidgets.QLabel()
        self.under.setToolTip("The value under the mouse; the tab Pixel tells more.")
        row = QtWidgets.QHBoxLayout()
        row.addWidget(self.rates, 1)
        row.addWidget(self.under)
        column.addLayout(row)
        return middle

    def _anew(self) -> None:
        self._seen = ()

    def _forget_levels(self) -> None:
        self.grid.set_levels()
        self._levels.forget_colours()


def _set(widget: QtWidgets.QLabel | QtWidgets.QPushButton, text: str) -> None:
    if widget.text() != text:
        widget.setText(text)


def _legend(thresholds_kev: tuple[float, ...]) -> str:
    colours = measures.bin_colours(len(thresholds_kev))
    bins = [measures.Selection(kind=measures.Kind.BIN, first=n) for n in range(len(thresholds_kev))]
    names = [name_of(each, thresholds_kev).removeprefix("bin ") for each in bins]
    swatches = [
        f'<span style="color:#{"".join(f"{round(255 * part):02x}" for part in colour)}">&#9632;</span> {name}'
        for colour, name in zip(colours, names, strict=True)
    ]
    return " &nbsp; " + " &nbsp; ".join(swatches)
