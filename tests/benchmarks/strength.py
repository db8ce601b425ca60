"""How strong priors are to be, in units of the noise: one number for any dose, resolution and object?

Two objects in a parallel beam, seen by a made-up tube and four bins: `squares` is Mory's (192 mm of water with squares
of iodine and gadolinium), `vials` 30 mm of water with small tubes of little of both. Paths are exact chords with noise
of their Cramer-Rao bound. They are reconstructed (`weighted`), or filtered back-projections of them are denoised
(`denoised`), at strengths a factor of root 2 apart. The error is the root mean square over the object, of each material
in units of its noise. `best` is the strength with the least; `loss_percent` how much more the usual strength has.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from numpy.typing import NDArray

from reconstruction.fdk import parallel_backprojection
from reconstruction.projector import Projector
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.spectral.denoise import USUAL, denoise, noise_covariance
from reconstruction.spectral.model import SpectralModel
from reconstruction.spectral.strength import STRENGTHS
from reconstruction.spectral.weighted import noise_basis, weighted
from reconstruction.symmetric import packed
from reconstruction.volume import Grid

MATERIALS = ("water", "iodine", "gadolinium")
EDGES_KEV = (20.0, 34.0, 51.0, 65.0, 121.0)
DOSES = (0.3, 0.03)
VIEWS_PER_PIXEL = 1.5
TIERS = ("weighted", "denoised")
LOWEST, HIGHEST = 0.35, 5.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A disc or a square of constant concentrations, added to what is there."""

    x_mm: float
    y_mm: float
    half_mm: float
    g_cm3: tuple[float, float, float]
    is_square: bool = False

    def chords_mm(self, angles_rad: NDArray, s_mm: NDArray) -> NDArray[np.float64]:
        """Return the lengths of rays (angle, distance from the axis) in it."""
        cosine, sine = np.cos(angles_rad)[:, None], np.sin(angles_rad)[:, None]
        away = s_mm - self.x_mm * cosine - self.y_mm * sine
        if not self.is_square:
            return 2 * np.sqrt(np.maximum(self.half_mm**2 - away**2, 0))
        # points are away (cosine, sine) + t (-sine, cosine); t between both pairs of edges
        low, high = np.full(away.shape, -np.inf), np.full(away.shape, np.inf)
        for start, slope in ((away * cosine, -sine), (away * sine, cosine)):
            slope = np.where(np.abs(slope) < 1e-9, 1e-9, slope)
            ends = np.stack([(-self.half_mm - start) / slope, (self.half_mm - start) / slope])
            low, high = np.maximum(low, ends.min(0)), np.minimum(high, ends.max(0))
        return np.maximum(high - low, 0)

    def covers(self, x_mm: NDArray, y_mm: NDArray) -> NDArray[np.bool_]:
        """Return which points lie in it."""
        x, y = x_mm - self.x_mm, y_mm - self.y_mm
        inside = np.maximum(np.abs(x), np.abs(y)) if self.is_square else np.hypot(x, y)
        return inside <= self.half_mm


SQUARES = (
    Part(x_mm=0, y_mm=0, half_mm=96, g_cm3=(1, 0, 0), is_square=True),
    Part(x_mm=-40, y_mm=0, half_mm=16, g_cm3=(0, 0.01, 0), is_square=True),
    Part(x_mm=40, y_mm=0, half_mm=16, g_cm3=(0, 0, 0.01), is_square=True),
)
VIALS = (
    Part(x_mm=0, y_mm=0, half_mm=15, g_cm3=(1.0, 0, 0)),
    *(
        Part(x_mm=9 * np.cos(a), y_mm=9 * np.sin(a), half_mm=3, g_cm3=g)
        for a, g in zip(
            np.arange(6) * np.pi / 3,
            ((0, 0.002, 0), (0, 0.008, 0), (0.1, 0, 0), (0, 0, 0.002), (0, 0, 0.008), (-0.1, 0.004, 0.004)),
            strict=True,
        )
    ),
)
OBJECTS = {"squares": (SQUARES, 256.0, 4e5), "vials": (VIALS, 36.0, 1e4)}
"""Parts, edge of the image in mm, and photons of the open beam per ray at full dose."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """Noisy paths, what they tell, and the truth."""

    A: Projector
    paths: NDArray[np.float32]
    information: NDArray[np.float32]
    truth: NDArray[np.float32]
    judged: NDArray[np.bool_]
    noise: NDArray[np.float64]

    def error(self, volume: NDArray[np.floating]) -> float:
        """Return the root mean square over object and materials, in units of the noise."""
        difference = (volume - self.truth)[:, self.judged] / self.noise[:, None]
        return float(np.sqrt((difference**2).mean()))


def scanner() -> SpectralModel:
    """Return a tube of 120 kV behind some metal, and bins that put a quarter of their counts too low."""
    energies = np.arange(20.0, 121.0)
    photons = (120.5 - energies) / energies * np.exp(-((30 / energies) ** 3))
    edges = np.array(EDGES_KEV)
    right = (energies >= edges[:-1, None]) & (energies < edges[1:, None])
    above = np.clip((energies - edges[:, None]) / energies, 0, 1)
    return SpectralModel.of_spectrum((0.75 * right + 0.25 * (above[:-1] - above[1:])) * photons, energies, MATERIALS)


def make_work(name: str, n: int, dose: float, seed: int) -> Work:
    """Return an object's paths over n x n pixels."""
    parts, edge_mm, photons = OBJECTS[name]
    pitch_mm = edge_mm / n
    n_views, cols = int(VIEWS_PER_PIXEL * n), int(1.1 * n)
    angles = np.arange(n_views) * np.pi / n_views
    scan = ScanGeometry.parallel(angles, rows=1, cols=cols, pitch_mm=pitch_mm)
    grid = Grid(shape=(1, n, n), voxel_mm=pitch_mm)
    s_mm = (np.arange(cols) - (cols - 1) / 2) * pitch_mm
    chords = [np.multiply.outer(part.g_cm3, part.chords_mm(angles, s_mm)) for part in parts]
    exact = np.sum(chords, axis=0)[:, :, None]
    _, y, x = grid.axes_mm()
    fine = (np.arange(8) - 3.5) / 8 * pitch_mm
    points = np.meshgrid((y[:, None] + fine).ravel(), (x[:, None] + fine).ravel(), indexing="ij")
    means = [part.covers(points[1], points[0]).reshape(n, 8, n, 8).mean((1, 3)) for part in parts]
    shares = [np.multiply.outer(part.g_cm3, mean) for part, mean in zip(parts, means, strict=True)]
    truth = np.sum(shares, axis=0)[:, None]
    model = scanner()
    share = photons * dose / len(model.bins)
    F = model.fisher(exact, np.full(len(model.bins), share))
    covariance = np.linalg.inv(np.moveaxis(F, (0, 1), (-2, -1)))
    chance = np.random.default_rng(seed).normal(size=(*exact.shape[1:], len(MATERIALS), 1))
    noise = np.moveaxis((np.linalg.cholesky(covariance) @ chance)[..., 0], -1, 0)
    A = Projector(scan, grid, n_channels=len(MATERIALS))
    paths, information = (exact + noise).astype(np.float32), packed(F).astype(np.float32)
    T = noise_basis(A, paths, information)
    return Work(
        A=A,
        paths=paths,
        information=information,
        truth=truth.astype(np.float32),
        judged=(means[0] > 0)[None],
        noise=np.sqrt(np.diag(T @ T.T)),
    )


