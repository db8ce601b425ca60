"""The problem of Mory 2018 by itself: three materials in squares, five bins, exact chords, and what errors are made of.

A square of water, and in it one of iodine and one of gadolinium, 10 mg/mL each, seen by parallel rays; pixels are 1 mm
at 256 x 256, and twice that at half the number. The scanner's model is read from the folder that Mory's code has it in,
or from another of the same form.

# Ref: Mory et al. 2018, Phys. Med. Biol. 63, 235001; `SimulatePreps.m` and `makePlots.m` of
#      github.com/cyrilmory/OneStepSpectralCT (Apache-2.0) for the phantom, the bins, the rays and the tolerances.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import io, ndimage, optimize
from scipy.special import ndtr

from reconstruction.scan_geometry import ScanGeometry
from reconstruction.spectral.model import SpectralModel
from reconstruction.volume import Grid

MATERIALS = ("iodine", "gadolinium", "water")
DENSITIES_G_CM3 = np.array([4.933, 7.9, 1.0])
"""By which Mory's volume fractions become concentrations."""
BIN_EDGES_KEV = ((30, 50), (51, 61), (62, 71), (72, 82), (83, None))
"""First and last recorded energy of each bin."""
CONTRAST_G_CM3 = 0.01
EDGE_MM = 256.0
MG_PER_G = 1000.0
CROPPED_PIXELS = 2
SHARPEST_PIXELS = 0.05
"""Gaussian blur below which an edge has none that its pixels tell."""
OUTLIER_SIGMAS = 6.0
SD_OF_MAD = 1.4826

_Array = NDArray[np.floating[Any]]


