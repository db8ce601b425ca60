"""Rays on the graphics card, drawn by Mesa under Xvfb: colours as the slow caster's, depths, precision, two speeds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gui.volume.camera import Camera
from gui.volume.optics import BASE_COLOUR, BUSY, CALM, CALM_ALPHA, Cut, leaps, optics_of
from gui.volume.projection import cast
from tests.gui.gl_pictures import FAINT, SIDES_RAD, SIZE, STRONG, WITHOUT_WATER
from tests.gui.ray_oracle import drawn
from tests.gui.volume_phantom import LOOKS, phantom

ROOT = Path(__file__).parents[2]
SCREEN = "-screen 0 1280x1024x24 +extension GLX"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if shutil.which("xvfb-run") is None:
        pytest.skip("no xvfb-run here; sh .ci/desktop installs it")
    folder = tmp_path_factory.mktemp("gl")
    out, cache = folder / "pictures.npz", folder / "cache"
    cache.mkdir()
    here = {name: value for name, value in os.environ.items() if name != "QT_QPA_PLATFORM"}
    here |= {"PYTHONPATH": str(ROOT), "MESA_SHADER_CACHE_DIR": str(cache)}
    done = subprocess.run(
        ["xvfb-run", "-a", "-s", SCREEN, sys.executable, str(ROOT / "tests/gui/gl_pictures.py"), str(out)],
        cwd=ROOT, env=here, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(out) as file:
        made = {name: file[name] for name in file.files if name != "facts"}
        facts = json.loads(str(file["facts"]))
    if facts["why_not"]:
        pytest.skip(facts["why_not"])
    return made | facts


def off(picture: NDArray[np.uint8], expected: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return by how much a picture differs, 0 to 1 each pixel."""
    return np.abs(picture / 255 - expected).max(axis=-1)


@pytest.mark.parametrize("light", ["plain", "lit"])
@pytest.mark.parametrize("side", SIDES_RAD)
def test_colours_are_those_of_the_slow_caster(pictures: dict[str, Any], side: str, light: str) -> None:
    grains, optics = phantom(28), optics_of(LOOKS, 20.0)
    azimuth_rad, elevation_rad = SIDES_RAD[side]
    camera = replace(
        Camera.around(grains.size_mm, grains.centre_mm),
        azimuth_rad=azimuth_rad, elevation_rad=elevation_rad, is_orthographic=True,
    )  # fmt: skip
    expected = drawn(grains, optics, camera, SIZE, 0.5, is_shaded=light == "lit")
    away = off(pictures[f"{side}_{light}"], expected)
    assert expected.max() > 0.5
    assert away.mean() < 0.006
    assert np.quantile(away, 0.99) < 0.04


def test_leaps_over_empty_blocks_change_no_pixel(pictures: dict[str, Any]) -> None:
    """Not beyond rounding; what is calm may change by what `CALM_ALPHA` allows a block."""
    whole, leapt, calm = (pictures[name].astype(int) for name in ("every_block", "empty_leapt", "all_leapt"))
    marks = leaps(phantom(28), optics_of(LOOKS, 20.0, opacities=WITHOUT_WATER))
    assert ((marks > BUSY) & (marks < CALM)).mean() > 0.2
    assert whole.max() > 100
    assert np.abs(leapt - whole).max() <= 1
    assert np.abs(calm - whole).max() <= 255 * 3 * CALM_ALPHA


def test_haze_is_never_lit(pictures: dict[str, Any]) -> None:
    assert pictures["haze_plain"].max() > 20
    assert np.abs(pictures["haze_lit"].astype(int) - pictures["haze_plain"]).max() <= 1


def test_bytes_show_what_half_floats_show(pictures: dict[str, Any]) -> None:
    """Where windows hold all values; else bytes are cut to the window before they are interpolated, not after."""
    away = off(pictures["bytes"], pictures["halves"] / 255)
    assert away.mean() < 0.001
    assert away.max() < 5 / 255


def test_bytes_follow_the_window(pictures: dict[str, Any]) -> None:
    assert (pictures["bytes_changed"] == pictures["bytes_anew"]).all()
    assert off(pictures["bytes_changed"], pictures["bytes"] / 255).max() > 0.02


def test_first_picture_of_all_does_not_hold_the_window_up(pictures: dict[str, Any]) -> None:
    """With nothing in the driver's cache; compiling takes longer with light than without."""
    first = pictures["first"]
    assert first["is_complete"]
    assert first["has_warmed"]
    assert first["longest_s"] < pictures["compiling_s"]


