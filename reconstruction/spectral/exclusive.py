"""Exclusive rules: in each voxel one of several sub-problems holds, each of few materials, and the data choose which.

More materials may be known than a scan has bins, because no voxel holds them all. Each sub-problem (nothing, water,
water with iodine, ...) is solved with none of its materials below 0; those that the data contradict are rejected, and
of those left the likeliest is taken. Labels may then be settled among neighbours. Two rules are told here, and any
other is a list of sub-problems:

- `exclusive_rule`, of the MARS kind: rejection by chi square, which is an angle that scales with the noise
  (sin^2 of the angle between whitened data and fit = chi square / |data|^2), then chi square with a price of each
  material;
- `min_residual_rule`: each material alone within bounds, the least residual wins, and an agent is then solved for
  together with its solvent.

# Ref: sub-problems and rejection: C. J. Bateman et al. 2018, JINST 13, P05020 (MARS-MD, segmentation and angular
#      rejection). Its tolerances are not published in what could be read here; those below follow from noise.
# Ref: minimum residual: V. Di Trapani, L. Brombal, F. Brun 2022, Opt. Express 30, 42995; bounds (water up to 2.1, bone
#      from 1.3 g/cm3 in the scale of its matrix) as in its published program.
# Ref: on a face of the cone of non-negative concentrations chi square has as many degrees of freedom as bins less
#      free concentrations: T. Robertson, F. T. Wright, R. L. Dykstra 1988, Order Restricted Statistical Inference,
#      chapter 2.
# Ref: a price of each material, by the number of bins: G. Schwarz 1978, Ann. Stat. 6, 461 (BIC); by false alarms of
#      several rivals: O. J. Dunn 1961, J. Am. Stat. Assoc. 56, 52.
# Ref: Markov random field, iterated conditional modes: J. Besag 1986, J. R. Stat. Soc. B 48, 259; strength 0.5 to 1
#      over 3 x 3 x 3: reference on spectral CT, section 3.1.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from firmware_iface.errors import WrongUsage
from reconstruction.active_sets import Supports, multiplied
from reconstruction.decomposition import CHUNK_VOXELS, Attenuation, Problem
from reconstruction.kernels import active_sets_cpu
from reconstruction.kernels.threads import in_threads

NOTHING = "air"
SOLVENT = "water"
REJECTED_FRACTION = 0.01
"""How often the true sub-problem may be rejected."""
FALSE_FRACTION = 0.05
"""How often noise may add a material that is not there."""
PUBLISHED_BOUNDS = {"water": (0.0, 2.1), "bone": (1.3, np.inf)}
"""Of the minimum-residual rule, g/cm3; other materials go from 0 up."""
MOST_SWEEPS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SubProblem:
    """What a voxel may hold.

    Attributes
    ----------
    materials : tuple of str
        None of them: nothing at all.
    least_g_cm3, most_g_cm3 : float
        Bounds of the only material.
    then : tuple of str
        What is solved for where this sub-problem was chosen; none: its own materials.
    """

    materials: tuple[str, ...]
    least_g_cm3: float = 0.0
    most_g_cm3: float = np.inf
    then: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.materials)) < len(self.materials):
            raise ValueError(f"a material stands twice in {self.name}; allowed: each once")
        if self.is_bounded and len(self.materials) != 1:
            raise ValueError(f"{self.name} has bounds; allowed: for a material alone")
        if not 0 <= self.least_g_cm3 < self.most_g_cm3:
            raise ValueError(
                f"{self.name} goes from {self.least_g_cm3} to {self.most_g_cm3} g/cm3; allowed: from 0, and rising"
            )

    @property
    def name(self) -> str:
        """What its voxels are called."""
        return "+".join(self.then or self.materials) or NOTHING

    @property
    def is_bounded(self) -> bool:
        """Whether its material has other bounds than 0."""
        return self.least_g_cm3 > 0 or self.most_g_cm3 < np.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How one of several sub-problems is chosen.

    Attributes
    ----------
    sub_problems : tuple of SubProblem
        Of equals the first is taken.
    is_sparse : bool
        Choose by chi square and a price of each material, so that a further one must earn its place; otherwise by the
        least residual.
    rejected_fraction : float
        How often chi square may reject what is true; 0: nothing is rejected by it.
    false_fraction : float
        Sets the price: how often noise may add a material that is not there, all rivals of one size together. 0: the
        price is Schwarz's, the logarithm of the number of bins, which with few bins and many rivals is low.
    most_angle_deg : float, optional
        Reject fits that stand at a larger angle to the data.
    air_below_per_mm : float, optional
        A voxel whose bins have a lower mean holds nothing, and is not asked further.
    field_weight : float
        What each of the 26 neighbours with another label costs, in log-likelihood; 0: each voxel stands for itself.
    """

    sub_problems: tuple[SubProblem, ...]
    is_sparse: bool = True
    rejected_fraction: float = REJECTED_FRACTION
    false_fraction: float = FALSE_FRACTION
    most_angle_deg: float | None = None
    air_below_per_mm: float | None = None
    field_weight: float = 0.0

    def __post_init__(self) -> None:
        names = [sub.name for sub in self.sub_problems]
        if not names or len(set(names)) < len(names) or len(names) > np.iinfo(np.uint8).max:
            raise ValueError(f"the sub-problems are {', '.join(names) or 'none'}; allowed: 1 to 255, each once")
        if not 0 <= self.rejected_fraction < 1:
            raise ValueError(f"the rejected fraction is {self.rejected_fraction}; allowed: from 0 to below 1")
        if not 0 <= self.false_fraction < 1:
            raise ValueError(f"the false fraction is {self.false_fraction}; allowed: from 0 to below 1")
        if self.most_angle_deg is not None and not 0 < self.most_angle_deg <= 90:
            raise ValueError(f"the angle is {self.most_angle_deg} degrees; allowed: above 0 up to 90")
        if self.air_below_per_mm is not None and not math.isfinite(self.air_below_per_mm):
            raise ValueError(f"air is below {self.air_below_per_mm} per mm; allowed: a number")
        if self.air_below_per_mm is not None and NOTHING not in names:
            raise ValueError(
                f"air is below {self.air_below_per_mm} per mm, and no sub-problem is air; allowed: with it"
            )
        if not 0 <= self.field_weight < np.inf:
            raise ValueError(f"the weight of the field is {self.field_weight}; allowed: not below 0")

    def price(self, n_bins: int) -> float:
        """Return what a further material costs, in chi square."""
        if not self.is_sparse:
            return 0.0
        if self.false_fraction == 0:
            return float(np.log(n_bins))
        # Half of the time a concentration that is truly 0 is held there; of the rest chi square has one degree.
        n_rivals = max(Counter(len(sub.materials) for sub in self.sub_problems).values())
        return float(chi2.isf(min(2 * self.false_fraction / n_rivals, 1.0), 1))

    @property
    def asks_for_noise(self) -> bool:
        """Whether it compares with the noise of the bins."""
        return self.is_sparse or self.rejected_fraction > 0 or self.field_weight > 0

    @property
    def labels(self) -> tuple[str, ...]:
        """What each number of a label map means."""
        return tuple(sub.name for sub in self.sub_problems)