def read_scanner(path: Path) -> tuple[SpectralModel, NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Read a scanner: a folder of .mat files as Mory's, or one .npz with the same three arrays.

    Returns
    -------
    model : SpectralModel
    open_counts : (n_bins,) float64
    arrays : dict
        `incidentSpectrum` (1, n), `detectorResponse` (recorded, incident), `materialAttenuations` (n, materials), 1/mm.
    """
    names = ("incidentSpectrum", "detectorResponse", "materialAttenuations")
    if path.is_dir():
        arrays = {name: np.asarray(io.loadmat(path / f"{name}.mat")[name], np.float64) for name in names}
    else:
        with np.load(path) as stored:
            arrays = {name: np.asarray(stored[name], np.float64) for name in names}
    seen = arrays["detectorResponse"] * arrays["incidentSpectrum"].ravel()
    by_bin = np.stack([seen[first - 1 : last].sum(axis=0) for first, last in BIN_EDGES_KEV])
    open_counts = by_bin.sum(axis=1)
    model = SpectralModel(
        materials=MATERIALS,
        bins=tuple(f"{first} keV" for first, _ in BIN_EDGES_KEV),
        weights=by_bin / open_counts[:, None],
        attenuation_per_mm_per_g_cm3=arrays["materialAttenuations"] / DENSITIES_G_CM3,
        energies_kev=np.arange(1.0, 1 + by_bin.shape[1]),
    )
    return model, open_counts, arrays


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MoryProblem:
    """A scan of the squares.

    Attributes
    ----------
    n : int
        Pixels along an edge; a multiple of 8.
    paths : (3, n_views, 1, n_rays) float64, mm g/cm3
    counts : (n_bins, n_views, 1, n_rays) float32
    """

    n: int
    model: SpectralModel
    open_counts: NDArray[np.float64]
    arrays: dict[str, NDArray[np.float64]]
    angles_rad: NDArray[np.float64]
    paths: NDArray[np.float64]
    counts: NDArray[np.float32]

    @classmethod
    def simulate(cls, scanner: Path, *, n: int = 256, seed: int = 0) -> MoryProblem:
        """Draw the counts: exact line integrals through the squares, Poisson noise."""
        model, open_counts, arrays = read_scanner(scanner)
        n_views, n_rays = math.ceil(4 * n / math.sqrt(2)), round(math.sqrt(2) * n)
        angles = np.arange(n_views) * np.pi / n_views
        places = (np.arange(n_rays) - (n_rays - 1) / 2) * (EDGE_MM / n)
        paths = np.stack([value * chords(angles, places, square) for value, square in SQUARES])[:, :, None]
        expected = open_counts[:, None, None, None] * model.transmission(paths)
        counts = np.random.default_rng(seed).poisson(expected).astype(np.float32)
        return cls(
            n=n, model=model, open_counts=open_counts, arrays=arrays, angles_rad=angles, paths=paths, counts=counts
        )

    @property
    def voxel_mm(self) -> float:
        """Edge of a pixel, of the image and of the detector."""
        return EDGE_MM / self.n

    @property
    def grid(self) -> Grid:
        """Of the image."""
        return Grid(shape=(1, self.n, self.n), voxel_mm=self.voxel_mm)

    @property
    def scan(self) -> ScanGeometry:
        """The rays."""
        return ScanGeometry.parallel(self.angles_rad, rows=1, cols=self.counts.shape[-1], pitch_mm=self.voxel_mm)

    @property
    def truth(self) -> NDArray[np.float64]:
        """(3, 1, n, n), g/cm3: no pixel is shared by two squares."""
        truth = np.zeros((3, 1, self.n, self.n))
        for k, (value, _) in enumerate(SQUARES):
            truth[k, 0][self.square(k)] = value
        return truth

    def square(self, material: int, crop: int = 0) -> tuple[slice, slice]:
        """Return the pixels (y, x) of a material's square, less some at its edges."""
        first_x, last_x, first_y, last_y = SQUARES[material][1]
        at = [round((edge + EDGE_MM / 2) / self.voxel_mm) for edge in (first_y, last_y, first_x, last_x)]
        return slice(at[0] + crop, at[1] - crop), slice(at[2] + crop, at[3] - crop)

    def statistics(self, volume: _Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and standard deviation of each material in its square, g/cm3; of water outside the others."""
        means, spreads = np.empty(3), np.empty(3)
        for k in range(3):
            inside = np.zeros((self.n, self.n), bool)
            inside[self.square(k, CROPPED_PIXELS)] = True
            if k == 2:
                for other in range(2):
                    inside[self.square(other, -CROPPED_PIXELS)] = False
            values = np.asarray(volume[k, 0], np.float64)[inside]
            means[k], spreads[k] = values.mean(), values.std()
        return means, spreads

    def worst_share(self, volume: _Array) -> float:
        """Return the largest relative error of the three means."""
        means, _ = self.statistics(volume)
        truth = np.array([value for value, _ in SQUARES])
        return float(np.abs(means / truth - 1).max())

    def edge_sd_mm(self, volume: _Array, material: int) -> float:
        """Return the Gaussian blur that explains the mean of the four edges of a material's square."""
        rows, cols = self.square(material)
        image = np.asarray(volume[material, 0], np.float64)
        half = (rows.stop - rows.start) // 2 - 1
        reach = min(half, *(min(side.start, self.n - side.stop) for side in (rows, cols)))
        inner_rows, inner_cols = (slice(s.start + CROPPED_PIXELS, s.stop - CROPPED_PIXELS) for s in (rows, cols))
        profiles = [
            image[rows.start - reach : rows.start + reach, inner_cols].mean(axis=1),
            image[rows.stop - reach : rows.stop + reach, inner_cols].mean(axis=1)[::-1],
            image[inner_rows, cols.start - reach : cols.start + reach].mean(axis=0),
            image[inner_rows, cols.stop - reach : cols.stop + reach].mean(axis=0)[::-1],
        ]
        profile = np.mean(profiles, axis=0)
        places = (np.arange(2 * reach) - reach + 0.5) * self.voxel_mm

        def edge(x: _Array, low: float, high: float, sd: float) -> Any:
            return low + (high - low) * _mean_of_step(x, sd, self.voxel_mm)

        start = (profile[:3].mean(), profile[-3:].mean(), self.voxel_mm)
        sharpest = SHARPEST_PIXELS * self.voxel_mm
        bounds = (-np.inf, -np.inf, sharpest), (np.inf, np.inf, np.inf)
        (_, _, sd), *_ = optimize.curve_fit(edge, places, profile, p0=start, bounds=bounds)
        return float(sd)

    def ray_figures(self, paths: _Array) -> dict[str, Any]:
        """Return how the errors of paths compare with the Cramer-Rao bound, over the rays that meet the water.

        The spread is robust: 1.4826 times the median distance from the median. A false minimum is a ray with a material
        more than six bounds from the truth.
        """
        met = self.paths[2] > 0
        truth = self.paths[:, met]
        bound = np.linalg.inv(self.model.fisher(truth, self.open_counts).transpose(2, 0, 1))
        errors = (np.asarray(paths, np.float64)[:, met] - truth) / np.sqrt(np.einsum("rkk->kr", bound))
        spread = SD_OF_MAD * np.median(np.abs(errors - np.median(errors, axis=1, keepdims=True)), axis=1)
        is_far = ~(np.abs(errors) <= OUTLIER_SIGMAS).all(axis=0)
        return {
            "sd_over_crlb": by_material(spread),
            "bias_over_crlb": by_material(np.median(errors, axis=1)),
            "false_minima": float(is_far.mean()),
        }


_UNIT = EDGE_MM / 8
SQUARES = (
    (CONTRAST_G_CM3, (-2 * _UNIT, -1 * _UNIT, -2 * _UNIT, -1 * _UNIT)),
    (CONTRAST_G_CM3, (1 * _UNIT, 2 * _UNIT, 0.0, 1 * _UNIT)),
    (1.0, (-3 * _UNIT, 3 * _UNIT, -3 * _UNIT, 3 * _UNIT)),
)
"""g/cm3 of each material, and its square: first and last x, first and last y, mm."""


def chords(angles_rad: _Array, places_mm: _Array, square: tuple[float, float, float, float]) -> NDArray[np.float64]:
    """Return how long each ray runs in a rectangle: (n_views, n_rays) mm; rays as `ScanGeometry.parallel` has them."""
    cos, sin = np.cos(angles_rad)[:, None], np.sin(angles_rad)[:, None]
    first_x, last_x, first_y, last_y = square
    entry, leave = (
        np.full((len(angles_rad), len(places_mm)), -np.inf),
        np.full((len(angles_rad), len(places_mm)), np.inf),
    )
    for base, along, first, last in (
        (places_mm * cos, -sin, first_x, last_x),
        (places_mm * sin, cos, first_y, last_y),
    ):
        is_across = np.abs(along) > 1e-12
        slope = np.where(is_across, along, 1)
        ends = np.stack([(first - base) / slope, (last - base) / slope])
        is_within = (base > first) & (base < last)
        entry = np.maximum(entry, np.where(is_across, ends.min(axis=0), np.where(is_within, -np.inf, np.inf)))
        leave = np.minimum(leave, np.where(is_across, ends.max(axis=0), np.where(is_within, np.inf, -np.inf)))
    return np.maximum(leave - entry, 0)


def _mean_of_step(x: _Array, sd: float, width: float) -> _Array:
    """Return the mean over pixels of a step at 0 that is blurred by a Gaussian."""

    def integral(at: _Array) -> _Array:
        return at * ndtr(at / sd) + sd * np.exp(-((at / sd) ** 2) / 2) / math.sqrt(2 * math.pi)

    return (integral(x + width / 2) - integral(x - width / 2)) / width


def blurred(volume: _Array, sd_pixels: _Array) -> NDArray[np.float64]:
    """Return the volume with each material blurred by a Gaussian of its own."""
    return np.stack(
        [
            ndimage.gaussian_filter(np.asarray(image, np.float64), (0, sd, sd), mode="nearest")
            for image, sd in zip(volume, sd_pixels, strict=True)
        ]
    )


def mtf50_per_mm(sd_mm: float) -> float:
    """Return where the transfer of a Gaussian blur is one half, 1/mm."""
    return math.sqrt(math.log(2) / 2) / (math.pi * sd_mm)


def by_material(values: Any, factor: float = 1.0) -> dict[str, float]:
    """Return figures by the names of the materials, to four digits."""
    return {name: float(f"{factor * value:.4g}") for name, value in zip(MATERIALS, values, strict=True)}
