"""The works of the page Reconstruct: from a source and settings to files, as the command line would make them."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from calibration.progress import Progress, beside, retold
from firmware_iface.errors import CalibrationMissing, WrongUsage
from gui.reconstruct.settings import (
    BY_MATRIX,
    BY_RESPONSE,
    BY_VIALS,
    EXCLUSIVE,
    IMAGE,
    Decomposition,
    Quantities,
    Settings,
)

if TYPE_CHECKING:
    from calibration.store import Calibration
    from reconstruction.decomposition import Attenuation
    from reconstruction.methods.convergence import Step
    from reconstruction.quantities import Quantity
    from reconstruction.volume import Volume

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Made:
    """What a work has made.

    Attributes
    ----------
    volume : Volume
        As read back from its file.
    others : tuple of path
        Files beside it: standard errors, labels, quantities.
    """

    volume: Volume
    path: Path
    others: tuple[Path, ...] = ()
    seconds_s: float = 0.0


def watched(work: Generator[Progress, None, T], log: list[Step]) -> Generator[Progress, None, T]:
    """Run a work, and note its iterations in a log that anybody may look at meanwhile."""
    from reconstruction.methods.convergence import Iteration

    def look(progress: Progress) -> Progress:
        if isinstance(progress, Iteration):
            log.append(progress.step)
        return progress

    return (yield from retold(work, look))


def free_path(folder: Path, stem: str, what: str) -> Path:
    """Return the first of "STEM-what.h5", "STEM-what-2.h5", ... that is not there yet."""
    path, number = folder / f"{stem}-{what}.h5", 2
    while path.exists():
        path, number = folder / f"{stem}-{what}-{number}.h5", number + 1
    return path


def reconstruct(path: Path, settings: Settings, output: Path, log: list[Step]) -> Generator[Progress, None, Made]:
    """Reconstruct a scan into a file that is not there yet; closed before its end, the work leaves nothing behind."""
    from reconstruction.pipeline import reconstruct_scan
    from reconstruction.scan_slabs import memory_limit, reconstruct_to_file
    from reconstruction.size.volume_writer import partial_volume_path
    from reconstruction.volume import load_volume, save_volume

    began_s = time.monotonic()
    yield Progress("reading", 0, 0)
    known = geometry_of(settings)
    of_scan: dict[str, Any] = {"calibration": known, "allow_partial": settings.allow_partial}
    limit_bytes = memory_limit(path, settings.recipe, settings.memory, **of_scan)
    if limit_bytes is None:
        volume = yield from watched(reconstruct_scan(path, settings.recipe, **of_scan), log)
        yield Progress("writing", 0, 0)
        save_volume(volume, output)
    else:
        try:
            yield from reconstruct_to_file(path, output, settings.recipe, **of_scan, memory_bytes=limit_bytes)
        except GeneratorExit:
            partial_volume_path(output).unlink(missing_ok=True)
            raise
    return Made(volume=load_volume(output), path=output, seconds_s=time.monotonic() - began_s)


def decompose(
    source: Path | Volume, settings: Settings, output: Path, log: list[Step]
) -> Generator[Progress, None, Made]:
    """Decompose a scan, or a volume of bins, into a file that is not there yet, and what is asked for beside it."""
    from reconstruction.volume import load_volume, save_volume

    began_s = time.monotonic()
    asked = settings.decomposition
    yield Progress("reading", 0, 0)
    quantities_wanted(materials_asked(source, settings), asked.quantities)  # refused now, and not after all the work
    if asked.tier == IMAGE:
        bins = source
        if isinstance(bins, Path):
            from reconstruction.pipeline import reconstruct_scan

            work = reconstruct_scan(
                bins, settings.recipe, calibration=geometry_of(settings), allow_partial=settings.allow_partial
            )
            bins = yield from watched(work, log)
        whole = bins
        found, others = yield from beside("materials", lambda: materials_of(whole, whole, asked))
    else:
        if not isinstance(source, Path):
            raise WrongUsage("a volume has no counts of rays", hint="open the scan, or choose the tier image")
        found, others = yield from _by_rays(source, settings, log)
    if asked.quantities.is_any:
        others["quantities"] = yield from quantities_of(found, asked.quantities)
    yield Progress("writing", 0, 1 + len(others))
    save_volume(found, output)
    paths = tuple(save_volume(volume, output.with_name(f"{output.stem}-{name}.h5")) for name, volume in others.items())
    return Made(volume=load_volume(output), path=output, others=paths, seconds_s=time.monotonic() - began_s)


def _by_rays(
    path: Path, settings: Settings, log: list[Step]
) -> Generator[Progress, None, tuple[Volume, dict[str, Volume]]]:
    from reconstruction.scan_materials import decompose_scan
    from reconstruction.scan_rays import read_rays

    asked = settings.decomposition
    rays = yield from read_rays(
        path,
        asked.materials,
        calibration=calibration_of(settings),
        pass_number=settings.recipe.pass_number,
        allow_partial=settings.allow_partial,
    )
    work = decompose_scan(
        rays,
        settings.recipe.of_rays,
        tier=asked.tier,
        prior=asked.prior_name,
        strength=asked.strength_relative,
        n_iterations=asked.n_iterations,
    )
    found = yield from watched(work, log)
    return found.volume, {} if found.sigma is None else {"sigma": found.sigma}


def materials_of(bins: Volume, fitted_to: Volume, asked: Decomposition) -> tuple[Volume, dict[str, Volume]]:
    """Turn volumes of bins into materials, and labels where a rule makes them.

    Parameters
    ----------
    fitted_to : Volume
        Where vials are looked at: the whole of which `bins` may be a slice.
    """
    from reconstruction.materials import decompose_volume, separate_volume

    bins, attenuation = attenuation_of(bins, fitted_to, asked)
    if asked.rule in EXCLUSIVE:
        from reconstruction.quality import k_edge_materials
        from reconstruction.spectral.exclusive import rule_named

        rule = rule_named(
            asked.rule,
            attenuation.materials,
            k_edge_materials(attenuation),
            subsets=asked.subsets,
            air_below_per_mm=asked.air_below_per_mm,
            field_weight=asked.field_weight,
        )
        found, labels = separate_volume(bins, rule, attenuation, is_weighted=bool(asked.is_weighted))
        return found, {"labels": labels}
    found = decompose_volume(
        bins,
        attenuation,
        is_weighted=asked.weighs,
        is_non_negative=asked.rule == "non-negative",
        densities_g_cm3={} if asked.rule == "fractions" else None,
        is_full=asked.is_full and asked.rule == "fractions",
    )
    return found, {}


def attenuation_of(bins: Volume, fitted_to: Volume, asked: Decomposition) -> tuple[Volume, Attenuation]:
    """Return the bins, flattened where that is asked for, and what attenuates how in them."""
    file = asked.file
    if asked.by == BY_MATRIX and file is not None:
        from reconstruction.decomposition import read_matrix_csv

        return bins, read_matrix_csv(file).in_order_of(bins.channels)
    if asked.by == BY_RESPONSE and file is not None:
        from reconstruction.materials import basis_of_response

        return bins, basis_of_response(bins, file, water_mm=asked.water_mm, materials=asked.materials)
    if asked.by == BY_VIALS and file is not None:
        from reconstruction.phantom_file import load_phantom
        from reconstruction.vials import fit_vials, flattened

        phantom = load_phantom(file)
        whole = flattened(fitted_to, phantom) if asked.is_flattened else fitted_to
        return whole if bins is fitted_to else bins, fit_vials(whole, phantom).basis
    if bins.basis is None:
        raise CalibrationMissing(
            "the bins carry no material basis, so that nothing tells how materials attenuate in them",
            hint="calibrate materials and scan again; or choose a table of attenuation, a response, or vials",
        )
    return bins, bins.basis


def materials_asked(source: Path | Volume, settings: Settings) -> tuple[str, ...]:
    """Return the materials that a decomposition will tell apart; nothing where a file says so that is read later."""
    asked = settings.decomposition
    if asked.materials or (asked.tier == IMAGE and asked.by in (BY_MATRIX, BY_VIALS)):
        return asked.materials
    if isinstance(source, Path):
        from acquisition.scan_file import read_scan

        known = (None if asked.tier == IMAGE else calibration_of(settings)) or read_scan(
            source, allow_partial=True
        ).calibration
        basis = known.basis if known else None
    else:
        basis = source.basis
    return basis.materials if basis else ()


def quantities_of(materials: Volume, asked: Quantities) -> Generator[Progress, None, Volume]:
    """Return what the materials mean, a channel for each quantity."""
    from reconstruction.quantities import evaluate

    return (yield from evaluate(materials, quantities_wanted(materials.channels, asked)))


def quantities_wanted(materials: Sequence[str], asked: Quantities) -> list[Quantity]:
    """Return the quantities that are asked for; none of no materials.

    Raises
    ------
    WrongUsage
        These materials cannot tell one of them.
    """
    from reconstruction import quantities
    from reconstruction.spectral.stoichiometry import calibrate

    if not (materials and asked.is_any):
        return []
    basis = quantities.matter_of(materials)
    wanted: list[Quantity] = [quantities.monoenergetic(basis, energy_kev) for energy_kev in asked.mono_kev]
    if asked.vnc_kev is not None:
        wanted.append(quantities.non_contrast(basis, asked.vnc_kev))
    wanted += [quantities.element_map(basis, element) for element in asked.elements]
    if asked.electron_density or asked.effective_z or asked.beams:
        known = calibrate(basis)
        wanted += [quantities.electron_density(known)] if asked.electron_density else []
        wanted += [quantities.effective_z(known)] if asked.effective_z else []
        wanted += [quantities.stopping_power_ratio(known, *_beam(beam)) for beam in asked.beams]
    return wanted


def _beam(text: str) -> tuple[float, str]:
    ion, _, energy = text.partition("@")
    try:
        return float(energy), ion.strip()
    except ValueError:
        raise WrongUsage(f"the beam is {text!r}; allowed: ION@MEV, as proton@150 or carbon@300") from None


def calibration_of(settings: Settings) -> Calibration | None:
    """Return the calibration that is named; None: the scan's own."""
    from calibration.store import load

    return load(settings.calibration) if settings.calibration else None


def geometry_of(settings: Settings) -> Calibration | None:
    """Return the calibration that is named, where it knows a geometry; None: the scan's own."""
    known = calibration_of(settings)
    return known if known is not None and known.alignment is not None else None


def agents_of(materials: Sequence[str]) -> tuple[str, ...]:
    """Return those that have a K edge which a scan sees, for names that are known."""
    from calibration.attenuation import material
    from reconstruction.spectral.stoichiometry import is_agent

    found = []
    for name in materials:
        try:
            matter = material(name, 1.0)
        except WrongUsage:
            continue
        if is_agent(matter):
            found.append(name)
    return tuple(found)
