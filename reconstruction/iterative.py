"""Bin volumes by iterative methods: the table of methods by name, and the one way to run them.

A method is a generator of `Iterate` over an operator; its options are the keyword arguments of its function, so that
no second list of them can be wrong.
"""

from __future__ import annotations

import importlib
import inspect
import math
import time
import typing
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from calibration.progress import Progress
from firmware_iface.errors import WrongUsage
from reconstruction.backend import Array
from reconstruction.methods.convergence import ConvergenceLog, Iteration, Step, timed
from reconstruction.methods.iterates import Iterate
from reconstruction.methods.stopping import Rule
from reconstruction.operators import Operator

Data = Literal["line integrals", "line integrals of at least 0", "counts"]
LINE_INTEGRALS: Data = "line integrals"
NON_NEGATIVE: Data = "line integrals of at least 0"
COUNTS: Data = "counts"
DEFAULT_METHOD = "os-sart"
ARRAYS = ("weights", "start", "reference", "flat", "background")
"""What methods may take beside their data."""


class Option(NamedTuple):
    """What can be set of a method or a prior; the default is `inspect.Parameter.empty` where it must be set."""

    name: str
    type: Any
    default: Any

    @property
    def must_be_set(self) -> bool:
        """Whether it has no default."""
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A row of the table.

    Attributes
    ----------
    module, function : str
        Where it is; imported when it is asked for.
    summary : str
        What it is, in a line.
    takes : str
        What its data are: "line integrals", of at least 0 or of any sign, or "counts" with a flat field.
    fixed : mapping
        Options that make it this method and no other.
    has_prior : bool
        It takes one of `PRIORS`.
    """

    module: str
    function: str
    summary: str
    takes: Data
    fixed: Mapping[str, Any]
    has_prior: bool

    @property
    def run(self) -> Callable[..., Generator[Iterate, None, None]]:
        """The function itself."""
        return getattr(importlib.import_module(self.module), self.function)

    @property
    def is_statistical(self) -> bool:
        """Whether its data are to count for what their noise makes them worth."""
        return self.has_prior or self.function == "pwls"

    @property
    def arrays(self) -> frozenset[str]:
        """Names of what it takes beside its data: weights, start, reference, flat, background."""
        return frozenset(inspect.signature(self.run).parameters) & frozenset(ARRAYS)

    @property
    def iterations(self) -> int:
        """How many it makes when nobody says."""
        return inspect.signature(self.run).parameters["n_iterations"].default

    def options(self) -> dict[str, Option]:
        """Return what can be set of it, by name; arrays are not options."""
        taken = {*self.fixed, "n_iterations"}
        return {name: option for name, option in _options_of(self.run).items() if name not in taken}

    def parse(self, texts: Mapping[str, Any]) -> dict[str, Any]:
        """Turn options as a command line has them ("n_subsets": "18") into what they mean, or refuse by name."""
        return _parse(self.options(), texts, self.function)


def _method(where: str, summary: str, *, takes: Data = LINE_INTEGRALS, has_prior: bool = False, **fixed: Any) -> Method:
    module, function = where.split(":")
    return Method(
        module=f"reconstruction.methods.{module}",
        function=function,
        summary=summary,
        takes=takes,
        fixed=fixed,
        has_prior=has_prior,
    )


METHODS: Mapping[str, Method] = {
    "sirt": _method("least_squares:sirt", "slow, smooth, and kind to errors of the data"),
    "sart": _method("least_squares:os_sart", "SIRT view by view", n_subsets=10**9, has_momentum=False),
    "os-sart": _method("least_squares:os_sart", "SIRT by subsets of the views, with momentum: the fast one"),
    "cgls": _method("least_squares:cgls", "conjugate gradients: the fewest iterations without constraint"),
    "lsqr": _method("least_squares:lsqr", "CGLS by bidiagonalisation: steadier, damped towards its start"),
    "mlem": _method("poisson:osem", "maximum likelihood of non-negative linear data", takes=NON_NEGATIVE, n_subsets=1),
    "osem": _method("poisson:osem", "MLEM by subsets of the views", takes=NON_NEGATIVE),
    "pwls": _method("poisson:pwls", "least squares weighted by the noise, by subsets, with momentum"),
    "transmission": _method("poisson:transmission", "maximum likelihood of the counts themselves", takes=COUNTS),
    "fista": _method("proximal:fista", "least squares and a prior, by accelerated descent", has_prior=True),
    "pdhg": _method("proximal:pdhg", "least squares and a prior, primal and dual", has_prior=True),
    "plug-and-play": _method("proximal:plug_and_play", "least squares and a denoiser in turns", has_prior=True),
}
"""All methods by the names that a command line takes."""

PRIORS: Mapping[str, str] = {
    "tv": "priors:TotalVariation",
    "huber": "priors:Huber",
    "quadratic": "priors:Quadratic",
    "gibbs": "priors:Gibbs",
    "vectorial-tv": "priors:VectorialTotalVariation",
    "directional-tv": "priors:DirectionalTotalVariation",
    "tv-denoiser": "methods.denoisers:TotalVariationDenoiser",
    "nl-means": "methods.denoisers:NonLocalMeans",
    "bilateral": "methods.denoisers:Bilateral",
    "wavelet": "methods.denoisers:Wavelet",
    "rank-sparse": "spectral.rank_sparse:RankSparse",
}
"""Priors by name, as module:class; what can be set of them are the fields of their classes."""
IN_NOISE: Mapping[str, str] = {"tv": "tv", "huber": "huber", "gibbs": "gibbs", "directional-tv": "dtv"}
"""Priors whose strength may be told in units of the noise, and their names in `spectral.strength`; beside them
vectorial ones by the names of their norms."""
STRENGTH, AUTOMATIC = "strength", "auto"
"""Option of those priors, and its value for what is usual."""


def prior_class(name: str) -> Callable[..., Any]:
    """Return what makes a prior, or refuse."""
    if name not in PRIORS:
        raise WrongUsage(f"no prior is called {name!r}; allowed: {', '.join(PRIORS)}")
    module, class_ = PRIORS[name].split(":")
    return getattr(importlib.import_module(f"reconstruction.{module}"), class_)


def prior_options(name: str) -> dict[str, Option]:
    """Return what can be set of a prior, by name."""
    return _options_of(prior_class(name))


def _options_of(function: Callable[..., Any]) -> dict[str, Option]:
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    return {p.name: Option(p.name, hints[p.name], p.default) for p in parameters if _is_plain(hints.get(p.name))}


def _is_plain(hint: Any) -> bool:
    """Whether a command line can say it: numbers, words, yes and no."""
    if typing.get_origin(hint) is Literal:
        return True
    parts = [part for part in typing.get_args(hint) if part is not Ellipsis]
    return all(map(_is_plain, parts)) if parts else hint in (int, float, bool, str, type(None))


def _parse(options: Mapping[str, Option], texts: Mapping[str, Any], whose: str) -> dict[str, Any]:
    meant = {}
    for name, text in texts.items():
        value: Any = text
        if name not in options:
            raise WrongUsage(f"{whose} has no option {name!r}; allowed: {', '.join(options) or 'none'}")
        if isinstance(value, str) and typing.get_origin(options[name].type) is tuple:
            value = value.split(",")
        try:
            meant[name] = msgspec.convert(value, options[name].type, strict=False)
        except msgspec.ValidationError as error:
            raise WrongUsage(f"option {name} of {whose} is {value!r}: {error}") from error
    return meant


def method_named(name: str) -> Method:
    """Return a row of the table, or refuse."""
    if name not in METHODS:
        raise WrongUsage(f"no method is called {name!r}; allowed: {', '.join(METHODS)}")
    return METHODS[name]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reconstruction:
    """What came out: the channels as they were when each had done enough.

    Attributes
    ----------
    values : (n_channels, z, y, x) float
        Where the data were: on the GPU or not.
    log : ConvergenceLog
    """

    values: Array
    log: ConvergenceLog


def reconstruct(
    projector: Operator,
    data: Array,
    *,
    method: str = DEFAULT_METHOD,
    iterations: int | None = None,
    weights: Array | None = None,
    start: Array | None = None,
    reference: Array | None = None,
    flat: Array | None = None,
    background: Array | float | None = None,
    prior: Any = None,
    stop: Rule | None = None,
    options: Mapping[str, Any] | None = None,
    clock_s: Callable[[], float] = time.perf_counter,
) -> Generator[Progress, None, Reconstruction]:
    """Run a method to its end.

    Parameters
    ----------
    data : (n_channels, n_views, rows, cols) float
        Line integrals, or counts: as `METHODS[method].takes` says.
    iterations : int, optional
        At most so many; None: the method's default.
    weights : array that fits the data, optional
        1 / variance of line integrals; what counts count for.
    start : (n_channels, z, y, x) float, optional
        Volume to go on from.
    reference : (n_channels, z, y, x) float, optional
        Volume that damping pulls towards.
    flat, background : arrays that fit the data, optional
        Of counts.
    prior : str or object, optional
        What `METHODS[method].has_prior` asks for: by its name in `PRIORS`, or itself.
    stop : Rule, optional
        When to end before the iterations do. Channels that have done enough keep what they were then.
    options : mapping, optional
        As `METHODS[method].options()` and `prior_options(prior)` list them; texts are understood.

    Returns
    -------
    Reconstruction
    """
    row = method_named(method)
    arrays = {"weights": weights, "start": start, "reference": reference, "flat": flat, "background": background}
    parameters = inspect.signature(row.run).parameters
    given = {name: array for name, array in arrays.items() if array is not None}
    options = dict(options or {})
    if isinstance(prior, str):
        if STRENGTH in options:
            _scale_by_noise(prior, options, given, projector, data)
        prior = _make_prior(prior, options, given)
    _refuse_unfit(method, row, given, parameters, prior)
    chosen = {**row.fixed, **row.parse(options), **given}
    total = row.iterations if iterations is None else iterations
    if total < 1:
        raise WrongUsage(f"{method} is to make {total} iterations; allowed: 1 or more")
    yield Progress(method, 0, total)
    iterates = row.run(projector, data, *([prior] if row.has_prior else []), n_iterations=total, **chosen)
    kept = _Kept(projector.n_channels)
    steps: list[Step] = []
    ended_by = f"{total} iterations"
    for iterate, step in timed(iterates, clock_s):
        _refuse_divergence(method, step, steps)
        steps.append(step)
        kept.volume = iterate.volume
        yield Iteration.of(method, step, total)
        if stop is not None and kept.all_done(stop.met(steps)):
            ended_by = str(stop)
            break
    yield Progress(method, total, total)
    return Reconstruction(
        values=kept.result(), log=ConvergenceLog(method=method, steps=tuple(steps), ended_by=ended_by)
    )


def _make_prior(name: str, options: dict[str, Any], given: dict[str, Any]) -> Any:
    """Return a prior by its name; take out of the options and arrays what is its own."""
    known = prior_options(name)
    own = _parse(known, {option: options.pop(option) for option in known if option in options}, f"the prior {name}")
    for option in known.values():
        if option.must_be_set and option.name not in own:
            hint = "about the noise of a voxel that it is to take away" if option.name.endswith("_per_mm") else ""
            raise WrongUsage(f"the prior {name} needs {option.name}", hint=hint)
    if "reference" in inspect.signature(prior_class(name)).parameters:
        if "reference" not in given:
            raise WrongUsage(f"the prior {name} needs a reference image", hint="the sum of all bins, for one")
        own["reference"] = given.pop("reference").sum(0)
    if unset := [option.name for option in known.values() if option.must_be_set and option.name not in own]:
        raise WrongUsage(f"the prior {name} needs {', '.join(unset)}")
    try:
        return prior_class(name)(**own)
    except ValueError as error:
        raise WrongUsage(f"the prior {name} cannot be: {error}") from error


def _scale_by_noise(
    name: str, options: dict[str, Any], given: Mapping[str, Any], projector: Operator, data: Array
) -> None:
    """Replace the option `strength`, in units of the noise that the weights tell, by those that it means."""
    from reconstruction.spectral import strength

    norm = str(options.get("norm", "nuclear"))
    called = {"nuclear": "tnv", "frobenius": "vtv"}.get(norm, "") if name == "vectorial-tv" else IN_NOISE.get(name, "")
    if not called:
        raise WrongUsage(
            f"the strength of {name} cannot be told in noise; allowed: {', '.join(IN_NOISE)}, vectorial-tv"
        )
    weights = given.get("weights")
    if weights is None:
        raise WrongUsage("a strength in units of the noise needs weights of 1 / variance", hint="--weights noise")
    text = options.pop(STRENGTH)
    own = strength.scaled_options(called, None if text == AUTOMATIC else _number(text), projector, data, weights)
    for option, value in own.items():
        options.setdefault(option, value)


def _number(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError) as error:
        raise WrongUsage(f"the strength is {text!r}; allowed: a number above 0, or {AUTOMATIC}") from error


def _refuse_unfit(
    method: str, row: Method, given: Mapping[str, Any], parameters: Mapping[str, Any], prior: Any
) -> None:
    """Refuse arrays that the method has no use for, and ask for those that it cannot be without."""
    for name in given:
        if name not in parameters:
            raise WrongUsage(f"{method} has no use for {name}")
    needed = [p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    for name in needed:
        if name not in given:
            raise WrongUsage(f"{method} needs {name}; it works on {row.takes}")
    if row.has_prior != (prior is not None):
        raise WrongUsage(f"{method} {'needs a' if row.has_prior else 'takes no'} prior")


def _refuse_divergence(method: str, step: Step, before: list[Step]) -> None:
    """Refuse a residual without end, or one that was a number once."""
    was_known = bool(before) and not math.isnan(before[-1].residual)
    if math.isinf(step.residual) or (math.isnan(step.residual) and was_known):
        raise WrongUsage(f"{method} diverged in iteration {step.number}", hint="fewer subsets, or less relaxation")


class _Kept:
    """The channels of a volume, each as it was when it had done enough."""

    def __init__(self, n_channels: int) -> None:
        self.volume: Array = None
        self._n_channels = n_channels
        self._done: dict[int, Array] = {}

    def all_done(self, met: np.ndarray) -> bool:
        """Set aside the channels that have just done enough; return whether all have."""
        if len(met) != self._n_channels:
            return bool(met.all())
        for channel in np.flatnonzero(met):
            if channel not in self._done and not met.all():
                self._done[int(channel)] = self.volume[channel].copy()
        return all(m or channel in self._done for channel, m in enumerate(met))

    def result(self) -> Array:
        """Return the volume; the method may no longer be asked to go on."""
        for channel, values in self._done.items():
            self.volume[channel] = values
        return self.volume
