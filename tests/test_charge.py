"""Charge in pixels: conservation, published kinematics, and another Monte Carlo's figures."""

from functools import cache

import numpy as np
import pytest
import xraydb
from scipy.stats import norm

from calibration.attenuation import material
from sim import chance, charge, semiconductor
from sim.semiconductor import N_DEPTHS, Semiconductor, SensorLayer
from sim.tables import CHARGE_BINS, CHARGE_STEP_KEV, deposits

CHARGE_KEV = (np.arange(CHARGE_BINS) + 0.5) * CHARGE_STEP_KEV


@cache
def layer(name="cdte", thickness_mm=1.0, pitch_mm=0.110, bias_v=500.0, **more):
    return SensorLayer(material=material(name), thickness_mm=thickness_mm, pitch_mm=pitch_mm, bias_v=bias_v, **more)


SIMPLE = {"has_repulsion": False, "is_trapping": False, "generations": 1}
"""What the reference Monte Carlo has: first-generation fluorescence, diffusion alone, every charge collected."""


def absorbed(name, thickness_mm, energy_kev, kinds=("photo", "incoh")):
    """Share of incident photons that interact in one of these ways, by another library's cross sections."""
    formula, density = {"cdte": ("CdTe", 5.85), "silicon": ("Si", 2.33)}[name]
    per_mm = {
        kind: 0.1 * xraydb.material_mu(formula, energy_kev * 1e3, density=density, kind=kind)
        for kind in ("photo", "incoh")  # coherent scatter does nothing
    }
    total = sum(per_mm.values())
    return (1 - np.exp(-total * thickness_mm)) * sum(per_mm[kind] for kind in kinds) / total


def above(counts, threshold_kev):
    return counts[..., int(threshold_kev / CHARGE_STEP_KEV) :].sum(axis=-1)


def test_charge_is_conserved_where_nothing_can_escape():
    """At 25 keV in CdTe no K shell is open and Compton electrons are rare: all the energy stays."""
    found = deposits(layer(), (25.0,))
    stays_kev = (found.single[0] * CHARGE_KEV).sum() / absorbed("cdte", 1.0, 25.0)
    assert stays_kev == pytest.approx(25.0, rel=0.015)


def test_each_winner_is_one_summed_event():
    found = deposits(layer(), (40.0, 100.0))
    np.testing.assert_allclose(found.summed.sum(axis=(1, 2)), found.winner.sum(axis=1), rtol=1e-5)
    assert np.all(found.single.sum(axis=1) >= found.winner.sum(axis=1))


def followed(layer, energy_kev, n_photons=20_000, is_photo_only=False):
    """Charges of photons that interact anywhere in pixel (0, 0): a dict of pixel to keV for each."""
    physics = charge.physics_of(layer, energy_kev)
    if is_photo_only:
        physics.matter[:, 1:3] = 1.0
    rng, workspace = np.random.default_rng(3), charge.workspace()
    dice = chance.dice(rng)
    for x, y, depth in rng.random((n_photons, 3)):
        depth_mm = charge.first_depth_mm(physics, depth)
        n = charge.deposit(physics, x * layer.pitch_mm, y * layer.pitch_mm, depth_mm, dice, workspace)
        yield dict(zip(map(tuple, workspace.pixels[:n].tolist()), workspace.charges_kev[:n].tolist(), strict=True))


@pytest.mark.parametrize(
    ("sensor", "energy_kev", "threshold_kev", "multiplicity", "several"),
    [
        (("cdte", 1.0, 0.110, 500.0), 60.0, 6.0, 1.71, 0.567),
        (("cdte", 1.0, 0.055, 500.0), 60.0, 6.0, 2.19, 0.795),
        (("cdte", 1.0, 0.110, 500.0), 25.0, 6.0, 1.22, 0.218),
        (("silicon", 0.3, 0.055, 100.0), 20.0, 4.0, 1.28, 0.271),
    ],
)
def test_single_pixel_counts_per_absorbed_photon(sensor, energy_kev, threshold_kev, multiplicity, several):
    events = followed(layer(*sensor, **SIMPLE), energy_kev, is_photo_only=True)
    pixels = np.array([sum(kev > threshold_kev for kev in event.values()) for event in events])
    assert pixels.mean() == pytest.approx(multiplicity, rel=0.025)  # another program, with clouds of its own
    assert (pixels > 1).mean() == pytest.approx(several, abs=0.02)


def test_photopeak_of_the_summed_charge():
    """Of the photons that are absorbed; the reference counts one event per photon."""
    found = deposits(layer(**SIMPLE), (60.0,))
    peak = above(found.summed[0].sum(axis=0), 56.0) / absorbed("cdte", 1.0, 60.0)
    assert peak == pytest.approx(0.871, rel=0.02)
    single_peak = above(found.single[0], 56.0) / above(found.single[0], 6.0)
    assert single_peak == pytest.approx(0.199, abs=0.02)


def test_second_generation_fluorescence_spreads_further():
    first, all_of_it = deposits(layer(generations=1), (60.0,)), deposits(layer(), (60.0,))
    assert above(all_of_it.single[0], 6.0) > 1.02 * above(first.single[0], 6.0)
    assert above(all_of_it.summed[0].sum(axis=0), 56.0) < 0.98 * above(first.summed[0].sum(axis=0), 56.0)


def test_escape_peaks_stand_below_the_photopeak_by_the_k_lines():
    spectrum = deposits(layer(), (60.0,)).summed[0].sum(axis=0)

    def content(energy_kev):
        return spectrum[int((energy_kev - 0.4) / CHARGE_STEP_KEV) : int((energy_kev + 0.6) / CHARGE_STEP_KEV)].sum()

    for line_kev in (23.17, 27.47):
        assert content(60 - line_kev) > 2 * content(60 - line_kev - 2.0)


def test_compton_electrons_carry_the_klein_nishina_mean():
    energy_kev = 100.0
    cosine = np.linspace(-1, 1, 20_001)
    kept = 1 / (1 + energy_kev / 511 * (1 - cosine))
    weight = kept**2 * (kept + 1 / kept - 1 + cosine**2)
    mean_kev = energy_kev * (1 - (weight * kept).sum() / weight.sum())
    dice = chance.dice(np.random.default_rng(5))
    drawn = [charge._compton_electron_kev(energy_kev, dice) for _ in range(20_000)]
    assert np.mean(drawn) == pytest.approx(mean_kev, rel=0.02)
    assert max(drawn) <= 28.2  # the greatest a 100 keV photon can give


def test_the_same_tables_in_every_run():
    first = deposits(layer(), (33.0, 59.5))
    deposits.cache_clear()
    again = deposits(layer(), (59.5,))
    np.testing.assert_array_equal(first.summed[1], again.summed[0])


def test_impossible_layers_are_refused():
    with pytest.raises(ValueError, match="bias_v is 0"):
        layer(bias_v=0)


def test_trapping_in_a_wide_pixel_is_that_of_hecht():
    """Hecht 1932: with a plane electrode, lambda / d (1 - exp(-x / lambda)) for each carrier."""
    mu_tau_e, mu_tau_h = 2e-4, 3e-5
    poor = Semiconductor(
        pair_ev=4.43, fano=0.1, permittivity_relative=10.4, mu_tau_e_cm2_v=mu_tau_e, mu_tau_h_cm2_v=mu_tau_h
    )
    of = layer(pitch_mm=10.0, semiconductor=poor)
    depth = np.linspace(0, 1, N_DEPTHS)
    electrons, holes = mu_tau_e * 5000 / 0.1, mu_tau_h * 5000 / 0.1  # free paths over the thickness
    hecht = electrons * (1 - np.exp(-(1 - depth) / electrons)) + holes * (1 - np.exp(-depth / holes))
    np.testing.assert_allclose(semiconductor.collected(of), hecht, atol=2e-3)


