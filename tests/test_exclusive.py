"""Exclusive rules, on voxels whose truth and noise are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import lsq_linear, nnls
from scipy.stats import binom

from firmware_iface.errors import WrongUsage
from reconstruction.decomposition import Matrix, read_matrix_csv
from reconstruction.materials import decompose_volume, read_image_folder, separate_volume
from reconstruction.quality import (
    cylinder_mask,
    find_vials,
    k_edge_materials,
    total_cross_talk_mg_ml,
    vial_statistics,
)
from reconstruction.spectral.exclusive import (
    Rule,
    SubProblem,
    exclusive_rule,
    min_residual_rule,
    parse_sub_problems,
    separate,
)

MATERIALS = ("water", "iodine", "gadolinium", "hydroxyapatite")
ATTENUATION = Matrix(
    materials=MATERIALS,
    bins=tuple("abcdef"),
    # water, I, Gd and bone mineral at about 22, 30, 38, 48, 58 and 75 keV
    attenuation_per_mm_per_g_cm3=np.array(
        [
            [0.060, 2.2, 2.8, 0.42],
            [0.038, 0.9, 1.2, 0.18],
            [0.029, 2.6, 0.7, 0.10],
            [0.023, 1.5, 0.4, 0.060],
            [0.021, 0.9, 1.4, 0.042],
            [0.019, 0.5, 0.8, 0.031],
        ]
    ),
)
M = ATTENUATION.attenuation_per_mm_per_g_cm3
ROOT = 4e-4 * np.diag([1.6, 1.3, 1.0, 1.0, 1.2, 1.8]) @ (np.eye(6) + 0.15 * np.eye(6, k=1))
"""Uneven noise that neighbouring bins share."""
COVARIANCE = ROOT @ ROOT.T
DISSOLVED = ("iodine", "gadolinium")
RULE = exclusive_rule(MATERIALS, dissolved=DISSOLVED)


def noisy(concentrations: np.ndarray, seed: int = 0) -> np.ndarray:
    """Bins of (n_materials, ...) g/cm3."""
    rng = np.random.default_rng(seed)
    clean = np.tensordot(M, concentrations, 1)
    return clean + np.tensordot(ROOT, rng.normal(size=clean.shape), 1)


def voxels(n: int, **g_cm3: float) -> np.ndarray:
    return np.array([[g_cm3.get(name, 0.0)] * n for name in MATERIALS])


def test_each_kind_of_voxel_is_called_what_it_is():
    truth = {
        "air": {},
        "water": {"water": 1.0},
        "water+iodine": {"water": 1.0, "iodine": 0.009},
        "water+gadolinium": {"water": 1.0, "gadolinium": 0.008},
        "water+hydroxyapatite": {"water": 0.9, "hydroxyapatite": 0.2},
    }
    n = 4000
    for name, content in truth.items():
        found = separate(noisy(voxels(n, **content)), ATTENUATION, RULE, covariance=COVARIANCE)
        share = np.mean(found.labels == RULE.labels.index(name))
        assert share >= 0.95 - 4 * np.sqrt(0.05 * 0.95 / n), (name, share)
        chosen = found.labels == RULE.labels.index(name)
        for k, material in enumerate(MATERIALS):
            of_it = found.concentrations[k, chosen]
            if material in content:
                assert of_it.mean() == pytest.approx(content[material], abs=5 * of_it.std() / np.sqrt(n) + 1e-5)
            else:
                assert not of_it.any()


def test_sensitivity_and_specificity_at_2_mg_ml():
    """With the noise at which 2 mg/mL of each agent stands out by about five sigma in its own sub-problem."""
    quiet = 0.35
    n = 5000
    blank = separate(quiet_noise(voxels(n, water=1.0), quiet), ATTENUATION, RULE, covariance=quiet**2 * COVARIANCE)
    for agent in DISSOLVED:
        label = RULE.labels.index(f"water+{agent}")
        bins = quiet_noise(voxels(n, water=1.0, **{agent: 0.002}), quiet, seed=2)
        found = separate(bins, ATTENUATION, RULE, covariance=quiet**2 * COVARIANCE)
        assert np.mean(found.labels == label) >= 0.95
        assert np.mean(blank.labels != label) >= 0.95


def quiet_noise(concentrations: np.ndarray, share: float, seed: int = 1) -> np.ndarray:
    clean = np.tensordot(M, concentrations, 1)
    return clean + share * (noisy(concentrations, seed) - clean)


@pytest.mark.parametrize("false_alarm", [0.01, 0.2])
def test_noise_adds_a_material_as_often_as_was_asked_for(false_alarm):
    n = 20000
    rule = Rule(
        sub_problems=(SubProblem(materials=("water",)), SubProblem(materials=("water", "iodine"))),
        rejected_fraction=0.0,
        false_fraction=false_alarm,
    )
    found = separate(noisy(voxels(n, water=1.0)), ATTENUATION, rule, covariance=COVARIANCE)
    low, high = binom.interval(0.9999, n, false_alarm)
    assert low <= np.count_nonzero(found.labels) <= high
    rivals = separate(
        noisy(voxels(n, water=1.0)),
        ATTENUATION,
        replace(RULE, rejected_fraction=0.0, false_fraction=false_alarm),
        covariance=COVARIANCE,
    )
    assert np.count_nonzero(rivals.labels != RULE.labels.index("water")) <= high


@pytest.mark.parametrize("significance", [0.01, 0.1])
def test_the_truth_is_rejected_as_often_as_was_asked_for(significance):
    n = 20000
    bins = noisy(voxels(n, water=1.0, iodine=0.02))
    rule = Rule(sub_problems=(SubProblem(materials=("water", "iodine")),), rejected_fraction=significance)
    found = separate(bins, ATTENUATION, rule, covariance=COVARIANCE)
    low, high = binom.interval(0.9999, n, significance)
    assert low <= np.count_nonzero(found.is_rejected) <= high
    assert found.chi_square.mean() == pytest.approx(4, abs=5 * np.sqrt(8 / n))


@pytest.mark.parametrize("content", [{}, {"water": 1.0}])
def test_a_truth_on_the_border_is_rejected_as_often_too(content):
    """Half of the concentrations that are truly 0 are held there, and chi square then has more degrees of freedom."""
    n = 20000
    rule = Rule(sub_problems=(SubProblem(materials=("water", "iodine")),), rejected_fraction=0.05)
    found = separate(noisy(voxels(n, **content)), ATTENUATION, rule, covariance=COVARIANCE)
    low, high = binom.interval(0.9999, n, 0.05)
    assert low <= np.count_nonzero(found.is_rejected) <= high


def test_what_no_sub_problem_holds_is_told():
    found = separate(noisy(voxels(200, iodine=0.05, gadolinium=0.05)), ATTENUATION, RULE, covariance=COVARIANCE)
    assert found.is_rejected.mean() > 0.99
    assert found.concentrations.any()


def test_labels_do_not_depend_on_the_unit():
    bins = noisy(voxels(3000, water=1.0, iodine=0.001), seed=4)
    found = separate(bins, ATTENUATION, RULE, covariance=COVARIANCE)
    scaled = replace(ATTENUATION, attenuation_per_mm_per_g_cm3=7 * M)
    again = separate(7 * bins, scaled, RULE, covariance=49 * COVARIANCE)
    np.testing.assert_array_equal(found.labels, again.labels)
    np.testing.assert_allclose(found.chi_square, again.chi_square, rtol=1e-4, atol=1e-5)
    shared = separate(
        np.linalg.inv(ROOT) @ bins,  # whitened by hand: the same problem without any covariance to know of
        replace(ATTENUATION, attenuation_per_mm_per_g_cm3=np.linalg.inv(ROOT) @ M),
        RULE,
        covariance=np.eye(6),
    )
    np.testing.assert_array_equal(found.labels, shared.labels)


def test_the_choice_is_that_of_a_plain_loop():
    bins = noisy(np.random.default_rng(3).uniform(0, [[1.0], [0.01], [0.01], [0.2]], (4, 60)))
    rule = replace(RULE, rejected_fraction=0.0, false_fraction=0.0)
    found = separate(bins, ATTENUATION, rule, covariance=COVARIANCE)
    white = np.linalg.inv(np.linalg.cholesky(COVARIANCE))
    for i, u in enumerate(bins.T):
        costs = []
        for sub in RULE.sub_problems:
            columns = [MATERIALS.index(name) for name in sub.materials]
            residual = nnls(white @ M[:, columns], white @ u)[1] ** 2 if columns else np.sum((white @ u) ** 2)
            costs.append(residual + len(columns) * np.log(6))
        assert found.labels[i] == np.argmin(costs)


def test_the_minimum_residual_is_that_of_the_published_loop():
    materials = ("water", "bone", "iodine", "gadolinium")
    attenuation = replace(ATTENUATION, materials=materials, attenuation_per_mm_per_g_cm3=M[:, [0, 3, 1, 2]])
    matrix = attenuation.attenuation_per_mm_per_g_cm3
    rule = min_residual_rule(materials, dissolved=DISSOLVED)
    assert rule.labels == ("water", "bone", "water+iodine", "water+gadolinium")
    rng = np.random.default_rng(8)
    bins = matrix @ rng.uniform(0, [[2.5], [2.0], [0.03], [0.03]], (4, 80)) * rng.integers(0, 2, (6, 80))
    bins = np.hstack([bins, rng.normal(0, 0.01, (6, 40))])
    found = separate(bins, attenuation, rule)
    bounds = {"water": (0, 2.1), "bone": (1.3, np.inf)}
    for i, u in enumerate(bins.T):
        alone = [lsq_linear(matrix[:, [k]], u, bounds.get(name, (0, np.inf))) for k, name in enumerate(materials)]
        best = int(np.argmin([np.linalg.norm(fit.fun) for fit in alone]))
        expected = np.zeros(4)
        if materials[best] in DISSOLVED:
            expected[[0, best]] = nnls(matrix[:, [0, best]], u)[0]
        else:
            expected[best] = alone[best].x[0]
        np.testing.assert_allclose(found.concentrations[:, i], expected, rtol=1e-4, atol=1e-6)


def test_angles_and_thresholds_reject_what_they_say():
    bins = np.stack([M @ [1.0, 0, 0, 0], M @ [1.0, 0.01, 0, 0], M @ [0.02, 0, 0, 0]], axis=1)
    only = Rule(
        sub_problems=(SubProblem(materials=()), SubProblem(materials=("water",))),
        is_sparse=False,
        rejected_fraction=0.0,
        air_below_per_mm=0.005,
    )
    u, w = bins[:, 1], M[:, 0]
    angle_deg = np.degrees(np.arccos(u @ w / np.linalg.norm(u) / np.linalg.norm(w)))
    for tolerance_deg, is_out in ((1.01 * angle_deg, False), (0.99 * angle_deg, True)):
        found = separate(bins, ATTENUATION, replace(only, most_angle_deg=tolerance_deg))
        assert found.labels.tolist() == [1, 0 if is_out else 1, 0]
    assert not found.concentrations[:, 2].any()


def blobs(n: int = 24) -> np.ndarray:
    z, y, x = np.mgrid[:6, :n, :n]
    truth = np.where(np.hypot(y - n / 2, x - n / 2) < n / 3, 1, 0)
    return np.where((np.hypot(y - n / 2, x - n / 2) < n / 7) & (z > 1), 2, truth)


RIVALS = Rule(
    sub_problems=(
        SubProblem(materials=()),
        SubProblem(materials=("water",)),
        SubProblem(materials=("water", "iodine")),
    ),
    false_fraction=0.0,
)


def test_a_field_of_labels_corrects_most_of_what_noise_got_wrong():
    truth = blobs()
    content = np.stack([truth > 0, 0.002 * (truth == 2), 0 * truth, 0 * truth]).astype(float)
    bins = noisy(content, seed=6)
    alone = separate(bins, ATTENUATION, RIVALS, covariance=COVARIANCE)
    settled = separate(bins, ATTENUATION, replace(RIVALS, field_weight=0.5), covariance=COVARIANCE)
    wrong, left = np.count_nonzero(alone.labels != truth), np.count_nonzero(settled.labels != truth)
    assert wrong > 50
    assert left < wrong / 4
    np.testing.assert_array_equal(settled.concentrations[1] > 0, settled.labels == 2)


def test_the_field_lowers_its_energy_and_rests_where_no_voxel_gains():
    truth = blobs(16)
    bins = noisy(np.stack([truth > 0, 0.002 * (truth == 2), 0 * truth, 0 * truth]).astype(float), seed=7)
    rule = replace(RIVALS, field_weight=0.7)
    data = np.stack([cost_of(bins, sub) for sub in rule.sub_problems])

    def local(labels: np.ndarray) -> np.ndarray:
        """What each label would cost each voxel beside its neighbours."""
        padded = np.pad(labels.astype(int), 1, constant_values=-1)
        cost = data.copy()
        for dz, dy, dx in np.ndindex(3, 3, 3):
            if (dz, dy, dx) != (1, 1, 1):
                z, y, x = labels.shape
                near = padded[dz : dz + z, dy : dy + y, dx : dx + x]
                for k in range(len(data)):
                    cost[k] += 0.7 * ((near >= 0) & (near != k))
        return cost

    def energy(labels: np.ndarray) -> float:
        own, alone = (np.take_along_axis(c, labels[None].astype(int), 0).sum() for c in (local(labels), data))
        return alone + (own - alone) / 2

    before = separate(bins, ATTENUATION, RIVALS, covariance=COVARIANCE).labels
    after = separate(bins, ATTENUATION, rule, covariance=COVARIANCE).labels
    assert energy(after) < energy(before)
    cost = local(after)
    own = np.take_along_axis(cost, after[None].astype(int), 0)[0]
    assert (own <= cost.min(axis=0) + 1e-4).all()


def cost_of(bins: np.ndarray, sub: SubProblem) -> np.ndarray:
    """Half of chi square and price, voxel by voxel."""
    white = np.linalg.inv(np.linalg.cholesky(COVARIANCE))
    columns = [MATERIALS.index(name) for name in sub.materials]
    flat = white @ bins.reshape(6, -1)
    residual = [nnls(white @ M[:, columns], u)[1] ** 2 if columns else u @ u for u in flat.T]
    return (np.reshape(residual, bins.shape[1:]) + len(columns) * np.log(6)) / 2


def test_the_cuvettes_of_a_real_scan_are_called_what_they_hold(test_data):
    matrix = read_matrix_csv(test_data / "mr-bmd" / "decomposition_matrix.csv")
    bins = read_image_folder(test_data / "mr-bmd", scale=0.0453, voxel_mm=0.045)
    agents = k_edge_materials(matrix)
    vials = find_vials(decompose_volume(bins, matrix), agents)
    rules = exclusive_rule(matrix.materials, dissolved=agents), min_residual_rule(matrix.materials, dissolved=agents)
    for rule in rules:
        materials, labels = separate_volume(bins, rule, matrix)
        for vial in vials:
            inside = cylinder_mask(bins.grid, vial)
            label = rule.labels.index(f"water+{vial.material}")
            assert np.mean(labels.channel("label")[inside] == label) > 0.995
            assert 0.027 < materials.channel(vial.material)[inside].mean() < 0.042
        assert total_cross_talk_mg_ml(vial_statistics(materials, vials)) < 0.1


def test_more_materials_than_bins_are_no_hindrance():
    few = replace(ATTENUATION, bins=("a", "b", "c"), attenuation_per_mm_per_g_cm3=M[[0, 2, 4]])
    truth = voxels(500, water=1.0, iodine=0.02)
    bins = np.tensordot(M, truth, 1)[[0, 2, 4]] + np.random.default_rng(0).normal(0, 3e-4, (3, 500))
    found = separate(bins, few, RULE, covariance=9e-8 * np.eye(3))
    assert np.mean(found.labels == RULE.labels.index("water+iodine")) > 0.9


def test_sub_problems_are_read():
    subs = parse_sub_problems("air; water<2.1; bone > 1.3; water+iodine")
    assert [sub.name for sub in subs] == ["air", "water", "bone", "water+iodine"]
    assert (subs[1].most_g_cm3, subs[2].least_g_cm3) == (2.1, 1.3)
    for text in ("water+iodine<2", "water<", "", "water+<3"):
        with pytest.raises(WrongUsage, match="is no sub-problem"):
            parse_sub_problems(text)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="has bounds; allowed: for a material alone"):
        SubProblem(materials=("water", "iodine"), most_g_cm3=2.0)
    with pytest.raises(ValueError, match="allowed: from 0, and rising"):
        SubProblem(materials=("water",), least_g_cm3=2.0, most_g_cm3=1.0)
    with pytest.raises(ValueError, match="each once"):
        Rule(sub_problems=(SubProblem(materials=("water",)),) * 2)
    with pytest.raises(ValueError, match="no sub-problem is air"):
        Rule(sub_problems=(SubProblem(materials=("water",)),), air_below_per_mm=0.1)
    bins = noisy(voxels(5, water=1.0))
    with pytest.raises(WrongUsage, match="with the bins' covariance"):
        separate(bins, ATTENUATION, RULE)
    with pytest.raises(WrongUsage, match="names gold; allowed: water"):
        separate(bins, ATTENUATION, Rule(sub_problems=(SubProblem(materials=("gold",)),)), covariance=COVARIANCE)
    few = replace(ATTENUATION, bins=("a",), attenuation_per_mm_per_g_cm3=M[:1])
    with pytest.raises(WrongUsage, match="at most one a bin"):
        separate(bins[:1], few, RULE, covariance=COVARIANCE[:1, :1])
