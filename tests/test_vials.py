"""Calibration from vials: lines that are known, noise that neighbours share, and files that are wrong."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from msgspec import structs
from scipy import ndimage

from calibration.attenuation import linear_attenuation_per_mm, material, solution
from firmware_iface.errors import CalibrationMissing, WrongUsage
from reconstruction.decomposition import Matrix, decompose
from reconstruction.phantom_file import Body, Phantom, Vial
from reconstruction.vials import fit_vials, flattened
from reconstruction.volume import Grid, Volume

ENERGIES_KEV = np.array([25.0, 40.0, 55.0, 70.0])
GRID = Grid(shape=(6, 80, 80), voxel_mm=0.125)
RADIUS_MM = np.hypot(*np.meshgrid(*GRID.axes_mm()[1:], indexing="ij"))
PLACES = [(3.3 * np.cos(a), 3.3 * np.sin(a)) for a in np.arange(8) * np.pi / 4]
CONTENTS = (
    ("water", None),
    ("iodine", 4.0),
    ("iodine", 9.0),
    ("iodine", 18.0),
    ("gadolinium", 3.0),
    ("gadolinium", 8.0),
    ("adipose", None),
    ("hydroxyapatite", 200.0),
)
PHANTOM = Phantom(
    vials=tuple(
        Vial(material=name, x_mm=x, y_mm=y, radius_mm=0.9, concentration_mg_ml=c, is_pure=name == "adipose")
        for (name, c), (x, y) in zip(CONTENTS, PLACES, strict=True)
    ),
    body=Body(material="pmma", x_mm=0.0, y_mm=0.0, radius_mm=4.8),
)
MATERIALS = (PHANTOM.solvent, *PHANTOM.agents)


def scanned(*, noise_per_mm: float = 0.0, blur: float = 0.0, seed: int = 0, cup: float = 0.0) -> Volume:
    """Vials in a cylinder of PMMA, at four energies, with noise."""
    values = clean() * (1 + cup * (RADIUS_MM / 4.8) ** 2)
    noise = np.random.default_rng(seed).normal(size=values.shape)
    if blur:
        noise = ndimage.gaussian_filter(noise, (0, 0, blur, blur))
        noise /= noise.std()
    return Volume(
        values=(values + noise_per_mm * noise).astype(np.float32),
        channels=tuple(f"{e:g} keV" for e in ENERGIES_KEV),
        unit="1/mm",
        grid=GRID,
        thresholds_kev=tuple(ENERGIES_KEV),
    )


@cache
def clean() -> np.ndarray:
    """By the solutions' elements, not by the lines that are fitted."""
    _, y, x = GRID.axes_mm()
    values = np.zeros((len(ENERGIES_KEV), *GRID.shape))
    values[:, :, RADIUS_MM < 4.8] = linear_attenuation_per_mm("pmma", ENERGIES_KEV)[:, None, None]
    for vial in PHANTOM.vials:
        matter = material(vial.material)
        if not vial.is_pure and vial.material != "water":
            matter = solution("water", vial.material, vial.concentration_mg_ml or 0.0)
        inside = np.hypot(y[:, None] - vial.y_mm, x - vial.x_mm) < vial.radius_mm
        values[:, :, inside] = linear_attenuation_per_mm(matter, ENERGIES_KEV)[:, None, None]
    return values


def truth() -> np.ndarray:
    """Mass attenuation of the pure materials: (n_bins, n_materials), 1/mm per g/cm3."""
    columns = [linear_attenuation_per_mm(n, ENERGIES_KEV) / material(n).density_g_cm3 for n in MATERIALS]
    return np.stack(columns, axis=1)


def test_without_noise_the_materials_come_back():
    fit = fit_vials(scanned(noise_per_mm=1e-9), PHANTOM)
    assert fit.materials == ("water", "iodine", "gadolinium", "adipose", "hydroxyapatite")
    np.testing.assert_allclose(fit.attenuation_per_mm_per_g_cm3, truth(), rtol=1e-4)
    assert np.nanmin(fit.r2) > 0.999999
    assert np.isnan(fit.r2[:, 2]).all()  # one point of pure fat makes no line
    assert fit.basis.thresholds_kev == tuple(ENERGIES_KEV)
    rise = fit.slope_per_mm_per_g_cm3[:, 0]
    reads = linear_attenuation_per_mm(solution("water", "iodine", 10.0), ENERGIES_KEV)
    water = linear_attenuation_per_mm("water", ENERGIES_KEV)
    np.testing.assert_allclose(rise, (reads - water) / 0.01, rtol=1e-4)


@pytest.mark.parametrize("blur", [0.0, 1.0])
def test_errors_are_what_repeated_scans_spread(blur):
    fits = [fit_vials(scanned(noise_per_mm=2e-3, blur=blur, seed=seed), PHANTOM) for seed in range(40)]
    found = np.array([fit.attenuation_per_mm_per_g_cm3 for fit in fits])
    stated = np.sqrt(np.mean([fit.sigma_per_mm_per_g_cm3**2 for fit in fits], axis=0))
    pulls = (found - truth()) / np.array([fit.sigma_per_mm_per_g_cm3 for fit in fits])
    # The errors of the few vials' lines are enlarged where chi square is above its mean: 10 to 20 % on the whole.
    ratio = stated / found.std(axis=0)
    assert 0.9 < ratio.mean() < 1.35, ratio
    assert np.mean(np.abs(pulls) < 2) > 0.93
    n_degrees = fits[0].n_degrees
    assert n_degrees == 3
    assert np.mean([fit.chi_square for fit in fits]) == pytest.approx(n_degrees, rel=0.25 if blur else 0.15)


