"""From a scan file to materials, through the library and through the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tifffile
import typer
from typer.testing import CliRunner

import reconstruction.cli
from acquisition.plan import DetectorPlan, Plan
from acquisition.scan import ImageKey, readout_of
from acquisition.scan_file import read_scan
from acquisition.scan_layout import partial_path
from acquisition.scan_plan import ContinuousPlan, FramesPlan, HelicalPlan, ScanPlan
from acquisition.scan_writer import ScanWriter
from acquisition.steps import Pose
from calibration.alignment import Alignment
from calibration.geometry import Geometry
from calibration.material_basis import MaterialBasis
from calibration.store import Calibration, load
from firmware_iface.errors import BadFile, CalibrationMissing, WrongUsage
from firmware_iface.frame import Frame, Lost
from reconstruction.field_of_view import field_of_view
from reconstruction.materials import decompose_volume, read_image_folder
from reconstruction.pipeline import align_scan_file, reconstruct_scan
from reconstruction.projections import add_frames, find_views
from reconstruction.quality import Vial, vial_statistics
from reconstruction.recipe import Recipe
from reconstruction.volume import Grid, Volume, load_volume, save_volume

THRESHOLDS_KEV = (18.0, 33.0, 50.0, 75.0)
GEOMETRY = Geometry(source_to_detector_mm=150.0, source_to_object_mm=120.0, pitch_mm=0.3, rows=12, cols=48)
N_VIEWS = 90
PLAN = Plan(
    geometry=GEOMETRY,
    detector=DetectorPlan(thresholds_kev=THRESHOLDS_KEV),
    scan=ScanPlan(n_views=N_VIEWS, frames_per_view=2),
)
BASIS = MaterialBasis(
    materials=("water", "iodine", "gadolinium"),
    attenuation_per_mm_per_g_cm3=np.array([[0.040, 1.8, 1.6], [0.028, 2.4, 1.0], [0.022, 1.2, 1.9], [0.018, 0.6, 0.9]]),
    thresholds_kev=THRESHOLDS_KEV,
)
VIALS = (
    Vial(material="iodine", x_mm=2.0, y_mm=1.0, radius_mm=1.2, concentration_mg_ml=20.0),
    Vial(material="gadolinium", x_mm=-1.5, y_mm=-2.0, radius_mm=1.2, concentration_mg_ml=15.0),
)
OPEN_BEAM = 900.0


def run(work):
    """Run a generator to its end and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def chords(angle_rad: float, x_mm: float, y_mm: float, radius_mm: float) -> np.ndarray:
    """Exact chords of every ray through an upright cylinder that no ray leaves by its lids: (rows, cols), mm."""
    views = GEOMETRY.views([angle_rad])
    col, row = (np.arange(n) - (n - 1) / 2 for n in (GEOMETRY.cols, GEOMETRY.rows))
    pixels = views.detector_mm[0] + row[:, None, None] * views.v_mm[0] + col[:, None] * views.u_mm[0]
    along = pixels - views.source_mm[0]
    along /= np.linalg.norm(along, axis=-1, keepdims=True)
    across = np.hypot(along[..., 0], along[..., 1])
    away = views.source_mm[0, :2] - (x_mm, y_mm)
    miss = np.abs(away[0] * along[..., 1] - away[1] * along[..., 0]) / across
    return 2 * np.sqrt(np.maximum(radius_mm**2 - miss**2, 0)) / across


def counts(angle_rad: float | None, seed: int) -> np.ndarray:
    """What the counters hold: all events above each threshold, (4, rows, cols) uint16."""
    bins = np.full((4, GEOMETRY.rows, GEOMETRY.cols), OPEN_BEAM)
    if angle_rad is not None:
        attenuation = BASIS.attenuation_per_mm_per_g_cm3
        integrals = attenuation[:, 0, None, None] * chords(angle_rad, 0.0, 0.0, 4.5)
        for vial in VIALS:
            solute = attenuation[:, BASIS.materials.index(vial.material)] * vial.concentration_mg_ml / 1000
            integrals = integrals + solute[:, None, None] * chords(angle_rad, vial.x_mm, vial.y_mm, vial.radius_mm)
        bins = bins * np.exp(-integrals)
    noise = np.random.default_rng(seed).normal(0, 1, bins.shape)
    return np.cumsum(np.round(bins + noise)[::-1], axis=0)[::-1].astype(np.uint16)


