"""Exports as others read them: SimpleITK (3D Slicer, ITK-SNAP), nibabel, tifffile, h5py. Every voxel is in its place.

One law for all formats: the first value is the voxel of the smallest x, y and z; ITK sees it at its position in mm.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from firmware_iface.errors import WrongUsage
from gui.export import content as content_module
from gui.export.content import content_of
from gui.export.formats import Options, export, format_for
from gui.volume.looks import MaterialLook
from reconstruction.volume import Grid, read_bin_images
from tests.gui.export_volumes import ORIGIN_MM, SHAPE, VOXEL_MM, bins, exported, materials

itk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
ITK_FILES = ("nrrd", "nii", "nii.gz", "mha")


def placed_by_itk(path: Path) -> tuple[np.ndarray, object]:
    """Return what ITK reads, (z, y, x) or (z, y, x, component), and check where it says that it lies."""
    image = itk.ReadImage(str(path))
    assert image.GetDimension() == 3
    assert image.GetSpacing() == pytest.approx((VOXEL_MM,) * 3, rel=1e-6)
    assert image.GetDirection() == pytest.approx(np.eye(3).ravel(), abs=1e-6)
    assert image.GetOrigin() == pytest.approx(ORIGIN_MM, rel=1e-6)
    return itk.GetArrayFromImage(image), image


@pytest.mark.parametrize("ending", ITK_FILES)
def test_itk_reads_each_material_bit_for_bit(tmp_path: Path, ending: str) -> None:
    volume = materials()
    paths = exported(volume, tmp_path / f"a.{ending}")
    assert [path.name for path in paths] == [f"a-water.{ending}", f"a-iodine.{ending}", f"a-Gold_µ_ü.{ending}"]
    for path, values in zip(paths, volume.values, strict=True):
        read, image = placed_by_itk(path)
        assert image.GetPixelID() == itk.sitkFloat32
        np.testing.assert_array_equal(read, values * np.float32(1000))


@pytest.mark.parametrize("ending", ITK_FILES)
def test_itk_reads_all_together_as_a_vector(tmp_path: Path, ending: str) -> None:
    volume = materials()
    (path,) = exported(content_of(volume, unit="g/cm3"), tmp_path / f"a.{ending}", is_together=True)
    read, _ = placed_by_itk(path)
    np.testing.assert_array_equal(read, np.moveaxis(volume.values, 0, -1))


@pytest.mark.parametrize("ending", ITK_FILES)
@pytest.mark.parametrize("shape", [(1, 5, 7), (4, 1, 1), (3, 64, 2)])
def test_thin_volumes_stay_where_they_are(tmp_path: Path, ending: str, shape: tuple[int, int, int]) -> None:
    volume = materials(shape)
    paths = exported(volume, tmp_path / f"a.{ending}")
    image = itk.ReadImage(str(paths[1]))
    assert image.GetSize() == shape[::-1]
    np.testing.assert_array_equal(itk.GetArrayFromImage(image), volume.values[1] * np.float32(1000))


@pytest.mark.parametrize("ending", ITK_FILES)
def test_slabs_and_a_single_piece_are_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    (whole,) = exported(materials(), tmp_path / f"a.{ending}", is_together=True)
    monkeypatch.setattr(content_module, "SLAB_BYTES", 1)
    (slabs,) = exported(materials(), tmp_path / f"b.{ending}", is_together=True)
    assert whole.read_bytes() == slabs.read_bytes()


@pytest.mark.parametrize("name", ["a.nrrd", "a.nii", "a.mha", "a.tif", "a.nxs"])
def test_what_is_no_number_stays_none(tmp_path: Path, name: str) -> None:
    volume = bins()
    volume.values[0, 1, 2, 3] = np.nan
    volume.values[0, 3, 2, 1] = -np.inf
    path = exported(content_of(volume, channels=["20-33 keV"]), tmp_path / name)[0]
    if name.endswith("nii"):  # ITK's reader of NIfTI makes zeros of them
        import nibabel

        read = np.asarray(nibabel.load(path).dataobj).T
    elif name.endswith("nxs"):
        with h5py.File(path) as file:
            read = file["entry/data/data"][()]
    elif name.endswith("tif"):
        import tifffile

        read = tifffile.imread(path)
    else:
        read = itk.GetArrayFromImage(itk.ReadImage(str(path)))
    np.testing.assert_array_equal(read, volume.values[0])


def test_headers_tell_where_it_came_from(tmp_path: Path) -> None:
    for ending in ("nrrd", "mha"):
        path = exported(materials(), tmp_path / f"a.{ending}")[1]
        image = itk.ReadImage(str(path))
        text = " ".join(image.GetMetaData(key) for key in image.GetMetaDataKeys())
        for word in ("iodine (mg/mL)", "864f28b4", "20, 33", "360 views; FDK", "mpxct 0.1.0", "nothing is known of"):
            assert word in text, f"{word} is not in the header of {ending}"


def test_nifti_as_nibabel_reads_it(tmp_path: Path) -> None:
    import nibabel

    volume = materials()
    path = exported(volume, tmp_path / "a.nii.gz")[1]
    image = nibabel.load(path)
    assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")  # our x, y, z as ITK and DICOM take them
    first_mm, last_mm = (image.affine @ np.array([*index, 1]) for index in ((0, 0, 0), (6, 4, 3)))
    assert first_mm[:3] == pytest.approx((-ORIGIN_MM[0], -ORIGIN_MM[1], ORIGIN_MM[2]), rel=1e-6)
    middle_mm = (first_mm + last_mm)[:3] / 2
    assert middle_mm == pytest.approx((-1.25, 3.5, 20.0), rel=1e-6)
    np.testing.assert_array_equal(np.asarray(image.dataobj), volume.values[1].T * np.float32(1000))
    assert image.header.get_xyzt_units()[0] == "mm"
    assert image.header.get_intent()[2] == "iodine"
    text = image.header.extensions[0].get_content()
    assert "Gehäuse 7.h5" in (text if isinstance(text, str) else text.decode())


def test_nifti_counts_in_16_bits(tmp_path: Path) -> None:
    with pytest.raises(WrongUsage, match="an axis has 32768 voxels; allowed in NIfTI: 32767"):
        exported(materials((1, 1, 32768)), tmp_path / "a.nii")
    assert not list(tmp_path.iterdir())


def test_colours_lie_where_the_materials_do(tmp_path: Path) -> None:
    volume = materials()
    volume.values[:] = 0
    volume.values[1, 3, 1, 5] = 0.02
    volume.values[2, 0, 4, 2] = 0.01
    volume.values[2, 1, 1, 1] = np.nan
    looks = [
        MaterialLook(material="water", colour=(0.2, 0.2, 0.2), high_g_cm3=1),
        MaterialLook(material="iodine", colour=(1, 0, 0), high_g_cm3=0.02),
        MaterialLook(material="Gold µ/ü", colour=(0, 1, 0), high_g_cm3=0.02, opacity=0.5),
    ]
    (path,) = exported(content_of(volume, looks=looks), tmp_path / "a.rgba.nrrd")
    read, image = placed_by_itk(path)
    assert image.GetPixelID() == itk.sitkVectorUInt8
    assert read.shape == (*SHAPE, 4)
    assert read[3, 1, 5].tolist() == [255, 0, 0, 255]
    assert read[0, 4, 2].tolist() == [0, 64, 0, 64]  # half of its window, at half opacity: as clear as it is dark
    assert np.count_nonzero(read.any(axis=-1)) == 2


def test_imagej_reads_channels_in_mm(tmp_path: Path) -> None:
    import tifffile

    volume = materials()
    (path,) = exported(volume, tmp_path / "a.tif")
    with tifffile.TiffFile(path) as file:
        told = file.imagej_metadata
        series = file.series[0]
        assert series.axes == "ZCYX"
        np.testing.assert_array_equal(series.asarray(), np.moveaxis(volume.values, 0, 1) * np.float32(1000))
        x = file.pages.first.tags["XResolution"].value
        assert x[1] / x[0] == pytest.approx(VOXEL_MM, rel=1e-6)
    assert (told["channels"], told["slices"], told["unit"]) == (3, 4, "mm")
    assert told["spacing"] == pytest.approx(VOXEL_MM)
    # ImageJ: position = (index - origin) times the size of a pixel.
    for axis, start_mm in zip("xyz", ORIGIN_MM, strict=True):
        assert -told[f"{axis}origin"] * VOXEL_MM == pytest.approx(start_mm, rel=1e-6)
    assert told["mode"] == "composite"
    assert told["Labels"][:3] == ["water (mg/mL)", "iodine (mg/mL)", "Gold µ/ü (mg/mL)"]
    assert len(told["LUTs"]) == 3
    assert "864f28b4" in told["Info"]


@pytest.mark.parametrize("ending", ["nrrd", "nii.gz", "mha", "tif", "nxs", "ome.zarr"])
def test_broken_off_at_any_step_it_leaves_what_was_there_and_nothing_else(tmp_path: Path, ending: str) -> None:
    target = tmp_path / f"a.{ending}"
    exported(materials(), target)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = content_of(materials(), unit="g/cm3")
    n_steps = len(list(export(other, target.with_name(f"b.{ending}"), format_for(target))))
    for path in tmp_path.glob("b*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for n in range(1, n_steps + 1):
        work = export(other, target, format_for(target), Options(is_overwriting=True))
        for _ in range(n):
            next(work)
        work.close()
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_our_own_reader_takes_a_stack_back(tmp_path: Path) -> None:
    """It takes the first row for the top of a picture; so what it reads is turned round, and known to be."""
    volume = bins()
    exported(content_of(volume, channels=["33+ keV"]), tmp_path / "bin2.tif")
    _, values = read_bin_images(tmp_path)
    np.testing.assert_array_equal(values[0][:, ::-1], volume.values[1])


def test_nexus_is_found_by_its_default(tmp_path: Path) -> None:
    volume = materials()
    (path,) = exported(volume, tmp_path / "a.nxs")
    with h5py.File(path) as file:
        assert [name for name in file if file[name].attrs["NX_class"] == "NXentry"] == list(file)
        assert len(file) == 3
        entry = file["entry_iodine"]
        assert entry["definition"][()] == b"NXtomoproc"
        data = entry[entry.attrs["default"]]
        values = data[data.attrs["signal"]]
        np.testing.assert_array_equal(values[()], volume.values[1] * np.float32(1000))
        assert [str(axis) for axis in data.attrs["axes"]] == ["z", "y", "x"]
        for axis, start_mm, n in zip("xyz", ORIGIN_MM, SHAPE[::-1], strict=True):
            assert data[axis].attrs["units"] == "mm"
            assert data[axis][()] == pytest.approx(start_mm + VOXEL_MM * np.arange(n))
        assert entry["sample/name"][()].decode() == "mouse ü-3"
        assert entry["reconstruction/parameters/raw_file"][()].decode() == "Gehäuse 7.h5"
        assert file[file.attrs["default"]] == file["entry_water"]


def test_a_volume_without_scale_says_so(tmp_path: Path) -> None:
    volume = materials(grid=Grid(shape=SHAPE, voxel_mm=1, is_scale_known=False))
    image = itk.ReadImage(str(exported(volume, tmp_path / "a.nrrd")[0]))
    assert "not known" in image.GetMetaData("scale")
    told = content_of(volume, voxel_mm=0.25)
    image = itk.ReadImage(str(exported(told, tmp_path / "b.nrrd")[0]))
    assert image.GetSpacing() == (0.25, 0.25, 0.25)
    assert "scale" not in image.GetMetaDataKeys()
