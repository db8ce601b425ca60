"""The choice of a ring method: what it measures is the true error, and what it takes is near the best there is."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from reconstruction.artefacts import rings
from reconstruction.artefacts.opposing_rays import OpposingRays
from tests import striped_scans as scans

NOISE = 0.01
SCAN = scans.geometry(rows=5, cols=160)
ANGLES = scans.angles_rad(240)


@cache
def exact(name: str) -> NDArray[np.float32]:
    return scans.views_of(scans.the_object(name), SCAN, ANGLES)


def noisy(name: str, seed: int = 2) -> NDArray[np.float32]:
    values = exact(name)
    return values + NOISE * np.random.default_rng(seed).standard_normal(values.shape, dtype=np.float32)


def energy_left(values: NDArray[np.float32], candidate: rings.Candidate, name: str) -> float:
    after, _ = rings.suppress(values.copy(), method=candidate.method, options=candidate.options)
    return scans.ring_energy(after - exact(name))


@pytest.mark.parametrize("name", scans.OBJECTS)
def test_clean_views_are_left_alone(name: str) -> None:
    choice = rings.choose(noisy(name), ANGLES, SCAN)
    assert choice.candidate.method == "none"
    assert "no rings worth suppressing" in choice.words
    assert len(choice.judgements) == len(rings.CANDIDATES)


@pytest.mark.parametrize(
    ("name", "kind"), [*(("rods", kind) for kind in scans.KINDS), ("texture", "partial"), ("centred", "thin")]
)
def test_the_choice_leaves_nearly_as_little_as_the_best_would(name: str, kind: str) -> None:
    values = scans.striped(noisy(name), kind, 0.02, np.random.default_rng(5))
    choice = rings.choose(values, ANGLES, SCAN)
    left = energy_left(values, choice.candidate, name)
    best = min(energy_left(values, candidate, name) for candidate in rings.CANDIDATES)
    before = scans.ring_energy(values - exact(name))
    assert left < 0.7 * before
    assert before - left > 0.9 * (before - best)
    assert str(choice.candidate) in choice.words


def test_the_judged_gain_is_the_true_one_on_average() -> None:
    """For a method that suits, and one that eats the object: one scan tells it to a fifth, many to a few per cent."""
    candidates = (rings.Candidate("mean-profile"), rings.Candidate("regularised", {"strength": 0.003, "n_blocks": 24}))
    unit = scans.ring_energy(noisy("rods", seed=4) - exact("rods"))
    judged, true = [], []
    for seed in range(10):
        values = scans.striped(noisy("rods"), "thin", 0.02, np.random.default_rng(seed))
        before = scans.ring_energy(values - exact("rods"))
        gains = {
            str(j.candidate): j.gain_ratio for j in rings.choose(values, ANGLES, SCAN, candidates=candidates).judgements
        }
        judged.append([gains[str(candidate)] for candidate in candidates])
        true.append([(before - energy_left(values, candidate, "rods")) / unit for candidate in candidates])
    good, bad = np.mean(true, axis=0)
    assert good > 15
    assert bad < 0.7 * good
    np.testing.assert_allclose(np.mean(judged, axis=0), [good, bad], atol=2.5)


def test_the_order_of_views_and_their_start_do_not_matter() -> None:
    values = scans.striped(noisy("rods"), "thin", 0.02, np.random.default_rng(5))
    shuffle = np.random.default_rng(8).permutation(len(ANGLES))
    candidates = rings.CANDIDATES[:2]
    plain = rings.choose(values, ANGLES, SCAN, candidates=candidates)
    moved = rings.choose(values[:, shuffle], ANGLES[shuffle] + 2 * np.pi, SCAN, candidates=candidates)
    assert moved.candidate == plain.candidate
    assert moved.judgements[0].gain_ratio == pytest.approx(plain.judgements[0].gain_ratio, rel=1e-3)


def test_a_helix_is_judged_by_the_rows_beside_and_of_two_turns_the_first() -> None:
    values = scans.striped(noisy("rods"), "thin", 0.02, np.random.default_rng(5))
    twice = np.concatenate([values, values[:, ::-1]], axis=1)
    angles = np.concatenate([ANGLES, ANGLES + 2 * np.pi])
    candidates = rings.CANDIDATES[:2]
    plain = rings.choose(values, ANGLES, SCAN, candidates=candidates)
    assert rings.choose(twice, angles, SCAN, candidates=candidates).words == plain.words
    helix = rings.choose(twice, angles, SCAN, lifts_mm=0.1 * angles, candidates=candidates)
    assert "rows beside" in helix.words


def test_views_are_not_changed_by_the_choice() -> None:
    values = noisy("rods")
    before = values.copy()
    rings.choose(values, ANGLES, SCAN, candidates=rings.CANDIDATES[:1])
    np.testing.assert_array_equal(values, before)


def test_half_a_circle_is_judged_by_the_rows_beside() -> None:
    angles = scans.angles_rad(160, np.pi * 1.1)
    clean = scans.views_of(scans.the_object("rods"), SCAN, angles)
    clean = clean + NOISE * np.random.default_rng(2).standard_normal(clean.shape, dtype=np.float32)
    thin = scans.striped(clean, "thin", 0.02, np.random.default_rng(5))
    assert rings.choose(clean, angles, SCAN).candidate.method == "none"
    choice = rings.choose(thin, angles, SCAN)
    assert choice.candidate.method != "none"
    assert "rows beside" in choice.words


def test_one_row_of_half_a_circle_cannot_tell() -> None:
    angles = scans.angles_rad(60, np.pi)
    one = scans.geometry(rows=1, cols=32)
    choice = rings.choose(np.zeros((1, 60, 1, 32), np.float32), angles, one)
    assert choice.candidate.method == "none"
    assert "cannot tell" in choice.words


@pytest.mark.parametrize("offset_u_mm", [0.0, 0.013, -1.1])
def test_opposing_rays_read_the_same_in_the_source_plane(offset_u_mm: float) -> None:
    scan = scans.geometry(rows=1, cols=160, offset_u_mm=offset_u_mm)
    values = scans.views_of(scans.the_object("rods"), scan, ANGLES)
    rays = OpposingRays.of(ANGLES, scan)
    assert rays is not None
    difference = rays.take(values) - values[..., rays.is_seen]
    # Edges of rods, a jump of the slope, are all that the interpolation cannot follow.
    assert np.sqrt(np.mean(difference**2)) < 0.005 * values.max()
    assert np.median(np.abs(difference)) < 0.0005 * values.max()


def test_opposing_rays_need_a_circle_and_a_detector_on_both_sides() -> None:
    assert OpposingRays.of(scans.angles_rad(100, np.pi), SCAN) is None
    assert OpposingRays.of(ANGLES, scans.off_axis(SCAN, 13.0)) is None
    half = OpposingRays.of(ANGLES, scans.off_axis(SCAN, 7.0))
    assert half is not None
    assert 0.3 < half.is_seen.mean() < 0.7
