"""Identification, against tables by hand and the theory of normal laws."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from reconstruction.merit.identification import confusion, roc, shown_material


def test_the_confusion_matrix_by_hand():
    held = [0, 0, 0, 0, 1, 1, 2, 2, 2, -1]
    shown = [0, 0, 0, 1, 1, 2, 2, 2, 0, 1]
    found = confusion(held, shown, ("iodine", "gold", "none"))
    np.testing.assert_array_equal(found.counts, [[3, 1, 0], [0, 1, 1], [1, 0, 2]])
    np.testing.assert_allclose(found.sensitivity, [3 / 4, 1 / 2, 2 / 3])
    # Iodine: 5 voxels without it, one of them shows it; gold: 7 and 1; none: 6 and 1.
    np.testing.assert_allclose(found.specificity, [4 / 5, 6 / 7, 5 / 6])
    np.testing.assert_allclose(found.shares.sum(axis=1), 1)


def test_a_material_that_no_voxel_holds_has_no_sensitivity():
    found = confusion([0, 0], [0, 1], ("a", "b"))
    assert np.isnan(found.sensitivity[1])
    assert found.specificity[1] == 0.5
    assert np.isnan(found.specificity[0])
    with pytest.raises(ValueError, match="allowed: 0 to 1"):
        confusion([0, 2], [0, 1], ("a", "b"))


def test_a_voxel_shows_what_is_furthest_above_its_threshold():
    maps = np.array([[1.0, 3.0, 0.4, 5.0], [0.0, 40.0, 5.0, 15.0]])
    np.testing.assert_array_equal(shown_material(maps, [1.0, 10.0]), [0, 1, 2, 0])


def test_the_roc_of_normal_laws_is_that_of_theory():
    rng = np.random.default_rng(0)
    n, distance = 20000, 1.5
    found = roc(rng.normal(distance, 1, n), rng.normal(0, 1, n))
    area = stats.norm.cdf(distance / np.sqrt(2))
    assert found.area_fraction == pytest.approx(area, abs=4 * np.sqrt(area * (1 - area) / n))
    assert np.trapezoid(found.true_positive, found.false_positive) == pytest.approx(found.area_fraction, abs=1e-9)
    sensitivity = stats.norm.sf(stats.norm.isf(0.05) - distance)
    assert found.at_specificity(0.95) == pytest.approx(sensitivity, abs=0.015)


def test_ties_count_half():
    found = roc([1.0, 1.0, 2.0], [1.0, 0.0])
    # Pairs won 1 + 1 + 1 + 1 and tied 2 of 6: (4 + 2 / 2) / 6.
    assert found.area_fraction == pytest.approx(5 / 6)
    assert found.true_positive[0] == 0
    assert found.true_positive[-1] == found.false_positive[-1] == 1
    assert (np.diff(found.true_positive) >= 0).all()
    assert (np.diff(found.false_positive) >= 0).all()
