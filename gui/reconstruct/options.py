"""What can be set of a method or a prior, as rows of a form: read off the methods themselves, with words for people.

The names, types and defaults are those of `reconstruction.iterative`; only labels and explanations stand here, and an
option that has none shows under its own name.
"""

from __future__ import annotations

import typing
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from calibration.progress import Progress
from firmware_iface.errors import WrongUsage

if TYPE_CHECKING:
    from reconstruction.iterative import Option

Kind = Literal["yes or no", "whole number", "number", "choice", "text"]

WORDS: Mapping[str, tuple[str, str, str]] = {
    "is_non_negative": ("nothing below 0", "", "Keep every voxel at 0 or above: matter cannot amplify the beam."),
    "relaxation": ("step", "", "How far each update goes; below 1 it is slower and steadier."),
    "has_momentum": ("momentum", "", "Carry on in the direction of earlier updates: fewer iterations."),
    "damping": ("damping", "", "Pull towards the reference (or 0); 0: not at all."),
    "order": ("order of subsets", "", "In which order the subsets of the views are taken."),
    "n_subsets": (
        "subsets",
        "",
        "In how many parts the views are taken in turn; more: faster, but noisy data may not settle.",
    ),
    "is_preconditioned": ("preconditioned", "", "Even out rays and voxels first: fewer iterations."),
    "is_monotone": ("never worse", "", "Refuse an update that fits the data worse."),
    "n_weighted": (
        "weight updates",
        "",
        "For how many iterations the weights of the data are taken anew from the volume.",
    ),
    "n_prox_iterations": ("inner iterations", "", "Steps towards the prior within each iteration."),
    "has_restart": ("restart", "", "Let go of momentum where it leads uphill."),
    "balance": ("balance", "", "Between the steps towards the data and towards the prior."),
    "strength_per_mm": ("strength", "1/mm", "How much the prior counts against the data."),
    "corner_per_mm": ("corner", "1/mm", "Differences below it are smoothed, larger ones are kept as edges."),
    "stiffness_relative": ("stiffness", "", "How much differences between neighbours cost."),
    "is_isotropic": ("same in all directions", "", "Edges cost the same in whatever direction they run."),
    "norm": ("norm", "", "How bins are coupled: nuclear asks for edges in the same place and of the same direction."),
    "edge_share": ("edge share", "", "How large a slope of the reference counts as an edge."),
    "noise_per_mm": ("noise", "1/mm", "Noise of a voxel that is to be taken away; 0: measured by itself."),
    "patch_size": ("patch", "voxels", "Edge of the patches that are compared."),
    "patch_distance": ("reach", "voxels", "How far similar patches are looked for."),
    "h_relative": ("softness", "× noise", "How different patches may be and still be averaged."),
    "width_px": ("width", "voxels", "How far the average reaches."),
    "range_relative": ("range", "× noise", "How different voxels may be and still be averaged."),
    "radius_px": ("radius", "voxels", "How far the average reaches; 0: chosen by itself."),
}
STRENGTH = ("strength", "× noise", "How much the prior counts, in units of the noise; auto: what is usual for it.")
PRIOR_WORDS: Mapping[str, str] = {
    "tv": "total variation: flat regions with sharp edges",
    "huber": "smooth where differences are small, sharp at edges",
    "quadratic": "smooth everywhere",
    "gibbs": "the same over all 26 neighbours",
    "vectorial-tv": "total variation of all bins together: edges in the same place",
    "directional-tv": "total variation along the edges of a reference picture",
    "tv-denoiser": "total variation as a denoiser",
    "nl-means": "averages of similar patches",
    "bilateral": "averages of similar neighbours",
    "wavelet": "small wavelet coefficients are taken for noise",
    "rank-sparse": "bins as few common pictures, and what is sparse",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of a form.

    Attributes
    ----------
    default : object
        As the method has it; None where it must be set.
    choices : tuple of str
        Of the kind "choice".
    """

    name: str
    label: str
    kind: Kind
    default: object
    choices: tuple[str, ...] = ()
    unit: str = ""
    tip: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodForm:
    """What the form of a method says."""

    name: str
    summary: str
    rows: tuple[Row, ...]
    has_prior: bool
    n_iterations: int
    takes: str
    arrays: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorForm:
    """What the form of a prior says.

    Attributes
    ----------
    is_in_noise : bool
        Its strength can be told in units of the noise.
    """

    name: str
    summary: str
    rows: tuple[Row, ...]
    is_in_noise: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """All methods, priors, ring filters and windows by name."""

    methods: Mapping[str, MethodForm]
    priors: Mapping[str, PriorForm]
    rings: tuple[str, ...]
    windows: tuple[str, ...]
    has_gpu: bool


def read_catalogue() -> Generator[Progress, None, Catalogue]:
    """Read the tables of methods; they load much, so not in the window's thread."""
    yield Progress("reading methods", 0, 2)
    from reconstruction import backend
    from reconstruction.artefacts import rings
    from reconstruction.iterative import IN_NOISE, METHODS, PRIORS, prior_options
    from reconstruction.ramp import WINDOWS

    yield Progress("reading methods", 1, 2)
    methods = {
        name: MethodForm(
            name=name,
            summary=method.summary,
            rows=tuple(row_of(option) for option in method.options().values()),
            has_prior=method.has_prior,
            n_iterations=method.iterations,
            takes=method.takes,
            arrays=method.arrays,
        )
        for name, method in METHODS.items()
    }
    priors = {}
    for name in PRIORS:
        is_in_noise = name in IN_NOISE or name == "vectorial-tv"
        rows = [row_of(option) for option in prior_options(name).values()]
        if is_in_noise:  # what the strength in units of the noise stands for
            rows = [row for row in rows if not row.name.endswith("_per_mm")]
            label, unit, tip = STRENGTH
            rows.insert(0, Row(name="strength", label=label, kind="text", default="auto", unit=unit, tip=tip))
        priors[name] = PriorForm(
            name=name, summary=PRIOR_WORDS.get(name, ""), rows=tuple(rows), is_in_noise=is_in_noise
        )
    return Catalogue(
        methods=methods,
        priors=priors,
        rings=(rings.NONE, "auto", *rings.METHODS),
        windows=tuple(WINDOWS),
        has_gpu=backend.has_gpu(),
    )


def row_of(option: Option) -> Row:
    """Return the row of one option."""
    label, unit, tip = WORDS.get(option.name, (option.name.replace("_", " "), "", ""))
    kind: Kind = "text"
    choices: tuple[str, ...] = ()
    if typing.get_origin(option.type) is Literal:
        kind, choices = "choice", tuple(map(str, typing.get_args(option.type)))
    elif option.type is bool:
        kind = "yes or no"
    elif option.type is int:
        kind = "whole number"
    elif option.type is float:
        kind = "number"
    default = None if option.must_be_set else option.default
    if kind == "text" and isinstance(default, tuple):
        default = ",".join(map(str, default))
    return Row(name=option.name, label=label, kind=kind, default=default, choices=choices, unit=unit, tip=tip)


def meant(row: Row, value: object) -> object | None:
    """Return what a filled-in row asks for; None where that is the default, or nothing.

    Raises
    ------
    WrongUsage
        Text where a number must stand.
    """
    if isinstance(value, str):
        value = value.strip()
    if value in ("", None) or value == row.default:
        return None
    if row.kind in ("number", "whole number"):
        value = _number(row, value)
        return None if value == row.default else value
    return value


def _number(row: Row, value: object) -> float | int:
    try:
        return int(str(value)) if row.kind == "whole number" else float(str(value))
    except ValueError:
        raise WrongUsage(f"{row.label} is {value!r}; allowed: a {row.kind}") from None
