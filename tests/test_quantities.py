"""What materials mean: exact for mixtures of the basis, within stated limits for tissues, errors by experiment."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize, special

import mpxct
from calibration.attenuation import linear_attenuation_per_mm, mass_attenuation_cm2_g, material, solution
from calibration.electrons import effective_z as z_of
from calibration.electrons import relative_electrons
from calibration.electrons import stopping_power_ratio as spr_of
from calibration.spectrum import tube_spectrum
from calibration.store import save
from firmware_iface.errors import WrongUsage
from gui.descriptions import describe
from gui.picture import bins_figure
from reconstruction import quantities
from reconstruction.spectral.model import SpectralModel
from reconstruction.spectral.stoichiometry import (
    as_decomposed,
    as_seen,
    calibrate,
    is_agent,
    left_out_errors,
    reference_tissues,
)
from reconstruction.volume import Grid, Provenance, Volume, load_volume, save_volume
from tests.calibration_records import everything

BASES = [("water", "hydroxyapatite"), ("water", "hydroxyapatite", "iodine"), ("pmma", "aluminium")]
KNOWN = {basis: calibrate(basis) for basis in BASES}


def finish(work):
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def mixture(parts: dict[str, float], basis: tuple[str, ...]) -> np.ndarray:
    return np.array([parts.get(name, 0.0) for name in basis])


def volume(values, channels, **others) -> Volume:
    shape = np.shape(values)[1:]
    grid = Grid(shape=(shape[0], shape[1], shape[2]), voxel_mm=0.1, centre_mm=(1.0, 2.0, 3.0))
    return Volume(values=np.asarray(values, np.float32), channels=channels, unit="g/cm3", grid=grid, **others)


@pytest.mark.parametrize("concentration", [0.0, 5.0, 40.0])
def test_a_mono_energetic_picture_of_a_solution_is_its_attenuation(concentration):
    matter = solution("water", "iodine", concentration)
    shares = {z: matter.density_g_cm3 * share for z, share in matter.mass_fractions}
    parts = mixture({"iodine": shares.get(53, 0.0), "water": matter.density_g_cm3 - shares.get(53, 0.0)}, BASES[1])
    basis = [material(name) for name in BASES[1]]
    for kev in (30.0, 34.0, 70.0):
        true_per_mm = linear_attenuation_per_mm(matter, kev)[0]
        assert quantities.monoenergetic(basis, kev, is_hu=False).value(parts) == pytest.approx(true_per_mm, rel=1e-9)
        hu = 1000 * (true_per_mm / linear_attenuation_per_mm("water", kev)[0] - 1)
        assert quantities.monoenergetic(basis, kev).value(parts) == pytest.approx(hu, abs=1e-6)
        plain = quantities.non_contrast(basis, kev).value(parts)
        assert plain == pytest.approx(1000 * (parts[0] - 1), abs=1e-6)


def test_an_element_is_told_whatever_holds_it():
    basis = [material(name) for name in ("water", "caesium iodide", "iodine")]
    found = quantities.element_map(basis, "I").value(np.array([1.0, 0.010, 0.005]))
    assert found == pytest.approx(10 * 126.904 / (126.904 + 132.905) + 5, rel=1e-4)
    with pytest.raises(WrongUsage, match="none of water, caesium iodide, iodine holds Gd"):
        quantities.element_map(basis, "gadolinium")


def test_contrast_agents_are_known_by_their_edge():
    assert [is_agent(material(n)) for n in ("iodine", "Gd", "water", "hydroxyapatite")] == [True, True, False, False]
    with pytest.raises(WrongUsage, match="0 are contrast agents"):
        quantities.non_contrast([material("water"), material("bone")], 70.0)


@pytest.mark.parametrize("basis", BASES)
def test_a_basis_attenuates_like_its_own_mixtures_and_nearly_like_tissues(basis):
    known = [material(name) for name in basis]
    np.testing.assert_allclose(as_seen(known, known), np.diag([m.density_g_cm3 for m in known]), atol=1e-9)
    energies = np.arange(30.0, 101.0)
    tissues = [material(name) for name in ("adipose", "muscle", "cranium")]
    modelled = as_seen(tissues, known) @ np.array([mass_attenuation_cm2_g(m, energies) for m in known])
    true = np.array([m.density_g_cm3 * mass_attenuation_cm2_g(m, energies) for m in tissues])
    assert np.abs(modelled / true - 1).max() < (1e-2 if "aluminium" in basis else 4e-3)  # calcium is no aluminium


@pytest.mark.parametrize("basis", BASES)
def test_left_out_tissues_are_told_within_the_aims(basis):
    """The aims of the issue, for what the method itself does: 0.5 % of electrons, 1 % of Z; I counts by a tenth."""
    electrons, z, excitation = np.abs(left_out_errors(basis))
    assert electrons.max() < 0.2
    assert z.max() < 0.6
    assert excitation.max() < 4.0
    assert np.sqrt(np.mean(electrons**2)) < 0.05
    assert np.sqrt(np.mean(z**2)) < 0.25


def test_a_calibration_over_tissues_gains_over_mere_mixtures():
    fitted, own = left_out_errors(BASES[0]), left_out_errors(BASES[0], is_fitted=False)
    assert np.sqrt(np.mean(own**2, axis=1))[1:] == pytest.approx([0.86, 4.95], rel=0.05)
    assert (np.sqrt(np.mean(fitted**2, axis=1))[1:] < np.sqrt(np.mean(own**2, axis=1))[1:] / 3.5).all()


@pytest.mark.parametrize("ion", ["proton", "carbon"])
@pytest.mark.parametrize("mev", [60.0, 150.0, 300.0])
def test_stopping_power_of_tissues_is_that_of_their_composition(ion, mev):
    tissues = reference_tissues()
    seen = as_seen(tissues, KNOWN[BASES[0]].basis)
    found = quantities.stopping_power_ratio(KNOWN[BASES[0]], mev, ion).value(seen.T)
    true = np.array([spr_of(m, mev, ion) for m in tissues])
    assert np.abs(found / true - 1).max() < 0.005


@pytest.mark.parametrize(("name", "spr_percent"), [("pmma", 0.9), ("nylon", 0.32), ("polyethylene", -1.32)])
def test_plastics_have_their_electrons_and_the_binding_of_tissues(name, spr_percent):
    """They are no tissues: by how much their stopping power is wrong is stated in QUANTITIES.md."""
    known, matter = KNOWN[BASES[0]], material(name)
    seen = as_seen([matter], known.basis)[0]
    electrons = quantities.electron_density(known).value(seen)
    assert electrons == pytest.approx(matter.density_g_cm3 * relative_electrons(matter), rel=2.5e-3)
    ratio = quantities.stopping_power_ratio(known, 150).value(seen) / spr_of(matter, 150)
    assert 100 * (ratio - 1) == pytest.approx(spr_percent, abs=0.1)


def test_another_water_changes_water_alone():
    water = np.array([1.0, 0.0])
    plain, other = (
        quantities.stopping_power_ratio(KNOWN[BASES[0]], 150, water_ev=ev).value(water) for ev in (None, 78.0)
    )
    assert plain == pytest.approx(1.0, abs=1e-3)
    assert other / plain == pytest.approx(spr_of(material("water"), 150, water_ev=78.0), rel=1e-9)


def test_without_a_fit_mixtures_of_the_basis_are_exact():
    basis = ("water", "ethanol", "calcium sulfate")
    known = calibrate(basis, is_fitted=False)
    wet = solution("water", "calcium sulfate", 150.0)
    parts = np.array([wet.density_g_cm3 - 0.15, 0.0, 0.15])
    assert quantities.electron_density(known).value(parts) == pytest.approx(
        wet.density_g_cm3 * relative_electrons(wet), rel=1e-9
    )
    assert quantities.effective_z(known).value(parts) == pytest.approx(z_of(wet), rel=1e-9)
    assert quantities.stopping_power_ratio(known, 150).value(parts) == pytest.approx(spr_of(wet, 150), rel=1e-9)


def test_iodine_adds_its_own_electrons_and_leaves_the_tissue_where_it_is():
    known = KNOWN[BASES[1]]
    tissue = as_seen([material("muscle")], known.basis)[0]
    with_iodine = tissue + np.array([0.0, 0.0, 0.020])
    gained = [float(quantities.electron_density(known).value(c)) for c in (tissue, with_iodine)]
    assert gained[1] - gained[0] == pytest.approx(0.020 * relative_electrons(material("iodine")), rel=1e-9)
    z = quantities.effective_z(known)
    power = [float(z.value(c)) ** 3.1 * e for c, e in zip((tissue, with_iodine), gained, strict=True)]
    assert power[1] - power[0] == pytest.approx(0.020 * relative_electrons(material("iodine")) * 53**3.1, rel=1e-9)


@pytest.mark.parametrize("name", ["carbon", "oxygen", "aluminium", "calcium", "muscle", "cortical"])
def test_the_z_of_a_ratio_is_that_of_the_element(name):
    matter = material("bone" if name == "cortical" else name)
    z = float(quantities.effective_z_of_ratio([matter], 40, 80).value(np.array([1.3])))
    if len(matter.mass_fractions) == 1:
        assert z == pytest.approx(matter.mass_fractions[0][0], abs=1e-6)
    else:
        assert z == pytest.approx(z_of(matter, 3.1), rel=0.05)


def test_half_air_has_half_of_everything_and_air_has_no_z():
    known = KNOWN[BASES[0]]
    bone = as_seen([material("bone")], known.basis)[0]
    for quantity in (quantities.electron_density(known), quantities.stopping_power_ratio(known, 150)):
        assert quantity.value(bone / 2) == pytest.approx(quantity.value(bone) / 2)
    z = quantities.effective_z(known)
    assert z.value(bone / 2) == pytest.approx(z.value(bone))
    for empty in (z, quantities.effective_z_of_ratio(known.basis, 40, 80)):
        assert empty.value(np.zeros((2, 3))).tolist() == [0, 0, 0]
        assert empty.slopes(np.zeros((2, 3))).any() == False  # noqa: E712
    assert quantities.monoenergetic(known.basis, 70).value(np.zeros(2)) == -1000


def every_quantity(known):
    return [
        quantities.monoenergetic(known.basis, 60.0),
        quantities.electron_density(known),
        quantities.effective_z(known),
        quantities.effective_z_of_ratio(known.basis, 40, 80),
        quantities.stopping_power_ratio(known, 150),
        quantities.stopping_power_ratio(known, 250, "carbon", water_ev=78.0),
    ]


@pytest.mark.parametrize("name", ["adipose", "muscle", "sternum", "cranium"])
def test_slopes_are_those_of_finite_differences(name):
    known = KNOWN[BASES[1]]
    at = as_seen([material(name)], known.basis)[0] + np.array([0.0, 0.0, 0.0033])
    for quantity in every_quantity(known):
        steps = 1e-5 * np.eye(3)
        expected = [(quantity.value(at + s) - quantity.value(at - s)) / 2e-5 for s in steps]
        np.testing.assert_allclose(quantity.slopes(at), expected, rtol=1e-4, atol=1e-5, err_msg=quantity.name)


def test_error_maps_are_the_spread_of_repeated_noise():
    rng = np.random.default_rng(5)
    known = KNOWN[BASES[1]]
    at = as_seen([material("cranium")], known.basis)[0] + np.array([0.0, 0.0, 0.005])
    root = np.array([[0.01, 0, 0], [-0.006, 0.004, 0], [0.0004, -0.0006, 0.0004]])
    drawn = at[:, None] + root @ rng.normal(size=(3, 40000))
    for quantity in every_quantity(known):
        error = quantities.error_of(quantity, at, root @ root.T)
        assert quantity.value(drawn).std() == pytest.approx(error, rel=0.05), quantity.name


def test_a_volume_of_quantities_goes_to_its_file_and_back(tmp_path):
    rng = np.random.default_rng(1)
    values = np.stack([1 + 0.1 * rng.random((2, 3, 4)), 0.1 * rng.random((2, 3, 4)), 0.01 * rng.random((2, 3, 4))])
    source = volume(values, BASES[1], provenance=Provenance(source_file="scan.h5", steps=("decomposed",)))
    asked = every_quantity(KNOWN[BASES[1]])
    covariance = np.diag([1e-4, 4e-5, 1e-6])
    found = finish(quantities.evaluate(source, asked, covariance))
    assert found.unit == "mixed"
    assert found.unit_of("60 keV") == "HU"
    assert found.unit_of("effective Z, error") == "1"
    back = load_volume(save_volume(found, tmp_path / "q.h5"))
    assert (back.channels, back.channel_units, back.grid) == (found.channels, found.channel_units, found.grid)
    assert back.provenance.source_file == "scan.h5"
    assert back.provenance.steps[-1].startswith("of water, hydroxyapatite, iodine: 60 keV, electron density")
    np.testing.assert_array_equal(back.values, found.values)
    np.testing.assert_allclose(back.channel("effective Z"), asked[2].value(source.values), rtol=1e-6)
    each = np.broadcast_to(covariance[:, :, None, None, None], (3, 3, 2, 3, 4))
    np.testing.assert_allclose(finish(quantities.evaluate(source, asked, each)).values, found.values, rtol=1e-5)
    errors = volume(np.broadcast_to(np.array([1e-2, 1e-2, 3e-3])[:, None, None, None], (3, 2, 3, 4)), BASES[1])
    told = finish(quantities.evaluate(source, asked[:1], covariance, errors)).channel("60 keV, error")
    as_told = np.diag([1e-4, 1e-4, 9e-6])
    np.testing.assert_allclose(told, quantities.error_of(asked[0], values, as_told), rtol=1e-5)
    with pytest.raises(WrongUsage, match="standard errors of water, hydroxyapatite in"):
        finish(quantities.evaluate(source, asked[:1], covariance, volume(np.ones((2, 2, 3, 4)), BASES[0])))
    one = finish(quantities.evaluate(source, asked[:1]))
    assert (one.unit, one.channel_units) == ("HU", ())


TUBE_KEV, EDGES_KEV = np.arange(20.5, 121.0, 2.0), (20.0, 38.0, 51.0, 65.0, 80.0)


def five_bins(basis: tuple[str, ...]) -> SpectralModel:
    """Bins that overlap, as those of a detector whose charge is shared."""
    photons = tube_spectrum(120.0, TUBE_KEV, {"aluminium": 6.0, "copper": 0.2})
    above = np.array([special.ndtr((TUBE_KEV - low) / 5.0) * 0.8 + 0.2 * (2 * low < TUBE_KEV) for low in EDGES_KEV])
    return SpectralModel.of_spectrum((above - np.vstack([above[1:], 0 * above[:1]])) * photons, TUBE_KEV, basis)


@pytest.mark.parametrize("thickness_mm", [10.0, 80.0])
@pytest.mark.parametrize("basis", [BASES[0], BASES[2]])
def test_tissues_behind_a_whole_response_are_told_within_the_aims(basis, thickness_mm):
    """A slab of each tissue, no mixture of the basis; the paths of most likelihood; calibrated by other tissues."""
    model = five_bins(basis)
    judged = reference_tissues()[1::4]
    others = [m for m in reference_tissues() if m not in judged]
    matter = [material(name) for name in basis]
    known = calibrate(basis, others, as_decomposed(others, matter, model, thickness_mm))
    read = []
    for tissue in judged:
        truth = five_bins_of(tissue).transmission(np.array([tissue.density_g_cm3 * thickness_mm]))

        def misfit(paths, truth=truth):
            return (np.log(model.transmission(paths)) - np.log(truth)) * np.sqrt(truth)

        start = as_seen([tissue], known.basis)[0] * thickness_mm
        read.append(optimize.least_squares(misfit, start, x_scale=np.abs(start) + 1, xtol=1e-12, ftol=1e-14).x)
    concentrations = np.array(read).T / thickness_mm
    told = (
        (quantities.electron_density(known), [m.density_g_cm3 * relative_electrons(m) for m in judged], 0.005),
        (quantities.effective_z(known), [z_of(m) for m in judged], 0.01),
        (quantities.stopping_power_ratio(known, 150), [spr_of(m, 150) for m in judged], 0.01),
        (quantities.stopping_power_ratio(known, 300, "carbon"), [spr_of(m, 300, "carbon") for m in judged], 0.01),
    )
    for quantity, truth, aim in told:
        assert np.abs(quantity.value(concentrations) / np.array(truth) - 1).max() < aim, quantity.name


def test_what_the_bins_see_of_the_basis_is_the_basis():
    basis = [material(name) for name in BASES[1]]
    seen = as_decomposed(basis, basis, five_bins(BASES[1]), 5.0)
    np.testing.assert_allclose(seen, np.diag([m.density_g_cm3 for m in basis]), atol=1e-6)


def five_bins_of(tissue) -> SpectralModel:
    model = five_bins(("water",))
    return replace(
        model,
        materials=(tissue.name,),
        attenuation_per_mm_per_g_cm3=0.1 * mass_attenuation_cm2_g(tissue, model.energies_kev)[:, None],
    )


def test_what_cannot_be_is_refused():
    with pytest.raises(WrongUsage, match="'resin' is made of is not known"):
        quantities.basis_of(volume(np.zeros((1, 1, 1, 1)), ("resin",)))
    assert quantities.basis_of(volume(np.zeros((1, 1, 1, 1)), ("resin",)), {"resin": "C5H8O2"})[0].mass_fractions
    with pytest.raises(WrongUsage, match="the lower one first"):
        quantities.effective_z_of_ratio([material("water")], 80, 40)
    with pytest.raises(WrongUsage, match="at least 4 more tissues"):
        calibrate(("water", "bone"), [material("adipose"), material("muscle")])
    with pytest.raises(WrongUsage, match="no quantity is asked for"):
        next(quantities.evaluate(volume(np.zeros((1, 1, 1, 1)), ("water",)), []))


def test_the_command_writes_quantities_and_labels(tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(2)
    names = ("adipose", "muscle", "cranium")
    seen = as_seen([material(n) for n in names], [material(n) for n in BASES[1]])
    values = np.zeros((3, 2, 30, 40))
    for k, tissue in enumerate(seen):
        values[:, :, :, 10 * k : 10 * (k + 1)] = tissue[:, None, None, None]
    values[2, :, 5:10, 12:18] += 0.010
    values += rng.normal(0, [[[[5e-3]]], [[[2e-3]]], [[[2e-4]]]], values.shape)
    path = save_volume(volume(values, BASES[1]), tmp_path / "materials.h5")
    out = tmp_path / "q.h5"
    arguments = (
        f"mpxct quantities {path} -o {out} --mono 40,70 --electron-density --effective-z --z-ratio 40,80 --vnc "
        "--iodine --spr proton@150 --spr carbon@300 --water-ev 78 --errors --labels air,adipose,muscle,cranium --each "
        "--json"
    )
    monkeypatch.setattr("sys.argv", arguments.split())
    with pytest.raises(SystemExit) as end:
        mpxct.main()
    assert not end.value.code
    figures = json.loads(capsys.readouterr().out)
    found = load_volume(out)
    assert len(found.channels) == 2 * 9
    assert figures["channels"]["40 keV"]["unit"] == "HU"
    assert figures["error_percent"]["electron density"] < 0.1
    inside = (slice(None), slice(5, 10), slice(12, 18))
    assert found.channel("I")[inside].mean() == pytest.approx(10.0, abs=0.2)
    assert found.channel("electron density")[:, :, 21:29].mean() == pytest.approx(
        1.61 * relative_electrons(material("cranium")), rel=2e-3
    )
    labels = load_volume(tmp_path / "q-labels.h5")
    assert labels.channels == ("label", "probability", "air", "adipose", "muscle", "cranium")
    assert (labels.channel("label")[:, 12:, 22:29] == 4).mean() > 0.99
    assert (tmp_path / "q-labels.mhd").is_file()
    assert figures["voxels"]["muscle"] > 590  # with iodine in a tenth of it


def test_the_command_takes_a_detector_from_its_calibration(tmp_path, capsys, monkeypatch):
    path = save_volume(volume(np.ones((2, 1, 3, 4)), BASES[0]), tmp_path / "materials.h5")
    told = {}
    for name, calibration in (("with", everything()), ("without", replace(everything(), response=None))):
        save(calibration, tmp_path / f"{name}.h5")
        arguments = f"mpxct quantities {path} -o {tmp_path}/q.h5 --electron-density --json"
        arguments += f" --calibration {tmp_path}/{name}.h5"
        monkeypatch.setattr("sys.argv", arguments.split())
        with pytest.raises(SystemExit) as end:
            mpxct.main()
        told[name] = (end.value.code, *capsys.readouterr())
    assert not told["with"][0]
    assert json.loads(told["with"][1])["error_percent"]["electron density"] < 0.2
    assert "holds no response of the detector" in told["without"][2]


def test_the_command_tells_tissues(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["mpxct", "quantities", "--tissues"])
    with pytest.raises(SystemExit):
        mpxct.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("cranium")]
    assert rows[0][1] == "1.61"
    assert float(rows[0][5]) == pytest.approx(spr_of(material("cranium"), 150), abs=1e-4)


def test_pictures_and_descriptions_give_each_channel_its_unit():
    asked = every_quantity(KNOWN[BASES[0]])[:3]
    source = volume(np.random.default_rng(0).random((2, 2, 8, 9)), BASES[0])
    found = finish(quantities.evaluate(source, asked))
    described = describe("volume", found)
    assert [channel["unit"] for channel in described["channels"]] == ["HU", "1", "1"]
    bars = [bar for axes in bins_figure(found).axes for bar in axes.child_axes]
    written = [bar.get_xlabel() + bar.get_ylabel() for bar in bars]
    assert [label for label in written if label] == ["HU", "1", "1"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("", "no quantity is asked for"),
        ("--spr proton", "--spr is 'proton'"),
        ("--mono a", "--mono is 'a'"),
        ("--z-ratio 40", "--z-ratio is '40'"),
        ("--electron-density", "there is 1 material"),
        ("--vnc", "0 are contrast agents"),
        ("--k-edge Gd", "none of water holds Gd"),
        ("--mono 40 --material x", "--material is 'x'"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path, capsys, monkeypatch, options, reason):
    channels = ("water", "bone") if options.startswith("--spr") else ("water",)
    path = save_volume(volume(np.ones((len(channels), 1, 3, 4)), channels), tmp_path / "materials.h5")
    monkeypatch.setattr("sys.argv", f"mpxct quantities {path} {options}".split())
    with pytest.raises(SystemExit) as end:
        mpxct.main()
    assert end.value.code == 2
    assert reason in capsys.readouterr().err
