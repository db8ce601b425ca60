"""The whole assessment recovers what was hidden in the maps."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import msgspec
import numpy as np
import pytest
from scipy import stats

from firmware_iface.errors import WrongUsage
from reconstruction.assessment import Assessment, assess, cut_out, uniform_square
from reconstruction.merit.registration import find_pose
from reconstruction.phantom_file import Disc, Edge, Square, Vial
from reconstruction.volume import Volume
from tests.material_phantom import maps_of, ring

BLURS_MM = (0.12, 0.15, 0.2)
NOISE_MG_ML = 1.2


def finished(work) -> Assessment:
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


@cache
def whole() -> Assessment:
    phantom = ring(blank=Disc(x_mm=0.0, y_mm=0.0, radius_mm=1.9))
    volume = maps_of(
        phantom.moved(0.21, -0.13, 0.4), blur_mm=BLURS_MM, noise_mg_ml=NOISE_MG_ML, slope=0.95, offset_mg_ml=0.3,
        shown_of_iodine=0.04, correlation=-0.7, n_slices=16,
    )  # fmt: skip
    return finished(assess(volume, phantom, pose=find_pose(volume, phantom)))


def test_slope_offset_and_cross_talk_are_found():
    for figures in (whole().as_it_is, whole().matched):
        assert figures is not None
        for fit in figures.regressions.values():
            assert fit.offset_mg_ml == pytest.approx(0.3, abs=0.05)
            assert fit.r2 > 0.999
        assert figures.regressions["iodine"].slope == pytest.approx(0.95, abs=0.01)
        np.testing.assert_allclose(figures.mixing, [[0.95, 0], [0.04, 0.95]], atol=0.01)
        # Gadolinium in the vials of water and iodine: the offset, and 4 % of 3, 9 and 18 mg/mL.
        wrong = 0.3 + 0.04 * np.array([0, 3, 9, 18])
        assert figures.cross_talk_mg_ml["gadolinium"] == pytest.approx(np.sqrt((wrong**2).mean()), abs=0.03)


def test_all_maps_come_to_the_mtf50_of_the_least_sharp():
    assert whole().matched is not None
    expected = np.sqrt(np.log(2) / 2) / (np.pi * np.array(BLURS_MM))
    for name, mtf50 in zip(whole().materials, expected, strict=True):
        assert whole().as_it_is.sharpness[name].mtf.mtf50_per_mm == pytest.approx(mtf50, rel=0.04)
        assert whole().matched.sharpness[name].mtf.mtf50_per_mm == pytest.approx(whole().mtf50_per_mm, rel=0.02)


def test_the_noise_is_that_which_was_added():
    noise = whole().as_it_is.noise
    np.testing.assert_allclose(np.sqrt(np.diagonal(noise.covariance)), NOISE_MG_ML, rtol=0.04)
    assert noise.covariance[1, 2] / NOISE_MG_ML**2 == pytest.approx(-0.7, abs=0.05)
    assert whole().as_it_is.blank_sd_mg_ml["iodine"] == pytest.approx(NOISE_MG_ML, rel=0.03)


def test_a_vial_at_the_detection_limit_is_five_sigma_off_the_blank():
    figures = whole().as_it_is
    limit = figures.limits["iodine"].cnr_mg_ml
    phantom = ring()
    weak = Vial(material="iodine", x_mm=0, y_mm=0, radius_mm=1.5, concentration_mg_ml=limit)
    volume = maps_of(msgspec.structs.replace(phantom, vials=(weak,)), noise_mg_ml=NOISE_MG_ML, slope=0.95, n_slices=8)
    inside = volume.channel("iodine")[:, 55:65, 55:65] * 1000
    assert inside.mean() / inside.std() == pytest.approx(5, rel=0.06)


def test_identification_is_that_of_the_normal_law():
    """A voxel of the water vial shows iodine where noise on the offset lifts it above half of 3 mg/mL."""
    figures = whole().as_it_is
    above = [stats.norm.sf((limit - 0.3) / NOISE_MG_ML) for limit in (1.5, 2.0)]
    both = stats.multivariate_normal([0.3, 0.3], NOISE_MG_ML**2 * np.array([[1, -0.7], [-0.7, 1]])).cdf([1.5, 2.0])
    row = figures.confusion.shares[2]
    assert row[2] == pytest.approx(both, abs=0.02)
    assert row[0] <= above[0] + 0.02
    assert figures.identified_share[3] > 0.999
    area = np.mean([stats.norm.cdf(0.95 * true / (NOISE_MG_ML * np.sqrt(2))) for true in (3, 9, 18)])
    assert figures.rocs["iodine"].area_fraction == pytest.approx(area, abs=0.004)


def test_vials_are_read_clear_of_their_blurred_rims():
    phantom = ring()
    found = finished(assess(maps_of(phantom, blur_mm=0.3, noise_mg_ml=0.2), phantom))
    assert found.phantom.kept_radius_share == pytest.approx(1 - 2.5 * 0.3 / 1.2, abs=0.02)
    assert any("read within" in words for words in found.remarks)
    # 0.6 % is lacking at the edge of what is read, less inside of it.
    assert found.as_it_is.regressions["iodine"].slope == pytest.approx(1, abs=0.006)


def test_maps_without_contrast_have_no_mtf_and_the_remarks_say_so():
    phantom = ring()
    volume = maps_of(phantom, noise_mg_ml=0.5)
    empty = replace(volume, values=np.random.default_rng(0).normal(0, 1e-3, volume.values.shape).astype(np.float32))
    found = finished(assess(empty, phantom))
    assert found.matched is None
    assert np.isnan(found.mtf50_per_mm)
    assert len(found.remarks) == 4


def test_a_stated_edge_is_taken_for_its_map():
    phantom = ring(edges=(Edge(material="iodine", x_mm=0.0, y_mm=0.0, radius_mm=1.2, reach_mm=0.9),))
    with_rod = msgspec.structs.replace(
        phantom, vials=(*phantom.vials, Vial(material="iodine", x_mm=0, y_mm=0, radius_mm=1.2, concentration_mg_ml=50))
    )
    found = finished(assess(maps_of(with_rod, blur_mm=0.15, noise_mg_ml=0.5), phantom))
    assert found.as_it_is.sharpness["iodine"].where == "disc at x 0.00, y 0.00 mm"
    assert found.as_it_is.sharpness["water"].where != "disc at x 0.00, y 0.00 mm"


def test_mixtures_have_a_line_and_no_label():
    phantom = ring()
    mixed = Vial(
        material="iodine", x_mm=0, y_mm=0, radius_mm=1.2, concentration_mg_ml=6, mixture_mg_ml={"gadolinium": 10}
    )
    phantom = msgspec.structs.replace(phantom, vials=(*phantom.vials, mixed))
    found = finished(assess(maps_of(phantom, noise_mg_ml=0.3), phantom)).as_it_is
    assert len(found.regressions["iodine"].true_mg_ml) == len(found.regressions["gadolinium"].true_mg_ml) == 5
    assert np.isnan(found.identified_share[-1])
    assert found.regressions["gadolinium"].slope == pytest.approx(1, abs=0.01)
    n_labelled = sum(s.n_voxels for s in found.vials[:-1])
    assert found.confusion.counts.sum() == n_labelled


def test_the_spread_at_its_bound_has_a_ratio_of_one():
    phantom = ring()
    volume = maps_of(phantom, blur_mm=0.1, noise_mg_ml=2.0)
    bound = replace(volume, values=np.full_like(volume.values, 0.002))
    found = finished(assess(volume, phantom, predicted_sd=bound)).efficiencies
    assert found["iodine"].sd_ratio == pytest.approx(1, abs=0.03)


def test_a_cut_keeps_places():
    phantom = ring(z_range_mm=(-0.15, 0.4)).moved(0.5, 0.2)
    volume = maps_of(phantom, n=200)
    part = cut_out(volume, phantom)
    assert part.grid.shape[0] == 4
    assert part.grid.shape[1] < volume.grid.shape[1]
    z, y, x = volume.grid.axes_mm()
    zs, ys, xs = part.grid.axes_mm()
    rows, cols = np.searchsorted(y, ys - 1e-9), np.searchsorted(x, xs - 1e-9)
    slices = np.searchsorted(z, zs - 1e-9)
    np.testing.assert_array_equal(part.values, volume.values[np.ix_(range(3), slices, rows, cols)])


def test_the_uniform_square_lies_inside_the_blank():
    assert uniform_square(ring(uniform=Square(x_mm=1, y_mm=2, side_mm=3))) == Square(x_mm=1, y_mm=2, side_mm=3)
    square = uniform_square(ring())
    assert square is not None
    assert square.side_mm / np.sqrt(2) == pytest.approx(0.8 * 1.2)


def test_what_does_not_fit_is_refused():
    phantom, volume = ring(), maps_of(ring(), n_slices=2)
    water = Volume(values=volume.values[:1], channels=("water",), unit="g/cm3", grid=volume.grid)
    with pytest.raises(WrongUsage, match="of which the volume has no map"):
        finished(assess(water, phantom))
    with pytest.raises(WrongUsage, match="the phantom lies at z"):
        finished(assess(volume, msgspec.structs.replace(phantom, z_range_mm=(5.0, 6.0))))
    with pytest.raises(WrongUsage, match="cannot be blurred"):
        finished(assess(volume, phantom, mtf50_per_mm=4.0))
    with pytest.raises(WrongUsage, match="the volume is in 1/mm"):
        finished(assess(replace(volume, unit="1/mm"), phantom))
