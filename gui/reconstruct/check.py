"""Why a work cannot begin, in sentences: looked at whenever something is typed."""

from __future__ import annotations

from gui.reconstruct.options import Catalogue
from gui.reconstruct.settings import BY_CALIBRATION, IMAGE, Settings
from gui.reconstruct.sources import Facts, SourceKind
from reconstruction.recipe import Recipe


def why_not_bins(settings: Settings, facts: Facts | None, catalogue: Catalogue | None) -> str:
    """Return why no bins can be reconstructed; empty where they can."""
    if facts is None or catalogue is None:
        return "The scan is being read; a moment." if facts is None else "The methods are being loaded; a moment."
    if facts.kind is not SourceKind.SCAN:
        return f"This is a {facts.kind.value}; there is nothing to reconstruct. Decompose it, or open a scan."
    if not facts.is_whole and not settings.allow_partial:
        return "The scan was interrupted; allow interrupted scans under “Corrections and size” to take what there is."
    return _why_not_recipe(settings, facts, catalogue)


def _why_not_recipe(settings: Settings, facts: Facts, catalogue: Catalogue) -> str:
    recipe = settings.recipe
    if recipe.bins and max(recipe.bins) > len(facts.channels):
        return f"Bin {max(recipe.bins)} is named; the scan has {len(facts.channels)}."
    if recipe.pass_number is not None and not 1 <= recipe.pass_number <= facts.n_passes:
        return f"Pass {recipe.pass_number} is named; the scan has {facts.n_passes}."
    if recipe.metal_per_mm is not None and recipe.metal_per_mm <= 0:
        return (
            f"Metal is to attenuate more than {recipe.metal_per_mm:g} per mm, and so would all; allowed: more than 0."
        )
    if recipe.linearise and not facts.has_wedge:
        return "Beam hardening cannot be taken out: the scan's calibration holds no step wedge."
    if settings.memory and recipe.needs_whole:
        named = " and ".join(name.replace("-", " ") for name in recipe.needs_whole)
        return f"The {named} cannot be had slab by slab: leave the memory limit empty, or take fdk alone."
    if recipe.is_iterative:
        return _why_not_iterated(recipe, catalogue)
    return ""


def _why_not_iterated(recipe: Recipe, catalogue: Catalogue) -> str:
    method = catalogue.methods.get(recipe.method)
    if method is None:
        return f"No method is called {recipe.method!r}."
    if method.has_prior and recipe.prior is None:
        return f"{method.name} needs a prior: choose one."
    if not method.has_prior and recipe.prior is not None:
        return f"{method.name} takes no prior: choose none, or fista, pdhg or plug-and-play."
    for name in ("start", "reference"):
        is_of_prior = name == "reference" and recipe.prior == "directional-tv"
        if getattr(recipe, name) is not None and name not in method.arrays and not is_of_prior:
            return f"{method.name} has no use for a {name}."
    if recipe.prior == "directional-tv" and recipe.reference is None:
        return "directional-tv needs a reference picture: choose fdk, or a volume file."
    rows = method.rows + (catalogue.priors[recipe.prior].rows if recipe.prior else ())
    for row in rows:
        if row.default is None and row.name not in recipe.options:
            return f"{row.label} of {recipe.prior or method.name} must be set{f', in {row.unit}' if row.unit else ''}."
    if recipe.prior and not catalogue.priors[recipe.prior].is_in_noise and "strength" in recipe.options:
        return f"The strength of {recipe.prior} cannot be told in units of the noise."
    if recipe.weights == "none" and "strength" in recipe.options:
        return "A strength in units of the noise needs weights by noise."
    return ""


def why_not_materials(
    settings: Settings, facts: Facts | None, catalogue: Catalogue | None, *, has_bins: bool = False
) -> str:
    """Return why no materials can be told; empty where they can.

    Parameters
    ----------
    has_bins : bool
        Bins are there already, so that nothing needs to be reconstructed for the tier "image".
    """
    asked = settings.decomposition
    if facts is None:
        return "What to decompose is being read; a moment."
    if asked.tier == IMAGE:
        needs_bins = facts.kind is SourceKind.SCAN and not has_bins
        why = why_not_bins(settings, facts, catalogue) if needs_bins else ""
        return why or _why_not_image(settings, facts, needs_bins=needs_bins)
    if facts.kind is not SourceKind.SCAN:
        return f"A {facts.kind.value} has no counts of rays: choose “image domain”, or open the scan."
    if not facts.is_whole and not settings.allow_partial:
        return "The scan was interrupted; allow interrupted scans under “Corrections and size” to take what there is."
    if not facts.has_model and settings.calibration is None:
        return (
            "No response was fitted to this detector, and no plates were measured: what a bin counts is not known. "
            "Name a calibration file with one of them, or choose “image domain”."
        )
    if not asked.materials and not facts.materials:
        return "The calibration names no materials: name them, as water, iodine."
    n_bins = len(facts.channels) * facts.n_passes
    if len(asked.materials or facts.materials) > n_bins:
        return f"{len(asked.materials or facts.materials)} materials cannot be told apart with {n_bins} bins."
    return ""


def _why_not_image(settings: Settings, facts: Facts, *, needs_bins: bool) -> str:
    recipe = settings.recipe
    if settings.decomposition.by != BY_CALIBRATION:
        return ""
    if not facts.materials:
        return f"The scan carries no material basis: {REMEDY}."
    misfits = facts.misfits if recipe.pass_number is None else facts.misfits[recipe.pass_number - 1 :][:1]
    if misfit := next(filter(None, misfits), ""):
        return f"T{misfit[1:]}: {REMEDY}."
    if needs_bins and recipe.bins and len(recipe.bins) < len(facts.channels):
        return "The material basis is for all bins together: leave the field “bins” of step 2 empty."
    return ""


REMEDY = "calibrate materials and scan again, or choose a table, a response, or vials"
