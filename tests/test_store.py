"""Laws of the calibration file: what goes in comes out, and nothing else is taken for it."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from calibration.conditions import StepRecord
from calibration.material_basis import MaterialBasis
from calibration.store import Calibration, MeasuredLine, load, read_group, save, write_group
from firmware_iface.chip import DEFAULT_DACS
from firmware_iface.errors import BadFile, WrongUsage


def make_calibration(**changes: Any) -> Calibration:
    rng = np.random.default_rng(7)
    planes = (8, 4, 6)
    edges = rng.normal(15, 1, planes).astype(np.float32)
    edges[3, 1, 1] = np.nan
    calibration = Calibration(
        created="2024-05-01T12:00:00+00:00",
        software="0.1",
        device="a detector",
        chip_id="W123_H5",
        gain="HGM",
        is_csm=True,
        is_colour=True,
        bias_v=-300.0,
        temperature_k=305.0,
        history=tuple(
            StepRecord(
                step=step,
                created="2024-05-01T12:00:00+00:00",
                software="0.1",
                mode="colour-csm",
                gain="HGM",
                bias_v=-300.0,
                temperature_k=305.5,
                is_forced=step == "energy",
            )
            for step in ("equalise", "energy")
        ),
        dacs=dict(DEFAULT_DACS),
        trim=rng.integers(0, 32, planes).astype(np.uint8),
        is_masked=rng.uniform(size=planes) < 0.1,
        pixel_class=rng.integers(0, 3, planes[1:]).astype(np.uint8),
        target_dac=15.0,
        edges_before_dac=edges * 3,
        edges_after_dac=edges,
        offset_dac=np.linspace(14, 16, 8),
        gain_dac_per_kev=np.linspace(4, 4.4, 8),
        lines=(
            MeasuredLine(threshold=1, source="Am-241", energy_kev=59.54, position_dac=275.1, residual_kev=0.03),
            MeasuredLine(threshold=1, source="In", energy_kev=24.6, position_dac=120.2, residual_kev=-0.04),
        ),
        thresholds_kev=(18.0, 33.0, 50.0, 75.0),
        basis=MaterialBasis(
            materials=("water", "iodine"),
            attenuation_per_mm_per_g_cm3=rng.uniform(size=(4, 2)),
            thresholds_kev=(18.0, 33.0, 50.0, 75.0),
            tube_kvp=118.0,
        ),
    )
    return replace(calibration, **changes)


def _assert_same(first: Any, second: Any) -> None:
    for field in fields(first):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype, field.name
            np.testing.assert_array_equal(one, other, err_msg=field.name)
        elif isinstance(one, MaterialBasis):
            _assert_same(one, other)
        else:
            assert one == other, field.name


@pytest.mark.parametrize(
    "changes",
    [{}, {"basis": None}, {"lines": (), "thresholds_kev": ()}, {"chip_id": ""}, {"temperature_k": None, "history": ()}],
)
def test_what_is_saved_is_loaded(tmp_path: Path, changes: dict[str, Any]) -> None:
    calibration = make_calibration(**changes)
    save(calibration, tmp_path / "one.h5")
    loaded = load(tmp_path / "one.h5")
    _assert_same(calibration, loaded)
    assert loaded.identity == calibration.identity
    assert [path.name for path in tmp_path.iterdir()] == ["one.h5"]


def test_every_dataset_tells_its_units(tmp_path: Path) -> None:
    save(make_calibration(), tmp_path / "one.h5")
    names: list[str] = []

    def check(name: str, item: h5py.HLObject) -> None:
        if isinstance(item, h5py.Dataset):
            names.append(name)
            assert item.attrs["units"], name

    with h5py.File(tmp_path / "one.h5") as file:
        file.visititems(check)
    assert len(names) > 40


def test_a_scan_file_can_hold_a_whole_calibration(tmp_path: Path) -> None:
    calibration = make_calibration()
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        write_group(file.create_group("entry/calibration"), calibration)
    with h5py.File(tmp_path / "scan.h5") as file:
        _assert_same(calibration, read_group(file["entry/calibration"]))


def test_the_identity_is_of_the_content(tmp_path: Path) -> None:
    calibration = make_calibration()
    assert calibration.identity == make_calibration().identity
    assert len(calibration.identity) == 16
    assert int(calibration.identity, 16) >= 0
    trim = calibration.trim.copy()
    trim[0, 0, 0] ^= 1
    others = [
        replace(calibration, trim=trim),
        replace(calibration, bias_v=-301.0),
        replace(calibration, basis=None),
        replace(calibration, dacs={**calibration.dacs, "Ikrum": 11}),
        replace(calibration, lines=calibration.lines[:1]),
    ]
    assert len({calibration.identity, *(other.identity for other in others)}) == 6


def test_an_interrupted_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, calibration = tmp_path / "one.h5", make_calibration()
    save(calibration, path)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("calibration.store.write_group", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(replace(calibration, bias_v=-1.0), path)
    assert load(path).identity == calibration.identity
    assert [file.name for file in tmp_path.iterdir()] == ["one.h5"]


def _foreign(path: Path) -> None:
    path.write_text("not HDF5")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _truncated(path: Path) -> None:
    save(make_calibration(), path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def _other_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = 1


def _newer(path: Path) -> None:
    save(make_calibration(), path)
    with h5py.File(path, "a") as file:
        file.attrs["version"] = 99


def _incomplete(path: Path) -> None:
    save(make_calibration(), path)
    with h5py.File(path, "a") as file:
        del file["trim"]


def _inconsistent(path: Path) -> None:
    save(make_calibration(), path)
    with h5py.File(path, "a") as file:
        del file["trim"]
        file["trim"] = np.zeros((8, 1, 1), dtype=np.uint8)


def _changed(path: Path) -> None:
    save(make_calibration(), path)
    with h5py.File(path, "a") as file:
        file["bias_v"][()] = -20.0


def _missing(path: Path) -> None:
    assert not path.exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_missing, "missing, foreign or truncated"),
        (_foreign, "missing, foreign or truncated"),
        (_empty, "missing, foreign or truncated"),
        (_truncated, "missing, foreign or truncated"),
        (_other_hdf5, "not a calibration"),
        (_newer, "version 99; allowed: 2"),
        (_incomplete, "incomplete or inconsistent"),
        (_inconsistent, "incomplete or inconsistent"),
        (_changed, "identity does not match"),
    ],
)
def test_any_other_file_is_refused_in_one_sentence(tmp_path: Path, damage: Any, message: str) -> None:
    damage(tmp_path / "one.h5")
    with pytest.raises(BadFile, match=message) as caught:
        load(tmp_path / "one.h5")
    assert "one.h5" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_spread_of_the_edges_is_that_of_the_thresholds_with_a_scale_in_their_own_kev() -> None:
    rng = np.random.default_rng(3)
    planes = (8, 60, 60)
    before, after = rng.normal(60, 8, planes).astype(np.float32), rng.normal(64, 2, planes).astype(np.float32)
    before[0] *= 9  # not in the table of lines: does not count
    after[5] *= 9
    calibration = make_calibration(
        trim=np.zeros(planes, np.uint8),
        is_masked=np.zeros(planes, bool),
        pixel_class=np.zeros(planes[1:], np.uint8),
        edges_before_dac=before,
        edges_after_dac=after,
        gain_dac_per_kev=np.array([1.0, 4.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0]),
        lines=tuple(
            MeasuredLine(threshold=number, source="In", energy_kev=24.6, position_dac=120.2, residual_kev=0.1)
            for number in (1, 3)
        ),
    )
    mean_square = (1 / 4**2 + 1 / 2**2) / 2
    assert calibration.sigmas_kev == pytest.approx((8 * np.sqrt(mean_square), 2 * np.sqrt(mean_square)), rel=0.03)
    assert np.isnan(make_calibration(lines=()).sigmas_kev).all()


def test_the_residual_is_the_root_mean_square_of_all_lines() -> None:
    assert make_calibration().residual_rms_kev == pytest.approx(np.sqrt((0.03**2 + 0.04**2) / 2))
    assert np.isnan(make_calibration(lines=()).residual_rms_kev)


def test_thresholds_go_to_the_nearest_code_and_back() -> None:
    calibration = make_calibration()
    for number in range(8):
        for energy_kev in (7.0, 33.0, 75.0):
            code = calibration.threshold_dac(number, energy_kev)
            step_kev = 1 / calibration.gain_dac_per_kev[number]
            assert abs(calibration.threshold_kev(number, code) - energy_kev) <= 0.5001 * step_kev


def test_an_energy_beyond_the_dac_is_refused_with_the_range() -> None:
    with pytest.raises(WrongUsage, match=r"allowed: 0.0 to 124.2 keV"):
        make_calibration().threshold_dac(0, 130.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"trim": np.zeros((8, 2, 2), dtype=np.uint8)},
        {"gain_dac_per_kev": np.zeros(8)},
        {"offset_dac": np.zeros(4)},
    ],
)
def test_a_calibration_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        make_calibration(**changes)
