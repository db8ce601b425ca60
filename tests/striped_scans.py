"""Exact views of round objects, and the stripes that pixels draw: what tests and benchmarks of artefacts start from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calibration.geometry import Geometry

KINDS = ("thin", "wide", "partial", "fluctuating", "dead")
OBJECTS = ("rods", "centred", "texture")


@dataclass(frozen=True)
class Round:
    """An upright rod without end, or a ball where `is_ball`; what it adds to the attenuation around it."""

    x_mm: float
    y_mm: float
    radius_mm: float
    per_mm: float
    is_ball: bool = False
    z_mm: float = 0.0


def geometry(rows: int = 6, cols: int = 192, *, offset_u_mm: float = 0.013) -> Geometry:
    """A scanner whose field of view on the axis is 19.2 mm wide, whatever its number of columns."""
    return Geometry(
        source_to_detector_mm=150.0,
        source_to_object_mm=100.0,
        pitch_mm=28.8 / cols,
        rows=rows,
        cols=cols,
        offset_u_mm=offset_u_mm,
    )


def angles_rad(n_views: int, turn_rad: float = 2 * np.pi) -> NDArray[np.float64]:
    return np.arange(n_views) * turn_rad / n_views


def the_object(name: str) -> tuple[Round, ...]:
    """Rods at many places; a rod on the axis, which draws rings of its own; or a body full of small balls."""
    if name == "centred":
        return (Round(0.0, 0.0, 8.0, 0.02), Round(0.0, 0.0, 2.0, 0.02), Round(4.0, 1.0, 0.5, 0.03))
    if name == "rods":
        return (
            Round(0.3, 0.2, 8.0, 0.02), Round(3.0, 2.0, 1.5, 0.03), Round(-4.0, 1.0, 1.0, -0.01),
            Round(0.5, -5.0, 2.0, 0.02), Round(0.7, 0.3, 0.6, 0.03),
        )  # fmt: skip
    dice = np.random.default_rng(7)
    balls = []
    while len(balls) < 60:
        x, y = dice.uniform(-7, 7, 2)
        if np.hypot(x, y) < 6.8:
            balls.append(Round(x, y, dice.uniform(0.15, 0.7), dice.uniform(-0.02, 0.04), True, dice.uniform(-0.8, 0.8)))
    return (Round(0.4, -0.3, 7.8, 0.02), *balls)


def views_of(solids: tuple[Round, ...], scan: Geometry, angles: NDArray[np.float64]) -> NDArray[np.float32]:
    """Line integrals, (1, n_views, rows, cols), of two rays beside each other in each pixel."""
    poses = scan.views(angles)
    total = np.zeros((len(angles), scan.rows, scan.cols))
    row = np.arange(scan.rows) - (scan.rows - 1) / 2
    source = poses.source_mm[:, None, None]
    for shift in (-0.25, 0.25):
        col = np.arange(scan.cols) - (scan.cols - 1) / 2 + shift
        pixel = poses.detector_mm[:, None, None] + col[:, None] * poses.u_mm[:, None, None]
        ray = pixel + row[:, None, None] * poses.v_mm[:, None, None] - source
        length = np.linalg.norm(ray, axis=-1)
        for solid in solids:
            n = 3 if solid.is_ball else 2
            way = ray[..., :n] / length[..., None]
            from_centre = source[..., :n] - np.array([solid.x_mm, solid.y_mm, solid.z_mm])[:n]
            a, b = (way * way).sum(-1), (from_centre * way).sum(-1)
            root = b * b - a * ((from_centre**2).sum(-1) - solid.radius_mm**2)
            total += solid.per_mm * np.sqrt(np.maximum(root, 0)) / a  # two rays: half of twice the root
    return total[None].astype(np.float32)


def stripes(kind: str, shape: tuple[int, ...], height: float, dice: np.random.Generator) -> NDArray[np.float32]:
    """What bad pixels add to line integrals of this shape, (n_bins, n_views, rows, cols).

    Thin: half of the pixels have a gain of their own. Wide: three stretches of columns. Partial: pixels that are wrong
    for a quarter of the views. Fluctuating: pixels whose noise is much too high. Dead: pixels that never change (NaN).
    """
    n_bins, n_views, rows, cols = shape
    added = np.zeros(shape)
    for row in range(rows):
        if kind == "thin":
            added[:, :, row] = height * dice.standard_normal(cols) * (dice.random(cols) < 0.5)
        elif kind == "wide":
            for col in dice.integers(10, cols - 25, 3):
                added[:, :, row, col : col + dice.integers(6, 14)] += 2 * height * dice.choice([-1, 1])
        elif kind == "partial":
            for col in dice.integers(0, cols, cols // 6):
                where = np.arange(n_views // 4) + dice.integers(0, n_views)
                added[:, where % n_views, row, col] += 2 * height * dice.choice([-1, 1])
        elif kind == "fluctuating":
            for col in dice.integers(5, cols - 5, 5):
                added[:, :, row, col] = 8 * height * dice.standard_normal((n_bins, n_views))
        elif kind == "dead":
            for col in dice.integers(5, cols - 5, 4):
                added[:, :, row, col] = np.nan
        else:
            raise ValueError(kind)
    return added.astype(np.float32)


def striped(exact: NDArray[np.float32], kind: str, height: float, dice: np.random.Generator) -> NDArray[np.float32]:
    """Views with stripes; dead pixels read what the whole view reads on average, always."""
    with_them = exact + stripes(kind, exact.shape, height, dice)
    return np.where(np.isnan(with_them), np.float32(0.5 * exact.max()), with_them)


def ring_energy(error: NDArray[np.floating]) -> float:
    """Mean square of an error as a slice shows it: along arcs of a 64th of the views, and filtered along the rows.

    The filter is the ramp under Hann's window, with a gain of 1 where it is highest; the rows' ends are mirrored.
    """
    n_views, cols = error.shape[1], error.shape[3]
    arcs = np.exp(-2 * (np.pi * np.fft.rfftfreq(n_views) * n_views / 64) ** 2)[:, None, None]
    smooth = np.fft.irfft(np.fft.rfft(error, axis=1) * arcs, n=n_views, axis=1)
    mirrored = np.concatenate([smooth, smooth[..., ::-1]], axis=-1)
    frequency = 2 * np.fft.rfftfreq(2 * cols)
    ramp = frequency * (1 + np.cos(np.pi * frequency))
    seen = np.fft.irfft(np.fft.rfft(mirrored, axis=-1) * ramp / ramp.max(), n=2 * cols, axis=-1)[..., :cols]
    return float((seen**2).mean())


def off_axis(scan: Geometry, offset_u_mm: float) -> Geometry:
    return replace(scan, offset_u_mm=offset_u_mm)
