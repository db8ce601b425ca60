"""Figures say what they show, on the right scale, and are written whole."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.figure import Figure
from matplotlib.image import imread

from acquisition.scan import ImageKey, Readout
from acquisition.scan_file import read_scan
from acquisition.scan_writer import ScanWriter
from acquisition.steps import Pose
from calibration.pixels import PixelClass
from calibration.store import Calibration, MeasuredLine
from firmware_iface.errors import MpxctError, WrongUsage
from firmware_iface.frame import Frame, Lost
from firmware_iface.merlin import read_mib
from gui.picture import (
    bins_figure,
    calibration_figure,
    materials_figure,
    merlin_figure,
    png_bytes,
    robust_levels,
    save_png,
    scan_figure,
    slab,
)
from reconstruction.volume import Grid, Volume


def volume(unit="g/cm3", channels=("water", "iodine", "gadolinium"), n=40, voxel_mm=0.1) -> Volume:
    values = np.random.default_rng(1).normal(0, 0.0005, (len(channels), 3, n, n)).astype(np.float32)
    values[0, :, 5:-5, 5:-5] += 1.0
    values[1, 1, 5:10, 20:30] += 0.018
    return Volume(values=values, channels=channels, unit=unit, grid=Grid(shape=(3, n, n), voxel_mm=voxel_mm))


def calibration() -> Calibration:
    rng = np.random.default_rng(2)
    shape = (8, 16, 16)
    before, after = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    before[[1, 3]], after[[1, 3]] = rng.normal(30, 8, (2, 16, 16)), rng.normal(30, 1.5, (2, 16, 16))
    pixel_class = np.zeros((16, 16), np.uint8)
    pixel_class[3, 4], pixel_class[7, 7] = PixelClass.DEAD, PixelClass.NOISY | PixelClass.OUT_OF_TRIM
    return Calibration(
        created="2026-01-02T03:04:05+00:00", software="0", device="simulated <board>", chip_id="W1_A1", gain="HGM",
        is_csm=True, is_colour=True, bias_v=300.0, dacs={"Threshold0": 20}, trim=np.full(shape, 15, np.uint8),
        is_masked=np.zeros(shape, bool), pixel_class=pixel_class, target_dac=30.0, edges_before_dac=before,
        edges_after_dac=after, offset_dac=np.full(8, 10.0), gain_dac_per_kev=np.full(8, 4.0),
        lines=tuple(
            MeasuredLine(threshold=n, source=s, energy_kev=e, position_dac=10 + 4 * e + 0.4, residual_kev=0.1)
            for n in (1, 3)
            for s, e in (("In", 24.1), ("Gd", 42.7), ("Am-241", 59.5))
        ),
        thresholds_kev=(18.0, 33.0),
    )  # fmt: skip


def scan_path(folder, *, n_projections=2):
    path = folder / "scan.h5"
    readout = Readout(shape=(2, 16, 16), depth_bits=12, thresholds=(1, 3), thresholds_kev=(18.0, 33.0), pitch_mm=0.11)

    def frame(n, level):
        counts = np.full((2, 16, 16), level, np.uint16)
        return Frame(counts=counts, thresholds=(1, 3), sequence=n, timestamp_ns=n, exposure_ns=10**9, run_id=1)

    with ScanWriter(path, readout, sample="vials") as writer:
        writer.write(frame(0, 1000), ImageKey.FLAT)
        for n in range(n_projections):
            writer.write(frame(1 + n, 300 + n), ImageKey.PROJECTION, Pose(angle_rad=0.5 * n))
        writer.lost(Lost(run_id=1, first_sequence=1 + n_projections, n_frames=1, reason="overflow"))
        writer.finish()
    return path


def texts(figure: Figure) -> str:
    return " | ".join(text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text")))


@given(hnp.arrays(np.float64, st.integers(0, 30), elements=st.floats(-1e6, 1e6) | st.just(np.nan) | st.just(np.inf)))
def test_levels_are_always_a_range(values):
    low, high = robust_levels(values)
    assert low < high
    assert np.isfinite([low, high]).all()


def test_levels_ignore_a_hot_pixel_and_show_a_constant_in_the_middle():
    values = np.append(np.linspace(0, 10, 2000), 1e9)
    assert robust_levels(values)[1] < 11
    low, high = robust_levels(np.full(9, 7.0))
    assert (low + high) / 2 == 7


def test_materials_are_named_measured_and_scaled():
    figure = materials_figure(volume(), slab_mm=0)
    seen = texts(figure)
    for word in ("water", "iodine", "gadolinium", "mg/mL", "1 mm", "slice 1 of 3"):
        assert word in seen
    iodine = next(axes for axes in figure.axes if axes.get_title() == "iodine").images[0]
    assert iodine.origin == "lower"
    assert iodine.get_clim()[0] == 0
    assert 16 < iodine.get_clim()[1] < 21
    assert iodine.get_array()[7, 25] == pytest.approx(18, abs=2)


def test_a_slab_is_the_mean_of_its_slices():
    content = volume()
    mean, words = slab(content, 1, 3 * content.grid.voxel_mm)
    np.testing.assert_allclose(mean, content.values.mean(axis=1), rtol=1e-5, atol=1e-9)
    assert "mm thick" in words
    one, words = slab(content, 2, 0.0)
    np.testing.assert_array_equal(one, content.values[:, 2])
    assert words == "slice 2 of 3"


def test_the_scale_bar_is_as_long_as_it_says():
    axes = materials_figure(volume(n=40, voxel_mm=0.25)).axes[0]
    (bar,) = axes.patches
    assert bar.get_width() * 0.25 == pytest.approx(2)
    assert "2 mm" in [text.get_text() for text in axes.texts]


def test_bins_share_one_scale():
    figure = bins_figure(volume("1/mm", ("18-33 keV", "33-50 keV")))
    assert "18-33 keV" in texts(figure)
    assert "1/mm" in texts(figure)
    assert len({axes.images[0].get_clim() for axes in figure.axes if axes.images and axes.get_title()}) == 1


def test_a_scan_shows_flat_and_projection_of_every_counter(tmp_path):
    scan = read_scan(scan_path(tmp_path))
    seen = texts(scan_figure(scan))
    for word in ("above 18 keV", "above 33 keV", "open beam", "projection, frame 1", "counts"):
        assert word in seen
    assert "projection, frame 2, 28.6°" in texts(scan_figure(scan, frame=2))
    for frame, message in ((9, "allowed: 0 to 3"), (3, "was lost")):
        with pytest.raises(WrongUsage, match=message):
            scan_figure(scan, frame=frame)


def test_a_merlin_frame_shows_all_its_layers(tmp_path):
    frames = []
    for layer in (0, 2, 4, 6):
        header = f"MQ1,000001,00384,01,0256,0256,U08,   1x1,01,2020-01-01 00:00:00.000000,0.5,{layer},1,2,"
        header += "".join(f"{10 * n + 5}," for n in range(8))
        frames.append(header.encode().ljust(384, b"\0") + bytes([layer]) * 65536)
    path = tmp_path / "a.mib"
    path.write_bytes(b"".join(frames))
    figure = merlin_figure(read_mib(path))
    seen = texts(figure)
    for word in ("a.mib, frame 1 of 1, 0.5 s", "layer 2, above 25 keV", "layer 6, above 65 keV", "row", "column"):
        assert word in seen
    with pytest.raises(WrongUsage, match="frame 1 is not there; allowed: 0 to 0"):
        merlin_figure(read_mib(path), frame=1)


def test_a_calibration_shows_trims_and_classes():
    seen = texts(calibration_figure(calibration()))
    for word in ("trims of threshold 1", "trims of threshold 3", "2 bad pixels of 256", "dead 1", "out of trim 1"):
        assert word in seen
    assert "threshold 0" not in seen


def test_what_is_not_there_is_refused():
    with pytest.raises(WrongUsage, match="slice 3 is not there; allowed: 0 to 2"):
        bins_figure(volume("1/mm"), slice_index=3)
    with pytest.raises(WrongUsage, match="in 1/mm, not of materials"):
        materials_figure(volume("1/mm"))


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan])
def test_constant_and_empty_images_are_drawn(value):
    v = volume()
    constant = Volume(values=np.full_like(v.values, value), channels=v.channels, unit=v.unit, grid=v.grid)
    assert png_bytes(materials_figure(constant), dpi=40).startswith(b"\x89PNG")
    assert png_bytes(bins_figure(constant), dpi=40).startswith(b"\x89PNG")


def test_pictures_are_written_whole(tmp_path):
    path = save_png(bins_figure(volume("1/mm")), tmp_path / "a.png", dpi=50)
    image = imread(io.BytesIO(path.read_bytes()))
    assert image.shape[2] == 4
    assert image.std() > 0
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(MpxctError, match="cannot be written"):
        save_png(bins_figure(volume("1/mm")), tmp_path / "none" / "a.png", dpi=50)


def test_figures_leave_matplotlib_alone():
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    before = dict(mpl.rcParams)
    png_bytes(materials_figure(volume()), dpi=40)
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []
