"""Electrons of matter, against published figures and the laws of mixtures."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.attenuation import material, solution
from calibration.electrons import (
    effective_z,
    electrons_mol_g,
    mass_stopping_mev_cm2_g,
    mean_excitation_ev,
    relative_electrons,
    stopping_number,
    stopping_power_ratio,
)
from calibration.shelf import tissues
from firmware_iface.errors import WrongUsage


@pytest.mark.parametrize(
    ("name", "za"), [("water", 0.55508), ("pmma", 0.53937), ("bone", 0.51478), ("iodine", 0.41764)]
)
def test_electrons_per_gram_are_those_of_nist(name, za):
    assert electrons_mol_g(material(name)) == pytest.approx(za, rel=1e-3)


@pytest.mark.parametrize(
    # NIST's X-ray tables, table 2, which follow ICRU Report 44
    ("name", "nist_ev"),
    [("water", 75.0), ("adipose", 64.8), ("bone", 112.0), ("muscle", 74.6), ("brain", 73.9), ("blood", 75.2)],
)
def test_the_rule_gives_the_mean_excitation_energies_of_nist(name, nist_ev):
    assert mean_excitation_ev(material(name)) == pytest.approx(nist_ev, rel=0.006)


def test_an_element_by_itself_is_not_bound_as_in_a_compound():
    carbon, iodine = material("carbon"), material("iodine")
    assert mean_excitation_ev(carbon) == 81.0
    assert mean_excitation_ev(carbon, is_mixed=True) == pytest.approx(81.0)
    assert mean_excitation_ev(iodine) == 491.0
    assert mean_excitation_ev(iodine, is_mixed=True) == pytest.approx(1.13 * 491)


@pytest.mark.parametrize(("mev", "pstar"), [(50, 12.45), (100, 7.289), (150, 5.445), (200, 4.492)])
def test_protons_in_water_are_slowed_as_pstar_says(mev, pstar):
    assert mass_stopping_mev_cm2_g(material("water"), mev, excitation_ev=75.0) == pytest.approx(pstar, rel=1e-3)


def test_ions_of_one_speed_are_slowed_by_the_square_of_their_charge():
    water = material("water")
    per_charge = [mass_stopping_mev_cm2_g(water, 300, ion) / z**2 for ion, z in (("helium", 2), ("carbon", 6))]
    assert per_charge[0] == pytest.approx(per_charge[1], rel=2e-3)
    assert stopping_number(75, 200, "carbon") == pytest.approx(stopping_number(75, 200), rel=3e-3)


def test_what_water_is_relative_to_itself():
    water = material("water")
    assert relative_electrons(water) == 1
    assert stopping_power_ratio(water, 150) == 1
    assert stopping_power_ratio(water, 150, water_ev=78.0) == pytest.approx(1.0042, abs=3e-4)
    assert effective_z(water) == pytest.approx((0.2 + 0.8 * 8**3.1) ** (1 / 3.1), rel=1e-3)


def test_all_three_add_up_over_the_parts_of_a_solution():
    water, salt = material("water"), material("NaCl", 2.17)
    brine = solution(water, salt, 100.0)
    salt_g_cm3, water_g_cm3 = 0.1, brine.density_g_cm3 - 0.1
    electrons = [g * electrons_mol_g(m) for g, m in ((water_g_cm3, water), (salt_g_cm3, salt))]
    assert brine.density_g_cm3 * electrons_mol_g(brine) == pytest.approx(sum(electrons))
    for of in (lambda m: effective_z(m, 3.0) ** 3, lambda m: np.log(mean_excitation_ev(m))):
        mixed = (electrons[0] * of(water) + electrons[1] * of(salt)) / sum(electrons)
        assert of(brine) == pytest.approx(mixed)


def test_red_and_yellow_marrow_mix_to_the_marrow_that_is_printed():
    red, yellow, both = (
        dict(tissues()[name].masses) for name in ("red marrow", "yellow marrow", "yellow and red marrow")
    )
    for z in both.keys() | red.keys() | yellow.keys():
        assert both.get(z, 0) == pytest.approx((red.get(z, 0) + yellow.get(z, 0)) / 2, abs=0.101)


def test_every_tissue_is_whole_and_has_the_electrons_of_tissue():
    assert len(tissues()) > 50
    for name, tissue in tissues().items():
        assert sum(tissue.masses.values()) == pytest.approx(1 if max(tissue.masses.values()) < 1 else 100, rel=2e-3), (
            name
        )
        matter = material(name)
        assert matter.density_g_cm3 == tissue.density_g_cm3
        assert 0.92 < relative_electrons(matter) < 1.02, name
        assert (effective_z(matter) > 9) == tissue.is_bone, name


def test_what_cannot_be_is_refused():
    with pytest.raises(WrongUsage, match="no ion 'muon'"):
        stopping_number(75, 100, "muon")
    with pytest.raises(WrongUsage, match=r"0\.1 MeV/u; allowed: 1 to 1000"):
        stopping_number(75, 0.1)
