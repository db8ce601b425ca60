"""The page Reconstruct: method and materials, tried on a slice, then on all."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pyqtgraph.Qt import QtCore, QtWidgets

from calibration.progress import Progress
from firmware_iface.errors import MpxctError
from gui.controls import ActionButton, JobBar, hint, restore_sizes
from gui.page import Page
from gui.reconstruct import jobs, trial
from gui.reconstruct.check import why_not_bins, why_not_materials
from gui.reconstruct.compare_panel import ComparePanel
from gui.reconstruct.form import LABEL_PX, number_of
from gui.reconstruct.materials_form import MaterialsForm
from gui.reconstruct.options import Catalogue, read_catalogue
from gui.reconstruct.outcome_panel import CONVERGENCE, TRIES, OutcomePanel
from gui.reconstruct.prediction import Prediction, predict
from gui.reconstruct.recipe_form import RecipeForm
from gui.reconstruct.settings import BY_CALIBRATION, IMAGE, Settings
from gui.reconstruct.source_panel import SourcePanel
from gui.reconstruct.sources import Facts, SourceKind, is_made_of, read_facts
from gui.reconstruct.tries import MOST_KEPT, Try, before_of
from gui.state import Action, State
from gui.undo import History
from gui.workers import JobStatus

if TYPE_CHECKING:
    from reconstruction.methods.convergence import Step
    from reconstruction.volume import Volume

BINS, MATERIALS = 0, 1
LEFT_PX = 400
MOST_FORM_PX = 380
"""In the smallest window the form may not take more."""


class ReconstructPage(Page):
    """Turn a scan into volumes of energy bins, and of materials."""

    title = "Reconstruct"

    def build(self) -> Iterator[None]:
        """Make the widgets in pieces."""
        session = self.session
        self.history: History[Settings] = History(Settings())
        self.facts: Facts | None = None
        self.tries: list[Try] = []
        self._n_tries = self._place = 0
        self._path: Path | None = None
        self._seen_state: State | None = None
        self._catalogue: Catalogue | None = None
        self._is_asked = False
        self._typed_wrong = ""
        self._prediction: Prediction | None = None
        self._impossible = ""
        self._kept = trial.Kept()
        self._log: list[Step] = []
        self._n_iterations = 0
        self.side = session.questions("reconstruct")
        self.source = SourcePanel()
        self.recipe_form = RecipeForm()
        yield
        self.materials_form = MaterialsForm()
        yield
        self.compare = ComparePanel(is_whole=False)
        yield from self.compare.pieces
        self.outcome = OutcomePanel()
        yield
        self.run_bar = JobBar("Cancel", CANCEL)
        self._build()
        self.source.opened.connect(lambda path: self.open(Path(path)))
        self.source.told.connect(self._read_again)
        self.recipe_form.changed.connect(self._take_form)
        self.materials_form.changed.connect(self._take_form)
        self.steps.currentChanged.connect(lambda _: self._show_words())
        self.outcome.chosen.connect(self.go_back_to)
        self.compare.beside.chosen.connect(self._show_beside)
        self.compare.region_wanted.connect(self._take_region)
        yield

    @property
    def settings(self) -> Settings:
        """What is asked for now."""
        return self.history.now

    def refresh(self) -> None:
        """Show what is new."""
        if not self._is_asked:
            self._is_asked = True
            self.side.ask("Methods of reconstruction", read_catalogue, self._take_catalogue)
        if self.session.state is not self._seen_state:
            self._take_state(self.session.state)
        job = self.session.job("compute")
        self.run_bar.watch(job)
        is_ours = job is not None and job.title.startswith(OURS)
        self.outcome.convergence.show_steps(self._log, self._n_iterations, is_running=is_ours)
        for button in self._buttons:
            button.refresh()

    def restyle(self) -> None:
        """Take the colours of another theme."""
        self.compare.restyle()
        self.outcome.convergence.restyle()

    def save(self) -> dict[str, object]:
        """Return how the page is divided."""
        return {"across": self._across.sizes(), "down": self._down.sizes()}

    def restore(self, saved: dict[str, object]) -> None:
        """Divide the page as it was."""
        for splitter, name in ((self._across, "across"), (self._down, "down")):
            restore_sizes(splitter, saved.get(name))

    def open(self, path: Path) -> None:
        """Take a scan, a volume of bins or a folder of images for what is reconstructed or decomposed."""
        before = (self._path, self.facts) if self.facts is not None else (None, None)
        self._path, self.facts, self._prediction = path, None, None
        self.source.show_reading(path.name)
        settings = self.settings
        scale, pixel = self.source.scale.text(), self.source.pixel.text()

        def work() -> Generator[Progress, None, Facts]:
            return read_facts(
                path,
                settings,
                grey_per_cm_ratio=number_of(scale, "the grey value of 1 per cm") or 1.0,
                voxel_mm=number_of(pixel, "the edge of a pixel"),
            )

        self.side.ask(
            "What is to be reconstructed", work,
            self._take_facts, otherwise=partial(self._take_no_facts, path, before),
        )  # fmt: skip

    def try_slice(self) -> None:
        """Make one slice by the settings, of bins or materials, as the step that is open asks."""
        kind = "bins" if self.steps.currentIndex() == BINS else "materials"
        source = self._path if kind == "bins" else self._to_decompose()
        assert source is not None, "the button asks first"
        self._n_tries += 1
        work = trial.make_try(
            source, self.settings, self._z_mm(), self._kept, self._begin(kind), kind=kind, number=self._n_tries
        )
        self.session.compute(f"{OURS}try of a slice", work, self._take_try, otherwise=self._show_cancelled)

    def reconstruct(self) -> None:
        """Reconstruct all bins into a file."""
        assert self._path is not None, "the button asks first"
        output = self._output("volume")
        work = jobs.reconstruct(self._path, self.settings, output, self._begin("bins"))
        self.session.compute(
            f"{OURS}reconstruction of {self._path.name}", work, self._take_bins, otherwise=self._show_cancelled
        )

    def decompose(self) -> None:
        """Tell the materials of all, into a file."""
        source = self._to_decompose()
        assert source is not None, "the button asks first"
        work = jobs.decompose(source, self.settings, self._output("materials"), self._begin("materials"))
        self.session.compute(
            f"{OURS}decomposition of {self._name()}", work, self._take_materials, otherwise=self._show_cancelled
        )

    @property
    def can_undo(self) -> bool:
        """Whether there is a change of settings to take back."""
        return self.history.can_undo

    @property
    def can_redo(self) -> bool:
        """Whether there is a change of settings to make again."""
        return self.history.can_redo

    def undo(self) -> None:
        """Take the last change of settings back."""
        self._show_settings(self.history.undo())

    def redo(self) -> None:
        """Make it again."""
        self._show_settings(self.history.redo())

    def go_back_to(self, place: int) -> None:
        """Show a try again beside the one before it, and take its settings."""
        one = self.tries[place]
        self._show_try(place)
        if one.settings != self.settings:
            self.history.edit(one.settings)
            self._show_settings(one.settings)

    def _build(self) -> None:
        self.steps = QtWidgets.QTabWidget()
        self.steps.addTab(_scrolled(self.recipe_form), "2  Bins")
        self.steps.addTab(_scrolled(self.materials_form), "3  Materials")
        self.steps.setTabToolTip(BINS, "Reconstruct every energy bin.")
        self.steps.setTabToolTip(MATERIALS, "Tell the materials apart.")
        self.undo_button = ActionButton(
            "↶", "Take the last change of settings back (Ctrl+Z).",
            lambda: "" if self.history.can_undo else "Nothing was changed yet.", self.undo,
        )  # fmt: skip
        self.redo_button = ActionButton(
            "↷", "Make the change again (Ctrl+Shift+Z).",
            lambda: "" if self.history.can_redo else "No change was taken back.", self.redo,
        )  # fmt: skip
        corner = QtWidgets.QWidget()
        row = QtWidgets.QHBoxLayout(corner)
        row.setContentsMargins(0, 0, 0, 2)
        for button in (self.undo_button, self.redo_button):
            button.setFixedSize(34, 22)
            button.setStyleSheet("padding: 0")
            row.addWidget(button)
        self.steps.setCornerWidget(corner)
        self.z = QtWidgets.QDoubleSpinBox()
        self.z.setSuffix(" mm")
        self.z.setDecimals(2)
        self.z.setToolTip("Height of the slice that is tried; the middle of what is seen is 0 where it is centred.")
        self.z_slider = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal)
        self.z_slider.setToolTip("Slice that is tried, from the lowest to the highest.")
        self.z_slider.valueChanged.connect(self._slide)
        self.z.valueChanged.connect(self._set_slider)
        self.try_button = ActionButton(
            "Try on one slice", "Make this slice only, in seconds, and compare it with the try before.",
            self._why_not_try, self.try_slice,
        )  # fmt: skip
        self.run_button = ActionButton(
            "Reconstruct", "Reconstruct the whole volume of every bin, in the background, into a new file.",
            lambda: self._why_not(BINS) or self._why_not_whole(BINS), self.reconstruct,
        )  # fmt: skip
        self.decompose_button = ActionButton(
            "Decompose", "Tell the materials of the whole volume, in the background, into a new file.",
            lambda: self._why_not(MATERIALS) or self._why_not_whole(MATERIALS), self.decompose,
        )  # fmt: skip
        self._buttons = (
            self.undo_button, self.redo_button, self.try_button, self.run_button, self.decompose_button
        )  # fmt: skip
        self._words = hint()
        height = QtWidgets.QHBoxLayout()
        name = QtWidgets.QLabel("slice at z")
        name.setToolTip(self.z.toolTip())
        for widget, stretch in ((name, 0), (self.z_slider, 1), (self.z, 0)):
            height.addWidget(widget, stretch)
        actions = QtWidgets.QHBoxLayout()
        for button in (self.try_button, self.run_button, self.decompose_button):
            button.setMinimumHeight(32)
            actions.addWidget(button, 1)
        left = QtWidgets.QWidget()
        column = QtWidgets.QVBoxLayout(left)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.source)
        column.addWidget(self.steps, 1)
        column.addLayout(height)
        column.addWidget(self._words)
        column.addLayout(actions)
        left.setMinimumWidth(max(LABEL_PX + 200, left.minimumSizeHint().width()))
        self._down = QtWidgets.QSplitter(QtCore.Qt.Orientation.Vertical)
        self.empty = hint(EMPTY)
        self.empty.setAlignment(QtCore.Qt.AlignmentFlag.AlignCenter)
        self.pictures = QtWidgets.QStackedWidget()
        self.pictures.addWidget(self.empty)
        self.pictures.addWidget(self.compare)
        self._down.addWidget(self.pictures)
        self._down.addWidget(self.outcome)
        self._down.setStretchFactor(0, 3)
        self._down.setStretchFactor(1, 2)
        self._down.setSizes([440, 230])
        right = QtWidgets.QWidget()
        column = QtWidgets.QVBoxLayout(right)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.run_bar)
        column.addWidget(self._down, 1)
        self._across = QtWidgets.QSplitter(QtCore.Qt.Orientation.Horizontal)
        self._across.addWidget(left)
        self._across.addWidget(right)
        self._across.setStretchFactor(0, 0)
        self._across.setStretchFactor(1, 1)
        self._across.setSizes([LEFT_PX, 3 * LEFT_PX])
        for splitter in (self._across, self._down):
            splitter.setChildrenCollapsible(False)
        QtWidgets.QVBoxLayout(self).addWidget(self._across)
        self._show_words()

    def _take_state(self, state: State) -> None:
        before, self._seen_state = self._seen_state, state
        self.recipe_form.take_bins(state.bins_path)
        was_scan = before.scan_path if before is not None else None
        if state.scan_path is not None and state.scan_path != was_scan and state.scan_path != self._path:
            self.open(state.scan_path)
        elif state.bins_path is not None and state.bins is not (before.bins if before is not None else None):
            self._take_foreign_bins(state)
        self._show_words()

    def _take_foreign_bins(self, state: State) -> None:
        """Take bins that were opened elsewhere in the window, unless they are of what is open here."""
        assert state.bins is not None
        is_own = self.facts is not None and is_made_of(state.bins, self.facts)
        if state.bins_path is not None and not is_own and state.bins_path != self._path:
            self.open(state.bins_path)

    def _take_catalogue(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self.recipe_form.take_catalogue(catalogue)
        if catalogue.has_gpu:
            recipe = replace(self.settings.recipe, use_gpu=True)
            self.history = History(replace(self.settings, recipe=recipe))
        self._show_settings(self.settings)

    def _take_facts(self, facts: Facts) -> None:
        if facts.path != self._path:
            return
        self.facts = facts
        self._kept = trial.Kept()
        self.source.show_facts(facts)
        self.recipe_form.take_facts(facts)
        self.materials_form.take_facts(facts)
        low_mm, high_mm = facts.z_mm
        self.z.setRange(low_mm, high_mm)
        self.z.setSingleStep(facts.grid.voxel_mm)
        self.z_slider.setRange(0, facts.grid.shape[0] - 1)
        self.z_slider.setValue(facts.grid.shape[0] // 2)
        self._slide(facts.grid.shape[0] // 2)
        if facts.kind is SourceKind.SCAN:
            self.session.change(scan_path=facts.path)
        else:
            self.steps.setCurrentIndex(MATERIALS)
            is_file = facts.kind is SourceKind.VOLUME
            self.session.change(bins=facts.volume, bins_path=facts.path if is_file else None)
        self._seen_state = self.session.state
        self.recipe_form.take_bins(self._seen_state.bins_path)
        self._predict()
        self._show_words()

    def _take_no_facts(self, path: Path, before: tuple[Path | None, Facts | None], error: BaseException) -> None:
        """Tell why a source cannot be taken, and go on with the one before it."""
        self.session.fail(f"Opening {path.name}", error)
        if path != self._path:
            return
        self._path, self.facts = before
        if self.facts is not None:
            self.source.show_facts(self.facts)
        else:
            self.source.show_nothing()
        self._predict()
        self._show_words()

    def _read_again(self) -> None:
        if self._path is not None:
            self.open(self._path)

    def _take_form(self) -> None:
        try:
            settings = self.materials_form.settings(self.recipe_form.settings(self.settings))
        except (MpxctError, ValueError) as error:
            self._typed_wrong = f"{error}."
        else:
            self._typed_wrong = ""
            if settings != self.settings:
                self.history.edit(settings)
                self._predict()
        self._show_words()

    def _show_settings(self, settings: Settings) -> None:
        self.recipe_form.fill(settings)
        self.materials_form.fill(settings)
        self._typed_wrong = ""
        self._predict()
        self._show_words()

    def _predict(self) -> None:
        facts, settings = self.facts, self.settings
        is_scan = facts is not None and facts.kind is SourceKind.SCAN and self._catalogue is not None
        if facts is None or not is_scan or why_not_bins(settings, facts, self._catalogue):
            self._prediction, self._impossible = None, ""
            return
        last = next((one for one in reversed(self.tries) if one.kind == "bins"), None)
        self._impossible = ""
        self.side.ask(
            "Prediction",
            lambda: predict(facts, settings, last),
            self._take_prediction,
            otherwise=self._take_no_prediction,
        )

    def _take_prediction(self, prediction: Prediction | None) -> None:
        self._prediction, self._impossible = prediction, prediction.why_not if prediction is not None else ""
        self._show_words()

    def _take_no_prediction(self, error: BaseException) -> None:
        """Say at once what the scan cannot give, such as a region beside it."""
        hint = getattr(error, "hint", "")
        self._prediction, self._impossible = None, f"{error}{hint and f'; {hint}'}."
        if not isinstance(error, MpxctError):
            self.session.fail("Prediction", error)
        self._show_words()

    def _show_words(self) -> None:
        """Say what is wrong, or what is to be expected."""
        is_bins = self.steps.currentIndex() == BINS
        if self._typed_wrong:
            self._words.setText(f"⚠ {self._typed_wrong}")
        elif self.facts is not None and (why := self._why_not_settings(self.steps.currentIndex())):
            self._words.setText(f"⚠ {why}")
        elif is_bins:
            self._words.setText(self._prediction.words() if self._prediction else "")
        else:
            self._words.setText(self._materials_words())
        for button, is_shown in ((self.run_button, is_bins), (self.decompose_button, not is_bins)):
            button.setVisible(is_shown)

    def _materials_words(self) -> str:
        if self.facts is None:
            return ""
        if self.settings.decomposition.tier != IMAGE:
            return "Time is not known before a slice was tried."
        if self._has_bins():
            path = self.session.state.bins_path
            return f"Of the bins that are there already{f', in {path.name}' if path else ''}."
        return "The bins are reconstructed first, by the settings of step 2."

    def _why_not(self, step: int) -> str:
        action = Action.RECONSTRUCT if step == BINS else Action.DECOMPOSE
        if self._path is None:
            return self.session.why_not(action) or "There is nothing open yet: open a scan, or drop one here."
        return self._typed_wrong or self._why_not_settings(step) or self.session.why_not(action)

    def _why_not_try(self) -> str:
        return self._why_not(self.steps.currentIndex())

    def _why_not_settings(self, step: int) -> str:
        if step == BINS:
            return why_not_bins(self.settings, self.facts, self._catalogue) or self._impossible
        has_bins = self._has_bins()
        why = why_not_materials(self.settings, self.facts, self._catalogue, has_bins=has_bins)
        return why or ("" if has_bins else self._impossible)

    def _why_not_whole(self, step: int) -> str:
        """Return why what can be tried on a slice cannot be made whole; empty where it can."""
        told, asked = self._prediction, self.settings.decomposition
        if told is None or (step == MATERIALS and (asked.tier != IMAGE or self._has_bins())):
            return ""
        if step == MATERIALS and not told.fits:
            return told.why_not_whole or "The bins do not fit into memory at once: reconstruct them first, in step 2."
        return told.why_not_whole

    def _has_bins(self) -> bool:
        """Whether what is to be decomposed is a volume of bins that is there."""
        source = self._to_decompose()
        return source is not None and not isinstance(source, Path)

    def _to_decompose(self) -> Path | Volume | None:
        """Return the bins that are there already, where they are of this source and will do; else the source."""
        state, asked = self.session.state, self.settings.decomposition
        bins = state.bins
        if (
            asked.tier == IMAGE
            and (bins is not None and self.facts is not None and is_made_of(bins, self.facts))
            and (bins.basis is not None or asked.by != BY_CALIBRATION)
        ):
            return bins
        return self._path

    def _name(self) -> str:
        return self._path.name if self._path is not None else "volume"

    def _output(self, what: str) -> Path:
        assert self._path is not None
        stem = self._path.stem.removesuffix("-volume") if self._path.is_file() else self._path.name
        return jobs.free_path(self.session.state.folder, stem.removesuffix(".partial"), what)

    def _begin(self, kind: str) -> list[Step]:
        """Clear what is shown of iterations, and return the log of the next ones."""
        self._log = []
        recipe, asked = self.settings.recipe, self.settings.decomposition
        method = self._catalogue.methods.get(recipe.method) if self._catalogue else None
        if kind == "materials" and asked.tier != IMAGE:
            self._n_iterations = asked.n_iterations or 0
        else:
            self._n_iterations = recipe.n_iterations or (method.n_iterations if method else 0)
        if (kind == "bins" and method is not None) or (kind == "materials" and asked.tier != IMAGE):
            self.outcome.setCurrentIndex(CONVERGENCE)
        return self._log

    def _take_try(self, one: Try) -> None:
        self.tries.append(one)
        del self.tries[:-MOST_KEPT]
        self.outcome.setCurrentIndex(TRIES)
        self._show_try(len(self.tries) - 1)
        self._predict()

    def _show_try(self, place: int) -> None:
        one = self.tries[place]
        self.pictures.setCurrentWidget(self.compare)
        before = before_of(self.tries, place)
        others = [other for other in self.tries if other.kind == one.kind and other is not one]
        self.compare.beside.offer([(f"try {other.number}", other.number, "") for other in others])
        self.compare.beside.allow("" if others else "there is no other try of this kind yet.")
        self._place = place
        self.compare.beside.put(before.number if before is not None else None)
        self.compare.show_tries(before, one)
        self.outcome.show_tries(self.tries, place)
        self.outcome.show_made(f"Try {one.number}, slice at z {one.z_mm:.2f} mm:", one.steps)

    def _show_beside(self) -> None:
        """Show another try beside the one that is seen."""
        number = self.compare.beside.value()
        other = next((one for one in self.tries if one.number == number), None)
        self.compare.show_tries(other, self.tries[self._place])

    def _take_region(self) -> None:
        """Keep only the box, in x and y, of what is reconstructed."""
        one = self.tries[self._place]
        (left, right), (low, high) = one.spans_mm(*self.compare.region_mm())
        known = self.settings.recipe.region_mm
        along_z = known[2] if known is not None else (float("-inf"), float("inf"))
        recipe = replace(self.settings.recipe, region_mm=((left, right), (low, high), along_z))
        self.history.edit(replace(self.settings, recipe=recipe))
        self._show_settings(self.settings)

    def _take_bins(self, made: jobs.Made) -> None:
        self.session.change(bins=made.volume, bins_path=made.path)
        self._show_end(made)

    def _take_materials(self, made: jobs.Made) -> None:
        self.session.change(materials=made.volume, materials_path=made.path)
        self._show_end(made)

    def _show_end(self, made: jobs.Made) -> None:
        files = ", ".join(path.name for path in (made.path, *made.others))
        self.run_bar.show_end(f"Written in {made.seconds_s:.1f} s: {files}", str(made.path.parent))
        self.outcome.show_made(files, made.volume.provenance.steps)
        self._show_words()

    def _show_cancelled(self, status: JobStatus) -> None:
        if status is JobStatus.STOPPED:
            self.run_bar.show_end("Cancelled; nothing was written, and nothing has changed.")

    def _z_mm(self) -> float:
        return self.z.value()

    def _slide(self, number: int) -> None:
        if self.facts is not None:
            self.z.blockSignals(True)
            self.z.setValue(float(self.facts.grid.axes_mm()[0][number]))
            self.z.blockSignals(False)

    def _set_slider(self, z_mm: float) -> None:
        if self.facts is not None:
            self.z_slider.blockSignals(True)
            self.z_slider.setValue(trial.slice_number(self.facts.grid, z_mm))
            self.z_slider.blockSignals(False)


EMPTY = (
    "Open a scan, choose how it is to be reconstructed, and try that on one slice.\n"
    "Each try is shown here beside the one before it; when you like what you see, reconstruct all."
)
CANCEL = "Break it off at its next step. Nothing is written, and settings and volumes stay."
OURS = "Reconstruct: "
"""What the titles of this page's jobs begin with."""


def _scrolled(widget: QtWidgets.QWidget) -> QtWidgets.QScrollArea:
    inner = QtWidgets.QWidget()
    column = QtWidgets.QVBoxLayout(inner)
    column.addWidget(widget)
    column.addStretch(1)
    area = QtWidgets.QScrollArea()
    area.setWidget(inner)
    bar_px = area.verticalScrollBar().sizeHint().width()
    area.setMinimumWidth(min(inner.minimumSizeHint().width() + bar_px, MOST_FORM_PX))
    area.setWidgetResizable(True)
    area.setFrameShape(QtWidgets.QFrame.Shape.NoFrame)
    area.setHorizontalScrollBarPolicy(QtCore.Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    return area
