"""What is set beside a volume in three dimensions: opacities, light, cuts, surfaces, pictures and movies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

from gui.colour import Look
from gui.controls import ActionButton, hint
from gui.volume.camera import STANDARD_VIEWS, Camera
from gui.volume.filming import Filming
from gui.volume.looks import in_mg_ml
from gui.volume.movie import ANIMATED, sweep, turntable, why_no_mp4
from gui.volume.noise import FLOOR_SDS, LAGS
from gui.volume.optics import Cut, Grains, first_opacity, solid_colour
from gui.volume.quality import Quality
from gui.volume.scene_controls import Fold, Slider, SolidityList, Span, beside, check, choice
from gui.volume.surfaces import Mesh
from gui.workers import Job

FINENESS = {"Coarse": 2.0, "Normal": 1.0, "Fine": 0.5}
"""Voxels between two samples of a ray."""
CALMINGS = {"Smooth where noisy": None, "As measured": 0.0, "Smooth by 1 voxel": 1.0, "Smooth by 2 voxels": 2.0}
"""Standard deviations of the Gaussian; None chooses for each material."""
BUDGETS = {"128³": 128**3, "192³": 192**3, "256³": 256**3, "384³": 384**3}
PLANES: dict[str, tuple[float, float, float] | None] = {
    "no plane": None,
    "across x": (1.0, 0.0, 0.0),
    "across y": (0.0, -1.0, 0.0),
    "across z": (0.0, 0.0, 1.0),
    "slanting": (0.57735, -0.57735, 0.57735),
    "facing me": (0.0, 0.0, 0.0),
}
"""What lies beyond is cut away; "facing me" takes its direction from the camera when it is chosen."""
PICTURE_SIZES = {"1×": 1.0, "2×": 2.0, "3×": 3.0, "4×": 4.0}


class Scene(Protocol):
    """What the controls need; see `gui.volume.scene.VolumeScene`."""

    meshes: dict[str, Mesh]

    @property
    def view(self) -> Any: ...  # noqa: D102
    @property
    def has_gl(self) -> bool: ...  # noqa: D102
    @property
    def grains(self) -> Grains | None: ...  # noqa: D102
    @property
    def is_picturing(self) -> bool: ...  # noqa: D102
    def is_running(self, name: str) -> bool: ...  # noqa: D102
    def run(self, name: str, job: Job[Any], then: Callable[[Any], object]) -> None: ...  # noqa: D102
    def prepare(self) -> None: ...  # noqa: D102
    def restyle(self, is_dark: bool) -> None: ...  # noqa: D102
    def show_optics(self) -> None: ...  # noqa: D102
    def show_cut(self, cut: Cut) -> None: ...  # noqa: D102
    def show_meshes(self, meshes: dict[str, Mesh]) -> None: ...  # noqa: D102
    def look_from(self, name: str) -> None: ...  # noqa: D102
    def look_orthographic(self, is_wanted: bool) -> None: ...  # noqa: D102
    def turn(self, is_wanted: bool) -> None: ...  # noqa: D102
    def make_surface(self, material: str, at_mg_ml: float, *, is_smooth: bool) -> None: ...  # noqa: D102
    def picture(  # noqa: D102
        self, width: int, height: int, then: Callable[[QtGui.QImage], object], *, camera: Camera | None = None
    ) -> None: ...


class ScenePanel(QtWidgets.QWidget):
    """The controls of a `gui.volume.scene.VolumeScene`."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self._scene = scene
        self._size_mm, self._unit = (1.0, 1.0, 1.0), "mm"
        self._solidities = SolidityList(scene.show_optics)
        self._bend = Slider(
            "Whether faint concentrations are seen through (right) or stand out (left).",
            lambda value: "even" if abs(value) < 0.01 else f"{'clearer' if value > 0 else 'denser'} {abs(value):.1f}",
            lambda _: scene.show_optics(),
            least=-1.0,
        )
        self._spans = [
            Span(f"Cut the volume along {name}.", self._mm(axis), self._cut) for axis, name in enumerate("xyz")
        ]
        self._plane_kind = choice(
            tuple(PLANES), "no plane", "Cut away all beyond a plane; the slider moves it.", self._choose_plane
        )
        self._normal: tuple[float, float, float] | None = None
        self._plane_at = Slider("Where the plane stands, from the middle.", self._plane_words, lambda _: self._cut())
        self._plane_at.value = 0.5
        self._shading = check(
            "Light on surfaces", "Bodies look solid; off, only colours and opacity.", self._requalify, is_set=True
        )
        self._fineness = choice(tuple(FINENESS), "Normal", "How densely rays are sampled at rest.", self._requalify)
        self._budget = choice(
            tuple(BUDGETS), "256³", "Larger volumes are thinned out to about so many voxels.", lambda _: scene.prepare()
        )
        self._calming = choice(
            tuple(CALMINGS), "Smooth where noisy",
            "Noise hides what is behind it: each material is smoothed as little as brings its noise well below the top "
            "of its window. The volume itself, slices and figures stay as they are.",
            lambda _: scene.prepare(),
        )  # fmt: skip
        self._above = check(
            "Begin above the noise",
            f"Windows begin at {FLOOR_SDS:g} times a material's noise at least, as the legend says.",
            lambda _: scene.show_optics(), is_set=True,
        )  # fmt: skip
        self._maximum = check(
            "Highest values", "Each material's highest value along the line of sight; without depth.", self._maximise
        )
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(4, 4, 4, 4)
        layout.setSpacing(2)
        self._folds = (
            self._view_box(), self._material_box(), self._cut_box(), self._surface_box(), self._picture_box(),
            self._quality_box(),
        )  # fmt: skip
        for fold in self._folds:
            layout.addWidget(fold)
        layout.addStretch(1)
        self.show_looks(())

    @property
    def budget(self) -> str:
        """How many voxels are drawn at most; a key of `BUDGETS`."""
        return self._budget.currentText()

    @property
    def calming(self) -> str:
        """How noise is smoothed; a key of `CALMINGS`."""
        return self._calming.currentText()

    @property
    def is_above_noise(self) -> bool:
        """Whether windows begin above the noise."""
        return self._above.isChecked()

    @property
    def bend(self) -> float:
        """See `gui.volume.optics.optics_of`."""
        return self._bend.value

    def opacities(self) -> dict[str, float]:
        """Return how much each material hides."""
        return self._solidities.values()

    def show_looks(self, looks: Sequence[Look]) -> None:
        """Have controls for these materials."""
        names = [look.material for look in looks]
        shown = [(self._material.itemText(n)) for n in range(self._material.count())]
        colours = [solid_colour(look.colour) for look in looks]
        if names != shown or colours != self._colours:
            self._colours = colours
            self._solidities.show_materials(names, colours, [first_opacity(look) for look in looks])
        if names != shown:
            self._material.clear()
            self._material.addItems(names)
        self._windows = {look.material: look for look in looks}
        if names != shown:
            self._suggest(self._material.currentText())
        self.refresh()

    def show_noise(self, looks: Sequence[Look], noise_g_cm3: Sequence[float]) -> None:
        """Tell each material's noise as it is drawn."""
        notes = {
            look.material: f"Noise as drawn: {in_mg_ml(noise)} (standard deviation, by differences of voxels that lie "
            f"up to {LAGS[-1]} apart)."
            for look, noise in zip(looks, noise_g_cm3, strict=True)
        }
        self._solidities.tell(notes)

    def show_size(self, size_mm: tuple[float, float, float], unit: str) -> None:
        """Tell cuts in this size."""
        self._size_mm, self._unit = size_mm, unit
        for slider in [*(end for span in self._spans for end in (span.low, span.high)), self._plane_at]:
            slider.retell()

    def show_meshes(self, meshes: dict[str, Mesh]) -> None:
        """List surfaces with their area and what they enclose."""
        self._surfaces.clear()
        for name, mesh in meshes.items():
            self._surfaces.addItem(f"{name}: {mesh.area_mm2:.4g} mm², {mesh.volume_mm3:.4g} mm³")
            self._surfaces.item(self._surfaces.count() - 1).setData(QtCore.Qt.ItemDataRole.UserRole, name)
        self._surfaces.setVisible(bool(meshes))
        self.refresh()

    def restyle(self, is_dark: bool) -> None:
        """Tick the background that is shown."""
        self._dark.blockSignals(True)
        self._dark.setChecked(is_dark)
        self._dark.blockSignals(False)

    def refresh(self) -> None:
        """Look again which buttons can be pressed, and go on with a movie."""
        self._film()
        for button in (self._make, self._remove, self._picture, self._movie):
            button.refresh()

    def apply(self) -> None:
        """Tell a new view all that is set."""
        self._requalify()
        self._cut()
        self._maximise()
        self._maximum.setVisible(not self._scene.has_gl)

    def save(self) -> dict[str, object]:
        """Return the settings that shall be there again at the next start."""
        return {
            "shading": self._shading.isChecked(), "fineness": self._fineness.currentText(), "budget": self.budget,
            "orthographic": self._orthographic.isChecked(), "above_noise": self._above.isChecked(),
            "calming": self.calming,
            "open": [fold.title for fold in self._folds if fold.is_open],
        }  # fmt: skip

    def restore(self, saved: dict[str, object]) -> None:
        """Take settings of an earlier start."""
        for name, box in (
            ("shading", self._shading), ("orthographic", self._orthographic), ("above_noise", self._above),
        ):  # fmt: skip
            if isinstance(value := saved.get(name), bool):
                box.setChecked(value)
        for name, box in (("fineness", self._fineness), ("budget", self._budget), ("calming", self._calming)):
            if isinstance(value := saved.get(name), str) and box.findText(value) >= 0:
                box.setCurrentText(value)
        if isinstance(titles := saved.get("open"), list):
            for fold in self._folds:
                fold.is_open = fold.title in titles

    def _view_box(self) -> Fold:
        grid = QtWidgets.QGridLayout()
        grid.setSpacing(4)
        for number, name in enumerate(("Corner", "Front", "Right", "Top", "Back", "Left", "Bottom")):
            button = QtWidgets.QToolButton()
            button.setText(name)
            button.setSizePolicy(QtWidgets.QSizePolicy.Policy.Ignored, QtWidgets.QSizePolicy.Policy.Fixed)
            key = "0" if name == "Corner" else str(list(STANDARD_VIEWS).index(name) + 1)
            button.setToolTip(f"Look at the whole from the {name.lower()} (key {key}).")
            button.clicked.connect(lambda _=False, side=name: self._scene.look_from(side))
            grid.addWidget(button, number // 4, number % 4)
        self._orthographic = check(
            "Without perspective", "Parallel lines stay parallel; the scale bar holds everywhere.",
            self._scene.look_orthographic,
        )  # fmt: skip
        self._spin = check("Turn", "Turn by itself about the vertical axis.", self._scene.turn)
        self._dark = check("Dark", "Dark background, or a light one.", self._scene.restyle, is_set=True)
        return Fold(
            "View", grid, beside(self._orthographic, self._spin, self._dark), tip="From where the volume is seen."
        )

    def _material_box(self) -> Fold:
        form = QtWidgets.QFormLayout()
        form.setContentsMargins(0, 0, 0, 0)
        form.addRow("Faint parts", self._bend)
        form.addRow(self._above)
        return Fold("Opacity", self._solidities, form, tip="How much each material hides what is behind it.")

    def _cut_box(self) -> Fold:
        form = QtWidgets.QFormLayout()
        form.setContentsMargins(0, 0, 0, 0)
        for name, span in zip("xyz", self._spans, strict=True):
            form.addRow(name, span)
        form.addRow(beside(self._plane_kind, self._plane_at))
        reset = QtWidgets.QPushButton("Show all")
        reset.setToolTip("Undo all cuts.")
        reset.clicked.connect(self._uncut)
        form.addRow(reset)
        return Fold("Cut", form, tip="What is cut away, to look inside.")

    def _surface_box(self) -> Fold:
        self._colours: list[tuple[float, float, float]] = []
        self._windows: dict[str, Look] = {}
        self._material = QtWidgets.QComboBox()
        self._material.setToolTip("The material whose surface is wanted.")
        self._material.currentTextChanged.connect(self._suggest)
        self._at = QtWidgets.QDoubleSpinBox()
        self._at.setRange(0.001, 30000.0)
        self._at.setDecimals(3)
        self._at.setStepType(QtWidgets.QAbstractSpinBox.StepType.AdaptiveDecimalStepType)
        self._at.setSuffix(" mg/mL")
        self._at.setToolTip("The surface stands where the material passes this concentration.")
        self._smooth = check("Smooth", "Take the steps of the voxels away; the volume inside stays.", lambda _: None)
        self._smooth.setChecked(True)
        self._make = ActionButton("Make surface", "Find it and show it.", self._why_no_surface, self._make_surface)
        self._surfaces = QtWidgets.QListWidget()
        self._surfaces.setToolTip("Area, and volume inside. Files > Export writes them as STL or PLY.")
        self._surfaces.setMaximumHeight(90)
        self._surfaces.setWordWrap(True)
        self._surfaces.currentRowChanged.connect(lambda _: self._remove.refresh())
        self._remove = ActionButton(
            "Remove", "Take the surface that is marked in the list away.",
            lambda: "" if self._surfaces.currentRow() >= 0 else "no surface is marked in the list", self._remove_one,
        )  # fmt: skip
        return Fold(
            "Surface", beside(self._material, self._at), beside(self._smooth, self._make, self._remove), self._surfaces,
            tip="Where a material passes a concentration.", is_open=False,
        )  # fmt: skip

    def _picture_box(self) -> Fold:
        self._scale = choice(tuple(PICTURE_SIZES), "2×", "Size of the picture, in sizes of the view.", lambda _: None)
        self._picture = ActionButton(
            "Save picture…", "Write what is seen, with scale and legend, as PNG.", self._why_no_picture, self._save
        )
        no_mp4 = f" MP4 cannot be had here, for {why}." if (why := why_no_mp4()) else ""
        self._movie = ActionButton(
            "Save movie…",
            f"As {', '.join(ANIMATED.values())}, or a folder of pictures.{no_mp4}",
            self._why_no_picture,
            self._save_movie,
        )
        self._kind = choice(
            ("Turn", "Sweep"), "Turn", "Once round the vertical axis, or a cut that goes through and back.",
            lambda _: None,
        )  # fmt: skip
        self._count = QtWidgets.QSpinBox()
        self._count.setRange(2, 1000)
        self._count.setValue(90)
        self._count.setSuffix(" frames")
        self._count.setToolTip("25 are a second.")
        self._filming: Filming | None = None
        self._stop = QtWidgets.QPushButton("Stop")
        self._stop.setToolTip("Make a movie of the frames that are drawn already.")
        self._stop.clicked.connect(lambda: self._filming and self._filming.stop())
        self._stop.hide()
        self._told = hint()
        self._told.hide()
        return Fold(
            "Pictures", beside(self._scale, self._picture), beside(self._kind, self._count, self._movie),
            beside(self._told, self._stop), tip="Pictures and movies of what is seen.",
        )  # fmt: skip

    def _quality_box(self) -> Fold:
        self._maximum.setVisible(not self._scene.has_gl)
        return Fold(
            "Quality", beside(self._shading, self._fineness, self._budget), self._calming, self._maximum,
            tip="How finely it is drawn.", is_open=False,
        )  # fmt: skip

    def _requalify(self, _: object = None) -> None:
        self._scene.view.show_quality(
            Quality(step_voxels=FINENESS[self._fineness.currentText()], is_shaded=self._shading.isChecked())
        )

    def _maximise(self, _: object = None) -> None:
        view = self._scene.view
        if not self._scene.has_gl:
            view.is_maximum = self._maximum.isChecked()
            view.hand.stir()

    def _mm(self, axis: int):  # noqa: ANN202
        return lambda share: f"{(share - 0.5) * self._size_mm[axis]:.3g} {self._unit}"

    def _plane_words(self, share: float) -> str:
        return f"{self._plane_mm(share):.3g} {self._unit}"

    def _plane_mm(self, share: float) -> float:
        return (share - 0.5) * sum(edge * edge for edge in self._size_mm) ** 0.5

    def _choose_plane(self, name: str) -> None:
        self._normal = PLANES[name]
        if name == "facing me":
            x, y, z = self._scene.view.hand.camera.axes()[2]
            self._normal = float(x), float(y), float(z)
        self._cut()

    def _film(self) -> None:
        """Draw the next frame of a movie that is being made; what was cut for it comes back at its end."""
        if self._filming is None:
            return
        self._stop.setVisible(not self._filming.is_over)
        if self._filming.is_over:
            self._filming = None
            self._cut()
            return
        self._tell(self._filming.words)
        self._filming.beat()

    def _cut(self) -> None:
        self._scene.show_cut(self._wanted_cut())

    def _wanted_cut(self) -> Cut:
        low = [span.low.value for span in self._spans]
        high = [span.high.value for span in self._spans]
        return Cut(
            low_shares=(low[0], low[1], low[2]),
            high_shares=(high[0], high[1], high[2]),
            normal=self._normal,
            plane_mm=self._plane_mm(self._plane_at.value),
        )

    def _uncut(self) -> None:
        for span in self._spans:
            span.low.value, span.high.value = 0.0, 1.0
        self._plane_kind.setCurrentText("no plane")
        self._cut()

    def _suggest(self, material: str) -> None:
        if (look := self._windows.get(material)) is not None:
            self._at.setValue(1000 * (look.low_g_cm3 + look.high_g_cm3) / 2)

    def _why_no_surface(self) -> str:
        if self._scene.grains is None:
            return "no volume is shown"
        if not self._scene.has_gl:
            return "surfaces are drawn by OpenGL, which this screen does not have"
        return "a surface is being made" if self._scene.is_running("surface") else ""

    def _make_surface(self) -> None:
        self._scene.make_surface(self._material.currentText(), self._at.value(), is_smooth=self._smooth.isChecked())

    def _remove_one(self) -> None:
        name = self._surfaces.currentItem().data(QtCore.Qt.ItemDataRole.UserRole)
        self._scene.show_meshes({other: mesh for other, mesh in self._scene.meshes.items() if other != name})

    def _why_no_picture(self) -> str:
        if self._scene.grains is None:
            return "no volume is shown"
        return "pictures are being drawn" if self._scene.is_picturing or self._filming is not None else ""

    def _save(self) -> None:
        name, _ = QtWidgets.QFileDialog.getSaveFileName(self, "Save picture", "volume.png", "PNG (*.png)")
        if name:
            self.save_picture(Path(name))

    def save_picture(self, path: Path) -> None:
        """Draw what is seen at the size that is chosen, and write it."""
        scale, view = PICTURE_SIZES[self._scale.currentText()], self._scene.view
        width, height = round(scale * view.width()), round(scale * view.height())
        self._tell(f"drawing {width} × {height} pixels")

        def write(image: QtGui.QImage) -> None:
            self._tell(f"written: {path}" if image.save(str(path)) else f"{path} cannot be written")

        self._scene.picture(width, height, write)

    def _save_movie(self) -> None:
        kinds = {f"{kind} (*{ending})": ending for ending, kind in ANIMATED.items()} | {"Folder of pictures (*)": ""}
        if why_no_mp4():
            kinds = {kind: ending for kind, ending in kinds.items() if ending != ".mp4"}
        first = f"volume-{self._kind.currentText().lower()}{next(iter(kinds.values()))}"
        name, kind = QtWidgets.QFileDialog.getSaveFileName(self, "Save movie", first, ";;".join(kinds))
        if name:
            path = Path(name)
            self.save_movie(path if path.suffix else path.with_suffix(kinds.get(kind, "")))

    def save_movie(self, path: Path) -> None:
        """Draw the frames of a movie one after the other, and write them."""
        view, count, cut = self._scene.view, self._count.value(), self._wanted_cut()
        if self._kind.currentText() == "Turn":
            shots = turntable(view.hand.camera, cut, count)
        else:
            along_mm = [abs(a) * edge for a, edge in zip(cut.normal or (0.0, 0.0, 1.0), self._size_mm, strict=True)]
            shots = sweep(view.hand.camera, cut, count, half_mm=sum(along_mm) / 2)
        scale = PICTURE_SIZES[self._scale.currentText()]
        size = round(scale * view.width()), round(scale * view.height())
        self._filming = Filming(self._scene, shots, size, path, lambda where: self._tell(f"written: {where}"))

    def _tell(self, text: str) -> None:
        self._told.setText(text)
        self._told.setVisible(bool(text))
