"""A volume in three dimensions: what draws it, what is shown of it, and the surfaces in it.

It chooses by itself what draws, the graphics card where there is OpenGL and else the processor, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

from calibration.attenuation import MG_ML_PER_G_CM3
from gui.colour import Look
from gui.controls import hint
from gui.volume.camera import STANDARD_VIEWS, Camera
from gui.volume.cpu_view import CpuView
from gui.volume.noise import above_noise
from gui.volume.optics import Cut, Grains, first_opacity, grains_of, optics_of, solid_colour
from gui.volume.overlay import Entry, Labels
from gui.volume.scene_panel import BUDGETS, CALMINGS, ScenePanel
from gui.volume.surfaces import Mesh, isosurface
from gui.workers import Job, JobStatus

if TYPE_CHECKING:
    from gui.volume.gl_view import GlView

TURN_RAD_PER_BEAT = 0.02
SMOOTHING_STEPS = 10
Told = Callable[[str, BaseException], object]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Shown:
    """What was given to be shown."""

    values: NDArray[np.floating]
    voxel_mm: float
    centre_mm: tuple[float, float, float]
    looks: tuple[Look, ...]
    is_scale_known: bool


class VolumeScene(QtWidgets.QWidget):
    """Shows up to eight materials in three dimensions; whoever holds it calls `refresh` at every beat.

    Parameters
    ----------
    fail : callable, optional
        Told of what went wrong in the background: a title and the error; `Session.fail` is one.
    is_gl_wanted : bool
        False draws on the processor in any case.

    Attributes
    ----------
    meshes : dict of str to Mesh
        The surfaces that are shown, by name; also what an export takes.
    panel : ScenePanel
        Its controls; whoever holds the scene puts them where there is room.
    """

    def __init__(self, fail: Told = lambda _title, _error: None, *, is_gl_wanted: bool = True) -> None:
        super().__init__()
        self.meshes: dict[str, Mesh] = {}
        self._fail = fail
        self._shown: _Shown | None = None
        self._grains: Grains | None = None
        self._jobs: dict[str, tuple[Job[Any], Callable[[Any], object]]] = {}
        self._steps: tuple[Generator[float, None, QtGui.QImage], Callable[[QtGui.QImage], object]] | None = None
        self._is_dark = True
        self._view, self._why_no_gl = _view(is_gl_wanted)
        self.panel = ScenePanel(self)
        self._words = hint()
        self._words.setWordWrap(False)  # another line would take the picture's room, and draw it anew
        self._words.setSizePolicy(QtWidgets.QSizePolicy.Policy.Ignored, QtWidgets.QSizePolicy.Policy.Preferred)
        self._column = QtWidgets.QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._column.setSpacing(4)
        self._column.addWidget(self._view, 1)
        self._column.addWidget(self._words)
        self._turning = QtCore.QTimer(self)
        self._turning.setInterval(40)
        self._turning.timeout.connect(
            lambda: self._view.hand.move(self._view.hand.camera.turned(TURN_RAD_PER_BEAT, 0.0))
        )
        self.refresh()

    @property
    def view(self) -> GlView | CpuView:
        """What draws now."""
        return self._view

    @property
    def has_gl(self) -> bool:
        """Whether the graphics card draws."""
        return not isinstance(self._view, CpuView)

    @property
    def grains(self) -> Grains | None:
        """The volume as it is drawn; None until it is ready."""
        return self._grains

    def show_volume(
        self,
        values: NDArray[np.floating],
        voxel_mm: float,
        looks: Sequence[Look],
        *,
        centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
        is_scale_known: bool = True,
    ) -> None:
        """Show a volume as soon as it is made ready in the background.

        Parameters
        ----------
        values : (n, z, y, x) float
            Of up to eight materials, in g/cm3; may be mapped from a file.
        centre_mm : (x, y, z) float
            As in `reconstruction.volume.Grid`.
        """
        self._shown = _Shown(
            values=values, voxel_mm=voxel_mm, centre_mm=centre_mm, looks=tuple(looks), is_scale_known=is_scale_known
        )
        self._grains = None
        self.show_meshes({})
        self.panel.show_looks(looks)
        self.prepare()

    def show_looks(self, looks: Sequence[Look]) -> None:
        """Show the same volume with other colours, windows or opacities."""
        if self._shown is None:
            return
        self._shown = replace(self._shown, looks=tuple(looks))
        self.panel.show_looks(looks)
        self.show_optics()

    def clear(self) -> None:
        """Show nothing any more."""
        if self._shown is None:
            return
        for job, _ in self._jobs.values():
            job.abort()
        self._jobs.clear()
        self._shown = self._grains = None
        self.show_meshes({})
        self.panel.show_looks(())
        self._view.clear()

    def restyle(self, is_dark: bool) -> None:
        """Take a light or a dark background."""
        self._is_dark = is_dark
        self.panel.restyle(is_dark)
        self._label()

    def refresh(self) -> None:
        """Take what is ready from the background, draw one more step of a picture, say what goes on."""
        if self.has_gl and self._view.fault:
            self._leave_gl()
        for name, (job, then) in list(self._jobs.items()):
            if job.is_over:
                del self._jobs[name]
                self._hand_over(job, then)
        self._step()
        self.panel.refresh()
        text = self._status()
        if self._words.text() != text:
            self._words.setText(text)
            self._words.setToolTip(text)

    def run(self, name: str, job: Job[Any], then: Callable[[Any], object]) -> None:
        """Run a job in the background; one with the same name that still runs is broken off."""
        if name in self._jobs:
            self._jobs[name][0].abort()
        self._jobs[name] = job.start(), then

    def is_running(self, name: str) -> bool:
        """Whether a job of this name runs."""
        return name in self._jobs

    def prepare(self) -> None:
        """Make the volume ready for drawing, within the budget of voxels that is chosen."""
        if self._shown is None:
            return
        calm = CALMINGS[self.panel.calming]
        work = grains_of(
            self._shown.values,
            self._shown.voxel_mm,
            centre_mm=self._shown.centre_mm,
            most_voxels=BUDGETS[self.panel.budget],
            smoothings=None if calm is None else (calm,) * len(self._shown.looks),
            highs_g_cm3=[look.high_g_cm3 for look in self._shown.looks],
        )
        self.run("volume", Job("Preparing the volume", work), self._take)

    def show_optics(self) -> None:
        """Draw with the looks and opacities that are set now."""
        if self._shown is not None and self._grains is not None:
            self._view.show_optics(self._optics())
            self._label()

    def show_cut(self, cut: Cut) -> None:
        """Cut away; quickly while it goes on."""
        self._view.show_cut(cut)
        self._view.hand.stir()

    def look_from(self, name: str) -> None:
        """Take one of the standard views."""
        azimuth_rad, elevation_rad = STANDARD_VIEWS[name]
        hand = self._view.hand
        hand.move(replace(hand.home, azimuth_rad=azimuth_rad, elevation_rad=elevation_rad))

    def look_orthographic(self, is_wanted: bool) -> None:
        """Look without perspective, or with it."""
        hand = self._view.hand
        hand.home = replace(hand.home, is_orthographic=is_wanted)
        hand.move(replace(hand.camera, is_orthographic=is_wanted))

    def turn(self, is_wanted: bool) -> None:
        """Turn by itself, or stop."""
        (self._turning.start if is_wanted else self._turning.stop)()

    def make_surface(self, material: str, at_mg_ml: float, *, is_smooth: bool) -> None:
        """Find the surface of a concentration in the background and show it."""
        assert self._shown is not None, "the button is grey without a volume"
        assert self._grains is not None
        names = [look.material for look in self._shown.looks]
        channel = names.index(material)
        work = isosurface(
            self._grains.values[channel],
            at_mg_ml / MG_ML_PER_G_CM3,
            voxel_mm=self._grains.voxel_mm,
            centre_mm=self._grains.centre_mm,
            colour=solid_colour(self._shown.looks[channel].colour),
            name=f"{material} at {at_mg_ml:g} mg/mL",
            smoothing_steps=SMOOTHING_STEPS if is_smooth else 0,
        )
        self.run("surface", Job("Surface", work), lambda mesh: self.show_meshes(self.meshes | {mesh.name: mesh}))

    def show_meshes(self, meshes: dict[str, Mesh]) -> None:
        """Show these surfaces and no other."""
        self.meshes = meshes
        self._view.show_meshes(list(meshes.values()))
        self.panel.show_meshes(meshes)

    def picture(
        self, width: int, height: int, then: Callable[[QtGui.QImage], object], *, camera: Camera | None = None
    ) -> None:
        """Draw a picture of any size, one step at each beat, and hand it over."""
        self._steps = self._view.picture(width, height, camera), then

    @property
    def is_picturing(self) -> bool:
        """Whether a picture is being drawn."""
        return self._steps is not None

    def _optics(self) -> Any:
        assert self._shown is not None
        assert self._grains is not None
        chosen = self.panel.opacities()
        looks = self._drawn_looks()
        return optics_of(
            looks,
            max(self._grains.size_mm),
            opacities=[chosen.get(look.material, first_opacity(look)) for look in looks],
            bend=self.panel.bend,
        )

    def _drawn_looks(self) -> tuple[Look, ...]:
        """Return the looks, with windows above the noise of what is drawn where that is wanted."""
        assert self._shown is not None
        assert self._grains is not None
        if not self.panel.is_above_noise:
            return self._shown.looks
        return tuple(map(above_noise, self._shown.looks, self._grains.noise_g_cm3))

    def _take(self, grains: Grains) -> None:
        is_first = self._grains is None
        self._grains = grains
        if is_first:
            hand = self._view.hand
            fitted = Camera.around(grains.size_mm, grains.centre_mm)
            hand.home = replace(fitted, is_orthographic=hand.home.is_orthographic)
            hand.camera = hand.home
        self._view.show_grains(grains, self._optics())
        self.panel.show_noise(self._shown.looks if self._shown is not None else (), grains.noise_g_cm3)
        self.panel.show_size(grains.size_mm, "mm" if self._shown is None or self._shown.is_scale_known else "voxels")
        self._label()

    def _label(self) -> None:
        if self._grains is None or self._shown is None:
            return
        low, high = self._grains.corners_mm
        self._view.show_labels(
            Labels(
                low_mm=(low[0], low[1], low[2]),
                high_mm=(high[0], high[1], high[2]),
                legend=tuple(
                    Entry(
                        name=look.material,
                        colour=solid_colour(look.colour),
                        low_g_cm3=look.low_g_cm3,
                        high_g_cm3=look.high_g_cm3,
                    )
                    for look in self._drawn_looks()
                    if getattr(look, "is_visible", True)
                ),
                is_dark=self._is_dark,
                is_scale_known=self._shown.is_scale_known,
            )
        )

    def _hand_over(self, job: Job[Any], then: Callable[[Any], object]) -> None:
        now = job.snapshot()
        if now.status is JobStatus.DONE:
            then(job.result)
        elif now.status is JobStatus.FAILED and now.error is not None:
            self._fail(job.title, now.error)

    def _step(self) -> None:
        if self._steps is None:
            return
        steps, then = self._steps
        try:
            next(steps)
        except StopIteration as end:
            self._steps = None
            then(end.value)

    def _status(self) -> str:
        if "volume" in self._jobs:
            now = self._jobs["volume"][0].snapshot()
            share = f": {100 * now.share:.0f} %" if now.share is not None else ""
            return f"Preparing the volume{share}"
        if self._grains is None:
            return "Open a volume of materials to see it here in three dimensions."
        parts = [
            f"Drawn by OpenGL ({self._renderer})." if self.has_gl else f"Drawn by the processor: {self._why_no_gl}."
        ]
        z, y, x = self._grains.values.shape[1:]
        if self._grains.thinning > 1:
            parts.append(
                f"Thinned out to {x} × {y} × {z} voxels, means of {self._grains.thinning}³ each (set under Quality)."
            )
        if most := max(self._grains.smoothing_voxels, default=0.0):
            parts.append(f"Noisy materials are smoothed, by {most:g} voxels at most (set under Quality).")
        return " ".join(parts)

    @property
    def _renderer(self) -> str:
        assert not isinstance(self._view, CpuView)
        return self._view.item.caster.renderer or "starting"

    def _leave_gl(self) -> None:
        """Go on with the processor where the graphics driver does not do what is needed."""
        old, fault = self._view, self._view.fault
        self._view, self._why_no_gl = CpuView(), fault
        self._view.hand.camera, self._view.hand.home = old.hand.camera, old.hand.home
        self._replace(old)
        if self._grains is not None:
            self._view.show_grains(self._grains, self._optics())
            self._label()

    def _replace(self, old: QtWidgets.QWidget) -> None:
        self._column.replaceWidget(old, self._view)
        self._view.show()
        old.deleteLater()
        self.panel.apply()


def _view(is_gl_wanted: bool) -> tuple[GlView | CpuView, str]:
    """Return what can draw here, and why it is not the graphics card if it is not."""
    if not is_gl_wanted:
        return CpuView(), "this was asked for"
    try:
        from gui.volume.gl_view import GlView, why_not
    except ImportError as error:
        return CpuView(), f"PyOpenGL cannot be loaded ({error})"
    why = why_not()
    return (CpuView(), why) if why else (GlView(), "")
