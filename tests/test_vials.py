"""Calibration from vials: lines that are known, noise that neighbours share, and files that are wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from calibration.attenuation import linear_attenuation_per_mm, material, solution
from firmware_iface.errors import BadFile, CalibrationMissing, WrongUsage
from reconstruction.decomposition import Matrix, decompose
from reconstruction.quality import Vial
from reconstruction.vials import VialPlan, fit_vials, flattened, read_vials
from reconstruction.volume import Grid, Volume

ENERGIES_KEV = np.array([25.0, 40.0, 55.0, 70.0])
GRID = Grid(shape=(6, 80, 80), voxel_mm=0.125)
PLACES = [(3.3 * np.cos(a), 3.3 * np.sin(a)) for a in np.arange(8) * np.pi / 4]
CONTENTS = (
    ("water", None),
    ("iodine", 4.0),
    ("iodine", 9.0),
    ("iodine", 18.0),
    ("gadolinium", 3.0),
    ("gadolinium", 8.0),
    ("adipose", 950.0),
    ("hydroxyapatite", 200.0),
)
PLAN = VialPlan(
    vials=tuple(
        Vial(material=name, x_mm=x, y_mm=y, radius_mm=0.9, concentration_mg_ml=c)
        for (name, c), (x, y) in zip(CONTENTS, PLACES, strict=True)
    ),
    is_pure=tuple(name == "adipose" for name, _ in CONTENTS),
    body=Vial(material="pmma", x_mm=0.0, y_mm=0.0, radius_mm=4.8),
)


def phantom(*, noise_per_mm: float = 0.0, blur: float = 0.0, seed: int = 0, cup: float = 0.0) -> Volume:
    """Vials in a cylinder of PMMA, at four energies: by the solutions' elements, not by the lines that are fitted."""
    _, y, x = GRID.axes_mm()
    values = np.zeros((len(ENERGIES_KEV), *GRID.shape))
    radius = np.hypot(y[:, None], x)
    values[:, :, radius < 4.8] = linear_attenuation_per_mm("pmma", ENERGIES_KEV)[:, None, None]
    for vial, is_pure in zip(PLAN.vials, PLAN.is_pure, strict=True):
        matter = material(vial.material)
        if not is_pure and vial.material != "water":
            matter = solution("water", vial.material, vial.concentration_mg_ml or 0.0)
        inside = np.hypot(y[:, None] - vial.y_mm, x - vial.x_mm) < vial.radius_mm
        values[:, :, inside] = linear_attenuation_per_mm(matter, ENERGIES_KEV)[:, None, None]
    values *= 1 + cup * (radius / 4.8) ** 2
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


def truth() -> np.ndarray:
    """Mass attenuation of the pure materials: (n_bins, n_materials), 1/mm per g/cm3."""
    columns = [linear_attenuation_per_mm(n, ENERGIES_KEV) / material(n).density_g_cm3 for n in PLAN.materials]
    return np.stack(columns, axis=1)


def test_without_noise_the_materials_come_back():
    fit = fit_vials(phantom(noise_per_mm=1e-9), PLAN)
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
    fits = [fit_vials(phantom(noise_per_mm=2e-3, blur=blur, seed=seed), PLAN) for seed in range(60)]
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
    volume = phantom(noise_per_mm=1e-3)
    fit = fit_vials(volume, PLAN)
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
    wrong = replace(PLAN.vials[3], concentration_mg_ml=24.0)
    good = fit_vials(phantom(noise_per_mm=1e-3), PLAN)
    bad = fit_vials(phantom(noise_per_mm=1e-3), replace(PLAN, vials=(*PLAN.vials[:3], wrong, *PLAN.vials[4:])))
    assert (bad.chi_square > 20 * bad.n_degrees).all()
    assert (bad.sigma_per_mm_per_g_cm3[:, 1] > 3 * good.sigma_per_mm_per_g_cm3[:, 1]).all()
    assert (bad.r2[:, 0] < good.r2[:, 0]).all()


def test_images_without_thresholds_make_a_matrix():
    basis = fit_vials(replace(phantom(noise_per_mm=1e-3), thresholds_kev=()), PLAN).basis
    assert isinstance(basis, Matrix)
    assert basis.bins == tuple(f"{e:g} keV" for e in ENERGIES_KEV)


