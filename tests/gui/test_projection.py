"""Rays on the processor: known limits, who hides whom, which side is where, and a slow caster that leaps nowhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import gui.volume.projection as projection
from gui.colour import Look, blend
from gui.volume.camera import STANDARD_VIEWS, Camera
from gui.volume.optics import BUSY, CALM, Cut, grains_of, halved, leaps, optics_of
from gui.volume.projection import cast, projected
from tests.gui.ray_oracle import drawn
from tests.gui.volume_phantom import LOOKS, phantom, ready

RED = Look(material="red", colour=(0.8, 0.0, 0.0), low_g_cm3=0.0, high_g_cm3=1.0)
BLUE = Look(material="blue", colour=(0.0, 0.0, 0.8), low_g_cm3=0.0, high_g_cm3=1.0)


def pixel_wise(n: int, voxel_mm: float, side: str) -> Camera:
    """Look along an axis so that each pixel looks through the middle of its voxels."""
    azimuth_rad, elevation_rad = STANDARD_VIEWS[side]
    camera = Camera(azimuth_rad=azimuth_rad, elevation_rad=elevation_rad, distance_mm=1.0, is_orthographic=True)
    return replace(camera, distance_mm=n * voxel_mm / 2 / np.tan(camera.fov_rad / 2))


@pytest.mark.parametrize("step_voxels", [0.5, 1.0, 2.0])
def test_even_slab_hides_by_the_exponential_law_whatever_the_step(step_voxels: float) -> None:
    grains = ready(np.ones((1, 16, 16, 16), dtype=np.float32), 0.5)
    optics = optics_of([RED], 8.0, opacities=[0.1])
    light = cast(grains, optics, pixel_wise(16, 0.5, "Front"), (16, 16), step_voxels=step_voxels)
    alpha = 1 - np.exp(-optics.extinction_per_mm[0] * 8.0)
    np.testing.assert_allclose(light[..., 3], alpha, rtol=1e-5)
    np.testing.assert_allclose(light[..., 0], alpha * optics.colours[0, 0], rtol=1e-5)


def test_opacity_is_what_it_says_through_its_reach() -> None:
    grains = ready(np.ones((1, 2, 2, 64), dtype=np.float32), 1.0)
    optics = optics_of([RED], 64.0, opacities=[0.5])
    camera = replace(pixel_wise(2, 1.0, "Front"), distance_mm=20.0)
    light = cast(grains, optics, camera, (1, 1))
    assert light[0, 0, 3] == pytest.approx(0.995 * 0.5, rel=1e-4), "two voxels are the 32nd part of 64"


def test_who_is_in_front_hides_who_is_behind() -> None:
    values = np.zeros((2, 16, 16, 16), dtype=np.float32)
    values[0, :, :5], values[1, :, 11:] = 1.0, 1.0
    grains, optics = ready(values, 1.0), optics_of([RED, BLUE], 16.0, opacities=[0.99, 0.99])
    front = cast(grains, optics, pixel_wise(16, 1.0, "Front"), (16, 16))[8, 8]
    back = cast(grains, optics, pixel_wise(16, 1.0, "Back"), (16, 16))[8, 8]
    assert front[0] > 0.9 * front[3]
    assert front[2] < 0.01, "the lowest y is red and nearest to the front"
    assert back[2] > 0.9 * back[3]
    assert back[0] < 0.01


@pytest.mark.parametrize(
    ("side", "row_axis", "column_axis"),
    [
        ("Front", "z", "x"), ("Back", "z", "-x"), ("Right", "z", "y"), ("Left", "z", "-y"), ("Top", "y", "x"),
        ("Bottom", "-y", "x"),
    ],
)  # fmt: skip
def test_each_side_shows_the_axes_that_it_names(side: str, row_axis: str, column_axis: str) -> None:
    n, number = 16, {"z": 0, "y": 1, "x": 2}
    for axis, along in ((row_axis, 0), (column_axis, 1)):
        values = np.zeros((1, n, n, n), dtype=np.float32)
        part = [slice(None)] * 3
        part[number[axis[-1]]] = slice(None, 4) if axis.startswith("-") else slice(-4, None)
        values[(0, *part)] = 1.0
        light = cast(ready(values, 1.0), optics_of([RED], 16.0), pixel_wise(n, 1.0, side), (n, n))[..., 3]
        seen = light.mean(axis=1 - along)
        upper, lower = (seen[:4], seen[4:]) if along == 0 else (seen[-4:], seen[:-4])
        assert upper.min() > 0.5 > lower[1:-1].max() + 0.3, f"{axis} runs upwards or to the right from the {side}"


def test_highest_values_are_those_of_the_voxels_added_like_lights() -> None:
    grains = phantom(24)
    light = cast(grains, optics_of(LOOKS, 20.0), pixel_wise(24, 20 / 24, "Front"), (24, 24), is_maximum=True)
    expected = blend(grains.values.max(axis=2)[:, ::-1], LOOKS)
    np.testing.assert_allclose(np.rint(255 * light[..., :3]), expected, atol=1)


def test_leaps_change_nothing_that_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    grains, optics = phantom(96), optics_of(LOOKS, 20.0)
    camera = Camera.around(grains.size_mm, grains.centre_mm)
    marks = leaps(grains, optics)
    assert (marks == CALM).any()
    assert ((marks != CALM) & (marks > 1)).any()
    quick = cast(grains, optics, camera, (90, 80))
    monkeypatch.setattr(projection, "leaps", lambda grains, _: np.full(grains.least.shape[1:], BUSY, dtype=np.uint8))
    slow = cast(grains, optics, camera, (90, 80))
    assert np.abs(quick - slow).max() < 0.02
    assert np.abs(quick - slow).mean() < 0.001


@pytest.mark.parametrize(("azimuth_rad", "elevation_rad"), [(-1.05, 0.44), (2.0, -0.7)])
def test_picture_is_that_of_the_slow_caster(azimuth_rad: float, elevation_rad: float) -> None:
    grains, optics = phantom(32), optics_of(LOOKS, 20.0)
    camera = replace(
        Camera.around(grains.size_mm, grains.centre_mm),
        azimuth_rad=azimuth_rad, elevation_rad=elevation_rad, is_orthographic=True,
    )  # fmt: skip
    light = cast(grains, optics, camera, (48, 56), step_voxels=0.25)
    expected = drawn(grains, optics, camera, (48, 56), 0.25, is_shaded=False)
    assert expected.max() > 0.5
    assert np.abs(light[..., :3] - expected).mean() < 0.003
    assert np.quantile(np.abs(light[..., :3] - expected), 0.99) < 0.02


def test_box_and_plane_cut_where_they_say() -> None:
    grains, optics = ready(np.ones((1, 16, 16, 16), dtype=np.float32), 1.0), optics_of([RED], 16.0, opacities=[0.05])
    camera = pixel_wise(16, 1.0, "Front")

    def alpha(cut: Cut):
        return cast(grains, optics, camera, (16, 16), cut=cut)[..., 3]

    whole = alpha(Cut())
    left = alpha(Cut(high_shares=(0.5, 1.0, 1.0)))
    np.testing.assert_array_equal(left[:, :8], whole[:, :8])
    assert left[:, 8:].max() == 0
    half = alpha(Cut(normal=(0.0, 1.0, 0.0)))
    np.testing.assert_allclose(np.log1p(-half), np.log1p(-whole) / 2, rtol=1e-4)


def test_faint_iodine_keeps_its_colour() -> None:
    """1 mg/mL beside 16 is a thirtieth of the window; its hue must be iodine's, not rounded away."""
    values = np.zeros((2, 24, 24, 24), dtype=np.float32)
    values[1] = 0.001
    iodine = replace(LOOKS[1], low_g_cm3=0.0)
    picture = projected(values, [LOOKS[0], iodine], -1.0, 0.3, (40, 40))[20, 20].astype(float)
    expected = np.asarray(optics_of([iodine], 1.0).colours[0])
    np.testing.assert_allclose(picture / picture.max(), expected / expected.max(), atol=0.02)