def calibration(basis: MaterialBasis | None = BASIS, alignment: Alignment | None = None) -> Calibration:
    planes = (8, GEOMETRY.rows, GEOMETRY.cols)
    pixel_class = np.zeros(planes[1:], np.uint8)
    pixel_class[3, 20] = 1
    return Calibration(
        created="2026-01-01T00:00:00Z",
        software="1",
        device="board",
        chip_id="W1",
        gain="HGM",
        is_csm=True,
        is_colour=True,
        bias_v=300.0,
        dacs={"Threshold0": 20},
        trim=np.zeros(planes, np.uint8),
        is_masked=np.zeros(planes, bool),
        pixel_class=pixel_class,
        target_dac=15.0,
        edges_before_dac=np.ones(planes, np.float32),
        edges_after_dac=np.ones(planes, np.float32),
        offset_dac=np.full(8, 10.0),
        gain_dac_per_kev=np.full(8, 4.0),
        lines=(),
        thresholds_kev=THRESHOLDS_KEV,
        basis=basis,
        alignment=alignment,
    )


def write_scan(
    path: Path,
    *,
    lost: tuple[int, ...] = (),
    is_whole: bool = True,
    with_plan: bool = True,
    plan: Plan = PLAN,
    **record,
) -> Path:
    """A scan of 2 flats and N_VIEWS views of 2 frames; a dead pixel reads nothing."""
    keys = [(ImageKey.FLAT, 0.0)] * 2
    keys += [(ImageKey.PROJECTION, 2 * np.pi * view / N_VIEWS) for view in range(N_VIEWS) for _ in range(2)]
    with ScanWriter(
        path, readout_of(plan), n_frames=len(keys), plan=plan if with_plan else None, calibration=calibration(**record)
    ) as writer:
        for sequence, (key, angle_rad) in enumerate(keys):
            if sequence in lost:
                writer.lost(
                    Lost(run_id=1, first_sequence=sequence, n_frames=1, reason="dropped"), [Pose(angle_rad=angle_rad)]
                )
                continue
            values = counts(None if key is ImageKey.FLAT else angle_rad, sequence)
            values[:, 3, 20] = 0
            frame = Frame(
                counts=values,
                thresholds=PLAN.detector.thresholds,
                sequence=sequence,
                timestamp_ns=sequence,
                exposure_ns=1_000_000_000,
                run_id=1,
            )
            writer.write(frame, key, Pose(angle_rad=angle_rad))
        if is_whole:
            writer.finish()
    return path


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Path:
    return write_scan(tmp_path_factory.mktemp("scan") / "scan.h5")


@pytest.fixture(scope="module")
def bins(scan) -> Volume:
    return run(reconstruct_scan(scan, Recipe(window="ram-lak")))


def test_the_scan_becomes_attenuation_and_concentrations(bins):
    assert bins.unit == "1/mm"
    assert bins.channels == ("18-33 keV", "33-50 keV", "50-75 keV", "75+ keV")
    assert bins.thresholds_kev == THRESHOLDS_KEV
    z, y, x = bins.grid.axes_mm()
    water = np.hypot(y[:, None] - 2.0, x + 1.5) < 1.2
    middle = len(z) // 2
    for value, expected in zip(bins.values, BASIS.attenuation_per_mm_per_g_cm3[:, 0], strict=True):
        assert value[middle][water].mean() == pytest.approx(expected, rel=0.01)
    materials = decompose_volume(bins)
    assert materials.unit == "g/cm3"
    assert materials.channels == BASIS.materials
    for s in vial_statistics(materials, VIALS, z_range_mm=(-0.8, 0.8), kept_radius=0.7):
        for vial in VIALS:
            expected = vial.concentration_mg_ml if vial.material == s.vial.material else 0.0
            assert s.mean_mg_ml(vial.material) == pytest.approx(expected, abs=0.3)
        assert s.mean_mg_ml("water") == pytest.approx(1000, rel=0.02)