def test_cupping_is_taken_out_by_the_body():
    flat, cupped = phantom(noise_per_mm=1e-3), phantom(noise_per_mm=1e-3, cup=0.08)
    mended = flattened(cupped, PLAN)
    assert "cupping of the pmma taken out: " in mended.provenance.steps[-1]
    z, row = 3, GRID.shape[1] // 2
    course = mended.values[:, z - 2 : z + 2, row - 2 : row + 2]

    def bend(volume: Volume) -> np.ndarray:
        _, y, x = GRID.axes_mm()
        radius = np.hypot(y[:, None], x)
        inner, outer = radius < 1.5, (radius > 4.35) & (radius < 4.6)
        values = volume.values.mean(axis=1)
        return values[:, outer].mean(axis=1) / values[:, inner].mean(axis=1) - 1

    assert course.size
    assert (np.abs(bend(cupped)) > 0.05).all()
    assert (np.abs(bend(mended) - bend(flat)) < 0.004).all()
    one, other = fit_vials(flat, PLAN), fit_vials(mended, PLAN)
    # All vials stand at one radius, so that cupping scales them alike: slopes keep their ratios.
    ratio = other.slope_per_mm_per_g_cm3 / one.slope_per_mm_per_g_cm3
    np.testing.assert_allclose(ratio / ratio[:, :1], 1, rtol=0.08)


VIALS_TOML = """
solvent = "water"
z_range_mm = [-0.3, 0.3]
[densities_g_cm3]
mystery = 2.5
[[vial]]
material = "water"
x_mm = 3.3
y_mm = 0.0
radius_mm = 0.9
[[vial]]
material = "mystery"
concentration_mg_ml = 5.0
x_mm = -3.3
y_mm = 0.0
radius_mm = 0.9
[[vial]]
material = "adipose"
is_pure = true
x_mm = 0.0
y_mm = 3.3
radius_mm = 0.9
[body]
material = "pmma"
x_mm = 0.0
y_mm = 0.0
radius_mm = 4.8
"""


def test_a_vial_description_is_read(tmp_path):
    path = tmp_path / "vials.toml"
    path.write_text(VIALS_TOML)
    plan = read_vials(path)
    assert plan.materials == ("water", "mystery", "adipose")
    assert plan.vials[2].concentration_mg_ml == pytest.approx(950)
    assert plan.z_range_mm == (-0.3, 0.3)
    assert plan.body is not None
    assert plan.body.radius_mm == 4.8


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("radius_mm = 0.9", "radius_mm = -1", "allowed: more than 0"),
        ("concentration_mg_ml = 5.0", "", "allowed: a concentration above 0"),
        ("concentration_mg_ml = 5.0", "concentration_mgml = 5.0", "unknown field `concentration_mgml`"),
        ('material = "water"', 'material = "iodine"\nconcentration_mg_ml = 1.0', "no vial holds pure water"),
        ('material = "adipose"', 'material = "unheard of"', "density of unheard of is not known"),
        ("[body]", "[body", "no vial description"),
    ],
)
def test_a_wrong_vial_description_is_refused(tmp_path, old, new, match):
    path = tmp_path / "vials.toml"
    path.write_text(VIALS_TOML.replace(old, new))
    with pytest.raises((BadFile, WrongUsage), match=match):
        read_vials(path)


def test_what_cannot_be_fitted_is_refused():
    volume = phantom(noise_per_mm=1e-3)
    with pytest.raises(WrongUsage, match="allowed: bins in 1/mm"):
        fit_vials(replace(volume, unit="g/cm3"), PLAN)
    with pytest.raises(WrongUsage, match="read the same in all voxels"):
        fit_vials(replace(volume, values=np.ones_like(volume.values)), PLAN)
    with pytest.raises(WrongUsage, match="names no body"):
        flattened(volume, replace(PLAN, body=None))
    with pytest.raises(ValueError, match="one each"):
        replace(PLAN, is_pure=(True,))
    only_pure = replace(PLAN, vials=PLAN.vials[:1], is_pure=(False,))
    assert fit_vials(volume, only_pure).materials == ("water",)
    with pytest.raises(CalibrationMissing, match="do not tell"):
        fit_vials(volume, same_place())


def same_place() -> VialPlan:
    """A solute so dense in one vial only, and no more solvent than solute: two unknowns, and one mixture for both."""
    full = Vial(material="iodine", x_mm=3.3, y_mm=0.0, radius_mm=0.9, concentration_mg_ml=1e-13)
    return VialPlan(vials=(PLAN.vials[0], full), is_pure=(False, False))