def test_hidden_materials_and_bends() -> None:
    class Hidden(Look):
        is_visible = False

    hidden = Hidden(material="red", colour=(0.8, 0.0, 0.0), high_g_cm3=1.0)
    assert optics_of([hidden], 1.0).extinction_per_mm[0] == 0
    shares = optics_of([RED], 1.0, bend=1.0).shares(np.array([[0.0, 0.5, 1.0]]))
    np.testing.assert_allclose(shares, [[0, 0.25, 1]])
    with pytest.raises(ValueError, match="bend"):
        optics_of([RED], 1.0, bend=2.0)


def test_thinning_out_keeps_means_and_place() -> None:
    values = np.random.default_rng(3).random((1, 9, 8, 10)).astype(np.float32)
    grains = ready(values, 0.5, centre_mm=(1.0, 2.0, 3.0), most_voxels=4 * 4 * 5)
    assert grains.thinning == 2
    np.testing.assert_allclose(grains.values[0, 1, 2, 3], values[0, 2:4, 4:6, 6:8].mean(), rtol=1e-6)
    low_mm, _ = grains.corners_mm
    np.testing.assert_allclose(low_mm, np.array([1.0, 2.0, 3.0]) - 0.25 * np.array([10, 8, 9]))


def test_half_the_resolution_is_in_the_same_place_and_holds_as_much() -> None:
    values = np.random.default_rng(5).random((2, 9, 8, 10)).astype(np.float32)
    whole = ready(values, 0.5, centre_mm=(1.0, 2.0, 3.0))
    half = halved(whole)
    np.testing.assert_allclose(half.values[1, 1, 2, 3], values[1, 2:4, 4:6, 6:8].mean(), rtol=1e-6)
    np.testing.assert_allclose(half.values[0, 4, 0, 0], values[0, 8, :2, :2].mean(), rtol=1e-6)
    np.testing.assert_allclose(half.corners_mm[0], whole.corners_mm[0])
    np.testing.assert_allclose(half.corners_mm[1] - whole.corners_mm[1], (0, 0, 0.5), err_msg="an odd layer is doubled")
    assert whole.coarse is None, "so small a volume needs none"


def test_half_the_resolution_looks_alike() -> None:
    grains, optics = phantom(64), optics_of(LOOKS, 20.0)
    assert grains.coarse is not None
    camera = Camera.around(grains.size_mm, grains.centre_mm)
    fine, rough = (cast(each, optics, camera, (60, 60)) for each in (grains, grains.coarse))
    assert np.abs(fine - rough).mean() < 0.01


def test_blocks_know_the_range_of_every_sample_in_them() -> None:
    values = np.random.default_rng(4).normal(size=(1, 20, 17, 9)).astype(np.float32)
    grains = ready(values, 1.0)
    block = values[0, 7:17, 7:17, 0:9]  # of the block 1, 1, 0 with a voxel about it
    assert grains.least[0, 1, 1, 0] == block.min()
    assert grains.most[0, 1, 1, 0] == block.max()


def test_more_channels_than_can_be_drawn_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 8"):
        next(grains_of(np.zeros((9, 2, 2, 2)), 1.0))
