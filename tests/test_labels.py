"""Labels of tissues: Bayes' rule against SciPy, recovery of a hidden phantom, and files that others read."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from calibration.attenuation import material
from firmware_iface.errors import WrongUsage
from reconstruction.labels import (
    REJECTED_BELOW,
    label_volume,
    probabilities,
    tissue_classes,
    write_compositions,
    write_metaimage,
)
from reconstruction.volume import Grid, Volume

NAMES = ("air", "adipose", "muscle", "sternum", "bone")
BASIS = [material(name) for name in ("water", "hydroxyapatite")]
NOISE = np.array([[4e-4, -1e-4], [-1e-4, 1e-4]])
GRID = Grid(shape=(3, 20, 25), voxel_mm=0.2, centre_mm=(1.0, -2.0, 0.5))


def finish(work):
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def hidden(seed: int, tissues) -> tuple[np.ndarray, Volume]:
    rng = np.random.default_rng(seed)
    truth = np.broadcast_to(np.arange(25) // 5, GRID.shape)
    values = np.stack([t.mean_g_cm3 for t in tissues], axis=1)[:, truth]
    values = values + (np.linalg.cholesky(NOISE) @ rng.normal(size=(2, truth.size))).reshape(values.shape)
    return truth + 1, Volume(
        values=values.astype(np.float32), channels=("water", "hydroxyapatite"), unit="g/cm3", grid=GRID
    )


def test_probabilities_are_bayes_rule():
    tissues = tissue_classes(NAMES, BASIS, priors=[1, 2, 3, 4, 5])
    at = np.random.default_rng(0).uniform([[0.0], [0.0]], [[1.5], [0.9]], (2, 50))
    found, _ = probabilities(at, tissues, NOISE)
    dense = np.array([
        t.prior_weight * multivariate_normal(t.mean_g_cm3, t.covariance + NOISE).pdf(at.T) for t in tissues
    ])  # fmt: skip
    sure = dense.sum(axis=0) > 1e-200
    np.testing.assert_allclose(found[:, sure], (dense / dense.sum(axis=0))[:, sure], rtol=1e-4, atol=1e-7)


def test_a_hidden_phantom_is_found_and_sureness_is_honest():
    tissues = tissue_classes(NAMES, BASIS)
    truth, volume = hidden(3, tissues)
    labels = finish(label_volume(volume, tissues, NOISE))
    found, sureness = labels.channel("label"), labels.channel("probability")
    assert (found == truth)[truth != 2].mean() > 0.93
    said = sureness[found > 0].mean()
    assert (found == truth)[found > 0].mean() == pytest.approx(said, abs=0.05)


def test_a_field_of_neighbours_mends_noise_and_keeps_the_shape_of_things():
    tissues = tissue_classes(NAMES, BASIS)
    truth, volume = hidden(6, tissues)
    rng = np.random.default_rng(7)
    noisy = replace(volume, values=(volume.values + rng.normal(0, 0.06, volume.values.shape)).astype(np.float32))
    noise = NOISE + 0.06**2 * np.eye(2)
    plain, settled = (finish(label_volume(noisy, tissues, noise, field_strength=s)) for s in (0.0, 0.2))
    right = [(labels.channel("label") == truth).mean() for labels in (plain, settled)]
    assert right[0] < 0.9
    assert right[1] > 0.97
    likely, _ = probabilities(noisy.values, tissues, noise, field_strength=0.2)
    np.testing.assert_allclose(likely.sum(axis=0), 1, rtol=1e-5)


def test_without_neighbours_a_field_changes_nothing():
    tissues = tissue_classes(NAMES, BASIS)
    lone = np.array([[1.1], [0.1]]).reshape(2, 1, 1, 1)
    alone, beside = (probabilities(lone, tissues, NOISE, field_strength=s)[0] for s in (0.0, 0.5))
    np.testing.assert_allclose(alone, beside, rtol=1e-4)
    with pytest.raises(WrongUsage, match="allowed: 0 or more"):
        probabilities(lone, tissues, NOISE, field_strength=-1.0)


def test_what_is_no_tissue_is_unknown_and_tissue_seldom_is():
    tissues = tissue_classes(NAMES, BASIS)
    _, volume = hidden(4, tissues)
    labels = finish(label_volume(volume, tissues, NOISE))
    assert (labels.channel("label") == 0).mean() < 20 * REJECTED_BELOW
    iron = np.full((2, 1, 1, 1), 5.0)
    _, is_none = probabilities(iron, tissues, NOISE)
    assert is_none.all()


def test_a_prior_moves_the_border():
    even, odd = (tissue_classes(NAMES[1:3], BASIS, priors=p) for p in ([1, 1], [9, 1]))
    middle = (even[0].mean_g_cm3 + even[1].mean_g_cm3)[:, None] / 2
    low, high = (float(probabilities(middle, t, NOISE)[0][0, 0]) for t in (even, odd))
    assert high / (1 - high) == pytest.approx(9 * low / (1 - low), rel=1e-4)


def test_compositions_are_toml_that_adds_up(tmp_path):
    tissues = tissue_classes(NAMES, BASIS)
    read = tomllib.loads(write_compositions(tissues, tmp_path / "labels.toml").read_text())["material"]
    assert [(m["label"], m["name"]) for m in read] == list(enumerate(NAMES, 1))
    for entry, tissue in zip(read, tissues, strict=True):
        assert entry["density_g_cm3"] == pytest.approx(tissue.matter.density_g_cm3)
        assert sum(entry["mass_fractions"].values()) == pytest.approx(1, abs=1e-5)


def test_a_metaimage_holds_the_labels_where_they_stand(tmp_path):
    tissues = tissue_classes(NAMES, BASIS)
    _, volume = hidden(5, tissues)
    labels = finish(label_volume(volume, tissues, NOISE, is_each_told=True))
    path = write_metaimage(labels, tmp_path / "phantom.mhd")
    head = dict(line.split(" = ") for line in path.read_text().splitlines())
    shape = tuple(int(n) for n in head["DimSize"].split())[::-1]
    numbers = np.fromfile(path.with_name(head["ElementDataFile"]), "<u2").reshape(shape)
    np.testing.assert_array_equal(numbers, labels.channel("label"))
    z, y, x = labels.grid.axes_mm()
    np.testing.assert_allclose([float(v) for v in head["Offset"].split()], [x[0], y[0], z[0]])
    np.testing.assert_allclose(sum(labels.channel(name) for name in NAMES), 1, rtol=1e-5)


def test_what_cannot_be_is_refused():
    with pytest.raises(WrongUsage, match="each once"):
        tissue_classes(("muscle", "muscle"), BASIS)
    with pytest.raises(WrongUsage, match="2 priors for 1 tissues"):
        tissue_classes(("muscle",), BASIS, priors=[1, 2])
    volume = Volume(values=np.zeros((1, 3, 20, 25), np.float32), channels=("a",), unit="1/mm", grid=GRID)
    with pytest.raises(WrongUsage, match="in 1/mm; allowed: materials"):
        next(label_volume(volume, tissue_classes(NAMES, BASIS), NOISE))
