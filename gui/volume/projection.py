"""The volume without a graphics card: the same rays through the same optics, on the processor.

Written apart from the shader, so that each checks the other; surfaces are not lit here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit
from numpy.typing import NDArray

from calibration.progress import finished
from gui.colour import Colour, Look
from gui.volume.camera import Camera
from gui.volume.optics import BLOCK, CALM, Cut, Grains, Optics, grains_of, leaps, optics_of

Floats = NDArray[np.float64]
OPAQUE = 0.995
ROWS = 16
"""A thread draws so many rows at a time."""


def projected(
    values: NDArray[np.floating],
    looks: Sequence[Look],
    azimuth_rad: float,
    elevation_rad: float,
    size: tuple[int, int],
    *,
    voxel_mm: float = 1.0,
    is_maximum: bool = False,
    background: Colour = (0.0, 0.0, 0.0),
) -> NDArray[np.uint8]:
    """Draw a volume as seen from far away.

    Parameters
    ----------
    values : (n, z, y, x) float
        Of each material, in g/cm3.
    looks : (n,) Look
    azimuth_rad, elevation_rad : float
        Where the camera stands; see `gui.volume.camera.Camera`.
    size : (height, width) int
    is_maximum : bool
        Every material's highest share along the ray, added like lights, instead of materials that hide each other.

    Returns
    -------
    picture : (height, width, 3) uint8
    """
    grains = finished(grains_of(values, voxel_mm))
    camera = Camera.around(
        grains.size_mm, grains.centre_mm, azimuth_rad=azimuth_rad, elevation_rad=elevation_rad, is_orthographic=True
    )
    optics = optics_of(looks, max(grains.size_mm))
    return over(cast(grains, optics, camera, size, is_maximum=is_maximum), background)


def over(light: NDArray[np.float32], background: Colour) -> NDArray[np.uint8]:
    """Lay what `cast` returns over a colour."""
    whole = light[..., :3] + (1 - light[..., 3:]) * np.asarray(background, dtype=np.float32)
    return np.rint(255 * np.clip(whole, 0, 1)).astype(np.uint8)


def cast(
    grains: Grains,
    optics: Optics,
    camera: Camera,
    size: tuple[int, int],
    *,
    cut: Cut | None = None,
    step_voxels: float = 1.0,
    is_maximum: bool = False,
    is_wanted: Callable[[], bool] = lambda: True,
) -> NDArray[np.float32]:
    """Draw rays through a volume on all processors.

    Parameters
    ----------
    size : (height, width) int
    is_wanted : callable
        Asked every few rows; what is left stays black once it says no.

    Returns
    -------
    light : (height, width, 4) float32
        Red, green, blue as they add to what is behind, and how much of that they hide; the highest row first.
    """
    cut = cut or Cut()
    height, width = size
    right, up, back = camera.axes()
    half_x_mm, half_y_mm = camera.half_extent_mm(width, height)
    across, upwards = 2 * half_x_mm / width * right, -2 * half_y_mm / height * up
    corner = 0.5 * across + 0.5 * upwards - half_x_mm * right + half_y_mm * up
    eye = np.asarray(camera.centre_mm) + camera.distance_mm * back
    still = np.zeros(3)
    # A ray is a point and a way, each of which goes evenly over the picture.
    if camera.is_orthographic:
        rays = np.array([eye + corner, across, upwards, -back, still, still])
    else:
        rays = np.array([eye, still, still, corner - camera.distance_mm * back, across, upwards])
    low_mm, _ = grains.corners_mm
    window = np.array(
        [optics.low_g_cm3, 1 / (optics.high_g_cm3 - optics.low_g_cm3), optics.extinction_per_mm, optics.bend]
    )
    marks = leaps(grains, optics)
    light = np.zeros((height, width, 4), dtype=np.float32)

    def draw(first: int) -> None:
        if is_wanted():
            _cast_rows(
                light, first, min(first + ROWS, height), grains.values, marks, rays, low_mm,
                np.asarray(grains.voxel_mm), np.array(cut.box_mm(grains)), np.array(cut.plane(grains)), window,
                optics.lights if is_maximum else optics.colours, step_voxels * min(grains.voxel_mm), is_maximum,
            )  # fmt: skip

    with ThreadPoolExecutor(max(os.cpu_count() or 1, 1)) as threads:
        list(threads.map(draw, range(0, height, ROWS)))
    return light


@njit(cache=True, nogil=True)
def _span(start: Floats, way: Floats, box_mm: Floats, plane: Floats) -> tuple[float, float]:
    """Return where a ray enters and leaves what is left of the volume."""
    t0, t1 = 0.0, np.inf
    for axis in range(3):
        if abs(way[axis]) < 1e-12:
            if not box_mm[0, axis] <= start[axis] <= box_mm[1, axis]:
                return 1.0, 0.0
            continue
        a = (box_mm[0, axis] - start[axis]) / way[axis]
        b = (box_mm[1, axis] - start[axis]) / way[axis]
        t0, t1 = max(t0, min(a, b)), min(t1, max(a, b))
    slope = plane[0] * way[0] + plane[1] * way[1] + plane[2] * way[2]
    rest = plane[3] - plane[0] * start[0] - plane[1] * start[1] - plane[2] * start[2]
    if slope > 1e-9:
        t1 = min(t1, rest / slope)
    elif slope < -1e-9:
        t0 = max(t0, rest / slope)
    elif rest < 0:
        t1 = t0
    return t0, t1


@njit(cache=True, nogil=True)
def _shares(values: NDArray[np.float32], place: Floats, window: Floats, shares: Floats) -> None:
    """Write how much of its full colour each material has at a place in voxels (x, y, z), linear between centres."""
    n, nz, ny, nx = values.shape
    x = min(max(place[0] - 0.5, 0.0), nx - 1.0)
    y = min(max(place[1] - 0.5, 0.0), ny - 1.0)
    z = min(max(place[2] - 0.5, 0.0), nz - 1.0)
    x0, y0, z0 = int(x), int(y), int(z)
    x1, y1, z1 = min(x0 + 1, nx - 1), min(y0 + 1, ny - 1), min(z0 + 1, nz - 1)
    u, v, w = x - x0, y - y0, z - z0
    for channel in range(n):
        if window[2, channel] == 0.0:
            shares[channel] = 0.0
            continue
        c = values[channel]
        lower = (1 - v) * ((1 - u) * c[z0, y0, x0] + u * c[z0, y0, x1]) + v * (
            (1 - u) * c[z0, y1, x0] + u * c[z0, y1, x1]
        )
        upper = (1 - v) * ((1 - u) * c[z1, y0, x0] + u * c[z1, y0, x1]) + v * (
            (1 - u) * c[z1, y1, x0] + u * c[z1, y1, x1]
        )
        s = ((1 - w) * lower + w * upper - window[0, channel]) * window[1, channel]
        s = min(max(s, 0.0), 1.0)
        shares[channel] = s + window[3, channel] * (s * s - s)


@njit(cache=True, nogil=True)
def _cast_rows(
    light: NDArray[np.float32],
    first: int,
    last: int,
    values: NDArray[np.float32],
    marks: NDArray[np.uint8],
    rays: Floats,
    low_mm: Floats,
    voxel_mm: Floats,
    box_mm: Floats,
    plane: Floats,
    window: Floats,
    colours: Floats,
    step_mm: float,
    is_maximum: bool,
) -> None:
    """Draw some rows; see `cast` for what the arrays are."""
    n = values.shape[0]
    shares, most = np.zeros(n), np.zeros(n)
    start, way, place = np.zeros(3), np.zeros(3), np.zeros(3)
    for row in range(first, last):
        for column in range(light.shape[1]):
            norm = 0.0
            for axis in range(3):
                start[axis] = rays[0, axis] + column * rays[1, axis] + row * rays[2, axis]
                way[axis] = rays[3, axis] + column * rays[4, axis] + row * rays[5, axis]
                norm += way[axis] ** 2
            for axis in range(3):
                way[axis] /= np.sqrt(norm)
            t0, t1 = _span(start, way, box_mm, plane)
            t = t0 + 0.5 * step_mm
            red, green, blue, clear = 0.0, 0.0, 0.0, 1.0
            most[:] = 0.0
            while t < t1:
                for axis in range(3):
                    place[axis] = (start[axis] + t * way[axis] - low_mm[axis]) / voxel_mm[axis]
                bx = min(max(int(place[0]) // BLOCK, 0), marks.shape[2] - 1)
                by = min(max(int(place[1]) // BLOCK, 0), marks.shape[1] - 1)
                bz = min(max(int(place[2]) // BLOCK, 0), marks.shape[0] - 1)
                mark = marks[bz, by, bx]
                steps = 1.0
                if mark > 0:
                    reach = mark - 1 if mark < CALM else 0
                    whole = np.inf
                    for axis, block in ((0, bx), (1, by), (2, bz)):
                        wall = BLOCK * (block + reach + 1) if way[axis] > 0 else BLOCK * (block - reach)
                        if abs(way[axis]) > 1e-12:
                            whole = min(whole, (wall - place[axis]) * voxel_mm[axis] / way[axis] / step_mm)
                    if mark < CALM:
                        t += max(np.ceil(whole), 1.0) * step_mm
                        continue
                    steps = max(np.floor(min(whole, (t1 - t) / step_mm)) + 1.0, 1.0)
                    for axis in range(3):
                        place[axis] += 0.5 * (steps - 1.0) * step_mm * way[axis] / voxel_mm[axis]
                _shares(values, place, window, shares)
                if is_maximum:
                    for channel in range(n):
                        most[channel] = max(most[channel], shares[channel])
                else:
                    extinction, r, g, b = 0.0, 0.0, 0.0, 0.0
                    for channel in range(n):
                        part = shares[channel] * window[2, channel]
                        extinction += part
                        r += part * colours[channel, 0]
                        g += part * colours[channel, 1]
                        b += part * colours[channel, 2]
                    if extinction > 0.0:
                        weight = clear * (1.0 - np.exp(-extinction * steps * step_mm)) / extinction
                        red, green, blue = red + weight * r, green + weight * g, blue + weight * b
                        clear -= weight * extinction
                        if clear < 1.0 - OPAQUE:
                            red, green, blue = red / (1 - clear), green / (1 - clear), blue / (1 - clear)
                            clear = 0.0
                            break
                t += steps * step_mm
            if is_maximum:
                for channel in range(n):
                    if window[2, channel] > 0.0:
                        red += most[channel] * colours[channel, 0]
                        green += most[channel] * colours[channel, 1]
                        blue += most[channel] * colours[channel, 2]
                clear = 1.0 - min(max(red, green, blue), 1.0)
            light[row, column, 0] = min(red, 1.0)
            light[row, column, 1] = min(green, 1.0)
            light[row, column, 2] = min(blue, 1.0)
            light[row, column, 3] = 1.0 - clear
