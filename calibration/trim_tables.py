"""Equalisation from tables: thresholds measured at the lowest and the highest trim code predict the best code of each.

The prediction uses the two thresholds only. Where a table also holds the trim that others chose and the threshold they
then measured, these columns check the prediction, and never make it: where our code is theirs, their measurement says
how far a straight line between two trims is from the truth. A second figure, named as such, learns the trim DAC's
common curve from one half of the pixels and is judged on the other.

# Ref: columns x, y, THL at trim 0, THL at trim 15, chosen 4-bit trim, THL afterwards: Vindaar/TimepixAnalysis
#      @961ee290, `thresholdMeansN.txt`; sigma of 4.41 and 1.96 DAC after the published equalisation: reference on
#      spectral CT, section 4.7, row 10.
# Ref: the best code is at most half a step away, which is a uniform law: sigma = step / sqrt(12).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from firmware_iface.chip import COLS, ROWS
from firmware_iface.errors import BadFile, WrongUsage

HIGHEST_TRIM = 15
"""Of the Timepix, whose trims have 4 bits; the Medipix3RX goes to 31."""
NAME = "thresholdmeans"
"""How the name of a table's file begins, in small or capital letters."""
MIDDLE_SHARE = 0.5
MINIMUM_PIXELS = 20
"""A curve or a spread of fewer pixels says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrimTable:
    """Thresholds of one chip's pixels as a table gives them; only pixels that can be trimmed.

    Attributes
    ----------
    x, y : (n_pixels,) int64
    lowest_dac, highest_dac : (n_pixels,) float64
        Threshold at trim 0 and at `highest_trim`.
    chosen_trim, chosen_dac : (n_pixels,) float64
        The trim that others chose, and the threshold they measured with it; NaN where the table does not say.
    highest_trim : int
    n_broken, n_repeated, n_dead, n_missing : int
        Lines that are no pixel, pixels named twice (the first counts), pixels without a threshold at either end or
        whose trim moves it the wrong way, and pixels of the matrix that the table lacks.
    """

    chip: str
    x: NDArray[np.int64]
    y: NDArray[np.int64]
    lowest_dac: NDArray[np.float64]
    highest_dac: NDArray[np.float64]
    chosen_trim: NDArray[np.float64]
    chosen_dac: NDArray[np.float64]
    highest_trim: int
    n_broken: int
    n_repeated: int
    n_dead: int
    n_missing: int

    @property
    def step_dac(self) -> NDArray[np.float64]:
        """Mean step of each pixel's trim: (n_pixels,) float64; negative where a higher code lowers the threshold."""
        return (self.highest_dac - self.lowest_dac) / self.highest_trim


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrimPrediction:
    """The best code of each pixel, and where its threshold should then stand.

    Attributes
    ----------
    target_dac : float
        Where the thresholds are brought; the one that leaves the smallest spread.
    trims : (n_pixels,) int64
    edges_dac : (n_pixels,) float64
    is_out_of_range : (n_pixels,) bool
        The target is more than half a step outside what the trims of this pixel reach.
    limit_dac : float
        Quantisation limit: rms step / sqrt(12).
    """

    target_dac: float
    trims: NDArray[np.int64]
    edges_dac: NDArray[np.float64]
    is_out_of_range: NDArray[np.bool_]
    limit_dac: float

    @property
    def sigma_dac(self) -> float:
        """Expected standard deviation over all pixels, those out of range included."""
        return float(self.edges_dac.std())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrimCheck:
    """What the columns of the chosen trim and the threshold after it say about a prediction.

    Attributes
    ----------
    published_sigma_dac : float
        Spread that others reached.
    n_agreeing : int
        Pixels for which they chose the code that is predicted here.
    agreeing_sigma_dac : float
        Spread of their measured thresholds over these pixels.
    residual_mean_dac, residual_sigma_dac, residual_robust_sigma_dac : float
        Measured minus predicted over these pixels: mean, standard deviation, and 1.4826 times the median distance from
        the median, which outliers do not move. It holds the non-linearity of the trims and the noise of the
        measurement, which cannot be told apart here.
    sigma_with_residuals_dac : float
        Expected spread and residuals added in squares: what a measurement after loading these trims should show.
    curve_dac : (n_codes,) float64
        Median of measured minus straight line by chosen code: the trim DAC's common curve, and NaN for codes too few
        pixels have. At the ends, pixels whose noise drove them there pull it.
    sigma_with_curve_dac : float
        The same as `sigma_with_residuals_dac` for trims chosen with the curve, which was learnt from every other pixel
        and judged on the rest.
    """

    published_sigma_dac: float
    n_agreeing: int
    agreeing_sigma_dac: float
    residual_mean_dac: float
    residual_sigma_dac: float
    residual_robust_sigma_dac: float
    sigma_with_residuals_dac: float
    curve_dac: NDArray[np.float64]
    sigma_with_curve_dac: float


