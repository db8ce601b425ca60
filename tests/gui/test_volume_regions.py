"""Regions against brute force, lengths and angles against geometry, and the file that keeps them."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.path import Path as Polygon

from firmware_iface.errors import BadFile
from gui.volume.annotations import (
    Annotation,
    Tool,
    angle_deg,
    area_mm2,
    length_mm,
    load,
    measured,
    next_name,
    save,
    side_file,
)
from gui.volume.marks import outlines_of
from gui.volume.regions import (
    as_csv,
    figures_of,
    histogram,
    histogram_of,
    in_polygon,
    joint,
    layers,
    region_values,
    table_of,
    volume_text,
)
from gui.volume.slicing import Orientation, along, point_of, tilted
from reconstruction.volume import Grid, Volume
from tests.gui.volume_samples import BASIS, GRID, ROD, bins, materials

AXIAL = {"right": (1.0, 0.0, 0.0), "up": (0.0, 1.0, 0.0)}
CENTRE = point_of(GRID, (6, 8, 10))


def drawing(tool: Tool, *points: tuple[float, float, float], thickness_mm: float = 0.0, **plane: object) -> Annotation:
    return Annotation(tool=tool, name="it", points_mm=points, thickness_mm=thickness_mm, **(AXIAL | plane))  # pyright: ignore[reportArgumentType]


def mask_of(region: Annotation, grid: Grid = GRID) -> np.ndarray:
    mask = np.zeros(grid.shape, bool)
    for layer, inside in layers(region, grid):
        mask[layer] = inside
    return mask


def points() -> np.ndarray:
    """Return the middle of every voxel, (z, y, x, 3), one by one."""
    found = np.empty((*GRID.shape, 3))
    for voxel in np.ndindex(*GRID.shape):
        found[voxel] = point_of(GRID, voxel)  # pyright: ignore[reportArgumentType]
    return found


def shifted(by: tuple[float, float, float]) -> tuple[float, float, float]:
    x, y, z = (a + b for a, b in zip(CENTRE, by, strict=True))
    return x, y, z


def test_a_sphere_holds_what_is_near_its_middle() -> None:
    region = drawing(Tool.SPHERE, CENTRE, shifted((1.7, 0, 0)))
    expected = np.linalg.norm(points() - CENTRE, axis=-1) <= 1.7
    assert expected.any()
    assert np.array_equal(mask_of(region), expected)


@pytest.mark.parametrize("thickness", [0.0, 0.5, 1.6, 99.0])
def test_a_cylinder_is_round_and_as_high_as_it_says(thickness: float) -> None:
    region = drawing(Tool.CYLINDER, CENTRE, shifted((0, 1.2, 0)), thickness_mm=thickness)
    off = points() - CENTRE
    expected = (np.hypot(off[..., 0], off[..., 1]) <= 1.2) & (np.abs(off[..., 2]) < max(thickness, 0.5) / 2)
    assert expected.any()
    assert np.array_equal(mask_of(region), expected)


def test_a_box_lies_between_its_corners_on_every_plane() -> None:
    a, b = point_of(GRID, (2, 3, 4)), point_of(GRID, (9, 7, 11))
    sagittal = drawing(Tool.BOX, a, (a[0], b[1], b[2]), thickness_mm=0.5, right=(0.0, 1.0, 0.0), up=(0.0, 0.0, 1.0))
    expected = np.zeros(GRID.shape, bool)
    expected[2:10, 3:8, 4] = True
    assert np.array_equal(mask_of(sagittal), expected)


def test_a_thin_region_between_two_slices_holds_one_of_them() -> None:
    z_mm = point_of(GRID, (4.5, 0, 0))[2]
    region = drawing(Tool.BOX, (-99, -99, z_mm), (99, 99, z_mm))
    assert mask_of(region).any(axis=(1, 2)).sum() == 1


def test_a_freehand_region_is_matplotlibs() -> None:
    rng = np.random.default_rng(3)
    around = np.sort(rng.random(9) * 2 * np.pi)
    edge = [
        shifted((3 * r * np.cos(a), 2.5 * r * np.sin(a), 0)) for a, r in zip(around, 0.6 + rng.random(9), strict=True)
    ]
    region = drawing(Tool.FREEHAND, *edge, thickness_mm=1.5)
    flat = Polygon([point[:2] for point in edge])
    off = points()
    inside = flat.contains_points(off[..., :2].reshape(-1, 2)).reshape(GRID.shape)
    expected = inside & (np.abs(off[..., 2] - CENTRE[2]) < 0.75)
    assert expected.any()
    assert np.array_equal(mask_of(region), expected)


def test_a_polygon_that_crosses_itself_has_holes() -> None:
    star = np.array([(math.cos(a), math.sin(a)) for a in np.arange(5) * 4 * np.pi / 5])
    assert not in_polygon(np.array(0.0), np.array(0.0), star)
    assert in_polygon(np.array(0.8), np.array(0.0), star)


def test_a_region_aslant_is_the_turned_voxels() -> None:
    cut = tilted(CENTRE, 0.5, 0.8)
    corner_a, corner_b = cut.plane_mm(CENTRE), cut.plane_mm(CENTRE)
    ends = (cut.point_mm(corner_a[0] - 1.5, corner_a[1] - 1.0), cut.point_mm(corner_b[0] + 1.5, corner_b[1] + 1.0))
    region = drawing(Tool.BOX, *ends, thickness_mm=1.2, right=cut.right, up=cut.up)
    axes = np.array([cut.right, cut.up, cut.normal])
    off = np.abs((points() - CENTRE) @ axes.T)
    expected = (off[..., 0] <= 1.5) & (off[..., 1] <= 1.0) & (off[..., 2] < 0.6)
    assert expected.sum() > 10
    assert np.array_equal(mask_of(region), expected)


def test_a_region_beside_the_volume_is_empty() -> None:
    region = drawing(Tool.SPHERE, (99, 99, 99), (99, 99, 98))
    assert not mask_of(region).any()
    found = figures_of(region, [materials()])
    assert found.n_voxels == 0
    assert math.isnan(found.channels[0].mean)


def noisy() -> Volume:
    volume = materials()
    values = volume.values + np.random.default_rng(5).normal(size=volume.values.shape).astype(np.float32)
    values[0, 6, 8, 10] = np.nan
    return replace(volume, values=values)


def test_figures_are_numpys_over_the_mask() -> None:
    region = drawing(Tool.SPHERE, CENTRE, shifted((0, 0, 2.2)))
    found, mask = figures_of(region, [noisy(), bins()]), mask_of(region)
    assert found.n_voxels == mask.sum()
    assert found.volume_mm3 == pytest.approx(mask.sum() * 0.125)
    assert [one.unit for one in found.channels] == ["mg/mL"] * 4 + ["1/mm"] * 4
    values = noisy().values[:, mask] * 1000.0
    for n, one in enumerate(found.channels[:4]):
        expected = np.nanmean(values[n]), np.nanstd(values[n], ddof=1), np.nanmin(values[n]), np.nanmax(values[n])
        assert (one.mean, one.sd, one.least, one.most) == pytest.approx(expected, rel=1e-5)


def test_the_rod_reads_what_is_in_it() -> None:
    low, high = point_of(GRID, (0, 4, 10)), point_of(GRID, (11, 7, 14))
    region = drawing(Tool.BOX, low, (high[0], high[1], low[2]), thickness_mm=99.0)
    found = {one.channel: one for one in figures_of(region, [materials()]).channels}
    assert found["iodine"].mean == pytest.approx(5.0)
    assert found["iodine"].sd == pytest.approx(0.0, abs=1e-6)
    assert region_values(region, materials()).shape == (4, materials().values[0][ROD].size)


def test_histograms_count_every_voxel_within() -> None:
    volume = noisy()
    found = histogram(volume.values[1], volume, "hydroxyapatite")
    inside = (volume.values[1] * 1000.0 >= found.edges[0]) & (volume.values[1] * 1000.0 <= found.edges[-1])
    assert found.counts.sum() == inside.sum()
    assert found.unit == "mg/mL"
    both = joint(volume.values, volume, 1, 2)
    assert both.counts.shape == (len(both.edges_upwards) - 1, len(both.edges_across) - 1)
    assert both.counts.sum() > 0.99 * inside.sum()


def test_a_histogram_of_two_puts_the_first_across() -> None:
    volume = materials()
    values = np.zeros((4, 100), np.float32)
    values[0] = np.linspace(0, 1, 100)
    values[2] = 0.002 * (np.arange(100) >= 50)
    found = joint(values, volume, 0, 2)
    where = np.argwhere(found.counts > 0)  # row: iodine, column: water
    assert where[:, 1].max() - where[:, 1].min() > 60
    assert len(set(where[:, 0])) == 2


def test_histograms_of_regions_and_of_the_volume() -> None:
    region = drawing(Tool.SPHERE, CENTRE, shifted((0, 0, 2.2)))
    alone, where = histogram_of(materials(), "water", "", region)
    assert where == "it"
    assert alone.counts.sum() == mask_of(region).sum()
    both, where = histogram_of(materials(), "water", "iodine", None)
    assert where == "whole volume"
    assert both.counts.sum() == np.prod(GRID.shape)


def test_lengths_angles_and_areas() -> None:
    assert length_mm(drawing(Tool.RULER, (0, 0, 0), (3, 4, 12))) == pytest.approx(13)
    assert measured(drawing(Tool.RULER, (0, 0, 0), (3, 4, 12))) == "13.0 mm"
    assert angle_deg(drawing(Tool.ANGLE, (2, 0, 0), (0, 0, 0), (0, 5, 0))) == pytest.approx(90)
    assert angle_deg(drawing(Tool.ANGLE, (1, 0, 0), (0, 0, 0), (-1, 1e-9, 0))) == pytest.approx(180)
    assert angle_deg(drawing(Tool.ANGLE, (1, 0, 0), (1, 0, 0), (0, 1, 0))) == 0
    square = drawing(Tool.AREA, (0, 0, 0), (2, 0, 0), (2, 3, 0), (0, 3, 0))
    assert area_mm2(square) == pytest.approx(6)
    assert measured(square) == "6.00 mm²"
    assert measured(drawing(Tool.SPHERE, (0, 0, 0), (1, 0, 0))) == ""


def test_area_of_a_circle_on_a_slanted_plane() -> None:
    cut = tilted((1, 2, 3), 0.3, 1.0)
    edge = [cut.point_mm(2 * math.cos(a), 2 * math.sin(a)) for a in np.linspace(0, 2 * np.pi, 720, endpoint=False)]
    found = Annotation(tool=Tool.AREA, name="a", points_mm=tuple(edge), right=cut.right, up=cut.up)
    assert area_mm2(found) == pytest.approx(4 * np.pi, rel=1e-4)


def test_drawings_cannot_be_nonsense() -> None:
    with pytest.raises(ValueError, match="sphere of 1 points"):
        drawing(Tool.SPHERE, CENTRE)
    with pytest.raises(ValueError, match="freehand of 2"):
        drawing(Tool.FREEHAND, CENTRE, CENTRE)
    with pytest.raises(ValueError, match="no number"):
        drawing(Tool.RULER, CENTRE, (0, 0, math.nan))
    with pytest.raises(ValueError, match="thickness_mm"):
        drawing(Tool.BOX, CENTRE, CENTRE, thickness_mm=-1)


def test_names_are_never_taken_twice() -> None:
    drawings: list[Annotation] = []
    for _ in range(3):
        drawings.append(replace(drawing(Tool.RULER, CENTRE, CENTRE), name=next_name(Tool.RULER, drawings)))
    assert [one.name for one in drawings] == ["ruler 1", "ruler 2", "ruler 3"]
    assert next_name(Tool.RULER, drawings[1:]) == "ruler 1"


def test_drawings_survive_their_file(tmp_path: Path) -> None:
    cut = tilted(CENTRE, 0.2, 0.3)
    drawings = (
        drawing(Tool.SPHERE, CENTRE, shifted((1, 0, 0))),
        Annotation(
            tool=Tool.FREEHAND, name="Grüße", points_mm=(CENTRE,) * 4, right=cut.right, up=cut.up, thickness_mm=2.5
        ),
    )
    path = save(drawings, side_file(tmp_path / "mouse.h5"))
    assert path.name == "mouse.annotations.json"
    assert load(path) == drawings
    assert load(tmp_path / "nothing.annotations.json") == ()
    assert json.loads(path.read_text(encoding="utf-8"))["units"] == "mm"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"format": "mpxct annotations", "format_version": 99}',
        '{"format": "mpxct annotations", "format_version": 1, "drawings": [{}]}',
    ],
)
def test_what_is_no_file_of_drawings_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.annotations.json"
    path.write_text(text)
    with pytest.raises(BadFile, match="annotations"):
        load(path)


def test_the_table_can_be_taken_to_a_spreadsheet() -> None:
    sphere = drawing(Tool.SPHERE, CENTRE, shifted((1, 0, 0)))
    ruler = replace(drawing(Tool.RULER, (0, 0, 0), (3, 4, 0)), name="r, 1")
    angle = replace(drawing(Tool.ANGLE, (1, 0, 0), (0, 0, 0), (0, 1, 0)), name="a")
    drawings = (sphere, ruler, angle)
    found = table_of(drawings, [materials()])
    rows = list(csv.DictReader(io.StringIO(as_csv([found[d] for d in drawings], drawings))))
    assert [row["channel"] for row in rows] == [*BASIS.materials, "", ""]
    assert (rows[4]["name"], rows[4]["size"], rows[4]["unit of size"]) == ("r, 1", "5", "mm")
    assert (rows[5]["size"], rows[5]["unit of size"]) == ("90.0", "degrees")
    assert float(rows[0]["mean"]) == pytest.approx(1000)
    assert rows[0]["unit of size"] == "mm3"


def test_volumes_for_people() -> None:
    assert volume_text(12.34) == "12.3 mm³"
    assert volume_text(2500) == "2.50 mL"


def test_outlines_show_where_they_were_drawn_and_nowhere_else() -> None:
    box = drawing(Tool.BOX, CENTRE, shifted((1, 1, 0)), thickness_mm=1.0)
    here, near = along(Orientation.AXIAL, CENTRE), along(Orientation.AXIAL, shifted((0, 0, 0.5)))
    far, across = along(Orientation.AXIAL, shifted((0, 0, 2.0))), along(Orientation.CORONAL, CENTRE)
    assert [len(outlines_of(cut, [box], GRID)) for cut in (here, near, far, across)] == [1, 1, 0, 0]
    (outline,) = outlines_of(here, [box], GRID)
    assert outline.points_mm.min(axis=0) == pytest.approx(CENTRE[:2])
    assert outline.points_mm.max(axis=0) == pytest.approx(shifted((1, 1, 0))[:2])


def test_a_sphere_shows_on_every_cut_as_the_circle_it_is_there() -> None:
    sphere = drawing(Tool.SPHERE, CENTRE, shifted((2.0, 0, 0)))
    for cut in (along(Orientation.CORONAL, shifted((0, 1.2, 0))), tilted(CENTRE, 0.3, 0.4)):
        (outline,) = outlines_of(cut, [sphere], GRID)
        for right_mm, up_mm in outline.points_mm[::8]:
            assert math.dist(cut.point_mm(right_mm, up_mm), CENTRE) == pytest.approx(2.0)
    assert not outlines_of(along(Orientation.CORONAL, shifted((0, 2.1, 0))), [sphere], GRID)