def test_perspective_is_that_of_the_processor(pictures: dict[str, Any]) -> None:
    grains, optics = phantom(28), optics_of(LOOKS, 20.0)
    light = cast(grains, optics, Camera.around(grains.size_mm, grains.centre_mm), SIZE, step_voxels=0.5)
    assert off(pictures["perspective"], light[..., :3]).mean() < 0.006


def test_cuts_are_those_of_the_processor(pictures: dict[str, Any]) -> None:
    grains, optics = phantom(28), optics_of(LOOKS, 20.0)
    camera = replace(Camera.around(grains.size_mm, grains.centre_mm), is_orthographic=True)
    cut = Cut(low_shares=(0.0, 0.4, 0.0), normal=(0.0, 0.0, 1.0), plane_mm=2.0)
    expected = cast(grains, optics, camera, SIZE, cut=cut, step_voxels=0.5)[..., :3]
    assert off(pictures["cut"], expected).mean() < 0.006
    assert off(pictures["corner_plain"], expected).mean() > 0.05, "something is cut away"


def test_faint_material_is_right_beside_a_strong_one_in_its_channel(pictures: dict[str, Any]) -> None:
    """0.2 mg/mL where the channel's highest is 5 g/cm3: eight bits would make it nothing."""
    optics = optics_of([FAINT, STRONG], 16.0)
    middle = pictures["faint"][SIZE[0] // 2, SIZE[1] // 2] / 255
    share = 0.0002 / FAINT.high_g_cm3
    way_mm = 16 / np.cos(0.44) / np.sin(1.05)
    alpha = 1 - np.exp(-share * optics.extinction_per_mm[0] * way_mm)
    assert middle[0] == pytest.approx(alpha * optics.colours[0, 0], rel=0.05, abs=1 / 255)
    assert middle[0] / max(middle[1], 1e-3) == pytest.approx(0.7 / 0.3, rel=0.1)


def test_eighth_channel_has_its_own_colour(pictures: dict[str, Any]) -> None:
    red, green, blue = pictures["eighth"][SIZE[0] // 2, SIZE[1] // 2].astype(int)
    assert red < 5 < blue < green


def test_rays_end_at_surfaces(pictures: dict[str, Any]) -> None:
    """The haze before a green wall is seen, and none behind it."""
    middle = SIZE[0] // 2, SIZE[1] // 2
    haze = pictures["haze"][middle] / 255
    before, half, behind = (pictures[f"wall_{where}"][middle] / 255 for where in ("before", "middle", "behind"))
    colour = np.asarray(BASE_COLOUR)
    clear = 1 - haze[0] / colour[0]
    np.testing.assert_allclose(haze, colour * (1 - clear), atol=0.01)
    np.testing.assert_allclose(half, colour * (1 - np.sqrt(clear)) + before * np.sqrt(clear), atol=0.02)
    np.testing.assert_allclose(behind, colour * (1 - clear) + before * clear, atol=0.02)
    assert 0.1 < clear < 0.9
    assert before[1] > 5 * before[0]


def test_screen_is_rough_while_moving_and_fine_at_rest(pictures: dict[str, Any]) -> None:
    assert pictures["is_rough_while_moving"]
    assert pictures["is_fine_at_rest"]
    assert pictures["fault"] == ""
    assert (pictures["screen"].max(axis=-1) > 120).sum() > 500


def test_half_the_resolution_looks_alike_while_it_moves(pictures: dict[str, Any]) -> None:
    assert pictures["is_coarse_ready"]
    assert pictures["is_still_moving"]
    away = np.abs(pictures["before_it_moves"].astype(int) - pictures["while_it_moves"]).max(axis=-1)
    assert (away > 0).any(), "it is another picture"
    assert away.mean() < 4
    assert np.quantile(away, 0.99) < 60


def test_refused_shader_is_told_in_a_sentence_and_the_processor_takes_over(pictures: dict[str, Any]) -> None:
    assert "nonsense" in pictures["refusal"] or "syntax" in pictures["refusal"]
    scene = pictures["scene"]
    assert scene["began_with_gl"]
    assert not scene["has_gl"]
    assert "processor: the graphics driver" in scene["words"]
    assert "does not take the shader" in scene["words"]