def test_the_slopes_decompose_the_vials_they_came_from():
    volume = scanned(noise_per_mm=1e-3)
    fit = fit_vials(volume, PHANTOM)
    keep = [0, 1, 2, 4]
    found = decompose(volume.values, fit.basis.attenuation_per_mm_per_g_cm3[:, keep])
    x, y = PLACES[3]
    _, rows, cols = GRID.axes_mm()
    inside = np.hypot(rows[:, None] - y, cols - x) < 0.7
    water, iodine, gadolinium, mineral = found[:, :, inside].mean(axis=(1, 2))
    assert iodine == pytest.approx(0.018, abs=5e-4)
    assert gadolinium == pytest.approx(0, abs=5e-4)
    assert water == pytest.approx(1 - 0.018 / 4.93, abs=0.02)
    assert mineral == pytest.approx(0, abs=0.02)


def test_a_vial_that_does_not_fit_shows_in_chi_square_and_errors():
    wrong = structs.replace(PHANTOM.vials[3], concentration_mg_ml=24.0)
    vials = (*PHANTOM.vials[:3], wrong, *PHANTOM.vials[4:])
    good = fit_vials(scanned(noise_per_mm=1e-3), PHANTOM)
    bad = fit_vials(scanned(noise_per_mm=1e-3), structs.replace(PHANTOM, vials=vials))
    assert (bad.chi_square > 20 * bad.n_degrees).all()
    assert (bad.sigma_per_mm_per_g_cm3[:, 1] > 3 * good.sigma_per_mm_per_g_cm3[:, 1]).all()
    assert (bad.r2[:, 0] < good.r2[:, 0]).all()


def test_images_without_thresholds_make_a_matrix():
    basis = fit_vials(replace(scanned(noise_per_mm=1e-3), thresholds_kev=()), PHANTOM).basis
    assert isinstance(basis, Matrix)
    assert basis.bins == tuple(f"{e:g} keV" for e in ENERGIES_KEV)


def test_cupping_is_taken_out_by_the_body():
    flat, cupped = scanned(noise_per_mm=1e-3), scanned(noise_per_mm=1e-3, cup=0.08)
    mended = flattened(cupped, PHANTOM)
    assert "cupping of the pmma taken out: " in mended.provenance.steps[-1]

    def bend(volume: Volume) -> np.ndarray:
        inner, outer = RADIUS_MM < 1.5, (RADIUS_MM > 4.35) & (RADIUS_MM < 4.6)
        values = volume.values.mean(axis=1)
        return values[:, outer].mean(axis=1) / values[:, inner].mean(axis=1) - 1

    assert (np.abs(bend(cupped)) > 0.05).all()
    assert (np.abs(bend(mended) - bend(flat)) < 0.004).all()
    one, other = fit_vials(flat, PHANTOM), fit_vials(mended, PHANTOM)
    # All vials stand at one radius, so that cupping scales them alike: slopes keep their ratios.
    ratio = other.slope_per_mm_per_g_cm3 / one.slope_per_mm_per_g_cm3
    np.testing.assert_allclose(ratio / ratio[:, :1], 1, rtol=0.08)


def test_what_cannot_be_fitted_is_refused():
    volume = scanned(noise_per_mm=1e-3)
    with pytest.raises(WrongUsage, match="allowed: bins in 1/mm"):
        fit_vials(replace(volume, unit="g/cm3"), PHANTOM)
    with pytest.raises(WrongUsage, match="read the same in all voxels"):
        fit_vials(replace(volume, values=np.ones_like(volume.values)), PHANTOM)
    with pytest.raises(WrongUsage, match="names no body"):
        flattened(volume, structs.replace(PHANTOM, body=None))
    assert fit_vials(volume, structs.replace(PHANTOM, vials=PHANTOM.vials[:1])).materials == ("water",)
    with pytest.raises(CalibrationMissing, match="do not tell water, iodine apart"):
        fit_vials(volume, structs.replace(PHANTOM, vials=PHANTOM.vials[1:2]))
    unstated = structs.replace(PHANTOM.vials[1], concentration_mg_ml=None)
    with pytest.raises(WrongUsage, match="the iodine vial has None mg/mL of iodine; allowed: above 0"):
        fit_vials(volume, structs.replace(PHANTOM, vials=(PHANTOM.vials[0], unstated)))


def test_mixtures_tell_their_parts_as_vials_of_one_do():
    """Two mixtures and water know two agents; their truth is that of the elements."""
    both = [(9.0, 4.0), (3.0, 8.0)]
    volume = scanned(noise_per_mm=1e-9)
    values = volume.values.copy()
    _, y, x = GRID.axes_mm()
    vials = [PHANTOM.vials[0]]
    for (iodine, gadolinium), vial in zip(both, PHANTOM.vials[1:3], strict=True):
        water = 1 - iodine / 4930 - gadolinium / 7895  # by volume
        columns = truth()[:, :3] @ [water, iodine / 1000, gadolinium / 1000]
        values[:, :, np.hypot(y[:, None] - vial.y_mm, x - vial.x_mm) < vial.radius_mm] = columns[:, None, None]
        vials.append(structs.replace(vial, concentration_mg_ml=iodine, mixture_mg_ml={"gadolinium": gadolinium}))
    values += np.random.default_rng(0).normal(0, 1e-9, values.shape).astype(np.float32)
    fit = fit_vials(replace(volume, values=values), structs.replace(PHANTOM, vials=tuple(vials)))
    assert fit.materials == ("water", "iodine", "gadolinium")
    np.testing.assert_allclose(fit.attenuation_per_mm_per_g_cm3, truth()[:, :3], rtol=1e-3)
    assert np.isnan(fit.r2).all()  # no line of one alone
