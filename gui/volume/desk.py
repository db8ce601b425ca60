"""What the page Volume works on, without a widget: volumes, cuts, looks, drawings, and what is computed for them.

Everything slow is asked of `Questions` and taken over in `beat`; so the page never waits, and a test needs no window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gui.questions import Questions
from gui.session import Session
from gui.state import State
from gui.volume import annotations, files
from gui.volume.annotations import Annotation, Tool
from gui.volume.cursor import Reading, reading
from gui.volume.edits import Edited
from gui.volume.looks import GreyLook, Levels, applied, as_plain, presets_from_plain
from gui.volume.marks import Overlay, legend_of, overlay_of
from gui.volume.painting import Looks, Painted, Painter, Suggestion
from gui.volume.regions import Histogram, Joint, RegionFigures, as_csv, histogram_of, table_of
from gui.volume.reshaping import dragged
from gui.volume.slicing import (
    Cut,
    Orientation,
    Point,
    Slab,
    along,
    angles_rad,
    held,
    index_of,
    point_of,
    stepped,
    tilted,
    turned,
)
from gui.volume.views import Recipe, Shown, View, recipe, why_not
from reconstruction.volume import Grid, Volume

SLANTED = "slanted"
PANES = (*(orientation.label for orientation in Orientation), SLANTED)
FIRST_SLANT_RAD = (0.6, 0.7)
_MATERIALS_KEY = Shown.MATERIALS.name
Flat = tuple[float, float]
"""A place in the picture of a pane, in mm."""


class Desk:
    """Holds what the page shows.

    Attributes
    ----------
    version : int
        Grows with all that the panels beside the panes show.
    pictures : dict of str to Painted
        The newest of each pane.
    seen : set of str
        Panes that somebody sees; only they are painted.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.bins: Volume | None = None
        self.materials: Volume | None = None
        self.sigma: Volume | None = None
        self.view = View(shown=Shown.MATERIALS)
        self.point_mm: Point = (0.0, 0.0, 0.0)
        self.slant = tilted((0.0, 0.0, 0.0), *FIRST_SLANT_RAD)
        self.thickness_mm, self.slab = 0.0, Slab.MEAN
        self.has_crosshair = True
        self.seen: set[str] = set(PANES[:3])
        self.version = 0
        self.pictures: dict[str, Painted] = {}
        self.figures: dict[str, RegionFigures] = {}
        self.chosen = ""
        self.reading: Reading | None = None
        self.histogram: tuple[Histogram | Joint | None, str] = (None, "")
        self.has_new_reading = self.has_new_histogram = False
        self.presets: dict[str, Looks] = {}
        self._state: State | None = None
        self._edited = Edited()
        self._suggested: dict[str, Suggestion] = {}
        self._recipe: Recipe | None = None
        self._shown = self.view  # of the recipe; `view` is what was asked for last
        self._asked: dict[str, tuple[Recipe, Cut, Looks | GreyLook]] = {}
        self._figures: dict[Annotation, RegionFigures] = {}
        self._dragged: Annotation | None = None  # as it was when it was taken hold of
        self._asked_histogram = "", "", ""
        self._side_file: Path | None = None
        self._painter = Painter()
        self._slow, self._quick = Questions(self._fail, "volume"), Questions(self._fail, "cursor")

    # What there is.

    @property
    def grid(self) -> Grid | None:
        """Of what is shown; None where nothing is open."""
        volume = self._volume
        return None if volume is None else volume.grid

    @property
    def _volume(self) -> Volume | None:
        if self._recipe is not None:
            return self._recipe.volume
        return self.materials if self.materials is not None else self.bins

    @property
    def is_scale_known(self) -> bool:
        """Whether voxels have a size in mm."""
        return self.grid is None or self.grid.is_scale_known

    @property
    def look(self) -> Looks | GreyLook | None:
        """How the present view looks; None until that is known."""
        if self._recipe is None:
            return None
        if self._shown.shown is Shown.MATERIALS:
            return self.material_looks or None
        chosen = dict(self._edited.now.greys).get(self._key)
        return chosen if chosen is not None or self._key not in self._suggested else self._suggested[self._key].grey

    @property
    def material_looks(self) -> Looks:
        """How the materials look, whatever is shown; empty until that is known."""
        return self._edited.now.looks or self._suggested.get(_MATERIALS_KEY, Suggestion()).looks

    @property
    def spans(self) -> tuple[Levels, ...]:
        """From where to where the sliders of the present view reach."""
        return self._suggested.get(self._key, Suggestion()).spans

    @property
    def unit(self) -> str:
        """Of the present view."""
        return self._recipe.unit if self._recipe is not None else ""

    @property
    def channels(self) -> tuple[str, ...]:
        """All that can be put into a histogram."""
        return tuple(name for volume in self._volumes for name in volume.channels)

    @property
    def drawings(self) -> tuple[Annotation, ...]:
        """What was drawn."""
        return self._edited.now.drawings

    @property
    def can_undo(self) -> bool:
        """Whether there is an edit to take back."""
        return self._edited.can_undo

    @property
    def can_redo(self) -> bool:
        """Whether there is an edit to make again."""
        return self._edited.can_redo

    @property
    def is_idle(self) -> bool:
        """Whether all that was asked is answered and taken over."""
        return self._slow.is_idle and self._quick.is_idle

    @property
    def name(self) -> str:
        """Of the open volumes, short."""
        state = self.session.state
        kinds = (("materials", self.materials, state.materials_path), ("bins", self.bins, state.bins_path))
        return files.named({kind: path for kind, volume, path in kinds if volume is not None})

    @property
    def description(self) -> str:
        """Of the open volumes, with where they came from."""
        return "\n\n".join(map(files.described, self._volumes)) or "Open a volume, or reconstruct a scan."

    @property
    def _volumes(self) -> tuple[Volume, ...]:
        return tuple(volume for volume in (self.materials, self.bins) if volume is not None)

    @property
    def _key(self) -> str:
        """What shares one window: all energies do, and all bins of one unit."""
        if self._shown.shown is Shown.MATERIALS:
            return _MATERIALS_KEY
        element = self._shown.element if self._shown.shown is Shown.K_EDGE else ""
        return f"{self._shown.shown.name} {element} {self.unit}"

    # What is done.

    def open(self, path: Path) -> None:
        """Open a volume file into the session."""
        self._slow.ask(f"open {path}", partial(files.opened, path), lambda found: self.session.change(**found.parts()))

    def choose_view(self, view: View) -> None:
        """Show something else."""
        self.view = view
        self._ask_recipe()

    def choose_look(self, look: Looks | GreyLook) -> None:
        """Show it otherwise; many small changes in a row are one edit."""
        self._edited.change(**self._of_look(look))

    def ask_auto(self) -> None:
        """Choose colours and windows by the values."""
        if (made := self._recipe) is not None:
            self._slow.ask("auto", partial(self._suggest, made, self._shown.shown, self._key), self._take_auto)

    def edit_drawings(self, drawings: tuple[Annotation, ...]) -> None:
        """Have these drawings from now on."""
        self._edited.edit(drawings=drawings)
        self._drawings_changed()

    def draw(self, tool: Tool, points_mm: Sequence[tuple[float, float]], cut: Cut, thickness_mm: float) -> Annotation:
        """Draw something on a cut, by points in its picture."""
        drawing = Annotation(
            tool=tool,
            name=annotations.next_name(tool, self.drawings),
            points_mm=tuple(cut.point_mm(*point) for point in points_mm),
            right=cut.right,
            up=cut.up,
            thickness_mm=thickness_mm if tool.is_region else 0.0,
        )
        self.chosen = drawing.name
        self.edit_drawings((*self.drawings, drawing))
        return drawing

    def reshape(self, pane: str, name: str, handle: int, start_mm: Flat, at_mm: Flat, is_finish: bool) -> None:
        """Drag a drawing, as a whole or by a handle, in the picture of a pane; a whole drag is one edit."""
        if self._dragged is None or self._dragged.name != name:
            self._settle()
            self._dragged = next(drawing for drawing in self.drawings if drawing.name == name)
        now = dragged(self._dragged, self.cut_of(pane), handle, start_mm, at_mm)
        self.chosen = name
        self._edited.change(drawings=tuple(now if d.name == name else d for d in self.drawings))
        if is_finish:
            self._dragged = None
            self._settle()
        self._drawings_changed(is_to_be_saved=is_finish)

    def choose_drawing(self, name: str) -> None:
        """Make one stand out."""
        self.chosen = name
        self.version += 1

    def undo(self) -> None:
        """Take the last edit back."""
        self._step(self._edited.undo)

    def redo(self) -> None:
        """Make it again."""
        self._step(self._edited.redo)

    def go_to(self, point: Point) -> None:
        """Take the crosshair to a point, held inside the volume."""
        if self.grid is not None:
            self.point_mm = held(self.grid, point)
            self.ask_reading(self.point_mm)

    def point_at(self, pane: str, right_mm: float, up_mm: float) -> Point:
        """Return the point that stands at a position in the picture of a pane."""
        return self.cut_of(pane).point_mm(right_mm, up_mm)

    def step(self, pane: str, n_steps: int) -> None:
        """Go so many slices on in a pane."""
        grid = self.grid
        if grid is None:
            return
        if pane == SLANTED:
            normal = self.slant.normal * grid.voxel_mm * n_steps
            x, y, z = (at + by for at, by in zip(self.point_mm, normal, strict=True))
            self.go_to((x, y, float(z)))
        else:
            self.go_to(stepped(grid, self.point_mm, _orientation(pane), n_steps))

    def turn(self, pane: str, angle_rad: float) -> None:
        """Turn the slanted cut about what a pane looks along."""
        x, y, z = (float(part) for part in self.cut_of(pane).normal)
        self.slant = turned(self.slant, (x, y, z), angle_rad)

    def tilt(self, azimuth_rad: float, tilt_rad: float) -> None:
        """Tilt the slanted cut by these angles."""
        self.slant = tilted(self.point_mm, azimuth_rad, tilt_rad)

    @property
    def slant_rad(self) -> tuple[float, float]:
        """Azimuth and tilt of the slanted cut."""
        return angles_rad(self.slant)

    def choose_slab(self, thickness_mm: float, slab: Slab) -> None:
        """Show so much before and behind each slice."""
        self.thickness_mm, self.slab = thickness_mm, slab
        self.version += 1

    def show_crosshair(self, is_shown: bool) -> None:
        """Show the crosshair, or not."""
        self.has_crosshair = is_shown
        self.version += 1

    def reset(self) -> None:
        """Take the crosshair to the middle, and the slanted cut to where it was first."""
        if self.grid is not None:
            self.slant = tilted((0.0, 0.0, 0.0), *FIRST_SLANT_RAD)
            middle = [(n - 1) // 2 for n in self.grid.shape]
            self.go_to(point_of(self.grid, (middle[0], middle[1], middle[2])))

    def ask_reading(self, point: Point) -> None:
        """Ask what stands at a point."""
        self._quick.ask("reading", partial(reading, point, self.bins, self.materials, self.sigma), self._take_reading)

    def ask_histogram(self, across: str, upwards: str, region: str) -> None:
        """Ask for a histogram of one channel, or of two together, over a region or the volume (empty)."""
        self._asked_histogram = across, upwards, region
        drawing = next((one for one in self.drawings if one.name == region and one.tool.is_region), None)
        volume = next((volume for volume in self._volumes if across in volume.channels), None)
        if volume is not None:
            self._slow.ask("histogram", partial(histogram_of, volume, across, upwards, drawing), self._take_histogram)

    def table_csv(self) -> str:
        """Return the table of all drawings whose figures are known."""
        return as_csv([self.figures[d.name] for d in self.drawings if d.name in self.figures], self.drawings)

    # Presets of looks.

    def keep_preset(self, name: str) -> None:
        """Keep the looks of the materials under a name."""
        self.presets[name] = self.material_looks
        self.version += 1

    def use_preset(self, name: str) -> None:
        """Take the looks that were kept, for the materials there are."""
        self._edited.edit(looks=applied(self.presets[name], self.material_looks))
        self.version += 1

    def forget_preset(self, name: str) -> None:
        """Delete a preset."""
        self.presets.pop(name, None)
        self.version += 1

    def presets_plain(self) -> dict[str, object]:
        """Return the presets as plain values."""
        return {name: as_plain(looks) for name, looks in self.presets.items()}

    def take_presets(self, saved: object) -> None:
        """Take presets from plain values; what cannot be read is left out."""
        self.presets |= presets_from_plain(saved)
        self.version += 1

    # What is shown.

    def cut_of(self, pane: str) -> Cut:
        """Return the cut of a pane."""
        grid = self.grid
        if pane == SLANTED:
            return replace(self.slant, centre_mm=self.point_mm, thickness_mm=self.thickness_mm, slab=self.slab)
        orientation, centre = _orientation(pane), self.point_mm
        if grid is not None:  # two points of one slice make one cut
            at = [(n - 1) / 2 for n in grid.shape]
            at[orientation.axis] = float(round(index_of(grid, self.point_mm)[orientation.axis]))
            centre = point_of(grid, (at[0], at[1], at[2]))
        return along(orientation, centre, self.thickness_mm, self.slab)

    def overlay_of(self, pane: str, *, has_legend: bool = False, has_slant: bool = False) -> Overlay:
        """Return what stands over the picture of a pane."""
        grid = self.grid
        if grid is None:
            return Overlay()
        look, title = self.look, self._recipe.title if self._recipe is not None else ""
        slant = replace(self.slant, centre_mm=self.point_mm) if has_slant and pane != SLANTED else None
        return overlay_of(
            self.cut_of(pane),
            grid,
            cross=self.point_mm if self.has_crosshair else None,
            slant=slant,
            legend=legend_of(look, self.unit, title) if has_legend and look is not None else (),
            drawings=self.drawings,
            chosen=self.chosen,
        )

    def beat(self) -> None:
        """Take over what is new, and ask for what is missing."""
        if self.session.state is not self._state:
            self._take(self.session.state)
        self._slow.beat()
        self._quick.beat()
        if self._dragged is None and self._edited.is_still:
            self._settle()
        self._ask_pictures()

    def close(self) -> None:
        """Compute nothing any more."""
        self._slow.close()
        self._quick.close()

    def _take(self, state: State) -> None:
        """Take the volumes of the session where they are others."""
        before = self._state
        self._state = state
        self._follow_file(state)
        if before is not None and before.bins is state.bins and before.materials is state.materials:
            return
        had_grid = self.grid
        if before is None or before.materials is not state.materials:
            self.sigma = None
            self._edited.change(looks=())
        self._edited.begin_anew(greys=())
        self.bins, self.materials = state.bins, state.materials
        self._recipe, self._suggested = None, {}
        self._asked.clear()
        self._figures.clear()
        self.figures.clear()
        self.pictures.clear()
        self._slow.ask("forget", self._painter.forget)
        if state.materials is not None:
            self._slow.ask("sigma", partial(files.sigma_of, state.materials, state.materials_path), self._take_sigma)
            colours = recipe(View(shown=Shown.MATERIALS), None, state.materials)
            suggest = partial(self._suggest, colours, Shown.MATERIALS, _MATERIALS_KEY)
            self._slow.ask(f"suggestion {_MATERIALS_KEY}", suggest, self._take_suggestion)
        if why_not(self.view, self.bins, self.materials):
            self.view = View(shown=Shown.MATERIALS if self.bins is None or self.materials is not None else Shown.BIN)
        if self.grid is not None and self.grid != had_grid:
            self.reset()
        if self._volumes:
            self._ask_recipe()
            self._drawings_changed(is_to_be_saved=False)
        self.version += 1

    def _follow_file(self, state: State) -> None:
        """Read the drawings that lie beside the file, where it is another."""
        path = state.materials_path if state.materials is not None else state.bins_path
        side_file = None if path is None else annotations.side_file(path)
        if side_file == self._side_file:
            return
        was_new = self._side_file is None and self._state is not None and bool(self.drawings)
        self._side_file = side_file
        if side_file is None:
            return
        if was_new and not side_file.exists():
            self._drawings_changed()  # drawn before the volume had a file: kept beside it now
        else:
            self._slow.ask("drawings", partial(annotations.load, side_file), self._take_drawings)

    def _ask_recipe(self) -> None:
        if not why_not(self.view, self.bins, self.materials):
            self._slow.ask("recipe", partial(_with_view, self.view, self.bins, self.materials), self._take_recipe)

    def _suggest(self, made: Recipe, shown: Shown, key: str) -> tuple[str, Suggestion]:
        return key, self._painter.suggest(made, shown)

    def _ask_pictures(self) -> None:
        made, look = self._recipe, self.look
        if made is None or look is None:
            return
        for pane in sorted(self.seen, key=PANES.index):
            question = made, self.cut_of(pane), look
            if not _is_same(self._asked.get(pane), question):
                self._asked[pane] = question
                self._slow.ask(pane, partial(self._painter.paint, pane, *question), partial(self._take_picture, pane))

    def _take_picture(self, pane: str, picture: Painted) -> None:
        if self._recipe is not None:
            self.pictures[pane] = picture

    def _fail(self, name: str, error: BaseException) -> None:
        titles = {
            "open": "Opening a volume", "save": "Keeping what was drawn", "drawings": "Reading what was drawn",
            "sigma": "Reading standard errors", "recipe": "Showing the volume", "figures": "Measuring",
            "histogram": "Histogram",
        }  # fmt: skip
        work = name.split()[0]
        if work in ("save", "drawings"):
            self._side_file = None  # what cannot be read is not written over, and a folder is refused only once
        self.session.fail(titles.get(work, f"Painting the {name} cut"), error)

    def _take_recipe(self, found: tuple[View, Recipe]) -> None:
        view, made = found
        if not any(made.volume is volume for volume in self._volumes):
            return
        self._shown, self._recipe = view, made
        if self._key not in self._suggested:
            self._slow.ask(
                f"suggestion {self._key}", partial(self._suggest, made, view.shown, self._key), self._take_suggestion
            )
        self.version += 1

    def _take_suggestion(self, found: tuple[str, Suggestion]) -> None:
        """Take what is suggested where nothing was chosen; that is no edit."""
        key, suggestion = found
        self._suggested[key] = suggestion
        self.version += 1

    def _take_auto(self, found: tuple[str, Suggestion]) -> None:
        key, suggestion = found
        self._take_suggestion(found)
        if key == self._key:
            self._edited.edit(**self._of_look(suggestion.grey or suggestion.looks))

    def _take_sigma(self, sigma: Volume | None) -> None:
        self.sigma = sigma
        self.ask_reading(self.point_mm)

    def _take_drawings(self, drawings: tuple[Annotation, ...]) -> None:
        self._edited.begin_anew(drawings=drawings)
        self._drawings_changed(is_to_be_saved=False)

    def _take_figures(self, found: dict[Annotation, RegionFigures]) -> None:
        self._figures |= found
        self._name_figures()

    def _take_reading(self, found: Reading) -> None:
        self.reading, self.has_new_reading = found, True

    def _take_histogram(self, found: tuple[Histogram | Joint | None, str]) -> None:
        self.histogram, self.has_new_histogram = found, True

    def _of_look(self, look: Looks | GreyLook) -> dict[str, Any]:
        """Return the part of the edits that a look of the present view is."""
        if not isinstance(look, GreyLook):
            return {"looks": look}
        return {"greys": tuple((dict(self._edited.now.greys) | {self._key: look}).items())}

    def _settle(self) -> None:
        """Make what was changed an edit."""
        if self._edited.settle():
            self.version += 1

    def _step(self, step: Callable[[], None]) -> None:
        """Go to other edits."""
        drawings = self.drawings
        step()
        if self.drawings != drawings:
            self._drawings_changed()
        self.version += 1

    def _drawings_changed(self, *, is_to_be_saved: bool = True) -> None:
        if is_to_be_saved and self._side_file is not None:
            self._slow.ask(
                f"save {self._side_file}", partial(annotations.save, self.drawings, self._side_file), is_kept=True
            )
        missing = [drawing for drawing in self.drawings if drawing not in self._figures]
        if missing and self._volumes:
            self._slow.ask("figures", partial(table_of, missing, self._volumes), self._take_figures)
            if self._asked_histogram[2]:
                self.ask_histogram(*self._asked_histogram)
        self._name_figures()

    def _name_figures(self) -> None:
        self.figures = {d.name: self._figures[d] for d in self.drawings if d in self._figures}
        self.version += 1


def _is_same(before: tuple[Recipe, Cut, Any] | None, now: tuple[Recipe, Cut, Any]) -> bool:
    return before is not None and before[0] is now[0] and before[1:] == now[1:]


def _with_view(view: View, bins: Volume | None, materials: Volume | None) -> tuple[View, Recipe]:
    return view, recipe(view, bins, materials)


def _orientation(pane: str) -> Orientation:
    return next(orientation for orientation in Orientation if orientation.label == pane)