def exclusive_rule(materials: Sequence[str], *, dissolved: Sequence[str] = (), solvent: str = SOLVENT) -> Rule:
    """Return the rule of the MARS kind: nothing, the solvent, it with one other material, or that material alone.

    Parameters
    ----------
    dissolved : sequence of str
        Materials that stand in the solvent only.
    """
    others = [name for name in materials if name != solvent]
    alone = [SubProblem(materials=(name,)) for name in others if name not in dissolved]
    if solvent not in materials:
        pure = [SubProblem(materials=(name,)) for name in others]
        return Rule(sub_problems=(SubProblem(materials=()), *pure))
    mixed = [SubProblem(materials=(solvent, name)) for name in others]
    return Rule(sub_problems=(SubProblem(materials=()), SubProblem(materials=(solvent,)), *alone, *mixed))


def min_residual_rule(materials: Sequence[str], *, dissolved: Sequence[str] = (), solvent: str = SOLVENT) -> Rule:
    """Return the published minimum-residual rule: what is dissolved is solved for together with the solvent."""
    alone = []
    for name in sorted(materials, key=lambda name: (name != solvent, name in dissolved)):
        least, most = PUBLISHED_BOUNDS.get(name, (0.0, np.inf))
        is_dissolved = name in dissolved and solvent in materials
        alone.append(
            SubProblem(
                materials=(name,), least_g_cm3=least, most_g_cm3=most, then=(solvent, name) if is_dissolved else ()
            )
        )
    return Rule(sub_problems=tuple(alone), is_sparse=False, rejected_fraction=0.0)