def test_the_volume_says_where_it_came_from(bins):
    assert bins.provenance.source_file == "scan.h5"
    assert msgspec.json.decode(bins.provenance.plan_json, type=Plan) == PLAN
    assert bins.provenance.calibration_identity == calibration().identity
    assert f"{N_VIEWS} views, 0 frames lost" in bins.provenance.steps[0]
    assert "least squares" in decompose_volume(bins).provenance.steps[-1]


def test_lost_frames_cost_noise_and_no_value(bins, tmp_path):
    # View 3 lost one of its frames and view 10 both.
    degraded = run(reconstruct_scan(write_scan(tmp_path / "scan.h5", lost=(8, 22, 23)), Recipe(window="ram-lak")))
    assert f"{N_VIEWS - 1} views, 3 frames lost" in degraded.provenance.steps[0]
    centre = np.s_[:, 4:8, 15:30, 15:30]
    assert degraded.values[centre].mean() == pytest.approx(bins.values[centre].mean(), rel=2e-3)


class FewFrames:
    """A flat, then two views of three and of two frames, all bright; the flat in between was taken too."""

    path = "few.h5"
    angles_rad = np.array([0.0, 1.0, 1.0, 1.0, 0.0, 2.0, 2.0])
    lifts_mm = np.zeros(7)
    exposures_s = np.array([9.0, 1.0, 1.0, 0.5, 9.0, 1.0, 3.0])

    def counts(self, indices, *, rows):
        return np.full((len(indices), 4, 2, 2), 30_000, np.uint16) + np.asarray(indices, np.uint16)[:, None, None, None]


def test_frames_of_one_view_are_added_with_their_exposures_and_their_middle():
    views = find_views(FewFrames(), np.array([1, 2, 3, 5, 6]))
    counts = add_frames(FewFrames(), views, np.array([0, 1]))
    assert counts[:, 0, 0, 0].tolist() == [90_006, 60_011]  # more than 16 bits hold
    assert add_frames(FewFrames(), views, np.array([1]))[:, 0, 0, 0].tolist() == [60_011]
    assert views.angles_rad.tolist() == [1.0, 2.0]
    assert views.frames.tolist() == [2.0, 5.5]
    assert views.exposures_s.tolist() == [2.5, 4.0]


def test_pixels_that_the_calibration_calls_bad_are_filled_though_they_count(bins, tmp_path, monkeypatch):
    def with_a_liar(angle_rad, seed):
        values = counts_of(angle_rad, seed)
        values[:, 6, 20] = np.array([900, 600, 300, 100]) if angle_rad is None else np.array([4000, 9, 8, 7])
        return values

    def and_calls_it_bad(*arguments, **options):
        good = calibration_of(*arguments, **options)
        pixel_class = good.pixel_class.copy()
        pixel_class[6, 20] = 2
        return replace(good, pixel_class=pixel_class)

    counts_of, calibration_of = counts, calibration
    monkeypatch.setitem(globals(), "counts", with_a_liar)
    monkeypatch.setitem(globals(), "calibration", and_calls_it_bad)
    volume = run(reconstruct_scan(write_scan(tmp_path / "scan.h5"), Recipe(window="ram-lak")))
    centre = np.s_[:, 4:8, 15:30, 15:30]
    np.testing.assert_allclose(volume.values[centre].mean(axis=1), bins.values[centre].mean(axis=1), atol=2e-3)


def test_a_part_of_a_scan_is_taken_only_when_asked_for(tmp_path):
    write_scan(tmp_path / "scan.h5", is_whole=False)
    path = partial_path(tmp_path / "scan.h5")
    with pytest.raises(BadFile, match="only a part of a scan"):
        run(reconstruct_scan(path))
    assert run(reconstruct_scan(path, Recipe(shape=(2, 4, 4)), allow_partial=True)).values.shape == (4, 2, 4, 4)


