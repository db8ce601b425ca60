"""The form of a decomposition: which way to the materials, by which attenuation and rule, and what to tell of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from pyqtgraph.Qt import QtCore, QtWidgets

from gui.controls import hint
from gui.reconstruct.form import Choice, FileLine, Line, check, labelled_rows, number_of, whole_number_of
from gui.reconstruct.settings import (
    BY,
    BY_CALIBRATION,
    BY_RESPONSE,
    BY_VIALS,
    EXCLUSIVE,
    IMAGE,
    ONE_STEP,
    PROJECTION,
    USUAL,
    Decomposition,
    Quantities,
    Settings,
    names_of,
    numbers_of,
    told,
)
from gui.reconstruct.sources import Facts

TIERS_SAID = {
    IMAGE: (
        "image domain",
        "Reconstruct every bin, then separate materials voxel by voxel. Fast, and it needs only the material "
        "calibration. Beam hardening stays in the picture.",
    ),
    PROJECTION: (
        "projection domain",
        "Fit the materials to the counts of every ray, then reconstruct them. Takes out beam hardening and the "
        "cross-talk of bins; needs the detector's fitted response, or plates of the materials. Minutes.",
    ),
    ONE_STEP: (
        "one step",
        "Fit the volumes of all materials to all counts at once. The least noise from few counts; needs the same "
        "of the detector, and the most time.",
    ),
}
RULES_SAID = {
    "least-squares": ("least squares", "Concentrations that fit the bins best; noise may make some negative."),
    "non-negative": ("none below 0", "The same, with no concentration below 0."),
    "fractions": ("volume fractions", "Shares of pure materials that sum to 1 at most: nothing overfills a voxel."),
    "exclusive": ("exclusive", "Each voxel holds one of a few mixtures; the data choose which. Writes labels too."),
    "min-residual": ("least residual", "Each voxel is the one material that fits best, within bounds."),
}
PRIORS_SAID = {
    USUAL: ("usual for the way", "huber in one step, none for projections."),
    "none": ("none", ""),
    "huber": ("huber", "Smooth where differences are small, sharp at edges; each material by itself."),
    "tv": ("tv", "Flat regions with sharp edges; each material by itself."),
    "vtv": ("vtv", "Flat regions, with edges of all materials in the same place."),
    "tnv": ("tnv", "The same, and edges point the same way: the least noise."),
}
FILES = {BY_RESPONSE: "Calibration (*.h5)", "matrix": "Table (*.csv)", BY_VIALS: "Phantom (*.toml)"}


class MaterialsForm(QtWidgets.QWidget):
    """Shows settings of a decomposition and tells what is filled in.

    Signals
    -------
    changed
        Something was filled in.
    """

    changed = QtCore.Signal()

    def __init__(self) -> None:
        super().__init__()
        self.tier = Choice(
            "Which way leads from counts to materials.", [(said, name, tip) for name, (said, tip) in TIERS_SAID.items()]
        )
        self._guidance = hint()
        self.by = Choice(
            "What tells how each material attenuates in each bin.", [(said, name, "") for name, said in BY.items()]
        )
        self.file = FileLine("The file that tells it.", "no file", ";;".join([*FILES.values(), "All files (*)"]))
        self.rule = Choice(
            "How the materials of a voxel are told from its bins.",
            [(said, name, tip) for name, (said, tip) in RULES_SAID.items()],
        )
        self._rule_hint = hint()
        self.materials = Line(
            "Which materials to tell apart, by commas, as water, iodine, Gd; at most as many as bins.",
            "those of the calibration",
        )
        self.weighted = Choice(
            "Whether quiet bins count more.",
            [("as is usual", None, "Yes, but not with a table of attenuation."), ("yes", True, ""), ("no", False, "")],
        )
        self.water = Line("The rays' mean way through the sample, as mm of water: it hardens the beam.", "0")
        self.flatten = check("take out cupping", "As the body of the phantom shows it.")
        self.field = Line("How much neighbours agree on their label; 0: not at all, 0.5 to 1 is usual.", "0")
        self.subsets = Line(
            "What a voxel may hold, by semicolons, as air; water<2.1; water+iodine (bounds in g/cm3).", "the rule's own"
        )
        self.air = Line("What attenuates less than this on the mean, in 1/mm, is air.", "not set")
        self.full = check("no air anywhere", "The fractions sum to 1 exactly.")
        self.prior = Choice(
            "What is held for likely beside the counts.",
            [(said, name, tip) for name, (said, tip) in PRIORS_SAID.items()],
        )
        self.strength = Line("Of the prior, in units of the noise; empty: its own.", "its own")
        self.iterations = Line("How many iterations; empty: the way's own.", "usual")
        self.mono = Line("Pictures as of photons of one energy, in HU, as 40, 70 (keV).", "none")
        self.vnc = Line("A picture without contrast agents, in HU, at this energy in keV.", "none")
        self.elements = Line("Amounts of elements in mg/mL, as I, Gd.", "none")
        self.beams = Line("Stopping powers relative to water, as proton@150, carbon@300 (MeV per nucleon).", "none")
        self.density = check("electron density", "Relative to water's.")
        self.effective = check("effective atomic number", "The power mean over electrons.")
        self._build()
        for signal in self._signals():
            signal.connect(self._on_change)
        self.fill(Settings())

    def take_facts(self, facts: Facts) -> None:
        """Say which materials are known."""
        known = ", ".join(facts.materials)
        self.materials.setPlaceholderText(known or "none are known: name them")

    def settings(self, before: Settings) -> Settings:
        """Return what is filled in; raises WrongUsage where that cannot be."""
        tier, by = str(self.tier.value()), str(self.by.value())
        is_image = tier == IMAGE
        asked = Decomposition(
            tier=tier,
            by=by,
            file=self.file.path if by != BY_CALIBRATION else None,
            rule=str(self.rule.value()),
            materials=names_of(self.materials.text()) if not is_image or by == BY_RESPONSE else (),
            is_weighted=self.weighted.value(),  # pyright: ignore[reportArgumentType] - what the list was filled with
            water_mm=number_of(self.water.text(), "the way through water") or 0.0,
            is_flattened=self.flatten.isChecked() and by == BY_VIALS,
            field_weight=number_of(self.field.text(), "the weight of neighbours") or 0.0,
            subsets=self.subsets.text().strip(),
            air_below_per_mm=number_of(self.air.text(), "the attenuation of air"),
            is_full=self.full.isChecked(),
            prior=str(self.prior.value()),
            strength_relative=number_of(self.strength.text(), "the strength"),
            n_iterations=whole_number_of(self.iterations.text(), "the number of iterations"),
            quantities=Quantities(
                mono_kev=numbers_of(self.mono.text(), "the energy"),
                electron_density=self.density.isChecked(),
                effective_z=self.effective.isChecked(),
                vnc_kev=number_of(self.vnc.text(), "the energy"),
                elements=names_of(self.elements.text()),
                beams=names_of(self.beams.text()),
            ),
        )
        return replace(before, decomposition=asked)

    def fill(self, settings: Settings) -> None:
        """Show settings."""
        asked, quantities = settings.decomposition, settings.decomposition.quantities
        for choice, value in (
            (self.tier, asked.tier), (self.by, asked.by), (self.rule, asked.rule),
            (self.weighted, asked.is_weighted), (self.prior, asked.prior),
        ):  # fmt: skip
            choice.put(value)
        self.file.put("" if asked.file is None else str(asked.file))
        self.materials.put(", ".join(asked.materials))
        self.water.put(told(asked.water_mm) if asked.water_mm else "")
        self.flatten.setChecked(asked.is_flattened)
        self.field.put(told(asked.field_weight) if asked.field_weight else "")
        self.subsets.put(asked.subsets)
        self.air.put("" if asked.air_below_per_mm is None else told(asked.air_below_per_mm))
        self.full.setChecked(asked.is_full)
        self.strength.put("" if asked.strength_relative is None else told(asked.strength_relative))
        self.iterations.put("" if asked.n_iterations is None else str(asked.n_iterations))
        self.mono.put(", ".join(map(told, quantities.mono_kev)))
        self.vnc.put("" if quantities.vnc_kev is None else told(quantities.vnc_kev))
        self.elements.put(", ".join(quantities.elements))
        self.beams.put(", ".join(quantities.beams))
        self.density.setChecked(quantities.electron_density)
        self.effective.setChecked(quantities.effective_z)
        self._show()

    def _build(self) -> None:
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        form = labelled_rows([("way", self.tier), ("", self._guidance)])
        layout.addLayout(form)
        self._image = labelled_rows(
            [("attenuation", self.by), ("file", self.file), ("water, mm", self.water), ("", self.flatten),
             ("rule", self.rule), ("", self._rule_hint), ("", self.full), ("may hold", self.subsets),
             ("air below, 1/mm", self.air), ("neighbours", self.field), ("weigh bins", self.weighted)]
        )  # fmt: skip
        layout.addLayout(self._image)
        self._rays = labelled_rows(
            [("materials", self.materials), ("prior", self.prior), ("strength, × noise", self.strength),
             ("iterations", self.iterations)]
        )  # fmt: skip
        layout.addLayout(self._rays)
        beside = QtWidgets.QGroupBox("Beside the concentrations")
        beside.setToolTip("Further volumes that follow from the materials, in a file of their own.")
        rows = QtWidgets.QVBoxLayout(beside)
        rows.addLayout(
            labelled_rows(
                [("one energy, keV", self.mono), ("no contrast, keV", self.vnc), ("elements", self.elements),
                 ("stopping", self.beams), ("", self.density), ("", self.effective)]
            )
        )  # fmt: skip
        layout.addWidget(beside)

    def _signals(self) -> Iterable[Any]:
        yield from (choice.chosen for choice in (self.tier, self.by, self.rule, self.weighted, self.prior))
        lines = (self.materials, self.water, self.field, self.strength, self.iterations, self.mono, self.vnc)
        yield from (line.entered for line in (*lines, self.elements, self.beams, self.file, self.subsets, self.air))
        yield from (box.clicked for box in (self.flatten, self.density, self.effective, self.full))

    def _on_change(self, *_: object) -> None:
        self._show()
        self.changed.emit()

    def _show(self) -> None:
        """Show the rows that matter for what is chosen."""
        tier, by, rule = self.tier.value(), self.by.value(), self.rule.value()
        self._guidance.setText(TIERS_SAID[str(tier)][1])
        self._rule_hint.setText(RULES_SAID[str(rule)][1])
        is_image = tier == IMAGE
        for widget, is_shown in (
            (self.by, is_image), (self.file, is_image and by != BY_CALIBRATION),
            (self.water, is_image and by == BY_RESPONSE), (self.flatten, is_image and by == BY_VIALS),
            (self.rule, is_image), (self._rule_hint, is_image), (self.field, is_image and rule in EXCLUSIVE),
            (self.subsets, is_image and rule in EXCLUSIVE), (self.air, is_image and rule in EXCLUSIVE),
            (self.full, is_image and rule == "fractions"),
            (self.weighted, is_image),
        ):  # fmt: skip
            self._image.setRowVisible(widget, is_shown)
        has_prior = not is_image and self.prior.value() != "none"
        for widget, is_shown in (
            (self.materials, not is_image or by == BY_RESPONSE), (self.prior, not is_image),
            (self.strength, has_prior), (self.iterations, has_prior or tier == ONE_STEP),
        ):  # fmt: skip
            self._rays.setRowVisible(widget, is_shown)
