"""``mpxct decompose``: every rule, and every way to the attenuation, from files as a user has them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import reconstruction.decompose_cli
from calibration.attenuation import linear_attenuation_per_mm, material
from calibration.material_basis import MaterialBasis
from calibration.response import Response, SensorModel
from calibration.store import save
from firmware_iface.errors import CalibrationMissing, WrongUsage
from reconstruction.materials import decompose_volume
from reconstruction.spectral.effective import effective_attenuation
from reconstruction.spectral.model import SpectralModel
from reconstruction.volume import load_volume, save_volume
from tests.test_picture import calibration
from tests.test_pipeline import calibration as calibration_of_scan
from tests.test_pipeline import run, write_scan
from tests.test_vials import ENERGIES_KEV, PHANTOM, PLACES, scanned

MATERIALS = ("water", "iodine", "gadolinium", "hydroxyapatite")


class PlainConsole:
    def emit(self, figures, text, *, as_json):
        typer.echo(json.dumps(figures) if as_json else text)

    def picture(self, file):
        return file.with_suffix(".png")

    def track(self, work):
        return run(work)


def command(*arguments: object) -> str:
    app = typer.Typer()

    @app.callback()
    def prepare(ctx: typer.Context) -> None:
        ctx.obj = PlainConsole()

    app.command("decompose")(reconstruction.decompose_cli.decompose)
    result = CliRunner().invoke(app, ["decompose", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def basis() -> MaterialBasis:
    columns = [linear_attenuation_per_mm(name, ENERGIES_KEV) / material(name).density_g_cm3 for name in MATERIALS]
    return MaterialBasis(
        materials=MATERIALS,
        attenuation_per_mm_per_g_cm3=np.stack(columns, axis=1),
        thresholds_kev=tuple(ENERGIES_KEV),
    )


@pytest.fixture(scope="module")
def bins(tmp_path_factory):
    volume = replace(scanned(noise_per_mm=1e-3), basis=basis())
    return save_volume(volume, tmp_path_factory.mktemp("bins") / "volume.h5")


def inside(volume, place: int) -> np.ndarray:
    x_mm, y_mm = PLACES[place]
    _, y, x = volume.grid.axes_mm()
    return volume.values[:, :, np.hypot(y[:, None] - y_mm, x - x_mm) < 0.6]


@pytest.mark.parametrize("rule", ["least-squares", "non-negative", "fractions"])
def test_least_squares_by_the_volumes_own_basis(bins, tmp_path, rule):
    figures = json.loads(command(bins, "--rule", rule, "-o", tmp_path / "m.h5", "--json"))
    assert figures["labels"] is None
    found = load_volume(tmp_path / "m.h5")
    assert inside(found, 3)[1].mean() == pytest.approx(0.018, abs=6e-4)
    if rule != "least-squares":
        assert found.values.min() >= 0
    shares = np.tensordot([1 / material(name).density_g_cm3 for name in MATERIALS], found.values, 1)
    assert (shares.max() <= 1 + 1e-5) == (rule == "fractions")
    assert ("fractions sum to 1 at most" in found.provenance.steps[-1]) == (rule == "fractions")


def test_fractions_take_stated_densities(bins, tmp_path):
    options = ("--rule", "fractions", "--densities", "water=0.5", "--full")
    command(bins, *options, "-o", tmp_path / "m.h5")
    found = load_volume(tmp_path / "m.h5").values
    densities = [0.5, *(material(name).density_g_cm3 for name in MATERIALS[1:])]
    np.testing.assert_allclose(np.tensordot(1 / np.array(densities), found, 1), 1, atol=1e-5)


def test_labels_stand_beside_the_materials(bins, tmp_path):
    output = tmp_path / "m.h5"
    figures = json.loads(command(bins, "--rule", "exclusive", "--field", 0.5, "-o", output, "--json"))
    assert figures["labels"]["file"] == str(tmp_path / "m-labels.h5")
    assert sum(figures["labels"]["share"].values()) == pytest.approx(1)
    labels, found = load_volume(tmp_path / "m-labels.h5"), load_volume(output)
    assert labels.channels == ("label", "chi-square")
    assert labels.unit == "1"
    names = list(figures["labels"]["share"])
    assert labels.provenance.steps[-1].startswith("labels: 0 air, 1 water")
    for place, name in ((0, "water"), (2, "water+iodine"), (5, "water+gadolinium"), (7, "water+hydroxyapatite")):
        assert np.mean(inside(labels, place)[0] == names.index(name)) > 0.97, name
    assert inside(labels, 0)[1].mean() == pytest.approx(3, rel=0.3)  # four bins less one material
    assert inside(found, 2)[1].mean() == pytest.approx(0.009, abs=5e-4)


def test_what_a_voxel_may_hold_is_told(bins, tmp_path):
    options = ("--rule", "min-residual", "--subsets", "water<2.1; iodine")
    figures = json.loads(command(bins, *options, "-o", tmp_path / "m.h5", "--json"))
    assert set(figures["labels"]["share"]) == {"water", "iodine"}
    found = load_volume(tmp_path / "m.h5")
    assert not found.values[2:].any()
    assert found.values[0].max() <= 2.1 + 1e-6


def description(*which: int) -> str:
    """Describe some of the phantom's vials, and its body."""
    text = ""
    for k in which:
        vial = PHANTOM.vials[k]
        text += f'[[vial]]\nmaterial = "{vial.material}"\nx_mm = {vial.x_mm}\ny_mm = {vial.y_mm}\n'
        text += f"radius_mm = {vial.radius_mm}\nis_pure = {str(vial.is_pure).lower()}\n"
        text += f"concentration_mg_ml = {vial.concentration_mg_ml}\n" if vial.concentration_mg_ml else ""
    return text + "[body]\nx_mm = 0.0\ny_mm = 0.0\nradius_mm = 4.8\n"