def test_a_scan_without_its_plan_is_refused(tmp_path):
    with pytest.raises(BadFile, match="where source and detector stood"):
        run(reconstruct_scan(write_scan(tmp_path / "scan.h5", with_plan=False)))


@pytest.mark.parametrize(
    ("scan", "told"),
    [
        (HelicalPlan(pitch_mm=4.0), "a helix"),
        (ScanPlan(shifts_mm=(2.0,)), "on one side of the axis only, at 2 mm"),
    ],
)
def test_what_cannot_be_aligned_by_itself_is_refused_in_one_sentence(tmp_path, scan, told):
    path = write_scan(tmp_path / "scan.h5", plan=msgspec.structs.replace(PLAN, scan=scan))
    with pytest.raises(WrongUsage, match="cannot be aligned by itself") as caught:
        run(align_scan_file(path))
    assert told in str(caught.value)
    assert "allowed: circles around the sample" in str(caught.value)


@pytest.mark.parametrize("work", [reconstruct_scan, align_scan_file])
def test_frames_that_are_no_views_around_a_sample_are_refused(tmp_path, work):
    path = write_scan(tmp_path / "scan.h5", plan=msgspec.structs.replace(PLAN, scan=FramesPlan()))
    with pytest.raises(WrongUsage, match="no views around a sample: it is a scan of kind 'frames'"):
        run(work(path))


def test_views_of_a_sweep_are_reconstructed_as_those_of_steps(tmp_path, scan):
    swept = write_scan(tmp_path / "scan.h5", plan=msgspec.structs.replace(PLAN, scan=ContinuousPlan()))
    volumes = [run(reconstruct_scan(path, Recipe(shape=(2, 4, 4)))) for path in (scan, swept)]
    np.testing.assert_array_equal(volumes[0].values, volumes[1].values)


def test_one_pass_that_is_named_is_still_one_pass(tmp_path):
    plan = msgspec.structs.replace(PLAN, scan=ScanPlan(passes_kev=(THRESHOLDS_KEV,)))
    volume = run(reconstruct_scan(write_scan(tmp_path / "scan.h5", plan=plan), Recipe(shape=(2, 4, 4))))
    assert volume.thresholds_kev == THRESHOLDS_KEV


def test_without_a_basis_the_hint_says_how_to_make_one(tmp_path):
    volume = run(reconstruct_scan(write_scan(tmp_path / "scan.h5", basis=None), Recipe(shape=(2, 4, 4))))
    with pytest.raises(CalibrationMissing) as caught:
        decompose_volume(volume)
    assert "mpxct calibrate" in caught.value.hint


def test_a_basis_of_other_thresholds_is_refused(bins):
    other = MaterialBasis(
        materials=BASIS.materials,
        attenuation_per_mm_per_g_cm3=BASIS.attenuation_per_mm_per_g_cm3,
        thresholds_kev=(18.0, 33.0, 55.0, 75.0),
    )
    with pytest.raises(CalibrationMissing, match="the basis was measured with thresholds"):
        decompose_volume(bins, other)
    softer = replace(BASIS, tube_kvp=90.0)
    with pytest.raises(CalibrationMissing, match="measured at 90 kVp, and the scan at 118 kVp"):
        decompose_volume(bins, softer)
    decompose_volume(bins, replace(BASIS, tube_kvp=PLAN.source.kvp))
    fewer = MaterialBasis(
        materials=("water",), attenuation_per_mm_per_g_cm3=np.ones((2, 1)), thresholds_kev=(18.0, 33.0)
    )
    with pytest.raises(WrongUsage, match="the volume has 4 bins and the matrix 2"):
        decompose_volume(bins, fewer)
    with pytest.raises(WrongUsage, match="allowed: bins in 1/mm"):
        decompose_volume(decompose_volume(bins))


