"""The commands that show files: the kind is found by the content, and every field is told."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from acquisition.scan_layout import partial_path
from calibration import store
from calibration.energy_scale import EndPoint
from calibration.material_basis import MaterialBasis
from firmware_iface.errors import BadFile, WrongUsage
from firmware_iface.merlin import FrameHeader
from gui.any_file import open_any
from gui.cli import draw, register
from reconstruction.volume import Grid, Provenance, Volume, save_volume
from tests.calibration_records import RECORDS, everything
from tests.test_merlin import header_text
from tests.test_picture import calibration, scan_path


class Plain:
    """A console without bars."""

    def emit(self, figures, text, *, as_json):
        typer.echo(json.dumps(figures, allow_nan=False) if as_json else text)


app = typer.Typer()
register(app)


@app.callback()
def prepare(ctx: typer.Context) -> None:
    ctx.obj = Plain()


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def told(path: Path) -> dict:
    return json.loads(run("info", path, "--json"))


def mib(folder: Path, name: str = "a.mib") -> Path:
    path = folder / name
    path.write_bytes(
        b"".join(
            header_text(kind="U08", rows=4, depth=6, counter=c, sequence=n + 1) + bytes(1024)
            for n in range(3)
            for c in (1, 0)
        )
    )
    path.with_suffix(".hdr").write_bytes("HDR,\t\r\nSensor Bias (V, µA)\t80 V\r\nGain:\tHGM\r\nEnd\t".encode("latin-1"))
    return path


def volume(folder: Path, unit: str = "g/cm3") -> Path:
    channels = ("water", "iodine") if unit == "g/cm3" else ("18-33 keV", "above 33 keV")
    basis = MaterialBasis(
        materials=("water", "iodine"), attenuation_per_mm_per_g_cm3=np.eye(2), thresholds_kev=(18.0, 33.0)
    )
    values = np.linspace(0, 1, 2 * 3 * 8 * 8, dtype=np.float32).reshape(2, 3, 8, 8)
    return save_volume(
        Volume(
            values=values, channels=channels, unit=unit, grid=Grid(shape=(3, 8, 8), voxel_mm=0.2), basis=basis,
            thresholds_kev=(18.0, 33.0), provenance=Provenance(source_file="scan.h5", steps=("fdk, hann",)),
        ),
        folder / f"{'materials' if unit == 'g/cm3' else 'bins'}.h5",
    )  # fmt: skip


def calibration_path(folder: Path) -> Path:
    store.save(calibration(), folder / "calibration.h5")
    return folder / "calibration.h5"


MAKERS = {
    "merlin": mib,
    "scan": scan_path,
    "calibration": calibration_path,
    "volume": volume,
    "bins": lambda folder: volume(folder, "1/mm"),
}


def test_the_window_opens_on_a_folder_that_is_made_if_need_be_and_on_no_file(tmp_path, monkeypatch):
    opened: list[Path] = []
    monkeypatch.setattr("gui.app.run", lambda folder, device: opened.append(folder) or 0)
    run("gui", tmp_path / "new" / "data")
    assert opened == [tmp_path / "new" / "data"]
    assert opened[0].is_dir()
    with pytest.raises(WrongUsage, match="is a file; allowed: a folder"):
        run("gui", mib(tmp_path))
    assert len(opened) == 1


@pytest.mark.parametrize("kind", MAKERS)
def test_the_content_tells_the_kind_not_the_name(tmp_path, kind):
    path = MAKERS[kind](tmp_path)
    disguised = path.rename(tmp_path / "thing.dat")
    assert open_any(disguised)[0] == {"bins": "volume"}.get(kind, kind)


@pytest.mark.parametrize("kind", MAKERS)
def test_view_draws_every_kind(tmp_path, kind):
    path, png = MAKERS[kind](tmp_path), tmp_path / "out.png"
    assert json.loads(run("view", path, "--png", png, "--json")) == {"file": str(path), "picture": str(png)}
    assert png.read_bytes().startswith(b"\x89PNG")


def test_frame_and_slice_are_chosen_and_checked(tmp_path):
    png = tmp_path / "out.png"
    first = draw(volume(tmp_path), png, slice_index=0).read_bytes()
    assert draw(volume(tmp_path), png, slice_index=2).read_bytes() != first
    with pytest.raises(WrongUsage, match="slice 3 is not there; allowed: 0 to 2"):
        draw(volume(tmp_path), png, slice_index=3)
    with pytest.raises(WrongUsage, match="frame 3 is not there; allowed: 0 to 2"):
        draw(mib(tmp_path), png, frame=3)


@pytest.mark.parametrize("kind", MAKERS)
def test_info_is_text_for_people_with_every_name_of_the_json(tmp_path, kind):
    path = MAKERS[kind](tmp_path)
    text = run("info", path)
    for name, value in told(path).items():
        assert name in text
        if isinstance(value, str):
            assert value in text


def test_info_of_merlin_shows_every_header_field(tmp_path):
    figures = told(mib(tmp_path))
    assert (figures["n_frames"], figures["n_exposures"], figures["layers"]) == (6, 3, [0, 1])
    header = figures["frame_header"]
    assert set(header) == {field.name for field in fields(FrameHeader)}
    assert (header["gain"], header["depth_bits"], header["exposure_ns"]) == ("HGM", 6, 555000)
    assert header["chips"][0]["dacs"]["Threshold1"] == 7
    assert figures["acquisition_header"] == {"Sensor Bias (V, µA)": "80 V", "Gain": "HGM"}
    text = run("info", tmp_path / "a.mib")
    for word in ("Sensor Bias (V, µA)", "TP_REFB", "2020-05-18T14:51:49.971626178Z"):
        assert word in text
    assert run("info", tmp_path / "a.hdr", "--json").replace(".hdr", ".mib") == run(
        "info", tmp_path / "a.mib", "--json"
    )


def test_info_of_an_interrupted_merlin_file_still_shows_its_headers(tmp_path):
    path = mib(tmp_path)
    path.write_bytes(path.read_bytes()[: 5 * 1408])
    figures = told(path)
    assert (figures["n_frames"], figures["n_exposures"], figures["layers"]) == (5, None, [0, 1])


def test_info_of_a_scan(tmp_path):
    figures = told(scan_path(tmp_path))
    assert (figures["status"], figures["n_lost"], figures["n_flats"], figures["n_projections"]) == ("degraded", 1, 1, 2)
    assert figures["thresholds_kev"] == [18.0, 33.0]
    assert "overflow" in next(event["text"] for event in figures["events"] if event["kind"] == "lost")


def test_info_of_a_calibration(tmp_path):
    c, figures = calibration(), told(calibration_path(tmp_path))
    assert figures["identity"] == c.identity
    assert figures["residual_rms_kev"] == pytest.approx(0.1)
    assert [t["number"] for t in figures["thresholds"]] == [1, 3]
    assert figures["thresholds"][0]["sigma_dac"] == pytest.approx(c.edges_after_dac[1].std(), rel=0.05)
    assert figures["thresholds"][0]["sigma_kev"] == pytest.approx(figures["thresholds"][0]["sigma_dac"] / 4)
    assert (figures["n_bad"], figures["bad_pixels"]["DEAD"]) == (2, 1)
    assert len(figures["lines"]) == 6


def test_info_of_a_calibration_tells_every_record(tmp_path):
    store.save(everything(), tmp_path / "all.h5")
    figures = told(tmp_path / "all.h5")
    assert {name for name in RECORDS if name != "scale_covariance" and not figures[name]} == set()
    first = figures["thresholds"][0]
    assert (first["offset_error_dac"], first["gain_error_dac_per_kev"]) == pytest.approx((0.2, 0.01))
    assert figures["bias_currents"]["chips"][0] == pytest.approx(
        {"chip": 1, "dac": "GND", "code": 137, "read_v": 0.6512, "target_v": 0.65}
    )
    spread = figures["equalisation"]["thresholds"][1]
    assert (spread["sigma_after_dac"], spread["too_high"], spread["no_edge"]) == (1.5, 3, 0)
    assert spread["sigma_limit_e"] == pytest.approx(1 / 4 / 4.43e-3)
    scale = figures["pixel_scale"]["thresholds"][0]
    assert (scale["number"], scale["error_at_24_kev"]) == (1, pytest.approx(0.2 / 4, rel=0.02))
    assert figures["end_point"]["error_kev"] == pytest.approx(0.75)
    assert (figures["count_rate"]["law"], figures["count_rate"]["highest_ma"]) == ("paralysable", 0.2)
    assert figures["wedge"]["transmission"]["pmma-5"] == pytest.approx(np.exp([-0.15, -0.1]))
    assert figures["thickness"]["thickest_mm"] == 20
    assert figures["response"]["worst_check_percent"] == pytest.approx(1.0)
    assert figures["response"]["held_back"] == ["water-8"]
    assert figures["alignment"]["roll_deg"] == {"value": 0.5, "standard_error": 0.01}


def test_info_leaves_out_what_was_not_measured_and_what_is_not_a_number(tmp_path):
    bare, end = calibration(), EndPoint(kvp=80.0, found_kev=float("nan"), sigma_kev=0.1)
    store.save(replace(bare, end_point=end), tmp_path / "bare.h5")
    figures = told(tmp_path / "bare.h5")
    assert {name for name in RECORDS if figures.get(name)} == {"end_point"}
    assert figures["end_point"] == {"kvp": 80.0, "found_kev": None, "sigma_kev": 0.1, "error_kev": None}
    assert "offset_error_dac" not in figures["thresholds"][0]


def test_info_of_a_volume(tmp_path):
    figures = told(volume(tmp_path))
    assert [channel["name"] for channel in figures["channels"]] == ["water", "iodine"]
    assert figures["channels"][1]["max"] == pytest.approx(1)
    assert figures["grid"]["voxel_mm"] == 0.2
    assert figures["provenance"]["source_file"] == "scan.h5"
    assert figures["basis"]["attenuation_per_mm_per_g_cm3"] == {"water": [1, 0], "iodine": [0, 1]}


def test_a_partial_scan_is_shown_as_one(tmp_path):
    path = scan_path(tmp_path)
    with h5py.File(path, "a") as file:
        file.attrs["status"] = "interrupted"
    assert told(path.rename(partial_path(path)))["status"] == "interrupted"


def test_files_that_are_none_of_ours(tmp_path):
    cases = {"text.txt": b"hello", "empty.h5": b"", "empty.mib": b"", "foreign.mib": b"hello" * 999}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadFile, match=name) as caught:
            open_any(tmp_path / name)
        assert caught.value.hint
    with pytest.raises(BadFile, match="cannot be read"):
        open_any(tmp_path / "none.mib")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(BadFile, match="none of mpxct"):
        open_any(tmp_path / "other.h5")


@pytest.mark.parametrize(("kind", "part"), [("scan", "entry/events"), ("calibration", "trim"), ("volume", "values")])
def test_damaged_files_are_refused_in_one_sentence(tmp_path, kind, part):
    path = MAKERS[kind](tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadFile, match="truncated or damaged"):
        open_any(path)
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        del file[part]
    with pytest.raises(BadFile, match=kind):
        open_any(path)