def test_vials_in_the_volume_calibrate_it(bins, tmp_path):
    (tmp_path / "vials.toml").write_text(description(0, 3, 6))
    options = ("--vials", tmp_path / "vials.toml", "--flatten")
    figures = json.loads(command(bins, *options, "-o", tmp_path / "m.h5", "--json"))
    assert figures["vials"]["n_degrees"] == 0
    assert set(figures["vials"]["attenuation_per_mm_per_g_cm3"]) == {"water", "iodine", "adipose"}
    found = load_volume(tmp_path / "m.h5")
    assert inside(found, 2)[1].mean() == pytest.approx(0.009, abs=5e-4)
    text = command(bins, *options, "-o", tmp_path / "m.h5")
    assert "attenuation from vials, 1/mm per g/cm3" in text
    assert "±" in text


def response() -> Response:
    names = ("noise_kev", "filter_mm", *(f"threshold_{k}_kev" for k in range(4)))
    return Response(
        sensor=SensorModel(),
        tube_kvp=118.0,
        parameter_names=names,
        parameters=np.array([1.0, 3.0, 0, 0, 0, 0]),
        covariance=np.zeros((6, 6)),
        chi_square_ratio=1.0,
        n_degrees=1,
        thresholds_kev=(18.0, 33.0, 50.0, 75.0),
        plates=(),
        n_checks=0,
        measured=np.zeros((0, 4)),
        predicted=np.zeros((0, 4)),
    )


def test_behind_water_the_effective_attenuation_is_what_little_more_shows():
    model = SpectralModel.of_response(response(), ("water", "iodine"))
    for water_mm in (0.0, 8.0, 100.0):
        found = effective_attenuation(model, water_mm)
        little = np.array([0.0, 1e-6])
        through = model.transmission(np.array([water_mm, 0.0]))
        rise = -np.log(model.transmission(np.array([water_mm, 0.0]) + little) / through) / little[1]
        np.testing.assert_allclose(found[:, 1], rise, rtol=1e-3)
        if water_mm:
            np.testing.assert_allclose(found[:, 0] * water_mm, -np.log(through), rtol=1e-10)
    thin, thick = effective_attenuation(model, 0.0), effective_attenuation(model, 100.0)
    assert (thick[:, 0] < thin[:, 0]).all()  # the beam hardens
    np.testing.assert_allclose(effective_attenuation(model, 1e-6)[:, 0], thin[:, 0], rtol=1e-4)
    with pytest.raises(WrongUsage, match="allowed: 0 and more"):
        effective_attenuation(model, -1.0)
    with pytest.raises(WrongUsage, match="allowed: with water"):
        effective_attenuation(SpectralModel.of_response(response(), ("iodine",)), 1.0)