def test_the_field_of_view_is_what_every_view_sees():
    shifted = Geometry(
        source_to_detector_mm=150.0,
        source_to_object_mm=120.0,
        pitch_mm=0.3,
        rows=12,
        cols=48,
        offset_u_mm=-1.5,
        offset_v_mm=1.0,
    )
    for geometry in (GEOMETRY, shifted):
        grid = field_of_view(geometry)
        assert grid.voxel_mm == pytest.approx(0.24)
        radius_mm = grid.shape[2] * grid.voxel_mm / 2
        edge_mm = geometry.cols * geometry.pitch_mm / 2 - abs(geometry.offset_u_mm)
        # The tangent to the circle of that radius meets the detector inside its nearer edge, by less than a voxel.
        reach_mm = 150.0 * np.tan(np.arcsin(radius_mm / 120.0))
        assert edge_mm - 0.3 < reach_mm <= edge_mm
        # The lowest and the highest voxel are on the detector still where they come nearest to the source.
        z_mm = grid.axes_mm()[0] * 150.0 / (120.0 - radius_mm) - geometry.offset_v_mm
        assert np.abs(z_mm).max() <= geometry.rows * geometry.pitch_mm / 2
        assert np.abs(z_mm).max() > geometry.rows * geometry.pitch_mm / 2 - 2 * 0.3
    assert field_of_view(GEOMETRY, 0.5).voxel_mm == 0.5


def test_the_field_of_view_of_a_wide_fan_touches_its_outermost_rays():
    wide = Geometry(source_to_detector_mm=30.0, source_to_object_mm=20.0, pitch_mm=0.3, rows=60, cols=100)
    grid = field_of_view(wide, 0.01)
    # The ray to the detector's edge, 15 mm out and 30 mm away, passes the axis at 20 sin(atan(1/2)).
    assert grid.shape[2] * 0.01 / 2 == pytest.approx(20 / np.sqrt(5), abs=0.01)
    assert grid.shape[0] * 0.01 / 2 == pytest.approx(9.0 * (20 - 20 / np.sqrt(5)) / 30, abs=0.01)


class PlainConsole:
    def track(self, work):
        return run(work)

    def say(self, text):
        pass

    def emit(self, figures, text, *, as_json):
        typer.echo(json.dumps(figures) if as_json else text)

    def picture(self, file):
        return file.with_suffix(".png")


def command(*arguments: object) -> str:
    app = typer.Typer()

    @app.callback()
    def prepare(ctx: typer.Context) -> None:
        ctx.obj = PlainConsole()

    reconstruction.cli.register(app)
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_commands_go_from_a_scan_to_materials(scan, tmp_path):
    volume, materials = tmp_path / "volume.h5", tmp_path / "materials.h5"
    figures = json.loads(command("reconstruct", scan, "-o", volume, "--cpu", "--window", "hann", "--json"))
    assert figures["shape"] == list(load_volume(volume).grid.shape)
    assert figures["mean_per_mm"]["18-33 keV"] > figures["mean_per_mm"]["75+ keV"] > 0
    figures = json.loads(command("decompose", volume, "-o", materials, "--json"))
    assert figures["cuvettes"]["iodine"]["mean_g_cm3"]["iodine"] == pytest.approx(0.020, rel=0.1)
    assert figures["cuvettes"]["gadolinium"]["x_mm"] == pytest.approx(-1.5, abs=0.15)
    assert load_volume(materials).channels == BASIS.materials
    text = command("decompose", volume, "-o", materials, "--non-negative", "--agents", "iodine")
    assert "cuvette" in text
    assert "iodine" in text
    assert load_volume(materials).values.min() >= 0


def test_a_scan_aligns_itself_and_is_reconstructed_with_what_was_found(scan, bins, tmp_path):
    aligned = tmp_path / "aligned.h5"
    figures = json.loads(command("align", scan, "-o", aligned, "--json"))
    assert figures["offset_u_mm"]["value"] == pytest.approx(0, abs=0.1 * GEOMETRY.pitch_mm)
    assert 0 < figures["offset_u_mm"]["standard_error"] < 0.05 * GEOMETRY.pitch_mm
    assert "±" in command("align", scan)
    found = load(aligned).alignment
    assert found is not None
    assert found.geometry.offset_u_mm == pytest.approx(figures["offset_u_mm"]["value"], abs=1e-5)
    volume = run(reconstruct_scan(scan, Recipe(window="ram-lak"), calibration=load(aligned)))
    assert "geometry by opposing rays" in " ".join(volume.provenance.steps)
    assert "geometry as planned" in " ".join(bins.provenance.steps)
    shifted = replace(found, geometry=replace(GEOMETRY, offset_u_mm=1.2))  # four pixels wrong: the vials smear out
    wrong = run(reconstruct_scan(scan, Recipe(window="ram-lak"), calibration=calibration(alignment=shifted)))
    assert volume.values.std() == pytest.approx(bins.values.std(), rel=0.05)
    assert not np.allclose(wrong.values.std(), bins.values.std(), rtol=0.05)