def test_a_small_pixel_hardly_sees_holes():
    no_holes = Semiconductor(
        pair_ev=4.43, fano=0.1, permittivity_relative=10.4, mu_tau_e_cm2_v=1.0, mu_tau_h_cm2_v=1e-9
    )
    share = semiconductor.collected(layer(semiconductor=no_holes))
    assert share[: N_DEPTHS // 2].min() > 0.97
    wide = semiconductor.collected(layer(pitch_mm=10.0, semiconductor=no_holes))
    assert wide[N_DEPTHS // 2] == pytest.approx(0.5, abs=0.01)


def test_weighting_potential_is_earthed_at_one_electrode_and_one_at_the_pixel():
    potential = semiconductor.weighting_potential(layer())
    assert potential[0] == pytest.approx(0, abs=1e-4)
    assert potential[-1] == pytest.approx(1)
    assert np.all(np.diff(potential) > 0)


def test_a_linear_field_keeps_its_voltage_and_lengthens_the_drift_by_the_logarithm():
    of = layer("silicon", 0.3, 0.055, 100.0, depletion_v=60.0)
    depths = np.linspace(0, 0.3, 1001)
    field = semiconductor.field_v_mm(of, depths)
    assert np.trapezoid(field, depths) == pytest.approx(100.0, rel=1e-6)
    drift_mm = semiconductor.drift_lengths_mm(of)[0]
    assert drift_mm == pytest.approx(100 * 0.3 / (2 * 60) * np.log((100 + 60) / (100 - 60)), rel=1e-3)
    assert semiconductor.drift_lengths_mm(layer("silicon", 0.3, 0.055, 100.0))[0] == pytest.approx(0.3)


def test_what_is_not_depleted_gives_nothing():
    of = layer("silicon", 0.3, 0.055, 15.0, depletion_v=60.0)  # half the thickness, at the pixels
    seen = semiconductor.collected(of)
    assert not seen[: N_DEPTHS // 2 - 1].any()
    assert np.all(seen[N_DEPTHS // 2 + 2 :] > 0.9)


def test_diffusion_is_that_of_the_drift_time():
    """10.2 um over 1 mm at 500 V, the root of 2 (kT/q) z d / V, from the share that crosses a border 10 um away."""
    of = layer(has_repulsion=False, is_trapping=False)
    physics, dice, workspace = charge.physics_of(of, 10.0), chance.dice(np.random.default_rng(1)), charge.workspace()
    physics.matter[:, 1:3] = 1.0
    n = charge.deposit(physics, 0.010, 0.055, 0.0, dice, workspace)
    by_col = dict.fromkeys(range(-1, 2), 0.0)
    for (col, _), kev in zip(workspace.pixels[:n].tolist(), workspace.charges_kev[:n], strict=True):
        by_col[col] += kev
    assert by_col[-1] / 10 == pytest.approx(norm.sf(10 / 10.17), abs=0.003)


def test_repulsion_solves_its_equation():
    """d sigma^2/ds = a + b / sigma, integrated in small steps."""
    start_mm2, a_mm, b_mm2, s_mm = 0.003**2, 1.03e-4, 3e-7, 1.0
    variance = start_mm2
    for _ in range(100_000):
        variance += (a_mm + b_mm2 / np.sqrt(variance)) * s_mm / 100_000
    ours = charge._sigma_mm(start_mm2, a_mm * s_mm, 1.5 * b_mm2 * s_mm)
    assert ours == pytest.approx(np.sqrt(variance), rel=0.025)


def test_charge_and_escape_add_up_to_the_photon():
    """Whatever happens, no photon leaves more than its energy, and photons absorbed without escape leave all of it."""
    totals = np.array([sum(event.values()) for event in followed(layer(is_trapping=False), 100.0, 5000)])
    assert totals.max() <= 100.0 + 1e-9
    assert (np.abs(totals - 100.0) < 1e-6).mean() > 0.8


def test_scattered_photons_are_followed():
    """In thick silicon at 60 keV a Compton photon is often absorbed after all: the sum is then the whole energy."""
    thick, thin = layer("silicon", 10.0, 0.055, 3000.0), layer("silicon", 0.1, 0.055, 30.0)
    whole = []
    for of in (thick, thin):
        physics = charge.physics_of(of, 60.0)
        physics.matter[charge._step(60.0), 1:3] = (0.0, 1.0)  # the first interaction is Compton's
        dice, workspace = chance.dice(np.random.default_rng(2)), charge.workspace()
        totals = []
        for _ in range(2000):
            n = charge.deposit(physics, 0.02, 0.02, of.thickness_mm / 2, dice, workspace)
            totals.append(workspace.charges_kev[:n].sum())
        whole.append(np.mean(np.array(totals) > 55))
    assert whole[0] > 0.3 > 0.05 > whole[1]


def test_coherent_scatter_looks_forward_and_more_so_at_high_energy():
    physics, dice = charge.physics_of(layer(), 60.0), chance.dice(np.random.default_rng(4))
    means = [
        np.mean([charge._coherent_cosine(physics.screening_per_kev2, kev, dice) for _ in range(4000)])
        for kev in (2.0, 20.0, 100.0)
    ]
    assert means[0] < means[1] < means[2]
    assert means[2] > 0.9
