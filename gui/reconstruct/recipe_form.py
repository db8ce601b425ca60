"""The form of a reconstruction: method with its options, voxels, corrections, size; the record is a `Recipe`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyqtgraph.Qt import QtCore, QtWidgets

from gui.controls import allow, hint
from gui.reconstruct.form import Choice, FileLine, Line, OptionForm, check, labelled_rows, number_of, whole_number_of
from gui.reconstruct.options import Catalogue
from gui.reconstruct.settings import Settings, told
from gui.reconstruct.sources import Facts
from reconstruction.recipe import FDK, WEIGHTS, Recipe, bins_of, region_of

WINDOWS_SAID = {
    "ram-lak": "ram-lak (sharpest, most noise)",
    "shepp-logan": "shepp-logan",
    "cosine": "cosine",
    "hamming": "hamming",
    "hann": "hann (softest, least noise)",
}
WEIGHTS_SAID = {"auto": "as the method needs", "noise": "by their noise", "none": "all alike"}


STARTS = (
    ("nothing", None, "An empty volume."),
    ("a back-projection (fdk)", FDK, "Fewer iterations are needed."),
)
REFERENCES = (("nothing", None, ""), ("a back-projection (fdk)", FDK, ""))


class RecipeForm(QtWidgets.QWidget):
    """Shows settings of a reconstruction and tells what is filled in.

    Signals
    -------
    changed
        Something was filled in.
    """

    changed = QtCore.Signal()

    def __init__(self) -> None:
        super().__init__()
        self._catalogue: Catalogue | None = None
        self._kept: dict[str, object] = {}
        self.method = Choice("How the bins are reconstructed from the views.", [("fdk", FDK, "")])
        self._summary = hint("filtered back-projection, of any orbit: fast, and the usual choice")
        self.window_ = Choice(
            "Filter of the back-projection: sharper shows finer detail and more noise.",
            [(said, name, "") for name, said in WINDOWS_SAID.items()],
        )
        self.iterations = Line("How many iterations; empty: as many as is usual for the method.", "usual")
        self.options = OptionForm()
        self.prior = Choice("What is held for likely beside the data.", [("none", None, "")])
        self._prior_summary = hint()
        self.prior_options = OptionForm()
        self.weights = Choice("What the data count for.", [(WEIGHTS_SAID[name], name, "") for name in WEIGHTS])
        self.until_noise = check("stop at the noise", "End when the volume fits the data as well as noise allows.")
        self.start = Choice(
            "What the iterations start from.",
            STARTS,
        )
        self.reference = Choice(
            "What damping, or a prior with a direction, pulls towards.",
            REFERENCES,
        )
        self.bins = Line("Which bins, from 1, as 1,3-4; empty: all.", "all")
        self.voxel = Line("Edge of a voxel in mm; empty: a pixel's size on the axis.", "a pixel's size on the axis")
        self.region = Line(
            "Keep a region only, in mm, as x=-2:2,y=:1,z=0:1.5; empty: all that every view sees.", "all that is seen"
        )
        self.preview = check(
            "preview of the whole",
            "A quick look at the whole volume: every fourth view, pixels and voxels four times the size.",
        )
        self.rings = Choice("Take out rings, which single pixels draw; auto looks at the scan.", [("none", "none", "")])
        self.scatter = FileLine(
            "Scatter to take off the counts: a TOML file of kernels, one table [[bin]] for each bin.",
            "none",
            "Kernels (*.toml);;All files (*)",
        )
        self.metal = Line("What attenuates more than this, in 1/mm, is metal; rays through it are replaced.", "none")
        self.linearise = check("beam hardening", "Take it out by the step wedge that the scan's calibration holds.")
        self.extend = check("extend cut-off views", "Where the object leaves the camera sideways, go on smoothly.")
        self.pass_number = Line("Which pass of a scan of several, from 1; empty: all, with the bins of each.", "all")
        self.memory = Line("Stay below this much memory, as 8GB, slab by slab; empty: what is free.", "what is free")
        self.gpu = check("use the GPU", "Compute on the graphics card.")
        self.partial = check("take an interrupted scan", "Reconstruct what there is of a scan that was broken off.")
        self.calibration = FileLine(
            "Calibration file whose geometry and response to take; empty: those in the scan.",
            "the scan's own",
            "Calibration (*.h5);;All files (*)",
        )
        self._build()
        for signal in self._signals():
            signal.connect(self._on_change)
        self.method.chosen.disconnect(self._on_change)
        self.method.chosen.connect(self._choose_method)
        self.prior.chosen.disconnect(self._on_change)
        self.prior.chosen.connect(self._choose_prior)
        self.fill(Settings())

    def take_catalogue(self, catalogue: Catalogue) -> None:
        """Offer the methods that there are."""
        self._catalogue = catalogue
        self.method.offer(
            [
                ("fdk", FDK, "filtered back-projection"),
                *((m.name, m.name, m.summary) for m in catalogue.methods.values()),
            ]
        )
        self.rings.offer([(name, name, "") for name in catalogue.rings])
        self._offer_priors()
        why = "" if catalogue.has_gpu else "no CUDA device was found on this computer."
        allow(self.gpu, "Compute on the graphics card.", why)
        self._show_method()

    def take_facts(self, facts: Facts) -> None:
        """Grey out what this source cannot have, and say why."""
        for control, tip, why in (
            (
                self.linearise,
                "Take it out by the step wedge that the scan's calibration holds.",
                "" if facts.has_wedge else "the scan's calibration holds no step wedge.",
            ),
            (
                self.pass_number,
                "Which pass of a scan of several, from 1; empty: all, with the bins of each.",
                "" if facts.n_passes > 1 else "the scan has one pass only.",
            ),
            (
                self.partial,
                "Reconstruct what there is of a scan that was broken off.",
                "the scan is whole." if facts.is_whole else "",
            ),
        ):
            allow(control, tip, why)

    def take_bins(self, path: Path | None) -> None:
        """Offer a volume that is there for iterations to start from, and to be pulled towards."""
        name = [] if path is None else [(path.name, path, "The bins that were reconstructed last.")]
        self.start.offer([*STARTS, *name])
        self.reference.offer([*REFERENCES, *name])

    def settings(self, before: Settings) -> Settings:
        """Return what is filled in; raises WrongUsage where that cannot be."""
        method = str(self.method.value() or FDK)
        is_iterative = method != FDK
        own: dict[str, Any] = {}
        if is_iterative:
            own = {
                "options": {**self.options.values(), **self._prior_values()},
                "n_iterations": whole_number_of(self.iterations.text(), "the number of iterations"),
                "weights": str(self.weights.value()),
                "stops_at_noise": self.until_noise.isChecked(),
                "prior": self.prior.value() if self._has_prior() else None,
                "start": self.start.value(),
                "reference": self.reference.value(),
            }
        recipe = Recipe(
            method=method,
            window=str(self.window_.value()),
            bins=bins_of(self.bins.text()),
            voxel_mm=number_of(self.voxel.text(), "the voxel"),
            region_mm=region_of(self.region.text()),
            is_preview=self.preview.isChecked(),
            rings=str(self.rings.value()),
            metal_per_mm=number_of(self.metal.text(), "the attenuation of metal"),
            truncation="auto" if self.extend.isChecked() else "none",
            linearise=self.linearise.isChecked(),
            pass_number=whole_number_of(self.pass_number.text(), "the pass"),
            use_gpu=self.gpu.isChecked(),
            shape=before.recipe.shape,
            scatter=self.scatter.path,
            **own,
        )
        return replace(
            before,
            recipe=recipe,
            memory=self.memory.text().strip(),
            calibration=self.calibration.path,
            allow_partial=self.partial.isChecked(),
        )

    def fill(self, settings: Settings) -> None:
        """Show settings."""
        recipe = settings.recipe
        self.method.put(recipe.method)
        self.window_.put(recipe.window)
        self._offer_priors()
        self.prior.put(recipe.prior)
        self._show_method()
        self.options.fill(recipe.options)
        self.prior_options.fill(recipe.options)
        self.iterations.put("" if recipe.n_iterations is None else str(recipe.n_iterations))
        self.weights.put(recipe.weights)
        self.until_noise.setChecked(recipe.stops_at_noise)
        self.start.put(recipe.start)
        self.reference.put(recipe.reference)
        self._show_filter()
        self.bins.put(",".join(map(str, recipe.bins)))
        self.voxel.put("" if recipe.voxel_mm is None else told(recipe.voxel_mm))
        self.region.put(_region_text(recipe))
        self.preview.setChecked(recipe.is_preview)
        self.rings.put(recipe.rings)
        self.metal.put("" if recipe.metal_per_mm is None else told(recipe.metal_per_mm))
        self.scatter.put("" if recipe.scatter is None else str(recipe.scatter))
        self.linearise.setChecked(recipe.linearise)
        self.extend.setChecked(recipe.truncation != "none")
        self.pass_number.put("" if recipe.pass_number is None else str(recipe.pass_number))
        self.memory.put(settings.memory)
        self.gpu.setChecked(recipe.use_gpu)
        self.partial.setChecked(settings.allow_partial)
        self.calibration.put("" if settings.calibration is None else str(settings.calibration))

    def _build(self) -> None:
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._main = labelled_rows([("method", self.method), ("", self._summary), ("filter", self.window_)])
        layout.addLayout(self._main)
        self._iterative = QtWidgets.QWidget()
        inner = QtWidgets.QVBoxLayout(self._iterative)
        inner.setContentsMargins(0, 0, 0, 0)
        inner.addLayout(
            labelled_rows([("iterations", self.iterations), ("prior", self.prior), ("", self._prior_summary)])
        )
        inner.addWidget(self.prior_options)
        inner.addLayout(
            labelled_rows([("data count", self.weights), ("start from", self.start), ("reference", self.reference)])
        )
        inner.addLayout(labelled_rows([("", self.until_noise)]))
        inner.addWidget(self.options)
        layout.addWidget(self._iterative)
        layout.addLayout(
            labelled_rows(
                [("bins", self.bins), ("voxel, mm", self.voxel), ("region, mm", self.region), ("", self.preview)]
            )
        )
        more = QtWidgets.QGroupBox("Corrections and size")
        rows = QtWidgets.QVBoxLayout(more)
        rows.addLayout(
            labelled_rows(
                [
                    ("rings", self.rings),
                    ("metal, 1/mm", self.metal),
                    ("scatter", self.scatter),
                    ("", self.linearise),
                    ("", self.extend),
                ]
            )
        )
        rows.addLayout(
            labelled_rows(
                [
                    ("pass", self.pass_number),
                    ("calibration", self.calibration),
                    ("memory", self.memory),
                    ("", self.gpu),
                    ("", self.partial),
                ]
            )
        )
        layout.addWidget(more)

    def _signals(self) -> Iterable[Any]:
        choices = (self.method, self.window_, self.prior, self.weights, self.start, self.reference, self.rings)
        yield from (choice.chosen for choice in choices)
        lines = (self.iterations, self.bins, self.voxel, self.region, self.metal, self.pass_number, self.memory)
        yield from (line.entered for line in (*lines, self.calibration, self.scatter))
        boxes = (self.until_noise, self.preview, self.linearise, self.extend, self.gpu, self.partial)
        yield from (box.clicked for box in boxes)
        yield from (self.options.changed, self.prior_options.changed)

    def _on_change(self, *_: object) -> None:
        self._show_filter()
        self.changed.emit()

    def _show_filter(self) -> None:
        """Show the filter where anything is back-projected by it."""
        of_all = (self.method.value(), self.start.value(), self.reference.value())
        self._main.setRowVisible(self.window_, FDK in of_all)

    def _choose_method(self) -> None:
        self._offer_priors()
        self._show_method()
        self.changed.emit()

    def _choose_prior(self) -> None:
        self._show_prior()
        if self.prior.value() == "directional-tv" and self.reference.value() is None:
            self.reference.put(FDK)
        self.changed.emit()

    def _has_prior(self) -> bool:
        form = self._catalogue.methods.get(str(self.method.value())) if self._catalogue else None
        return form is not None and form.has_prior

    def _offer_priors(self) -> None:
        if self._catalogue is None:
            return
        if not self._has_prior():
            self.prior.offer([("none: the method takes none", None, "")])
            return
        denoises = self.method.value() == "plug-and-play"
        offered = [
            (prior.name, prior.name, prior.summary)
            for prior in self._catalogue.priors.values()
            if denoises == (prior.name in _DENOISERS)
        ]
        self.prior.offer(offered)
        if self.prior.value() is None:
            self.prior.setCurrentIndex(0)

    def _show_method(self) -> None:
        form = self._catalogue.methods.get(str(self.method.value())) if self._catalogue else None
        self._iterative.setVisible(form is not None)
        self._show_filter()
        if form is None:
            self._summary.setText("filtered back-projection, of any orbit: fast, and the usual choice")
            return
        self._summary.setText(f"{form.summary}; it takes {form.takes}")
        self.iterations.setPlaceholderText(f"{form.n_iterations}, as is usual")
        has_reference = form.has_prior or "reference" in form.arrays
        self.prior.allow("" if form.has_prior else f"the method {form.name} takes no prior.")
        self.start.allow("" if "start" in form.arrays else f"the method {form.name} always begins in its own way.")
        self.reference.allow("" if has_reference else f"the method {form.name} pulls towards nothing.")
        self.options.show_rows(form.rows)
        self._show_prior()

    def _show_prior(self) -> None:
        name = self.prior.value()
        form = self._catalogue.priors.get(str(name)) if self._catalogue and self._has_prior() else None
        self._prior_summary.setText(form.summary if form else "")
        self.prior_options.show_rows(form.rows if form else ())

    def _prior_values(self) -> dict[str, object]:
        name = self.prior.value()
        if not self._has_prior() or self._catalogue is None or name is None:
            return {}
        values = self.prior_options.values()
        if self._catalogue.priors[str(name)].is_in_noise:
            values.setdefault("strength", "auto")
        return values


_DENOISERS = ("tv-denoiser", "nl-means", "bilateral", "wavelet", "rank-sparse")


def _region_text(recipe: Recipe) -> str:
    if recipe.region_mm is None:
        return ""
    parts = []
    for axis, (low, high) in zip("xyz", recipe.region_mm, strict=True):
        if (low, high) != (float("-inf"), float("inf")):
            ends = ["" if abs(end) == float("inf") else told(end) for end in (low, high)]
            parts.append(f"{axis}={':'.join(ends)}")
    return ",".join(parts)