def rule_named(
    name: str, materials: Sequence[str], dissolved: Sequence[str], *, subsets: str = "", **changes: Any
) -> Rule:
    """Return "exclusive" or "min-residual" with what is changed of it, or refuse.

    Parameters
    ----------
    subsets : str
        As `parse_sub_problems` reads them; nothing: the rule's own.
    changes
        Fields of `Rule`; what chi square may reject is left at none by "min-residual".
    """
    is_sparse = name == "exclusive"
    make = exclusive_rule if is_sparse else min_residual_rule
    try:
        found = make(materials, dissolved=dissolved)
        if not is_sparse:
            changes["rejected_fraction"] = 0.0
        sub_problems = parse_sub_problems(subsets) if subsets else found.sub_problems
        return replace(found, sub_problems=sub_problems, **changes)
    except ValueError as error:
        raise WrongUsage(str(error)) from error


def parse_sub_problems(text: str) -> tuple[SubProblem, ...]:
    """Read sub-problems such as ``air; water<2.1; bone>1.3; water+iodine``."""
    found = []
    for part in text.split(";"):
        words = [word.strip() for word in part.split("+")]
        if words == [NOTHING]:
            found.append(SubProblem(materials=()))
            continue
        terms = [re.fullmatch(r"([^<>]+?)(?:\s*([<>])\s*([\d.eE+-]+))?", word) for word in words]
        bounded = [term for term in terms if term and term[2]]
        if not all(terms) or (bounded and len(terms) > 1):
            raise WrongUsage(
                f"{part.strip()!r} is no sub-problem; allowed: air, or materials joined by +, "
                "or one material with a bound as in water<2.1"
            )
        sub = SubProblem(materials=tuple(term[1] for term in terms if term))
        for term in bounded:
            value = float(term[3])
            sub = replace(sub, most_g_cm3=value) if term[2] == "<" else replace(sub, least_g_cm3=value)
        found.append(sub)
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Separation:
    """What an exclusive rule makes of bins.

    Attributes
    ----------
    concentrations : (n_materials, ...) float32, g/cm3
    labels : (...) uint8
        Which sub-problem of the rule holds.
    chi_square : (...) float32
        Of that sub-problem, before what `then` asks for; its mean is the number of bins less that of free materials.
    is_rejected : (...) bool
        No sub-problem stood the tests; the likeliest was taken all the same.
    """

    concentrations: NDArray[np.float32]
    labels: NDArray[np.uint8]
    chi_square: NDArray[np.float32]
    is_rejected: NDArray[np.bool_]


