"""Volume files: what was saved comes back, and nothing else is taken for one."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import tifffile

from calibration.material_basis import MaterialBasis
from firmware_iface.errors import BadFile, MpxctError
from reconstruction import volume as volume_module
from reconstruction.volume import Grid, Provenance, Volume, load_volume, read_bin_images, save_volume


def make(*, basis: bool = True) -> Volume:
    rng = np.random.default_rng(0)
    return Volume(
        values=rng.normal(size=(2, 3, 4, 5)).astype(np.float32),
        channels=("18-33 keV", "33+ keV"),
        unit="1/mm",
        grid=Grid(shape=(3, 4, 5), voxel_mm=0.09, centre_mm=(1.0, -2.0, 0.5)),
        thresholds_kev=(18.0, 33.0),
        basis=MaterialBasis(
            materials=("water", "iodine"),
            attenuation_per_mm_per_g_cm3=np.array([[0.03, 2.0], [0.02, 3.0]]),
            thresholds_kev=(18.0, 33.0),
            tube_kvp=118.0,
        )
        if basis
        else None,
        provenance=Provenance(
            source_file="scan.h5", plan_json='{"a": 1}', calibration_identity="ab12", software="0.1", steps=("FDK", "µ")
        ),
    )


def test_positions_are_centres_and_the_centre_is_in_the_middle():
    z, y, x = Grid(shape=(3, 4, 5), voxel_mm=0.5, centre_mm=(1.0, -2.0, 0.5)).axes_mm()
    np.testing.assert_allclose(z, [0.0, 0.5, 1.0])
    np.testing.assert_allclose(y, [-2.75, -2.25, -1.75, -1.25])
    np.testing.assert_allclose(x, [0.0, 0.5, 1.0, 1.5, 2.0])


@pytest.mark.parametrize("basis", [True, False])
def test_a_volume_comes_back_as_it_was_saved(tmp_path, basis):
    saved = make(basis=basis)
    loaded = load_volume(save_volume(saved, tmp_path / "v.h5"))
    np.testing.assert_array_equal(loaded.values, saved.values)
    assert loaded.values.dtype == np.float32
    for name in ("channels", "unit", "grid", "thresholds_kev", "provenance"):
        assert getattr(loaded, name) == getattr(saved, name)
    if saved.basis is None:
        assert loaded.basis is None
    else:
        assert loaded.basis.materials == saved.basis.materials
        assert loaded.basis.thresholds_kev == saved.basis.thresholds_kev
        assert loaded.basis.tube_kvp == saved.basis.tube_kvp
        np.testing.assert_array_equal(
            loaded.basis.attenuation_per_mm_per_g_cm3, saved.basis.attenuation_per_mm_per_g_cm3
        )
    assert [path.name for path in tmp_path.iterdir()] == ["v.h5"]


def test_a_volume_without_steps_or_thresholds_comes_back(tmp_path):
    saved = Volume(
        values=np.zeros((1, 1, 1, 1), np.float32),
        channels=("iodine",),
        unit="g/cm3",
        grid=Grid(shape=(1, 1, 1), voxel_mm=1),
    )
    loaded = load_volume(save_volume(saved, tmp_path / "v.h5"))
    assert loaded.provenance == Provenance()
    assert loaded.thresholds_kev == ()


def test_every_dataset_says_its_units(tmp_path):
    save_volume(make(), tmp_path / "v.h5")
    missing = []
    with h5py.File(tmp_path / "v.h5") as file:
        file.visititems(
            lambda name, item: (
                missing.append(name) if isinstance(item, h5py.Dataset) and "units" not in item.attrs else None
            )
        )
        assert file["values"].attrs["units"] == "1/mm"
    assert not missing


def test_a_write_that_fails_leaves_the_old_file_and_no_partial_one(tmp_path, monkeypatch):
    path = save_volume(make(), tmp_path / "v.h5")
    before = path.read_bytes()

    def fail(group: h5py.Group, basis: MaterialBasis) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(volume_module, "_write_basis", fail)
    with pytest.raises(MpxctError, match="no space left"):
        save_volume(make(), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["v.h5"]


def test_a_truncated_file_is_refused_wherever_it_was_cut(tmp_path):
    whole = save_volume(make(), tmp_path / "v.h5").read_bytes()
    cut = tmp_path / "cut.h5"
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:size])
        with pytest.raises(BadFile, match="no readable volume file"):
            load_volume(cut)


def test_foreign_and_missing_files_are_refused(tmp_path):
    with pytest.raises(BadFile, match="is not there"):
        load_volume(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("material,bin1\n")
    with pytest.raises(BadFile, match="no readable volume file"):
        load_volume(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["values"] = 1.0
    with pytest.raises(BadFile, match="not a volume of mpxct"):
        load_volume(tmp_path / "other.h5")


@pytest.mark.parametrize("name", ["values", "channels", "voxel_mm", "basis/materials", "provenance"])
def test_a_file_that_lacks_a_part_is_refused(tmp_path, name):
    path = save_volume(make(), tmp_path / "v.h5")
    with h5py.File(path, "r+") as file:
        del file[name]
    with pytest.raises(BadFile, match="no readable volume file"):
        load_volume(path)


def test_records_refuse_what_cannot_be():
    with pytest.raises(ValueError, match="do not match 1 channels"):
        Volume(
            values=np.zeros((2, 1, 1, 1), np.float32),
            channels=("a",),
            unit="1/mm",
            grid=Grid(shape=(1, 1, 1), voxel_mm=1),
        )
    with pytest.raises(ValueError, match="unit is 'T'"):
        Volume(
            values=np.zeros((1, 1, 1, 1), np.float32),
            channels=("a",),
            unit="T",
            grid=Grid(shape=(1, 1, 1), voxel_mm=1),
        )
    with pytest.raises(ValueError, match="voxel_mm is 0"):
        Grid(shape=(1, 1, 1), voxel_mm=0)
    with pytest.raises(ValueError, match="no channel is called 'gold'"):
        make().channel("gold")


def test_a_folder_of_images_is_sorted_by_number_and_turned_upright(tmp_path):
    for number in (10, 2, 1):
        image = np.full((3, 4), number, np.float32)
        image[0] = 100 + number  # the top row of the picture
        tifffile.imwrite(tmp_path / f"bin{number}.tif", image)
    names, values = read_bin_images(tmp_path)
    assert names == ("bin1", "bin2", "bin10")
    assert values.shape == (3, 1, 3, 4)
    np.testing.assert_array_equal(values[:, 0, 0, 0], [1, 2, 10])
    np.testing.assert_array_equal(values[:, 0, 2, 0], [101, 102, 110])


def test_pages_of_a_file_are_slices(tmp_path):
    tifffile.imwrite(tmp_path / "a.tiff", np.arange(24, dtype=np.uint16).reshape(2, 3, 4), photometric="minisblack")
    _, values = read_bin_images(tmp_path)
    assert values.shape == (1, 2, 3, 4)


def test_pages_that_are_called_planes_are_slices_too(tmp_path):
    stack = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="rgb", planarconfig="separate")  # as some tools guess
    _, values = read_bin_images(tmp_path)
    np.testing.assert_array_equal(values[0], stack[:, ::-1])


def test_wrong_folders_of_images_are_refused(tmp_path):
    with pytest.raises(BadFile, match="holds no TIFF"):
        read_bin_images(tmp_path)
    tifffile.imwrite(tmp_path / "bin1.tif", np.zeros((3, 4), np.float32))
    tifffile.imwrite(tmp_path / "bin2.tif", np.zeros((3, 5), np.float32))
    with pytest.raises(BadFile, match=r"bin2\.tif has shape \(3, 5\)"):
        read_bin_images(tmp_path)
    tifffile.imwrite(tmp_path / "bin1.tif", np.zeros((4, 5, 3), np.uint8), photometric="rgb")
    with pytest.raises(BadFile, match=r"bin1\.tif has shape \(4, 5, 3\) of colours; allowed: grey images"):
        read_bin_images(tmp_path)
    tifffile.imwrite(tmp_path / "bin1.tif", np.zeros((3, 4), np.float32))
    (tmp_path / "bin2.tif").write_bytes(b"II*\x00")
    with pytest.raises(BadFile, match=r"bin2\.tif is no readable"):
        read_bin_images(tmp_path)
    tifffile.imwrite(tmp_path / "bin2.tif", np.full((3, 4), np.nan, np.float32))
    with pytest.raises(BadFile, match="no numbers"):
        read_bin_images(tmp_path)