def find_tables(folder: str | Path) -> dict[str, Path]:
    """Find the tables below a folder, by the name of each chip: its folder where that tells, else its file too.

    Raises
    ------
    BadFile
        There is no such folder, or no table in it.
    """
    root = Path(folder)
    if root.is_file():
        return {root.resolve().parent.name: root}
    if not root.is_dir():
        raise BadFile(f"there is no folder {root}", hint="name a folder with files thresholdMeansN.txt")
    files = sorted(path for path in root.rglob("*.txt") if path.name.lower().startswith(NAME) and path.is_file())
    if not files:
        raise BadFile(
            f"{root} holds no table thresholdMeansN.txt, nor do the folders in it",
            hint="a table has the columns x, y, threshold at trim 0, threshold at the highest trim",
        )
    folders = [path.resolve().parent for path in files]
    found: dict[str, Path] = {}
    for path, parent in zip(files, folders, strict=True):
        short = parent.name if folders.count(parent) == 1 else f"{parent.name}/{path.stem}"
        is_unique = short not in found and [p.name for p in set(folders)].count(parent.name) == 1
        found[short if is_unique else path.relative_to(root).with_suffix("").as_posix()] = path
    return found


def read_table(path: str | Path, *, chip: str | None = None, highest_trim: int = HIGHEST_TRIM) -> TrimTable:
    """Read one table; lines that are no pixel are counted and left out.

    Numbers stand between blanks, tabs, commas or semicolons; what follows a # is a comment. Four columns are needed,
    and six for the check; further ones are ignored.

    Raises
    ------
    BadFile
        It cannot be read, no line has four numbers, or no pixel can be trimmed.
    WrongUsage
        A chosen trim lies above `highest_trim`.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror}") from error
    rows = [row for line in lines if (row := line.split("#")[0].strip())]
    values, n_broken = _numbers(rows)
    if not len(values):
        raise BadFile(
            f"{path}: none of its {len(rows)} lines is a pixel; needed: x, y, threshold at trim 0 and at trim "
            f"{highest_trim}"
        )
    _, first = np.unique(values[:, :2], axis=0, return_index=True)
    n_repeated = len(values) - len(first)
    values = values[np.sort(first)]
    sides = 1 + values[:, :2].max(axis=0).astype(int)
    n_missing = int(np.prod([-(-side // size) * size for side, size in zip(sides, (COLS, ROWS), strict=True)]))
    n_missing -= len(values)
    reach = values[:, 3] - values[:, 2]
    is_measured = (values[:, 2:4] > 0).all(axis=1)
    if not is_measured.any() or (sign := np.sign(np.median(reach[is_measured]))) == 0:
        raise BadFile(f"{path}: the trims move no threshold of its {len(values)} pixels; nothing can be predicted")
    is_usable = is_measured & (sign * reach > 0)
    kept = values[is_usable]
    chosen = np.where((kept[:, 5] > 0) & (kept[:, 4] >= 0), kept[:, 4], np.nan)
    if np.nanmax(chosen, initial=0) > highest_trim:
        raise WrongUsage(
            f"{path}: the chosen trims go up to {np.nanmax(chosen):g}; allowed: 0 to {highest_trim}, the trim of the "
            "fourth column",
            hint="say what the highest trim was (--highest-trim)",
        )
    return TrimTable(
        chip=Path(path).resolve().parent.name if chip is None else chip,
        x=kept[:, 0].astype(np.int64),
        y=kept[:, 1].astype(np.int64),
        lowest_dac=kept[:, 2],
        highest_dac=kept[:, 3],
        chosen_trim=chosen,
        chosen_dac=np.where(np.isfinite(chosen), kept[:, 5], np.nan),
        highest_trim=highest_trim,
        n_broken=n_broken,
        n_repeated=n_repeated,
        n_dead=int(np.count_nonzero(~is_usable)),
        n_missing=n_missing,
    )


def predict(table: TrimTable, *, curve_dac: NDArray[np.float64] | None = None) -> TrimPrediction:
    """Choose each pixel's code from its two thresholds, a straight line between them.

    Parameters
    ----------
    curve_dac : (n_codes,) float64, optional
        What a common curve adds to the line at each code.
    """
    lowest, step = table.lowest_dac, table.step_dac
    bend = np.zeros(table.highest_trim + 1) if curve_dac is None else np.nan_to_num(curve_dac)

    def edges(target_dac: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        best = np.clip(np.rint((target_dac - lowest) / step), 0, table.highest_trim).astype(np.int64)
        if curve_dac is not None:
            near = np.clip(best + np.arange(-2, 3)[:, None], 0, table.highest_trim)
            at = lowest + near * step + bend[near]
            best = np.take_along_axis(near, np.abs(at - target_dac).argmin(axis=0)[None], axis=0)[0]
        return best, lowest + best * step + bend[best]

    middle = np.median(lowest + MIDDLE_SHARE * table.highest_trim * step)
    candidates = middle + np.linspace(-0.5, 0.5, 11) * float(np.abs(np.median(step)))
    target = float(min(candidates, key=lambda candidate: edges(candidate)[1].std()))
    trims, at = edges(target)
    return TrimPrediction(
        target_dac=target,
        trims=trims,
        edges_dac=at,
        is_out_of_range=np.abs(at - target) > 0.5 * np.abs(step) + np.abs(bend).max(),
        limit_dac=float(np.sqrt(np.mean(step**2) / 12)),
    )


def check(table: TrimTable, prediction: TrimPrediction) -> TrimCheck | None:
    """Compare a prediction with the columns of the chosen trim; None where fewer than a few pixels have both."""
    is_known = np.isfinite(table.chosen_trim)
    agrees = is_known & (table.chosen_trim == prediction.trims)
    if np.count_nonzero(agrees) < MINIMUM_PIXELS:
        return None
    off_line = table.chosen_dac - table.lowest_dac - table.chosen_trim * table.step_dac
    residual = (table.chosen_dac - prediction.edges_dac)[agrees]
    learns = (table.x + table.y) % 2 == 0
    curve = _curve_dac(table, off_line, is_known & learns)
    bent = predict(table, curve_dac=curve)
    judged = is_known & ~learns & (table.chosen_trim == bent.trims)
    left = (table.chosen_dac - bent.edges_dac)[judged]
    left_sigma = float(left.std()) if len(left) >= MINIMUM_PIXELS else float("nan")
    return TrimCheck(
        published_sigma_dac=float(table.chosen_dac[is_known].std()),
        n_agreeing=int(np.count_nonzero(agrees)),
        agreeing_sigma_dac=float(table.chosen_dac[agrees].std()),
        residual_mean_dac=float(residual.mean()),
        residual_sigma_dac=float(residual.std()),
        residual_robust_sigma_dac=_robust_sigma(residual),
        sigma_with_residuals_dac=float(np.hypot(prediction.sigma_dac, residual.std())),
        curve_dac=_curve_dac(table, off_line, is_known),
        sigma_with_curve_dac=float(np.hypot(bent.sigma_dac, left_sigma)),
    )


def figures(folder: str | Path, *, highest_trim: int = HIGHEST_TRIM) -> dict[str, Mapping[str, float | int]]:
    """Return what every table below a folder predicts, and what checks it, by chip: names to numbers."""
    found: dict[str, Mapping[str, float | int]] = {}
    for chip, path in find_tables(folder).items():
        table = read_table(path, chip=chip, highest_trim=highest_trim)
        prediction = predict(table)
        of_chip: dict[str, float | int] = {
            "sigma_dac": prediction.sigma_dac,
            "limit_dac": prediction.limit_dac,
            "target_dac": prediction.target_dac,
            "n_pixels": len(table.x),
            "n_out_of_range": int(np.count_nonzero(prediction.is_out_of_range)),
            "n_broken": table.n_broken,
            "n_repeated": table.n_repeated,
            "n_dead": table.n_dead,
            "n_missing": table.n_missing,
        }
        checked = check(table, prediction)
        if checked is not None:
            of_chip |= {name: getattr(checked, name) for name in TrimCheck.__dataclass_fields__ if name != "curve_dac"}
        found[chip] = of_chip
    return found


def text(found: Mapping[str, Mapping[str, float | int]]) -> str:
    """Put the figures of all chips into one table for people."""
    rows = {
        "expected sigma, two columns only": "sigma_dac",
        "  quantisation limit": "limit_dac",
        "  pixels": "n_pixels",
        "  of them out of trim range": "n_out_of_range",
        "  left out: no threshold": "n_dead",
        "  missing from the matrix": "n_missing",
        "  lines that are no pixel": "n_broken",
        "  lines of a pixel named before": "n_repeated",
        "published sigma after equalisation": "published_sigma_dac",
        "check: pixels with the same code": "n_agreeing",
        "  their measured sigma": "agreeing_sigma_dac",
        "  measured - predicted, sigma": "residual_sigma_dac",
        "  the same, without outliers": "residual_robust_sigma_dac",
        "expected sigma with these residuals": "sigma_with_residuals_dac",
        "  and with the trims' common curve": "sigma_with_curve_dac",
    }
    lines = [f"{'DAC codes':<36}" + "".join(f" {chip:>16}" for chip in found)]
    for title, name in rows.items():
        cells = [of_chip.get(name, "-") for of_chip in found.values()]
        lines.append(
            f"{title:<36}" + "".join(f" {cell:>16.2f}" if isinstance(cell, float) else f" {cell:>16}" for cell in cells)
        )
    return "\n".join(lines)


def _numbers(rows: list[str]) -> tuple[NDArray[np.float64], int]:
    """Return the pixels as (n, 6), NaN for columns that are not there, and how many lines are none."""
    pixels, n_broken = [], 0
    for row in rows:
        try:
            numbers = [float(word) for word in re.split(r"[\s,;]+", row.strip(" \t,;"))]
        except ValueError:
            n_broken += 1
            continue
        is_place = len(numbers) >= 4 and all(number >= 0 and number == int(number) for number in numbers[:2])
        if not is_place or not np.isfinite(numbers[:4]).all() or max(numbers[:2]) > 1 << 14:
            n_broken += 1
            continue
        pixels.append((numbers + [np.nan] * 2)[:6])
    return np.asarray(pixels, dtype=np.float64).reshape(-1, 6), n_broken


def _curve_dac(table: TrimTable, off_line: NDArray[np.float64], is_used: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the median distance from the straight line at each code: (n_codes,) float64."""
    curve = np.full(table.highest_trim + 1, np.nan)
    for code in range(table.highest_trim + 1):
        here = off_line[is_used & (table.chosen_trim == code)]
        if len(here) >= MINIMUM_PIXELS:
            curve[code] = np.median(here)
    return curve


def _robust_sigma(values: NDArray[np.float64]) -> float:
    return float(1.4826 * np.median(np.abs(values - np.median(values))))