def test_a_scan_file_with_a_calibrated_geometry_is_reconstructed_by_it(tmp_path):
    found = Alignment(
        geometry=replace(GEOMETRY, offset_u_mm=1.2, roll_rad=0.01),
        parameters=(),
        standard_errors=np.zeros(0),
        residual_rms_px=0.0,
        method="hand",
        n_views=1,
    )
    path = write_scan(tmp_path / "scan.h5", alignment=found)
    assert read_scan(path).geometry == found.geometry
    assert "geometry by hand" in run(reconstruct_scan(path, Recipe(shape=(2, 4, 4)))).provenance.steps[1]


def test_a_calibration_without_a_geometry_is_told(scan):
    with pytest.raises(CalibrationMissing, match="holds no geometry"):
        run(reconstruct_scan(scan, calibration=calibration()))


def test_the_commands_refuse_wrong_values(scan, bins, tmp_path):
    saved = save_volume(bins, tmp_path / "volume.h5")
    for arguments in (
        ("reconstruct", scan, "--voxel-mm", "0"),
        ("reconstruct", scan, "--shape", "0", "4", "4"),
        ("reconstruct", scan, "--window", "box", "-o", tmp_path / "a.h5"),
        ("decompose", saved, "--scale", "2"),
    ):
        with pytest.raises(WrongUsage, match=r"allowed|are for folders"):
            command(*arguments)
    assert not (tmp_path / "a.h5").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--agents", "gold,water"), "--agents names gold; allowed: water, iodine"),
        (("--voxel-mm", "0"), "--voxel-mm is 0.0; allowed: more than 0"),
        (("--voxel-mm", "nan"), "--voxel-mm is nan"),
    ],
)
def test_images_are_refused_with_options_that_cannot_be(tmp_path, options, message):
    for number in (1, 2):
        tifffile.imwrite(tmp_path / f"bin{number}.tif", np.ones((8, 8), np.float32))
    (tmp_path / "matrix.csv").write_text("material,bin1,bin2\nwater,1,2\niodine,5,1\n")
    with pytest.raises(WrongUsage, match=message):
        command("decompose", tmp_path, "--matrix", tmp_path / "matrix.csv", *options, "-o", tmp_path / "m.h5")
    assert not (tmp_path / "m.h5").exists()


def test_a_folder_of_images_takes_its_scale(test_data):
    volume = read_image_folder(test_data / "mr-bmd", scale=0.5, voxel_mm=0.045)
    double = read_image_folder(test_data / "mr-bmd", scale=0.25, voxel_mm=0.045)
    assert volume.grid == Grid(shape=(1, 690, 690), voxel_mm=0.045)
    np.testing.assert_allclose(double.values, 2 * volume.values, rtol=1e-5)
    with pytest.raises(WrongUsage, match="the scale is 0"):
        read_image_folder(test_data / "mr-bmd", scale=0, voxel_mm=0.045)


def test_a_scan_says_whether_lost_counts_were_put_back_and_refuses_a_wedge_that_is_not_there(scan: Path) -> None:
    told = run(reconstruct_scan(scan, Recipe(shape=(2, 4, 4)))).provenance.steps
    assert any("count rate not corrected: it was not measured (mpxct calibrate count-rate)" in step for step in told)
    with pytest.raises(CalibrationMissing, match="holds no step wedge to linearise with"):
        run(reconstruct_scan(scan, Recipe(shape=(2, 4, 4), linearise=True)))
