"""Volumes that nobody planned for: every one is shown or told, and none stops the page."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pytestqt.qtbot import QtBot

from gui.session import Session
from gui.volume.annotations import Tool
from gui.volume.desk import PANES, Desk
from gui.volume.looks import GreyLook
from gui.volume.looks_panel import LooksPanel
from gui.volume.marks import LegendRow, Overlay
from gui.volume.noise import above_noise
from gui.volume.optics import leaps, optics_of
from gui.volume.painting import Painted
from gui.volume.slice_pane import SlicePane, pixmap_of
from gui.volume.slicing import Orientation, along, trilinear
from gui.volume.surfaces import isosurface
from gui.workers import Job
from reconstruction.volume import LINEAR_ATTENUATION, MASS_CONCENTRATION, Grid, Volume
from tests.gui.volume_phantom import ready

RANDOM = np.random.default_rng(0)
SHAPE = (6, 7, 8)


def random(*shape: int) -> NDArray[np.float32]:
    return RANDOM.random(shape).astype(np.float32)


ODD: dict[str, NDArray] = {
    "one voxel": np.ones((2, 1, 1, 1), np.float32),
    "one slice": random(2, 1, 7, 8),
    "one column": random(2, 6, 7, 1),
    "no number": np.full((2, *SHAPE), np.nan, np.float32),
    "infinite": np.where(random(2, *SHAPE) > 0.8, np.inf, random(2, *SHAPE)).astype(np.float32),
    "endless below": np.where(random(2, *SHAPE) > 0.8, -np.inf, random(2, *SHAPE)).astype(np.float32),
    "constant": np.full((2, *SHAPE), 0.5, np.float32),
    "negative": -random(2, *SHAPE),
    "enormous": 1e30 * random(2, *SHAPE),
    "tiny": 1e-30 * random(2, *SHAPE),
    "bytes": RANDOM.integers(0, 255, (2, *SHAPE)).astype(np.uint8),
    "words": RANDOM.integers(0, 60_000, (2, *SHAPE)).astype(np.uint16),
    "double": RANDOM.random((2, *SHAPE)),
    "half": random(2, *SHAPE).astype(np.float16),
    "one material": random(1, *SHAPE),
    "twelve materials": random(12, *SHAPE),
}


def volume(values: NDArray, unit: str, prefix: str) -> Volume:
    names = tuple(f"{prefix}{n}" for n in range(len(values)))
    return Volume(values=values, channels=names, unit=unit, grid=Grid(shape=values.shape[1:], voxel_mm=0.1))


@pytest.mark.parametrize("unit", [MASS_CONCENTRATION, LINEAR_ATTENUATION], ids=["materials", "bins"])
@pytest.mark.parametrize("values", ODD.values(), ids=ODD)
def test_slices_of_odd_volumes_are_shown(qtbot: QtBot, session: Session, values: NDArray, unit: str) -> None:
    kind = "materials" if unit == MASS_CONCENTRATION else "bins"
    session.change(**{kind: volume(values, unit, "m" if kind == "materials" else "bin")})
    desk = Desk(session)
    desk.seen = set(PANES)
    until(qtbot, desk, lambda: set(desk.pictures) == set(PANES) and desk.is_idle)
    region = desk.draw(Tool.BOX, [(-0.2, -0.2), (0.2, 0.2)], desk.cut_of("axial"), 0.3)
    desk.ask_histogram(desk.channels[0], "", "")
    desk.ask_auto()
    until(qtbot, desk, lambda: desk.is_idle)
    assert not session.failures
    assert desk.figures[region.name].n_voxels > 0
    looks = [desk.look] if isinstance(desk.look, GreyLook) else desk.material_looks
    assert len(looks) == (1 if kind == "bins" else len(values))
    assert {picture.picture.dtype for picture in desk.pictures.values()} == {np.dtype(np.uint8)}
    desk.close()


def until(qtbot: QtBot, desk: Desk, holds: Callable[[], bool]) -> None:
    qtbot.waitUntil(lambda: (desk.beat(), holds())[1], timeout=20_000)


@pytest.mark.parametrize("values", ODD.values(), ids=ODD)
def test_odd_volumes_are_made_ready_for_rays(values: NDArray) -> None:
    from gui.volume.looks import auto_looks

    values = values[:8]
    looks = auto_looks([f"m{n}" for n in range(len(values))], np.asarray(values, np.float32))
    grains = ready(values, 0.1, smoothings=None, highs_g_cm3=[look.high_g_cm3 for look in looks])
    assert np.isfinite(grains.values).all()
    assert np.isfinite(grains.noise_g_cm3).all()
    optics = optics_of([above_noise(*pair) for pair in zip(looks, grains.noise_g_cm3, strict=True)], 1.0)
    assert leaps(grains, optics).shape == grains.least.shape[1:]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.float16, np.float64])
def test_slanted_cuts_are_the_same_whatever_the_numbers_are_kept_as(kind: type) -> None:
    values = RANDOM.integers(0, 200, (2, *SHAPE)).astype(kind)
    grid = Grid(shape=SHAPE, voxel_mm=0.1)
    points = RANDOM.uniform(-0.25, 0.25, (50, 3))
    np.testing.assert_array_equal(trilinear(values, grid, points), trilinear(values.astype(np.float32), grid, points))


def test_a_mapped_volume_is_thinned_slab_by_slab(tmp_path: Path) -> None:
    """Of a volume on disk no more than a slab is in memory, beside what is drawn."""
    shape = (1, 96, 512, 512)
    values = np.lib.format.open_memmap(tmp_path / "large.npy", mode="w+", dtype=np.float16, shape=shape)
    values[0, 40:48, :64] = 1.0
    tracemalloc.start()
    grains = ready(values, 0.1, most_voxels=24**3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grains.values.max() > 0
    assert peak < 0.5 * values.size * 4, "half of the whole in single precision"


def test_a_surface_of_odd_numbers_is_found() -> None:
    values = np.where(random(*SHAPE) > 0.95, np.nan, 1.0).astype(np.float32)
    job = Job("surface", isosurface(values, 0.5, voxel_mm=(0.1, 0.1, 0.2)))
    job.run()
    assert job.snapshot().error is None
    assert job.result.area_mm2 > 0


@pytest.mark.parametrize("n_materials", [2, 8])
def test_a_legend_fits_into_its_pane_however_many_materials_and_long_their_names(
    qtbot: QtBot, n_materials: int
) -> None:
    """Neither below the pane nor over its left half, where the title stands."""
    rows = tuple(
        LegendRow(name="w" * 80, low="0", high="10 mg/mL", colours=((0, 0, 0), (255, 0, 0))) for _ in range(n_materials)
    )
    pane = SlicePane("axial", "")
    qtbot.addWidget(pane)
    pane.resize(320, 300)
    pane.show()
    black = np.zeros((4, 4, 3), np.uint8)
    cut = along(Orientation.AXIAL, (0.0, 0.0, 0.0))
    pane.show_picture(Painted(cut=cut, picture=black, left_mm=0, bottom_mm=0, step_mm=1))
    pane.show_overlay(Overlay(legend=rows))
    image = pixmap_of(pane, 1.0)
    colours = [[image.pixelColor(x, y) for x in range(320)] for y in range(300)]
    is_red = np.array([[each.red() > 200 and each.green() < 60 for each in line] for line in colours])
    is_lit = np.array([[each.value() > 60 for each in line] for line in colours])
    ends = is_red[:, 290:306].any(axis=1).astype(int)
    assert (np.diff(ends) == 1).sum() == n_materials
    assert not is_lit[:250, :30].any()


@pytest.mark.parametrize("span", [1e-4, 0.04, 3.0, 2000.0])
def test_ends_of_grey_levels_can_be_typed_to_a_thousandth_of_their_span(qtbot: QtBot, span: float) -> None:
    """To type one end must not move the other."""
    panel = LooksPanel()
    qtbot.addWidget(panel)
    levels = 0.12345 * span, 0.98765 * span
    panel.show_looks(GreyLook(levels=levels), ((0.0, span),), "1/mm")
    told: list[GreyLook] = []
    panel.looks_changed.connect(told.append)
    panel.grey.high.setValue(0.5 * span)
    assert told[-1].levels == pytest.approx((levels[0], 0.5 * span), abs=1e-3 * span)