def filtered(work: Work) -> NDArray[np.float32]:
    """Return the filtered back-projection of the paths."""
    n_views, pitch_mm = work.paths.shape[1], work.A.grid.voxel_mm
    angles = np.arange(n_views) * np.pi / n_views
    made = parallel_backprojection(work.paths, angles, work.A.grid, pitch_mm=pitch_mm, window="hann")
    while True:
        try:
            next(made)
        except StopIteration as end:
            return end.value


def curve(work: Work, tier: str, prior: str, strengths: list[float], n_iterations: int) -> list[float]:
    """Return the error at every strength."""
    volume = filtered(work)
    covariance = noise_covariance(volume)

    def made(strength: float) -> NDArray[np.floating]:
        if tier == "denoised":
            return denoise(volume, prior=prior, strength=strength, covariance=covariance)[0]
        options = {"prior": prior, "strength": strength, "start": volume, "n_iterations": n_iterations}
        return deque(weighted(work.A, work.paths, work.information, **options), maxlen=1).pop().volume

    return [work.error(made(strength)) for strength in strengths]


def measure(
    n: int, doses: tuple[float, ...], tiers: tuple[str, ...], priors: list[str], n_iterations: int
) -> list[dict]:
    """Return a row for every tier, prior, object and dose."""
    steps = round(2 * np.log2(HIGHEST / LOWEST))
    strengths = [float(LOWEST * 2 ** (k / 2)) for k in range(steps + 1)]
    rows = []
    for name in OBJECTS:
        for dose in doses:
            work = make_work(name, n, dose, seed=len(rows))
            for tier in tiers:
                for prior in priors:
                    usual = USUAL[prior] if tier == "denoised" else STRENGTHS[prior]
                    errors = curve(work, tier, prior, [*strengths, usual], n_iterations)
                    *tried, at_usual = errors
                    best = int(np.argmin(tried))
                    row = {
                        "tier": tier,
                        "prior": prior,
                        "object": name,
                        "dose": dose,
                        "best": strengths[best],
                        "error": tried[best],
                        "loss_percent": 100 * (at_usual / min(errors) - 1),
                        "curve": dict(zip((f"{s:.3g}" for s in strengths), tried, strict=True)),
                    }
                    rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="small images, one dose, one prior")
    parser.add_argument("--pixels", type=int, default=96, help="along an edge")
    parser.add_argument("--priors", default="tv,huber,vtv,tnv", help="which, a,b,...")
    parser.add_argument("--iterations", type=int, default=30)
    options = parser.parse_args()
    if options.quick:
        rows = measure(48, DOSES[:1], TIERS, ["tnv"], 20)
    else:
        rows = measure(options.pixels, DOSES, TIERS, options.priors.split(","), options.iterations)
    if options.json:
        print(json.dumps({"usual": {"weighted": dict(STRENGTHS), "denoised": dict(USUAL)}, "rows": rows}))
        return
    print("tier      prior  object   dose  best  error  loss %")
    for row in rows:
        print(
            f"{row['tier']:<9} {row['prior']:<6} {row['object']:<8} {row['dose']:<5g} {row['best']:<5.2f} "
            f"{row['error']:<6.3f} {row['loss_percent']:.1f}"
        )


if __name__ == "__main__":
    main()
