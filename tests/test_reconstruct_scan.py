"""Scans by other recipes than the default: iterative methods, chosen bins, regions, previews, rings."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import reconstruction.cli
from acquisition.scan import ImageKey, readout_of
from acquisition.scan_plan import HelicalPlan, ScanPlan
from acquisition.scan_writer import ScanWriter
from acquisition.steps import Pose
from firmware_iface.errors import BadFile, WrongUsage
from firmware_iface.frame import Frame
from reconstruction.field_of_view import reached
from reconstruction.methods.convergence import ConvergenceLog
from reconstruction.pipeline import reconstruct_scan
from reconstruction.recipe import Recipe
from reconstruction.scan_iteration import resampled
from reconstruction.volume import Grid, Volume, load_volume, save_volume
from tests.test_pipeline import BASIS, GEOMETRY, PLAN, VIALS, calibration, counts, run, write_scan

WATER = 1.0
MIDDLE = np.s_[:, 3:8]


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    return write_scan(tmp_path_factory.mktemp("recipe") / "scan.h5")


@pytest.fixture(scope="module")
def by_fdk(scan):
    return run(reconstruct_scan(scan, Recipe(window="ram-lak")))


def reads(volume: Volume) -> np.ndarray:
    """Mean attenuation in water and in both vials, where slices see no edge: (3, n_bins), 1/mm."""
    _, y, x = volume.grid.axes_mm()
    places = [(0.0, 2.8, 0.8), *((vial.x_mm, vial.y_mm, 0.8) for vial in VIALS)]
    return np.array(
        [
            volume.values[MIDDLE][..., np.hypot(x - at_x, y[:, None] - at_y) < radius].mean(axis=(1, 2))
            for at_x, at_y, radius in places
        ]
    )


def truth() -> np.ndarray:
    attenuation = BASIS.attenuation_per_mm_per_g_cm3
    agents = [np.zeros(4)]
    agents += [attenuation[:, BASIS.materials.index(v.material)] * v.concentration_mg_ml / 1000 for v in VIALS]
    return attenuation[:, 0] * WATER + np.array(agents)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(method="os-sart", n_iterations=8),
        Recipe(method="cgls", n_iterations=12),
        Recipe(method="pwls", n_iterations=8, start="fdk"),
        Recipe(method="fista", prior="tv", n_iterations=25, options={"strength_per_mm": 0.0005}, start="fdk"),
        Recipe(method="transmission", n_iterations=12),
        Recipe(
            method="pdhg",
            prior="directional-tv",
            n_iterations=20,
            options={"strength_per_mm": 0.0005},
            start="fdk",
            reference="fdk",
        ),
    ],
    ids=lambda recipe: recipe.method,
)
def test_iterative_methods_read_what_is_there_in_every_bin(scan, recipe):
    volume = run(reconstruct_scan(scan, recipe))
    np.testing.assert_allclose(reads(volume), truth(), rtol=0.06, atol=2e-3)
    assert recipe.method in volume.provenance.steps[-1]
    assert "iterations" in volume.provenance.steps[-1]
    table = json.loads(volume.provenance.convergence_json)
    assert len(table["number"]) == recipe.n_iterations
    assert table["residual"][-1] < table["residual"][0]


def test_the_default_recipe_reads_the_same(by_fdk):
    np.testing.assert_allclose(reads(by_fdk), truth(), rtol=0.06, atol=2e-3)
    assert by_fdk.provenance.convergence_json == ""


def test_chosen_bins_are_those_of_the_whole(scan, by_fdk):
    some = run(reconstruct_scan(scan, Recipe(window="ram-lak", bins=(2, 4))))
    np.testing.assert_array_equal(some.values, by_fdk.values[[1, 3]])
    assert some.channels == (by_fdk.channels[1], by_fdk.channels[3])
    assert some.basis is None  # it is of all bins
    with pytest.raises(WrongUsage, match="bin 5"):
        run(reconstruct_scan(scan, Recipe(bins=(5,))))


def test_a_region_reads_what_the_whole_reads_there(scan, by_fdk):
    part = run(reconstruct_scan(scan, Recipe(window="ram-lak", region_mm=((-2, 1), (0, 3), (-0.5, 0.5)))))
    z, y, x = by_fdk.grid.axes_mm()
    inside = np.ix_(
        range(4),
        *(np.flatnonzero((a >= low) & (a <= high)) for a, (low, high) in ((z, (-0.5, 0.5)), (y, (0, 3)), (x, (-2, 1)))),
    )
    np.testing.assert_allclose(part.values, by_fdk.values[inside], atol=1e-5)


def test_an_iterated_region_is_explained_by_all_of_the_object(scan, by_fdk):
    recipe = {"method": "os-sart", "n_iterations": 6}
    whole = run(reconstruct_scan(scan, Recipe(**recipe)))
    part = run(reconstruct_scan(scan, Recipe(**recipe, region_mm=((0, 3), (-1, 2), (-0.5, 0.5)))))
    z, y, x = whole.grid.axes_mm()
    inside = np.ix_(
        range(4),
        *(np.flatnonzero((a >= low) & (a <= high)) for a, (low, high) in ((z, (-0.5, 0.5)), (y, (-1, 2)), (x, (0, 3)))),
    )
    np.testing.assert_allclose(part.values, whole.values[inside], atol=2e-3)
    apart = {
        (axis, step): np.std((np.roll(whole.values, step, axis) - by_fdk.values)[MIDDLE])
        for axis in (2, 3)
        for step in (-1, 0, 1)
    }
    for (_, step), error in apart.items():  # every voxel stands where filtered back-projection has it
        assert step == 0 or error > 1.1 * apart[2, 0]


def test_a_preview_reads_the_same_from_a_sixteenth_of_the_pixels_and_a_quarter_of_the_views(scan, by_fdk):
    volume = run(reconstruct_scan(scan, Recipe(window="ram-lak", is_preview=True)))
    assert volume.grid.voxel_mm == pytest.approx(4 * by_fdk.grid.voxel_mm)
    assert volume.grid.axes_mm()[2][-1] == pytest.approx(by_fdk.grid.axes_mm()[2][-1], abs=2 * volume.grid.voxel_mm)
    _, y, x = volume.grid.axes_mm()
    middle = volume.values[:, 1, np.hypot(x, y[:, None]) < 2.5].mean(axis=1)
    _, y, x = by_fdk.grid.axes_mm()
    expected = by_fdk.values[:, 5, np.hypot(x, y[:, None]) < 2.5].mean(axis=1)
    np.testing.assert_allclose(middle, expected, rtol=0.15)
    assert "preview" in " ".join(volume.provenance.steps)


def test_iterations_end_when_only_noise_is_left(scan):
    volume = run(reconstruct_scan(scan, Recipe(method="pwls", n_iterations=30, stops_at_noise=True, start="fdk")))
    log = ConvergenceLog.of_table(json.loads(volume.provenance.convergence_json))
    assert "noise" in log.ended_by
    assert len(log.steps) < 30
    with pytest.raises(WrongUsage, match="does not know the noise"):
        run(reconstruct_scan(scan, Recipe(method="mlem", stops_at_noise=True)))


def test_a_volume_file_is_a_start_on_any_grid(scan, tmp_path):
    coarse = run(reconstruct_scan(scan, Recipe(method="os-sart", n_iterations=3, is_preview=True)))
    start = save_volume(coarse, tmp_path / "coarse.h5")
    cold, warm = (
        run(reconstruct_scan(scan, Recipe(method="sirt", n_iterations=1, start=origin))) for origin in (None, start)
    )
    first = [json.loads(volume.provenance.convergence_json)["residual"][0] for volume in (cold, warm)]
    assert first[1] < 0.85 * first[0]  # the coarse volume ends below the outermost rows
    pair = save_volume(run(reconstruct_scan(scan, Recipe(bins=(1, 2)))), tmp_path / "two.h5")
    with pytest.raises(WrongUsage, match="2 channels; allowed: 4"):
        run(reconstruct_scan(scan, Recipe(method="sirt", start=pair)))


def test_resampling_keeps_what_is_linear():
    grid = Grid(shape=(8, 9, 10), voxel_mm=0.4, centre_mm=(0.1, 0.2, 0.3))
    z, y, x = np.ix_(*grid.axes_mm())
    volume = Volume(values=(z + 2 * y - x)[None].astype(np.float32), channels=("a",), unit="1/mm", grid=grid)
    finer = Grid(shape=(5, 5, 5), voxel_mm=0.25, centre_mm=(0.0, 0.1, 0.2))
    z, y, x = np.ix_(*finer.axes_mm())
    np.testing.assert_allclose(resampled(volume, finer)[0], z + 2 * y - x, atol=1e-5)


def test_a_grid_that_is_widened_holds_every_ray_and_its_own_voxels():
    grid = Grid(shape=(3, 5, 5), voxel_mm=0.3, centre_mm=(0.5, 0.0, 0.2))
    whole = reached(grid, GEOMETRY)
    for own, wide in zip(grid.axes_mm(), whole.axes_mm(), strict=True):
        assert np.abs(wide[:, None] - own).min(axis=0) == pytest.approx(0, abs=1e-9)
    half_mm = GEOMETRY.cols * GEOMETRY.pitch_mm / 2
    radius_mm = GEOMETRY.source_to_object_mm * np.sin(np.arctan2(half_mm, GEOMETRY.source_to_detector_mm))
    for axis in whole.axes_mm()[1:]:
        assert axis[0] - 0.15 <= -radius_mm + 0.16
        assert axis[-1] + 0.15 >= radius_mm - 0.16
    assert reached(whole, GEOMETRY).shape == whole.shape


def test_rings_are_taken_out_when_there_are_any(scan):
    untouched = run(reconstruct_scan(scan, Recipe(rings="auto", shape=(2, 8, 8))))
    assert any("rings" in step for step in untouched.provenance.steps)
    treated = run(reconstruct_scan(scan, Recipe(rings="sorting", shape=(2, 8, 8))))
    assert any("sorting" in step for step in treated.provenance.steps)
    with pytest.raises(WrongUsage, match="ring method is 'magic'"):
        run(reconstruct_scan(scan, Recipe(rings="magic", shape=(2, 8, 8))))


class Screen:
    """Runs works to their end and keeps what was told."""

    def track(self, work, stop=None):
        return run(work)

    def say(self, text):
        pass

    def emit(self, figures, text, *, as_json):
        typer.echo(json.dumps(figures) if as_json else text)


def command(*words: str):
    app = typer.Typer()
    reconstruction.cli.register(app)
    return CliRunner().invoke(app, [str(word) for word in words], obj=Screen())


def test_the_command_writes_the_volume_the_plot_and_what_it_did(scan, tmp_path):
    out = tmp_path / "v.h5"
    done = command(
        "reconstruct", scan, "-o", out, "--method", "os-sart", "--iterations", "3", "--set", "n_subsets=5",
        "--bins", "1-2", "--roi", "x=-1:1,y=-1:1", "--voxel", "0.4", "--cpu", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    figures = json.loads(done.output)
    volume = load_volume(out)
    assert len(volume.channels) == 2
    assert volume.grid.voxel_mm == 0.4
    assert figures["convergence"]["method"] == "os-sart"
    assert (tmp_path / "v-convergence.png").stat().st_size > 5000
    assert json.loads(volume.provenance.convergence_json) == figures["convergence"]
    assert "n_subsets 5" in volume.provenance.steps[-1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--method", "magic"), "no method is called 'magic'"),
        (("--method", "sirt", "--set", "n_subsets"), "allowed: NAME=VALUE"),
        (("--method", "sirt", "--set", "speed=3"), "no option 'speed'"),
        (("--method", "fista"), "needs a prior"),
        (("--method", "transmission", "--weights", "noise"), "--weights noise is of line integrals"),
        (("--prior", "tv"), "the method fdk has no iterations"),
        (("--method", "fista", "--prior", "tv"), "the prior tv needs strength_per_mm"),
        (("--method", "fista", "--prior", "magic"), "no prior is called 'magic'"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(scan, tmp_path, words, told):
    done = command("reconstruct", scan, "-o", tmp_path / "v.h5", "--cpu", *words)
    assert isinstance(done.exception, WrongUsage)
    assert told in str(done.exception)
    assert not (tmp_path / "v.h5").exists()


def test_all_methods_are_told_with_their_options():
    done = command("reconstruct", "--methods")
    assert done.exit_code == 0, done.output
    for name in ("fdk", "sirt", "os-sart", "cgls", "pwls", "fista", "--prior tv"):
        assert name in done.output


def test_within_little_memory_it_is_made_in_slabs_and_reads_the_same(scan, by_fdk, tmp_path):
    out = tmp_path / "slabs.h5"
    done = command("reconstruct", scan, "-o", out, "--window", "ram-lak", "--cpu", "--memory", "2GB", "--json")
    assert done.exit_code == 0, done.output
    volume = load_volume(out)
    np.testing.assert_allclose(volume.values, by_fdk.values, atol=1e-5)
    assert (volume.channels, volume.grid, volume.thresholds_kev) == (
        by_fdk.channels,
        by_fdk.grid,
        by_fdk.thresholds_kev,
    )
    assert "slabs along z" in volume.provenance.steps[-1]
    some = tmp_path / "some.h5"
    done = command("reconstruct", scan, "-o", some, "--window", "ram-lak", "--cpu", "--memory", "2GB", "--bins", "3")
    assert done.exit_code == 0, done.output
    np.testing.assert_allclose(load_volume(some).values, by_fdk.values[2:3], atol=1e-5)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--method", "sirt"), "--method cannot be had slab by slab"),
        (("--rings", "auto", "--preview"), "--preview, --rings cannot be had slab by slab"),
        (("--metal-per-mm", "0.3"), "--metal-per-mm cannot be had slab by slab"),
    ],
)
def test_what_needs_all_views_at_once_is_refused_in_slabs(scan, tmp_path, words, told):
    done = command("reconstruct", scan, "-o", tmp_path / "v.h5", "--cpu", "--memory", "2GB", *words)
    assert isinstance(done.exception, WrongUsage)
    assert told in str(done.exception)


def test_memory_that_is_too_little_says_what_would_do(scan, tmp_path):
    done = command("reconstruct", scan, "-o", tmp_path / "v.h5", "--cpu", "--memory", "1MB")
    assert isinstance(done.exception, WrongUsage)
    assert "the least that would do" in str(done.exception)


def test_metal_is_taken_out_of_the_views_and_stands_in_the_volume_again(scan, by_fdk):
    # The vials are the densest here: with a limit between them and water they are "metal", and read as before.
    volume = run(reconstruct_scan(scan, Recipe(window="ram-lak", metal_per_mm=0.042)))
    assert any("voxels of metal" in step for step in volume.provenance.steps)
    first, now = reads(by_fdk), reads(volume)
    np.testing.assert_allclose(now[1], first[1], rtol=0.02)
    none = run(reconstruct_scan(scan, Recipe(window="ram-lak", metal_per_mm=5.0)))
    assert any("no metal found" in step for step in none.provenance.steps)
    np.testing.assert_allclose(none.values, by_fdk.values, atol=1e-6)


def test_scatter_is_taken_off_by_kernels_of_every_bin(scan, by_fdk, tmp_path):
    kernels = tmp_path / "kernels.toml"
    one = "[[bin]]\namplitude_per_mm2 = 0.002\ntransmission_slope = 0.8\nattenuation_slope = 0.5\n"
    one += "narrow_mm = 1.0\nwide_mm = 4.0\nwide_share = 0.2\n"
    kernels.write_text(4 * one)
    volume = run(reconstruct_scan(scan, Recipe(window="ram-lak", scatter=kernels)))
    assert any("scatter of" in step for step in volume.provenance.steps)
    assert (reads(volume)[0] > reads(by_fdk)[0]).all()  # with scatter in it, everything looks thinner
    kernels.write_text(one)
    with pytest.raises(WrongUsage, match="1 kernels for 4 bins"):
        run(reconstruct_scan(scan, Recipe(scatter=kernels)))
    kernels.write_text("[[bin]]\nsize = 3\n")
    with pytest.raises(BadFile, match="no scatter kernels"):
        run(reconstruct_scan(scan, Recipe(scatter=kernels)))


def write_orbit(path, plan, poses):
    """A scan of two flats and one frame at each pose; its pillars are so long that lifts do not show."""
    keys = [(ImageKey.FLAT, poses[0])] * 2 + [(ImageKey.PROJECTION, pose) for pose in poses]
    with ScanWriter(path, readout_of(plan), n_frames=len(keys), plan=plan, calibration=calibration()) as writer:
        for sequence, (key, pose) in enumerate(keys):
            values = counts(None if key is ImageKey.FLAT else pose.angle_rad, sequence)
            frame = Frame(
                counts=values,
                thresholds=PLAN.detector.thresholds,
                sequence=sequence,
                timestamp_ns=sequence,
                exposure_ns=10**9,
                run_id=1,
            )
            writer.write(frame, key, pose)
        writer.finish()
    return path


def test_a_short_scan_reads_the_same(tmp_path):
    views = np.deg2rad(np.arange(0, 206, 4))
    plan = msgspec.structs.replace(PLAN, scan=ScanPlan(n_views=len(views), arc_deg=206))
    path = write_orbit(tmp_path / "short.h5", plan, [Pose(angle_rad=angle) for angle in views])
    volume = run(reconstruct_scan(path, Recipe(window="ram-lak")))
    np.testing.assert_allclose(reads(volume), truth(), rtol=0.08, atol=2e-3)


def test_a_helix_reads_the_same_along_all_of_its_length(tmp_path):
    turns = np.arange(150) / 50
    plan = msgspec.structs.replace(PLAN, scan=HelicalPlan(length_mm=4.0, pitch_mm=2.0, views_per_turn=50))
    poses = [Pose(angle_rad=2 * np.pi * turn, lift_mm=2.0 * turn - 3.0) for turn in turns]
    volume = run(reconstruct_scan(write_orbit(tmp_path / "helix.h5", plan, poses), Recipe(window="ram-lak")))
    z, _, _ = volume.grid.axes_mm()
    assert z[-1] - z[0] + volume.grid.voxel_mm == pytest.approx(4.0, abs=0.3)
    np.testing.assert_allclose(reads(volume), truth(), rtol=0.08, atol=2e-3)
    middle = volume.values[:, :, 20:26, 20:26].mean(axis=(2, 3))
    np.testing.assert_allclose(middle, middle.mean(axis=1, keepdims=True) * np.ones_like(middle), rtol=0.05)
