"""A slow caster of parallel rays in float64, from the words of `gui.volume.optics`: what both drawers must match.

It samples each ray on a straight grid with scipy's linear interpolation, and leaps over nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from gui.volume.camera import Camera
from gui.volume.optics import Grains, Optics

AMBIENT, DIFFUSE, SPECULAR, SHININESS = 0.45, 0.6, 0.22, 24.0
SOLID_FROM, SOLID_TO = 0.032, 0.28
LIGHT = np.array([-0.45, 0.65, 0.9])


def glow(grains: Grains, optics: Optics, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return red, green, blue per mm and extinction per mm at points (..., 3): (..., 4)."""
    low_mm, _ = grains.corners_mm
    voxels = (points_mm - low_mm) / np.asarray(grains.voxel_mm) - 0.5
    place = np.moveaxis(voxels[..., ::-1], -1, 0)
    total = np.zeros((*points_mm.shape[:-1], 4))
    for n, channel in enumerate(grains.values.astype(np.float64)):
        value = map_coordinates(channel, place, order=1, mode="nearest")
        share = (value - optics.low_g_cm3[n]) / (optics.high_g_cm3[n] - optics.low_g_cm3[n])
        share = np.clip(share, 0, 1)
        share = share + optics.bend[n] * (share**2 - share)
        extinction = share * optics.extinction_per_mm[n]
        total += extinction[..., None] * np.append(optics.colours[n], 1.0)
    return total


def drawn(
    grains: Grains, optics: Optics, camera: Camera, size: tuple[int, int], step_voxels: float, *, is_shaded: bool
) -> NDArray[np.float64]:
    """Return red, green, blue over black: (height, width, 3), the highest row first."""
    assert camera.is_orthographic
    height, width = size
    right, up, back = camera.axes()
    half_x_mm, half_y_mm = camera.half_extent_mm(width, height)
    x_mm = ((np.arange(width) + 0.5) / width * 2 - 1) * half_x_mm
    y_mm = (1 - (np.arange(height) + 0.5) / height * 2) * half_y_mm
    start = np.asarray(camera.centre_mm) + x_mm[:, None] * right + y_mm[:, None, None] * up
    reach_mm = float(np.linalg.norm(grains.size_mm))
    step_mm = step_voxels * min(grains.voxel_mm)
    low_mm, high_mm = grains.corners_mm
    colour, clear = np.zeros((height, width, 3)), np.ones((height, width, 1))
    for t_mm in np.arange(reach_mm / 2, -reach_mm / 2, -step_mm):
        points = start + t_mm * back
        is_inside = ((points >= low_mm) & (points <= high_mm)).all(axis=-1)[..., None]
        light = np.where(is_inside, glow(grains, optics, points), 0.0)
        extinction = light[..., 3:]
        tint = light[..., :3] / np.maximum(extinction, 1e-30)
        if is_shaded:
            tint = lit(grains, optics, camera, points, tint, extinction)
        alpha = 1 - np.exp(-extinction * step_mm)
        colour += clear * alpha * tint
        clear *= 1 - alpha
    return np.minimum(colour, 1)


def lit(
    grains: Grains,
    optics: Optics,
    camera: Camera,
    points: NDArray[np.float64],
    tint: NDArray[np.float64],
    extinction: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Light surfaces; the gradient is by values at four corners of a cube of two voxels."""
    voxel_mm = min(grains.voxel_mm)
    corners = np.array([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]]) * np.asarray(grains.voxel_mm)
    is_seen = extinction[..., 0] > 0
    gradient = np.zeros_like(points)
    gradient[is_seen] = sum(
        glow(grains, optics, points[is_seen] + corner)[..., 3:] * corner / (4 * np.asarray(grains.voxel_mm) ** 2)
        for corner in corners
    )
    steep = np.linalg.norm(gradient, axis=-1, keepdims=True)
    normal = -gradient / np.maximum(steep, 1e-30)
    axes = camera.axes()
    light = LIGHT / np.linalg.norm(LIGHT) @ axes
    halfway = (light + axes[2]) / np.linalg.norm(light + axes[2])
    solid_per_mm = -np.log1p(-np.array([SOLID_FROM, SOLID_TO])) / (max(grains.size_mm) / 32)
    x = np.clip((extinction - solid_per_mm[0]) / (solid_per_mm[1] - solid_per_mm[0]), 0, 1)
    edge = x * x * (3 - 2 * x) * np.clip(2 * steep * voxel_mm / np.maximum(extinction, 1e-30), 0, 1)
    diffuse = np.maximum(normal @ light, 0)[..., None]
    gloss = np.maximum(normal @ halfway, 0)[..., None] ** SHININESS
    return tint * (1 - edge + edge * (AMBIENT + DIFFUSE * diffuse)) + edge * SPECULAR * gloss