def separate(
    values: NDArray[np.floating],
    attenuation: Attenuation,
    rule: Rule,
    *,
    covariance: NDArray[np.floating] | None = None,
) -> Separation:
    """Choose the sub-problem of each voxel and solve it.

    Parameters
    ----------
    values : (n_bins, ...) float
        Linear attenuation, 1/mm. A field of labels looks along the last three axes at most.
    covariance : (n_bins, n_bins) float, optional
        Noise of the bins, its scale included: tests and criteria compare with it. None: all bins count the same, and
        only the least residual can choose.
    """
    if covariance is None and rule.asks_for_noise:
        raise WrongUsage(
            "chi square, information criterion and field compare with the noise; allowed: with the bins' covariance",
            hint="give it, or choose by the least residual",
        )
    judge = _Judge(values, attenuation, rule, covariance)
    flat = values.reshape(len(values), -1)
    n_voxels, shape = flat.shape[1], values.shape[1:]
    labels = np.empty(n_voxels, np.uint8)
    is_rejected, is_air = np.empty(n_voxels, bool), np.zeros(n_voxels, bool)

    def choose(part: slice) -> None:
        labels[part], is_rejected[part], is_air[part] = judge.choose(flat[:, part])

    parts = [(slice(first, first + CHUNK_VOXELS),) for first in range(0, n_voxels, CHUNK_VOXELS)]
    in_threads(choose, parts)
    if rule.field_weight > 0:
        _settle(labels.reshape(shape), is_air.reshape(shape), flat, judge, rule.field_weight)
    concentrations = np.empty((len(attenuation.materials), n_voxels), np.float32)
    chi_square = np.empty(n_voxels, np.float32)

    def finish(part: slice) -> None:
        concentrations[:, part], chi_square[part] = judge.solve(flat[:, part], labels[part])

    in_threads(finish, parts)
    return Separation(
        concentrations=concentrations.reshape(len(concentrations), *shape),
        labels=labels.reshape(shape),
        chi_square=chi_square.reshape(shape),
        is_rejected=is_rejected.reshape(shape),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Tables:
    """Sub-problems as the kernels take them: sizes, members, slopes by support, bounds of scaled concentrations."""

    sizes: NDArray[np.int64]
    members: NDArray[np.int64]
    slopes: NDArray[np.float64]
    bounds: NDArray[np.float64]

    @classmethod
    def of(cls, problem: Problem, subs: Sequence[SubProblem], known: Sequence[str]) -> _Tables:
        indices = [_indices(sub.materials, known) for sub in subs]
        largest = max(1, *map(len, indices))
        if largest > len(problem.columns):
            raise WrongUsage(
                f"a sub-problem has {largest} materials for {len(problem.columns)} bins; allowed: at most one a bin"
            )
        members = np.zeros((len(subs), largest), np.int64)
        slopes = np.zeros((len(subs), 2**largest, largest, largest))
        bounds = np.array([(sub.least_g_cm3, sub.most_g_cm3) for sub in subs])
        for k, (sub, of) in enumerate(zip(subs, indices, strict=True)):
            n = len(of)
            if n:
                problem.refuse_alike(of)
                members[k, :n] = of
                slopes[k, : 2**n, :n, :n] = Supports.non_negative(problem.columns[:, of]).slopes
            if sub.is_bounded:
                bounds[k] *= problem.scale[of[0]]
        return cls(sizes=np.array([len(of) for of in indices]), members=members, slopes=slopes, bounds=bounds)

    @property
    def arguments(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        return self.sizes, self.members, self.slopes, self.bounds


class _Judge:
    """All sub-problems of a rule, for any voxels."""

    def __init__(
        self,
        values: NDArray[np.floating],
        attenuation: Attenuation,
        rule: Rule,
        covariance: NDArray[np.floating] | None,
    ) -> None:
        matrix, known, subs = attenuation.attenuation_per_mm_per_g_cm3, attenuation.materials, rule.sub_problems
        self._rule = rule
        self._problem = Problem.of(values, matrix, covariance, is_any_number=True)
        self._tables = _Tables.of(self._problem, subs, known)
        self._then = None
        if any(sub.then for sub in subs):
            then = [SubProblem(materials=sub.then) if sub.then else sub for sub in subs]
            self._then = _Tables.of(self._problem, then, known)
        n_bins, sizes = len(matrix), np.array([len(sub.materials) for sub in subs])
        self._prices = (sizes * rule.price(n_bins))[:, None]
        # Where as many are free as there are bins, chi square is 0 and rejects nothing.
        degrees = np.maximum(n_bins - np.arange(n_bins + 1), 1)
        self._highest = (
            chi2.isf(rule.rejected_fraction, degrees) if rule.rejected_fraction > 0 else np.full(n_bins + 1, np.inf)
        )

    def choose(self, bins: NDArray[np.floating]) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]:
        """Return the label of each voxel, whether all were rejected, and whether it is too faint to be asked."""
        rule = self._rule
        chi_square, n_free, squares = self._judged(bins)
        is_out = chi_square > self._highest[n_free]
        if rule.most_angle_deg is not None:
            is_something = (self._tables.sizes > 0)[:, None]  # nothing has no angle
            is_out |= is_something & (chi_square > np.sin(np.deg2rad(rule.most_angle_deg)) ** 2 * squares)
        is_rejected = np.logical_and.reduce(is_out)
        costs = chi_square + self._prices
        labels = np.where(is_out & ~is_rejected, np.inf, costs).argmin(axis=0).astype(np.uint8)
        is_air = np.zeros(len(labels), bool)
        if rule.air_below_per_mm is not None:
            is_air = bins.mean(axis=0) < rule.air_below_per_mm
            labels[is_air] = rule.labels.index(NOTHING)
            is_rejected &= ~is_air
        return labels, is_rejected, is_air

    def costs(self, bins: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return minus the log-likelihood of each sub-problem, less a constant: (n_sub_problems, n_voxels)."""
        chi_square, _, _ = self._judged(bins)
        return ((chi_square + self._prices) / 2).astype(np.float32)

    def solve(
        self, bins: NDArray[np.floating], labels: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the concentrations of the labelled sub-problems and the chi square by which they were chosen."""
        projected, squares = self._projected(bins)
        solution, chi_square = np.empty_like(projected), np.empty_like(squares)
        active_sets_cpu.solve_chosen(projected, squares, labels, *self._tables.arguments, solution, chi_square)
        if self._then is not None:
            again = np.empty_like(chi_square)
            active_sets_cpu.solve_chosen(projected, squares, labels, *self._then.arguments, solution, again)
        return solution / self._problem.scale[:, None], chi_square

    def _judged(self, bins: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.int8], NDArray[np.float64]]:
        projected, squares = self._projected(bins)
        chi_square = np.empty((len(self._tables.sizes), len(squares)))
        n_free = np.empty(chi_square.shape, np.int8)
        active_sets_cpu.judge(projected, squares, *self._tables.arguments, chi_square, n_free)
        return chi_square, n_free, squares

    def _projected(self, bins: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        white = multiplied(self._problem.whitener, bins.astype(np.float64))
        return multiplied(self._problem.columns.T, white), np.einsum("bi,bi->i", white, white)


def _indices(names: Sequence[str], known: Sequence[str]) -> list[int]:
    if unknown := [name for name in names if name not in known]:
        raise WrongUsage(f"a sub-problem names {', '.join(unknown)}; allowed: {', '.join(known)}")
    return [known.index(name) for name in names]


def _settle(
    labels: NDArray[np.uint8],
    is_air: NDArray[np.bool_],
    bins: NDArray[np.floating],
    judge: _Judge,
    weight: float,
) -> None:
    """Settle labels among neighbours, in place: by turns each voxel takes the label that costs least beside the others.

    A voxel whose neighbours all have its label has what costs least already, and so has one whose neighbours have not
    changed since it was asked.
    """
    shape = (1, 1, 1, *labels.shape)[-3:]
    if np.prod(shape) != labels.size:
        raise WrongUsage(f"labels of shape {labels.shape} have no neighbours; allowed: (z, y, x) and fewer axes")
    padded = np.full([n + 2 for n in shape], -1, np.int16)
    inside = (slice(1, -1),) * 3
    padded[inside] = labels.reshape(shape)
    voxel = np.zeros(padded.shape, np.int64)
    voxel[inside] = np.arange(labels.size).reshape(shape)
    is_open = np.zeros(padded.shape, bool)
    is_open[inside] = ~is_air.reshape(shape)
    steps = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    steps = steps[np.any(steps != 0, axis=1)]
    around = steps @ (np.array(padded.strides) // padded.itemsize)
    flat, voxel, is_open = padded.reshape(-1), voxel.reshape(-1), is_open.reshape(-1)
    places = _contested(flat, np.flatnonzero(is_open), around)
    for _ in range(MOST_SWEEPS):
        is_changed = np.zeros(len(places), bool)
        for first in range(0, len(places), CHUNK_VOXELS):
            part = slice(first, first + CHUNK_VOXELS)
            costs = judge.costs(bins[:, voxel[places[part]]])
            active_sets_cpu.settle(flat, places[part], around, costs, weight, is_changed[part])
        changed = places[is_changed]
        if not len(changed):
            break
        is_asked = np.zeros(len(flat), bool)
        for step in around:
            is_asked[changed + step] = True
        places = np.flatnonzero(is_asked & is_open)
    labels.reshape(shape)[:] = padded[inside]


def _contested(labels: NDArray[np.int16], places: NDArray[np.int64], around: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the places with a neighbour of another label."""
    is_contested = np.empty(len(places), bool)
    active_sets_cpu.find_contested(labels, places, around, is_contested)
    return places[is_contested]
