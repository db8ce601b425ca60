"""The command ``mpxct quantities``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from calibration.electrons import EXPONENT
from calibration.progress import Console
from firmware_iface.errors import CalibrationMissing, WrongUsage
from reconstruction.stated_options import refuse_lonely, refuse_overwriting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from calibration.attenuation import Material
    from reconstruction.quantities import Quantity
    from reconstruction.spectral.stoichiometry import Stoichiometry

ATTENUATION, ELECTRONS, CONTRAST, LABELS = "Attenuation", "Electrons", "Contrast agents", "Labels"


TOLD_MEV = 150.0
_OF_ELECTRONS = ("electron_density", "effective_z", "spr")
NEEDS = {
    "per_mm": ("mono",),
    "exponent": ("effective_z",),
    "water_ev": ("spr",),
    **dict.fromkeys(("additive", "calibration"), _OF_ELECTRONS),
    "thickness_mm": ("calibration",),
    "vnc_kev": ("vnc",),
    "agents": ("vnc",),
    **dict.fromkeys(("priors", "field", "each"), ("labels",)),
}
"""Options that do nothing without one of some others."""


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("quantities")(_quantities)


def _quantities(
    ctx: typer.Context,
    materials: Annotated[Path, typer.Argument(help="A volume of materials, as mpxct decompose writes it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The volume file to write.")] = Path("quantities.h5"),
    mono: Annotated[
        str, typer.Option(help="Pictures as of photons of one energy, in keV: 40,70.", rich_help_panel=ATTENUATION)
    ] = "",
    per_mm: Annotated[
        bool, typer.Option("--per-mm", help="Those in 1/mm instead of HU.", rich_help_panel=ATTENUATION)
    ] = False,
    electron_density: Annotated[
        bool, typer.Option("--electron-density", help="Relative to water's.", rich_help_panel=ELECTRONS)
    ] = False,
    effective_z: Annotated[
        bool,
        typer.Option(
            "--effective-z", help="Effective atomic number: power mean over electrons.", rich_help_panel=ELECTRONS
        ),
    ] = False,
    exponent: Annotated[float, typer.Option(help="Of that power mean.", rich_help_panel=ELECTRONS)] = EXPONENT,
    z_ratio: Annotated[
        str,
        typer.Option(
            help="Effective atomic number by the attenuation at two energies, in keV: 50,80.", rich_help_panel=ELECTRONS
        ),
    ] = "",
    spr: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ION@MEV",
            help="Stopping power relative to water's, of ions of so many MeV per nucleon: "
            "proton@150, carbon@300. May be repeated.",
            rich_help_panel=ELECTRONS,
        ),
    ] = None,
    water_ev: Annotated[
        float | None,
        typer.Option(
            help="Mean excitation energy of water, as 75 or 78. Default: 75.3, by the rule for all compounds.",
            rich_help_panel=ELECTRONS,
        ),
    ] = None,
    additive: Annotated[
        bool,
        typer.Option(
            "--additive",
            help="Take matter for a mixture of the materials: right for their own mixtures, and not for tissues.",
            rich_help_panel=ELECTRONS,
        ),
    ] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Calibration file with the detector's response: coefficients as its bins see tissues.",
            rich_help_panel=ELECTRONS,
        ),
    ] = None,
    thickness_mm: Annotated[
        float, typer.Option(help="With --calibration: of tissue in the beam, about.", rich_help_panel=ELECTRONS)
    ] = 30.0,
    vnc: Annotated[
        bool, typer.Option("--vnc", help="Without contrast agents, in HU.", rich_help_panel=CONTRAST)
    ] = False,
    vnc_kev: Annotated[float, typer.Option("--vnc-kev", help="At this energy.", rich_help_panel=CONTRAST)] = 70.0,
    agents: Annotated[
        str,
        typer.Option(
            help="Materials that are contrast agents, a,b,… Default: those with a K edge above 20 keV.",
            rich_help_panel=CONTRAST,
        ),
    ] = "",
    k_edge: Annotated[
        str, typer.Option("--k-edge", help="Amount of these elements in mg/mL: I,Gd.", rich_help_panel=CONTRAST)
    ] = "",
    iodine: Annotated[bool, typer.Option("--iodine", help="The same as --k-edge I.", rich_help_panel=CONTRAST)] = False,
    labels: Annotated[
        str,
        typer.Option(
            help="Tell of each voxel which tissue it is: air,adipose,muscle,bone. Writes labels, their "
            "probabilities, a MetaImage and a TOML file of compositions beside -o.",
            rich_help_panel=LABELS,
        ),
    ] = "",
    priors: Annotated[
        str, typer.Option(help="How common each of them is, a,b,… Default: all alike.", rich_help_panel=LABELS)
    ] = "",
    field: Annotated[
        float,
        typer.Option(
            help="What each of 26 neighbours adds to the logarithm of its tissue's probability; 0.1 is some.",
            rich_help_panel=LABELS,
        ),
    ] = 0.0,
    each: Annotated[
        bool, typer.Option("--each", help="Add the probability of each tissue.", rich_help_panel=LABELS)
    ] = False,
    errors: Annotated[
        bool, typer.Option("--errors", help="Add the standard deviation of each, by the noise that the volume shows.")
    ] = False,
    sigma: Annotated[
        Path | None,
        typer.Option(
            help="Volume of the materials' standard errors, as mpxct decompose SCAN writes it: --errors by voxel, with "
            "correlations as the volume shows them."
        ),
    ] = None,
    named: Annotated[
        list[str] | None,
        typer.Option(
            "--material",
            metavar="NAME=FORMULA",
            help="What a channel is made of, where its name does not tell. May be repeated.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
    _: Annotated[
        bool,
        typer.Option(
            "--tissues",
            is_eager=True,
            callback=lambda asked: _tell_tissues() if asked else None,
            help="Tell all tissues with what is to be found in them, and end.",
        ),
    ] = False,
) -> None:
    """Tell what materials mean: attenuation at one energy, electron density, effective Z, stopping power, labels.

    Example: mpxct quantities materials.h5 --mono 40,70 --electron-density --spr proton@150 -o quantities.h5
    """
    from reconstruction.decomposition import bin_covariance
    from reconstruction.quantities import basis_of, evaluate
    from reconstruction.volume import load_volume, save_volume

    console: Console = ctx.obj
    refuse_lonely(ctx, NEEDS)
    refuse_overwriting(materials, output)
    volume = load_volume(materials)
    basis = basis_of(volume, _pairs(named or []))
    asked = _attenuation(basis, list(dict.fromkeys(_numbers(mono, "--mono"))), per_mm)
    asked += _contrast(basis, vnc_kev if vnc else None, _names(agents), [*_names(k_edge), *["I"] * iodine])
    errors_percent = None
    if electron_density or effective_z or spr:
        from reconstruction.spectral.stoichiometry import calibrate, left_out_errors

        seen = None if calibration is None else _seen_by(calibration, basis, thickness_mm)
        known = calibrate(basis, None, seen, exponent=exponent, is_fitted=not additive)
        errors_percent = left_out_errors(basis, None, seen, exponent=exponent, is_fitted=not additive)
        asked += _electrons(known, electron_density, effective_z, spr or [], water_ev)
    if z_ratio:
        from reconstruction.quantities import effective_z_of_ratio

        pair = _numbers(z_ratio, "--z-ratio")
        if len(pair) != 2:
            raise WrongUsage(f"--z-ratio is {z_ratio!r}; allowed: two energies, as 50,80")
        asked.append(effective_z_of_ratio(basis, pair[0], pair[1]))
    if not asked and not labels:
        raise WrongUsage("no quantity is asked for", hint="mpxct quantities --help tells them")
    own_sigma = None if sigma is None else load_volume(sigma)
    is_told = errors or own_sigma is not None
    covariance = bin_covariance(volume.values) if is_told or labels else None
    figures: dict[str, object] = {"file": None, "channels": {}}
    lines = []
    if asked:
        found = console.track(evaluate(volume, asked, covariance if is_told else None, own_sigma))
        save_volume(found, output)
        means = {
            name: float(values.mean(dtype=float)) for name, values in zip(found.channels, found.values, strict=True)
        }
        figures |= {
            "file": str(output),
            "channels": {name: {"unit": found.unit_of(name), "mean": mean} for name, mean in means.items()},
        }
        lines += [f"{output}: {', '.join(f'{name} ({found.unit_of(name)})' for name in found.channels)}"]
    if errors_percent is not None:
        names = ("electron density", "effective Z", "mean excitation energy")
        told = dict(zip(names, np.sqrt(np.mean(errors_percent**2, axis=1)).tolist(), strict=True))
        figures["error_percent"] = told
        lines += [f"{name:<24}{error:.2f} % rms, over tissues left out of the fit" for name, error in told.items()]
    if labels and covariance is not None:
        from reconstruction.labels import label_volume, tissue_classes, write_compositions, write_metaimage

        weights = _numbers(priors, "--priors") or None
        tissues = tissue_classes(_names(labels), basis, priors=weights)
        labelled = console.track(label_volume(volume, tissues, covariance, field_strength=field, is_each_told=each))
        to = output.with_name(f"{output.stem}-labels.h5")
        save_volume(labelled, to)
        files = [
            to,
            write_compositions(tissues, to.with_suffix(".toml")),
            write_metaimage(labelled, to.with_suffix(".mhd")),
        ]
        numbers, counts = np.unique(labelled.channel("label").astype(int), return_counts=True)
        all_names = ("unknown", *(t.matter.name for t in tissues))
        voxels = {all_names[n]: int(count) for n, count in zip(numbers, counts, strict=True)}
        figures |= {"label_files": [str(f) for f in files], "voxels": voxels}
        lines += [f"{', '.join(str(f) for f in files)}: {', '.join(f'{n} {c}' for n, c in voxels.items())} voxels"]
    console.emit(figures, "\n".join(lines), as_json=as_json)


def _tell_tissues() -> None:
    """Print every tissue on the shelf with its density and what follows from its composition, and end."""
    from calibration.attenuation import material
    from calibration.electrons import effective_z, mean_excitation_ev, relative_electrons, stopping_power_ratio
    from calibration.shelf import tissues

    typer.echo(f"{'tissue':<24}{'g/cm3':>8}{'electrons':>11}{'Z':>7}{'I, eV':>8}{'stopping':>10}")
    for matter in map(material, tissues()):
        electrons = matter.density_g_cm3 * relative_electrons(matter)
        typer.echo(
            f"{matter.name:<24}{matter.density_g_cm3:>8.2f}{electrons:>11.4f}{effective_z(matter):>7.2f}"
            f"{mean_excitation_ev(matter):>8.1f}{stopping_power_ratio(matter, TOLD_MEV):>10.4f}"
        )
    typer.echo(
        f"electrons and stopping (of {TOLD_MEV:g} MeV protons) relative to water's; Z with a power of {EXPONENT:g}"
    )
    raise typer.Exit


def _attenuation(basis: Sequence[Material], energies_kev: Sequence[float], per_mm: bool) -> list[Quantity]:
    from reconstruction.quantities import monoenergetic

    return [monoenergetic(basis, energy, is_hu=not per_mm) for energy in energies_kev]


def _contrast(
    basis: Sequence[Material], vnc_kev: float | None, agents: Sequence[str], elements: Sequence[str]
) -> list[Quantity]:
    from reconstruction.quantities import element_map, non_contrast

    without = [] if vnc_kev is None else [non_contrast(basis, vnc_kev, agents or None)]
    return [*without, *(element_map(basis, element) for element in dict.fromkeys(elements))]


def _electrons(
    known: Stoichiometry, is_density: bool, is_z: bool, beams: Sequence[str], water_ev: float | None
) -> list[Quantity]:
    from reconstruction.quantities import effective_z, electron_density, stopping_power_ratio

    asked: list[Quantity] = [electron_density(known)] if is_density else []
    asked += [effective_z(known)] if is_z else []
    for beam in beams:
        ion, _, energy = beam.partition("@")
        try:
            asked.append(stopping_power_ratio(known, float(energy), ion.strip(), water_ev=water_ev))
        except ValueError as error:
            raise WrongUsage(f"--spr is {beam!r}; allowed: ION@MEV, as proton@150 or carbon@300") from error
    return asked


def _seen_by(calibration: Path, basis: Sequence[Material], thickness_mm: float) -> NDArray[np.float64]:
    """Return as what a detector sees the reference tissues: (n_tissues, n_materials) float64, g/cm3."""
    from calibration.store import load
    from reconstruction.spectral.model import SpectralModel
    from reconstruction.spectral.stoichiometry import as_decomposed, reference_tissues

    response = load(calibration).response
    if response is None:
        raise CalibrationMissing(
            f"{calibration} holds no response of the detector", hint="run mpxct calibrate response, or leave it out"
        )
    if not thickness_mm > 0:
        raise WrongUsage(f"--thickness-mm is {thickness_mm:g}; allowed: above 0")
    return as_decomposed(reference_tissues(), basis, SpectralModel.of_response(response, basis), thickness_mm)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in _names(text)]
    except ValueError as error:
        raise WrongUsage(f"{option} is {text!r}; allowed: numbers, a,b,…") from error


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, formula = text.partition("=")
        if not equals or not name.strip() or not formula.strip():
            raise WrongUsage(f"--material is {text!r}; allowed: NAME=FORMULA, as apatite=Ca10(PO4)6(OH)2")
        pairs[name.strip()] = formula.strip()
    return pairs