def test_a_fitted_response_stands_for_measured_cells(bins, tmp_path):
    known, thresholds = tmp_path / "calibration.h5", (18.0, 33.0, 50.0, 75.0)
    save(replace(calibration(), response=response()), known)
    truth = np.array([0.7, 0.01, 0.005, 0.1])
    seen = SpectralModel.of_response(response(), MATERIALS, thresholds_kev=thresholds)
    values = effective_attenuation(seen, 8.0) @ truth
    volume = replace(scanned(noise_per_mm=1e-9), thresholds_kev=thresholds)
    volume = replace(
        volume, values=np.broadcast_to(values[:, None, None, None], volume.values.shape).astype(np.float32)
    )
    file = save_volume(volume, tmp_path / "volume.h5")
    options = ("--response", known, "--water-mm", 8, "--unweighted")
    command(file, *options, "--materials", ",".join(MATERIALS), "-o", tmp_path / "m.h5")
    np.testing.assert_allclose(load_volume(tmp_path / "m.h5").values[:, 3, 5, 5], truth, rtol=2e-3, atol=1e-4)
    with pytest.raises(WrongUsage, match="allowed: name them with --materials"):
        command(file, *options, "-o", tmp_path / "m.h5")
    save(calibration(), known)
    with pytest.raises(CalibrationMissing, match="holds no response"):
        command(file, *options, "-o", tmp_path / "m.h5")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--flatten",), "allowed: with them, whose body"),
        (("--rule", "best"), "--rule is 'best'; allowed: least-squares"),
        (("--full",), "allowed: with --rule fractions"),
        (("--rule", "fractions", "--densities", "water"), "allowed: NAME=NUMBER"),
        (("--rule", "exclusive", "--significance", "2"), "the rejected fraction is 2.0"),
        (("--rule", "exclusive", "--subsets", "air; gold"), "names gold; allowed: water"),
        (("--matrix", "a.csv", "--vials", "b.toml"), "allowed: one"),
    ],
)
def test_wrong_options_are_refused(bins, tmp_path, options, match):
    with pytest.raises(WrongUsage, match=match):
        command(bins, *options, "-o", tmp_path / "m.h5")
    assert not (tmp_path / "m.h5").exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--rings", "auto"), r"--rings does nothing with volume files; allowed: with scans \(--tier image\)"),
        (("--scale", 2), "--scale does nothing with volume files; allowed: with folders of images"),
        (("--pass", 1), "--pass does nothing with volume files"),
        (("--prior", "tnv"), "--prior does nothing with volume files"),
        (("--field", 0.5), "--field does nothing with --rule least-squares; allowed: with --rule exclusive"),
        (("--rule", "exclusive", "--non-negative"), "--non-negative does nothing with --rule exclusive"),
        (("--rule", "min-residual", "--false-alarm", 0.1), "--false-alarm does nothing with --rule min-residual"),
        (("--materials", "water"), "--materials does nothing without a response"),
        (("--tier", "projection"), "is of scans"),
    ],
)
def test_what_would_be_ignored_is_refused(bins, tmp_path, options, match):
    with pytest.raises(WrongUsage, match=match):
        command(bins, *options, "-o", tmp_path / "m.h5")


def test_what_rays_do_not_look_at_is_refused(tmp_path):
    (tmp_path / "scan.h5").write_bytes(b"no volume")
    rays = (tmp_path / "scan.h5", "--tier", "projection")
    for option in ("--matrix", "--vials", "--rule", "--agents"):
        with pytest.raises(WrongUsage, match=f"{option} does nothing with scans .--tier projection"):
            command(*rays, option, "exclusive")
    with pytest.raises(WrongUsage, match="--strength does nothing without a prior"):
        command(*rays, "--strength", 1)


def test_a_material_without_a_density_cannot_have_fractions():
    strange = replace(basis(), materials=("water", "iodine", "gadolinium", "unheard of"))
    with pytest.raises(WrongUsage, match="the density of unheard of is not known"):
        decompose_volume(scanned(noise_per_mm=1e-3), strange, densities_g_cm3={})


@pytest.fixture(scope="module")
def scan_and_response(tmp_path_factory):
    folder = tmp_path_factory.mktemp("counts")
    known = folder / "calibration.h5"
    save(replace(calibration_of_scan(), response=response()), known)
    return write_scan(folder / "scan.h5"), known


@pytest.mark.parametrize(
    ("tier", "prior", "n_draws", "is_sharing"),
    [
        ("projection", "none", None, True),
        ("projection", "tv", 2, False),
        ("projection", "tnv", 0, True),
        ("onestep", "huber", 2, True),
        ("onestep", "none", 0, False),
    ],
)
def test_counts_become_materials_with_error_maps_beside(scan_and_response, tmp_path, tier, prior, n_draws, is_sharing):
    scan, known = scan_and_response
    options = ["--calibration", known, "--tier", tier, "--prior", prior, "--materials", "water,I", "--preview"]
    options += [] if (tier, prior) == ("projection", "none") else ["--iterations", 2]
    options += [] if n_draws is None else ["--draws", n_draws]
    options += ["--sharing"] if is_sharing else []
    told = json.loads(command(scan, *options, "-o", tmp_path / "m.h5", "--json"))
    found = load_volume(tmp_path / "m.h5")
    assert found.channels == ("water", "I")
    assert any("charge sharing" in step for step in found.provenance.steps) == is_sharing
    assert (told["sigma"] is None) == (n_draws == 0)
    assert (tmp_path / "m-sigma.h5").exists() == (n_draws != 0)
    if n_draws != 0:
        sigma = load_volume(tmp_path / "m-sigma.h5")
        assert (sigma.channels, sigma.unit, sigma.grid) == (found.channels, found.unit, found.grid)
        assert (sigma.values >= 0).all()
        assert all(error > 0 for error in told["median_sigma_mg_ml"].values())
