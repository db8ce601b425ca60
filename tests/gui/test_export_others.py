"""DICOM as pydicom and ITK read it, OME-Zarr as its own models do, surfaces by their bytes; refusals; the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from firmware_iface.errors import CalibrationMissing, MpxctError, WrongUsage
from gui.export import content as content_module
from gui.export import formats, target
from gui.export.cli import register
from gui.export.content import content_of
from gui.export.formats import FORMATS, Options, default_unit, export, format_for
from reconstruction.volume import Grid, Volume, save_volume
from tests.gui.export_volumes import BASIS, CENTRE_MM, ORIGIN_MM, SHAPE, VOXEL_MM, bins, exported, materials, run

itk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")


def series(folder: Path) -> list:
    import pydicom

    return [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]


def test_itk_puts_a_dicom_series_in_its_place(tmp_path: Path) -> None:
    volume = materials()
    exported(volume, tmp_path / "mouse", "dicom")
    for folder, values in zip(("water", "iodine", "Gold_µ_ü"), volume.values, strict=True):
        names = itk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "mouse" / folder))
        image = itk.ReadImage(names)
        assert image.GetSpacing() == pytest.approx((VOXEL_MM,) * 3, rel=1e-6)
        assert image.GetOrigin() == pytest.approx(ORIGIN_MM, rel=1e-6)
        assert image.GetDirection() == pytest.approx(np.eye(3).ravel())
        slope = float(series(tmp_path / "mouse" / folder)[0].RescaleSlope)
        assert slope == pytest.approx(np.abs(values).max() * 1000 / 32767, rel=1e-6)
        np.testing.assert_allclose(itk.GetArrayFromImage(image), values * 1000, rtol=0, atol=0.5001 * slope)


def test_dicom_says_what_the_numbers_are(tmp_path: Path) -> None:
    exported(materials(), tmp_path / "mouse", "dicom")
    first, *others = series(tmp_path / "mouse" / "iodine")
    assert (first.PatientName, first.PatientID, first.PatientBirthDate) == ("mouse ü-3", "mouse ü-3", "")
    assert (first.RescaleType, first.RescaleIntercept, first.KVP) == ("MGML", 0, 118)
    mapping = first.RealWorldValueMappingSequence[0]
    assert mapping.RealWorldValueSlope == pytest.approx(first.RescaleSlope, rel=1e-12)
    unit = mapping.MeasurementUnitsCodeSequence[0]
    assert (unit.CodeValue, unit.CodingSchemeDesignator) == ("mg/mL", "UCUM")
    assert "864f28b4" in first.DerivationDescription
    assert first.SliceThickness == pytest.approx(VOXEL_MM)
    assert [one.ImagePositionPatient[2] for one in (first, *others)] == pytest.approx(
        ORIGIN_MM[2] + VOXEL_MM * np.arange(4)
    )
    gold = series(tmp_path / "mouse" / "Gold_µ_ü")
    shared = ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID")
    assert len({tuple(one[name].value for name in shared) for one in (first, *others, *gold)}) == 1
    assert len({one.SeriesInstanceUID for one in (first, *others, *gold)}) == 2
    assert len({one.SOPInstanceUID for one in (first, *others, *gold)}) == 8
    for one in gold:
        assert one.file_meta.MediaStorageSOPInstanceUID == one.SOPInstanceUID
        assert all(uid.is_valid for uid in (one.SOPInstanceUID, one.SeriesInstanceUID, one.StudyInstanceUID))


def test_the_same_export_twice_is_the_same_and_other_values_are_not(tmp_path: Path) -> None:
    for name, values in (("a", materials().values), ("b", materials().values), ("c", materials().values[::-1])):
        exported(materials(values=values.copy()), tmp_path / name, "dicom")
    a, b, c = ([path.read_bytes() for path in sorted((tmp_path / name / "water").glob("*.dcm"))] for name in "abc")
    assert len(a) == 4
    assert a == b
    assert not set(a) & set(c)
    uids = [{one.SOPInstanceUID for one in series(tmp_path / name / "water")} for name in "ac"]
    assert not uids[0] & uids[1]


def test_bins_are_hounsfield_units_in_dicom_where_water_is_known(tmp_path: Path) -> None:
    volume = bins()
    volume.values[0, 0, 0, 0] = 0.03  # of water, by the basis
    volume.values[0, 0, 0, 1] = 0.0
    volume.values[0, 1, 1, 1] = np.nan
    assert default_unit(format_for(Path("a"), "dicom"), volume) == "HU"
    exported(content_of(volume, unit="HU"), tmp_path / "a", "dicom")
    first, second = series(tmp_path / "a" / "20-33_keV")[:2]
    assert (first.RescaleType, first.RescaleSlope) == ("HU", 1)
    assert first.pixel_array[0, :2].tolist() == [0, -1000]
    assert second.pixel_array[1, 1] == second.PixelPaddingValue == -32768
    unknown = bins(basis=None)
    assert default_unit(format_for(Path("a"), "dicom"), unknown) is None
    with pytest.raises(CalibrationMissing, match="does not know how water attenuates"):
        content_of(unknown, unit="HU")
    exported(unknown, tmp_path / "b", "dicom")
    assert series(tmp_path / "b" / "33+_keV")[0].RescaleType == "US"


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_is_what_its_models_want(tmp_path: Path, version: str) -> None:
    import zarr

    volume = materials((70, 5, 130))
    (path,) = exported(volume, tmp_path / "a.ome.zarr", zarr_version=version)
    from ome_zarr_models import v04, v05

    group = zarr.open_group(str(path), mode="r")
    attributes = group.attrs.asdict()
    attributes = attributes if version == "0.4" else attributes["ome"]
    told = (v04.image if version == "0.4" else v05.image).ImageAttrs.model_validate(attributes)
    omero = v04.omero.Omero.model_validate(attributes["omero"])
    (multiscale,) = told.multiscales
    channel, *space = multiscale.axes
    assert (channel.name, channel.type) == ("c", "channel")
    assert [(axis.name, axis.type, axis.unit) for axis in space] == [(name, "space", "millimeter") for name in "zyx"]
    assert [channel.label for channel in omero.channels] == ["water (mg/mL)", "iodine (mg/mL)", "Gold µ/ü (mg/mL)"]
    assert omero.channels[1].color == "B55000"
    np.testing.assert_array_equal(group["0"][:], volume.values * np.float32(1000))
    assert [group[str(level)].shape for level in range(3)] == [(3, 70, 5, 130), (3, 35, 3, 65), (3, 18, 2, 33)]
    origin_mm = (20 - 69 / 2 * VOXEL_MM, -3.5 - 2 * VOXEL_MM, 1.25 - 129 / 2 * VOXEL_MM)
    for level, dataset in enumerate(multiscale.datasets):
        scale, translation = dataset.coordinateTransformations
        assert scale.scale == pytest.approx([1, *[VOXEL_MM * 2**level] * 3])
        half_mm = (2**level - 1) / 2 * VOXEL_MM
        assert translation.translation == pytest.approx([0, *(x + half_mm for x in origin_mm)])
    coarse = group["1"][1, 3, 1, 7]
    assert coarse == pytest.approx(volume.values[1, 6:8, 2:4, 14:16].mean(dtype=float) * 1000, rel=1e-6)
    assert group["1"][1, 3, 2, 7] == pytest.approx(volume.values[1, 6:8, 4, 14:16].mean(dtype=float) * 1000, rel=1e-6)


def ball() -> Volume:
    """Return a ball of 1 mm radius that lies off the middle, of 20 mg/mL iodine with soft edges."""
    grid = Grid(shape=(24, 28, 32), voxel_mm=0.125, centre_mm=CENTRE_MM)
    z, y, x = np.meshgrid(*grid.axes_mm(), indexing="ij")
    away_mm = np.sqrt((x - 1.6) ** 2 + (y + 3.4) ** 2 + (z - 19.8) ** 2)
    values = (0.02 * np.clip((1.25 - away_mm) / 0.5, 0, 1)).astype(np.float32)
    return Volume(values=values[None], channels=("iodine",), unit="g/cm3", grid=grid, basis=BASIS)


def test_surfaces_lie_in_mm_where_the_ball_is(tmp_path: Path) -> None:
    (stl,) = exported(ball(), tmp_path / "ball.stl", levels={"iodine": 10.0})
    (ply,) = exported(ball(), tmp_path / "ball.ply", levels={"iodine": 10.0})
    raw = stl.read_bytes()
    assert b"SPACE=LPS" in raw[:80]
    assert not raw.startswith(b"solid")  # how ASCII files begin
    count = int.from_bytes(raw[80:84], "little")
    triangles = np.frombuffer(raw, [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("spare", "<u2")], offset=84)
    assert len(triangles) == count
    corners = triangles["corners"].astype(float)
    middle_mm = np.array([1.6, -3.4, 19.8])
    np.testing.assert_allclose(np.linalg.norm(corners - middle_mm, axis=2), 1.0, atol=0.02)
    outwards = np.einsum("ij,ij->i", triangles["normal"], corners.mean(axis=1) - middle_mm)
    assert (outwards > 0.9).all()
    head, _, body = ply.read_bytes().partition(b"end_header\n")
    assert b"format binary_little_endian 1.0" in head
    n_vertices = int(head.split(b"element vertex ")[1].split()[0])
    vertices = np.frombuffer(body, [("place", "<f4", 3), ("colour", "u1", 3)], n_vertices)
    assert {tuple(colour) for colour in vertices["colour"].tolist()} == {(181, 80, 0)}  # vermilion
    faces = np.frombuffer(body, [("n", "u1"), ("corners", "<i4", 3)], offset=n_vertices * vertices.itemsize)
    assert len(faces) == count
    assert (faces["n"] == 3).all()
    np.testing.assert_array_equal(vertices["place"][faces["corners"]], triangles["corners"])


def test_surfaces_refuse_what_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(WrongUsage, match="no voxel of iodine is above 30 mg/mL"):
        exported(ball(), tmp_path / "a.stl", levels={"iodine": 30.0})
    with pytest.raises(WrongUsage, match="where the surfaces are is not told"):
        exported(ball(), tmp_path / "a.stl")
    with pytest.raises(WrongUsage, match="a surface of gold is asked for"):
        exported(ball(), tmp_path / "a.stl", levels={"gold": 1.0})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
def test_nothing_is_overwritten_unasked_nor_left_unfinished(
    tmp_path: Path, kind: formats.Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = kind.endings[0]
    name, levels = f"a{ending}", {"iodine": 10.0}
    exported(ball(), tmp_path / name, kind.name, levels=levels)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(WrongUsage, match="exists already"):
        exported(ball(), tmp_path / name, kind.name, levels=levels)
    monkeypatch.setattr(content_module, "SLAB_BYTES", 1)
    other = ball()
    other.values[:] *= 0.9
    broken = export(content_of(other), tmp_path / name, kind, Options(is_overwriting=True, levels=levels))
    next(broken)
    broken.close()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    exported(other, tmp_path / name, kind.name, levels=levels, is_overwriting=True)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after.keys() == before.keys()
    assert after != before


def test_a_full_disk_and_a_missing_folder_are_refused_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WrongUsage, match="is not there"):
        exported(ball(), tmp_path / "none" / "a.nrrd")
    monkeypatch.setattr(target.shutil, "disk_usage", lambda _: target.shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(MpxctError, match="the disk has"):
        exported(ball(), tmp_path / "a.nrrd")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_things_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years")
    with pytest.raises(WrongUsage, match=r"holds thesis\.txt"):
        exported(ball(), tmp_path / "home", "dicom", is_overwriting=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years"


def test_two_channels_never_share_a_file(tmp_path: Path) -> None:
    volume = materials(channels=("a b", "a_b", "c"))
    with pytest.raises(WrongUsage, match="would be one file"):
        exported(volume, tmp_path / "x.nrrd")
    with pytest.raises(WrongUsage, match="two layers"):
        exported(volume, tmp_path / "x", "dicom")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["nifti", "ome-zarr", "dicom"])
def test_a_package_that_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MpxctError, match="needs the package") as error:
        exported(ball(), tmp_path / "a.nii", name)
    assert error.value.hint == "pip install 'mpxct[export]'"


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongUsage, match="no channel is called gold"):
        content_of(materials(), channels=["gold"])
    with pytest.raises(WrongUsage, match=r"allowed: mg/mL, g/cm3"):
        content_of(materials(), unit="HU")
    with pytest.raises(WrongUsage, match="does not tell the format"):
        format_for(Path("a.xyz"))
    with pytest.raises(WrongUsage, match=r"allowed ending: \.nrrd"):
        exported(materials(), tmp_path / "a.dat", "nrrd")
    with pytest.raises(WrongUsage, match="cannot be shown in colours"):
        exported(bins(), tmp_path / "a.rgba.nrrd")
    with pytest.raises(WrongUsage, match="must tell the size of a voxel"):
        exported(materials(grid=Grid(shape=SHAPE, voxel_mm=1, is_scale_known=False)), tmp_path / "a", "dicom")


class Plain:
    """A console without bars."""

    track = staticmethod(run)

    def emit(self, figures, text, *, as_json):
        typer.echo(json.dumps(figures, allow_nan=False) if as_json else text)


app = typer.Typer()
register(app)


@app.callback()
def prepare(ctx: typer.Context) -> None:
    ctx.obj = Plain()


def command(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["export", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_exports_from_a_file_that_is_mapped(tmp_path: Path) -> None:
    save_volume(materials(), tmp_path / "m.h5")
    told = json.loads(
        command(tmp_path / "m.h5", tmp_path / "o.nrrd", "--channels", "Gold µ/ü,iodine", "--unit", "g/cm3", "--json")
    )
    assert [Path(path).name for path in told["paths"]] == ["o-Gold_µ_ü.nrrd", "o-iodine.nrrd"]
    assert told["channels"][0] == {"name": "Gold µ/ü", "unit": "g/cm3"}
    assert told["bytes"] == sum(Path(path).stat().st_size for path in told["paths"])
    read = itk.GetArrayFromImage(itk.ReadImage(told["paths"][0]))
    np.testing.assert_array_equal(read, materials().values[2])
    assert "o2.nrrd: NRRD" in command(tmp_path / "m.h5", tmp_path / "o2.nrrd", "--channels", "iodine")


def test_the_command_writes_dicom_and_surfaces(tmp_path: Path) -> None:
    save_volume(bins(), tmp_path / "b.h5")
    told = json.loads(command(tmp_path / "b.h5", tmp_path / "d", "--format", "dicom", "--specimen", "lamb", "--json"))
    assert [channel["unit"] for channel in told["channels"]] == ["HU", "HU"]
    assert series(tmp_path / "d" / "33+_keV")[0].PatientID == "lamb"
    save_volume(ball(), tmp_path / "m.h5")
    command(tmp_path / "m.h5", tmp_path / "s.stl", "--surface", "iodine=5", "--smooth", "4")
    assert (tmp_path / "s.stl").stat().st_size > 1000
    with pytest.raises(WrongUsage, match="--surface is 'iodine'"):
        command(tmp_path / "m.h5", tmp_path / "s.stl", "--surface", "iodine")


def test_the_command_lists_every_format() -> None:
    told = json.loads(command("--list-formats", "--json"))
    assert {row["name"] for row in told["formats"]} == {kind.name for kind in FORMATS} | {"merlin"}
    text = command("--list-formats")
    assert all(kind.opens in text for kind in FORMATS)
    with pytest.raises(WrongUsage, match="a file and a name"):
        command()
