"""Commands on files and options that no one should give, and some will: one sentence, never a traceback or nonsense."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import mpxct
from calibration.attenuation import linear_attenuation_per_mm, material
from calibration.material_basis import MaterialBasis
from firmware_iface.errors import MpxctError
from reconstruction.decomposition import bin_covariance
from reconstruction.volume import LINEAR_ATTENUATION, MASS_CONCENTRATION, Grid, Volume, load_volume, save_volume

ENERGIES_KEV = np.array([27.0, 38.0, 52.0, 85.0])
MATERIALS = ("water", "barium", "gold")
NOISE_PER_MM = 2e-4
VIALS = (("barium", 2.4, 0.0, 12.0), ("gold", -2.0, 0.6, 6.0))


def concentrations() -> np.ndarray:
    """A cylinder of water with a vial of each agent, g/cm3: (n_materials, z, y, x)."""
    y, x = np.meshgrid(*((np.arange(48) - 23.5) * 0.2,) * 2, indexing="ij")
    values = np.zeros((3, 2, 48, 48))
    values[0][:, np.hypot(x, y) < 4.4] = 1
    for k, (_, x_mm, y_mm, mg_ml) in enumerate(VIALS, 1):
        values[k][:, np.hypot(x - x_mm, y - y_mm) < 1.1] = mg_ml / 1000
    return values


def noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(77).standard_normal(shape)


def bins(noise_per_mm: float = NOISE_PER_MM) -> Volume:
    columns = [linear_attenuation_per_mm(name, ENERGIES_KEV) / material(name).density_g_cm3 for name in MATERIALS]
    basis = MaterialBasis(
        materials=MATERIALS,
        attenuation_per_mm_per_g_cm3=np.stack(columns, axis=1),
        thresholds_kev=tuple(ENERGIES_KEV),
    )
    values = np.tensordot(basis.attenuation_per_mm_per_g_cm3, concentrations(), 1)
    return Volume(
        values=(values + noise_per_mm * noise(values.shape)).astype(np.float32),
        channels=tuple(f"{kev:g} keV" for kev in ENERGIES_KEV),
        unit=LINEAR_ATTENUATION,
        grid=Grid(shape=(2, 48, 48), voxel_mm=0.2),
        thresholds_kev=tuple(ENERGIES_KEV),
        basis=basis,
    )


def materials(scale: float = 1.0, noise_g_cm3: float = 1e-3) -> Volume:
    values = scale * concentrations()
    return Volume(
        values=(values + noise_g_cm3 * noise(values.shape)).astype(np.float32),
        channels=MATERIALS,
        unit=MASS_CONCENTRATION,
        grid=Grid(shape=(2, 48, 48), voxel_mm=0.2),
    )


def holed(volume: Volume) -> Volume:
    """The same with some voxels that are no numbers."""
    values = volume.values.copy()
    values[:, 1, 20:24, 20:24] = np.nan
    values[0, 0, 5, 5] = np.inf
    return replace(volume, values=values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    files = {
        "bins": bins(),
        "holed": holed(bins()),
        "noiseless": bins(0.0),
        "empty-bin": replace(bins(), values=np.where(np.arange(4)[:, None, None, None] == 2, np.nan, bins().values)),
        "materials": materials(),
        "materials-holed": holed(materials()),
        "nothing": materials(0.0, 0.0),
    }
    for name, volume in files.items():
        save_volume(volume, folder / f"{name}.h5")
    lines = [
        f'[[vial]]\nmaterial = "{name}"\nx_mm = {x}\ny_mm = {y}\nradius_mm = 1.1\nconcentration_mg_ml = {c}\n'
        for name, x, y, c in VIALS
    ]
    (folder / "phantom.toml").write_text("\n".join(lines))
    (folder / "ug.toml").write_text("\n".join(lines).replace("= 12.0", "= 12000.0"))
    return folder


def command(*words: object) -> str:
    done = CliRunner().invoke(mpxct.app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_voxels_that_are_no_numbers_spoil_themselves_alone(folder):
    out = folder / "out.h5"
    truth = bin_covariance(bins().values)
    np.testing.assert_allclose(bin_covariance(holed(bins()).values), truth, rtol=0.1, atol=0.02 * truth.max())
    command("decompose", folder / "bins.h5", "-o", out)
    whole = load_volume(out).values
    command("decompose", folder / "holed.h5", "-o", out)
    found = load_volume(out).values
    is_hole = ~np.isfinite(holed(bins()).values).all(axis=0)
    assert np.isnan(found[:, is_hole]).all()
    np.testing.assert_allclose(found[:, ~is_hole], whole[:, ~is_hole], atol=2e-3)
    command("quantities", folder / "materials-holed.h5", "--mono", 70, "--errors", "-o", out)
    command("quality", folder / "materials-holed.h5", folder / "phantom.toml")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("decompose noiseless.h5", "--unweighted"),
        ("decompose empty-bin.h5", "the bin 52 keV holds no number"),
        ("decompose bins.h5 --rule fractions --densities watr=1", "densities of watr are stated; allowed: of water"),
        ("decompose bins.h5 --rule fractions --densities water=0", "the densities are"),
        ("decompose bins.h5 --rule exclusive --air-per-mm nan", "air is below nan"),
        ("decompose bins.h5 -o bins.h5", "is what is read, and would be lost"),
        ("denoise noiseless.h5", "show noise"),
        ("denoise bins.h5 -o bins.h5", "would be lost"),
        ("reconstruct bins.h5 -o bins.h5", "would be lost"),
        ("quantities materials.h5 --additive --spr proton@150 --water-ev 0", "water is 0 eV; allowed: above 0"),
        ("quantities materials.h5 --labels air,muscle --priors 0,1", "the priors are 0, 1; allowed: above 0"),
        ("quantities materials.h5 --mono 70 --agents gold", "--agents does nothing by itself; allowed: with --vnc"),
        ("quantities materials.h5 --mono 70 --priors 1", "--priors does nothing by itself; allowed: with --labels"),
        ("quantities materials.h5 --mono 70 -o materials.h5", "would be lost"),
        ("quality nothing.h5 phantom.toml", "no place of the phantom looks like the maps"),
        ("quality materials.h5 phantom.toml --predicted nothing.h5", "predicted spread of water is 0 g/cm3"),
        ("quality materials.h5 ug.toml", "holds 12000 mg/mL of barium; allowed: up to pure, 3510"),
        ("design --agent iodine=0", "of which nothing can be seen"),
        ("design --agent iodine=2 --keep --kvp 60", "--kvp is of the search, which --keep leaves out"),
        ("design --agent iodine=2 --kvp 500", "--kvp has 500; allowed: 20 to 150"),
        ("design --agent iodine=2 --voxel-mm 0", "--voxel-mm is 0; allowed: above 0"),
        ("design --agent iodine=2 --longest-s 0", "--longest-s is 0; allowed: above 0"),
        ("design --agent iodine=2 --photons 0", "--photons is 0; allowed: above 0"),
        ("design --agent iodine=2 --dose-mgy 5 --least-dose", "allowed: one of both"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(folder, monkeypatch, words, match):
    monkeypatch.chdir(folder)
    before = (folder / "bins.h5").read_bytes()
    with pytest.raises(MpxctError) as refused:
        command(*words.split())
    assert match in f"{refused.value} {refused.value.hint}"
    assert (folder / "bins.h5").read_bytes() == before


def test_an_energy_asked_for_twice_is_one_channel(folder):
    command("quantities", folder / "materials.h5", "--mono", "70,70", "-o", folder / "q.h5")
    assert load_volume(folder / "q.h5").channels == ("70 keV",)
