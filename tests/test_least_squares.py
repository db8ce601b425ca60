"""Least squares against dense solutions, and the laws of its methods."""

from __future__ import annotations

from itertools import chain, islice, pairwise

import numpy as np
import pytest
from scipy.sparse.linalg import lsqr as scipy_lsqr

from firmware_iface.errors import WrongUsage
from reconstruction.methods.least_squares import cgls, lsqr, os_sart, sirt
from reconstruction.methods.poisson import pwls
from reconstruction.methods.subsets import ORDERS, ordered_subsets, size_of
from tests.matrix_operator import MatrixOperator, random_operator

SURROGATES = (sirt, os_sart, pwls)
KRYLOV = (cgls, lsqr)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def problem(rng, **shape):
    """An operator, noisy data that no volume explains, and uneven weights."""
    A = random_operator(rng, **shape)
    b = A.forward(rng.uniform(0, 1, A.domain_shape)) + 0.3 * rng.standard_normal(A.range_shape)
    return A, b, rng.uniform(0.5, 2.0, A.range_shape)


def last(iterates):
    """The last iterate, its volume copied."""
    *_, end = iterates
    return end._replace(volume=end.volume.copy())


def volumes(iterates):
    return [iterate.volume.copy() for iterate in iterates]


def dense_minimum(A, b, weights, damping=0.0, reference=None):
    """Per channel, what makes w (b - A x)^2 + damping (x - reference)^2 least, by NumPy."""
    found = np.empty(A.domain_shape)
    for c in range(A.n_channels):
        root = np.sqrt(np.ones(b[c].size) if weights is None else weights[c].ravel())
        n = A.domain_shape[1]
        pull = np.zeros(n) if reference is None else reference[c]
        matrix = np.concatenate([root[:, None] * A.dense(c), np.sqrt(damping) * np.eye(n)])
        data = np.concatenate([root * b[c].ravel(), np.sqrt(damping) * pull])
        found[c] = np.linalg.lstsq(matrix, data)[0]
    return found


@pytest.mark.parametrize("method", KRYLOV)
@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_krylov_methods_end_at_the_dense_solution(rng, method, damping):
    A, b, weights = problem(rng, n_channels=2)
    found = last(method(A, b, weights=weights, damping=damping, n_iterations=40)).volume
    np.testing.assert_allclose(found, dense_minimum(A, b, weights, damping), atol=1e-8)


@pytest.mark.parametrize("method", KRYLOV)
@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_krylov_iterates_are_those_of_scipy(rng, method, damping):
    A, b, _ = problem(rng)
    for n_iterations in (1, 3, 8):
        theirs = scipy_lsqr(A.dense(), b.ravel(), damp=np.sqrt(damping), iter_lim=n_iterations, atol=0, btol=0)
        ours = last(method(A, b, damping=damping, n_iterations=n_iterations))
        np.testing.assert_allclose(ours.volume[0], theirs[0], rtol=1e-7, atol=1e-9)
        assert ours.objective == pytest.approx(theirs[4] ** 2 / 2)
        if not damping:
            assert ours.residual == pytest.approx(theirs[3])


@pytest.mark.parametrize("method", [*SURROGATES, *KRYLOV])
def test_damping_pulls_towards_the_reference(rng, method):
    A, b, weights = problem(rng)
    reference = rng.uniform(0, 1, A.domain_shape)
    found = last(method(A, b, weights=weights, reference=reference, damping=1e6, n_iterations=20)).volume
    np.testing.assert_allclose(found, reference, atol=1e-3)
    if method in (cgls, lsqr, pwls):
        kwargs = {"n_subsets": 1} if method is pwls else {}
        n_iterations = 2000 if method is pwls else 40
        found = last(
            method(A, b, weights=weights, reference=reference, damping=0.7, n_iterations=n_iterations, **kwargs)
        ).volume
        np.testing.assert_allclose(found, dense_minimum(A, b, weights, 0.7, reference), atol=1e-6)


@pytest.mark.parametrize("has_momentum", [False, True])
def test_pwls_ends_at_the_dense_solution(rng, has_momentum):
    A, b, weights = problem(rng, n_channels=2)
    end = last(pwls(A, b, weights=weights, n_subsets=1, has_momentum=has_momentum, n_iterations=3000))
    np.testing.assert_allclose(end.volume, dense_minimum(A, b, weights), atol=2e-5)


def test_subsets_end_near_the_whole_and_faster(rng):
    A, b, weights = problem(rng)
    exact = dense_minimum(A, b, weights)

    def errors(**options):
        return [np.abs(x - exact).max() for x in volumes(pwls(A, b, weights=weights, n_iterations=400, **options))]

    plain = errors(n_subsets=1, has_momentum=False)
    fast = errors(n_subsets=4, has_momentum=True)
    assert fast[20] < plain[20] / 2
    assert fast[-1] < 1e-4  # subsets are halved where they stop converging, so that the end is the minimum itself


def test_sirt_is_its_matrix_form(rng):
    A, b, _ = problem(rng)
    matrix = A.dense()
    C, R = 1 / matrix.sum(0), 1 / matrix.sum(1)
    x = np.zeros(A.domain_shape[1])
    for ours in sirt(A, b, n_iterations=10, relaxation=1.5):
        x = x + 1.5 * C * (matrix.T @ (R * (b.ravel() - matrix @ x)))
        np.testing.assert_allclose(ours.volume[0], x, rtol=1e-10)
        assert ours.residual == pytest.approx(np.linalg.norm(b.ravel() - matrix @ x))


def test_sart_goes_view_by_view(rng):
    A, b, _ = problem(rng)
    n_views = A.range_shape[1]
    C = n_views / n_views / A.dense().sum(0)
    x = np.zeros(A.domain_shape[1])
    end = last(os_sart(A, b, n_iterations=2, n_subsets=n_views, has_momentum=False, order="sequential"))
    for _ in range(2):
        for view in range(n_views):
            rows = A.matrices[0, view]
            lengths = rows.sum(1)
            R = np.divide(1, lengths, where=lengths > 0, out=np.zeros_like(lengths))
            x = x + n_views * C * (rows.T @ (R * (b[0, view] - rows @ x)))
    np.testing.assert_allclose(end.volume[0], x, rtol=1e-9)


@pytest.mark.parametrize("method", [sirt, pwls, cgls, lsqr])
def test_what_a_method_makes_small_never_rises(rng, method):
    A, b, weights = problem(rng, n_channels=2)
    options = {"has_momentum": False} if method in SURROGATES else {}
    options |= {"n_subsets": 1} if method is pwls else {}
    steps = [(i.residual, i.objective) for i in method(A, b, weights=weights, n_iterations=30, **options)]
    assert all(later[1] <= earlier[1] * (1 + 1e-12) for earlier, later in pairwise(steps))
    if method in KRYLOV:
        assert all(later[0] <= earlier[0] * (1 + 1e-12) for earlier, later in pairwise(steps))


@pytest.mark.parametrize("method", [sirt, pwls, cgls, lsqr])
def test_the_residual_is_that_of_the_volume(rng, method):
    A, b, weights = problem(rng, n_channels=3)
    options = {"has_momentum": False} if method in SURROGATES else {}
    options |= {"n_subsets": 1} if method is pwls else {}
    for iterate in method(A, b, weights=weights, n_iterations=5, **options):
        squares = weights * (b - A.forward(iterate.volume)) ** 2
        np.testing.assert_allclose(iterate.channel_residuals, np.sqrt(squares.sum((1, 2))), rtol=1e-9)
        assert iterate.residual == pytest.approx(np.sqrt(squares.sum()))


@pytest.mark.parametrize("method", [pwls, cgls])
def test_the_objective_is_half_the_squares_and_the_damping(rng, method):
    A, b, weights = problem(rng, n_channels=2)
    reference = rng.uniform(0, 1, A.domain_shape)
    options = {"n_subsets": 1, "has_momentum": False} if method is pwls else {}
    for i in method(A, b, weights=weights, damping=0.7, reference=reference, n_iterations=4, **options):
        squares = weights * (b - A.forward(i.volume)) ** 2
        assert i.objective == pytest.approx(squares.sum() / 2 + 0.35 * ((i.volume - reference) ** 2).sum())


@pytest.mark.parametrize("method", [*SURROGATES, *KRYLOV])
def test_the_truth_is_a_fixed_point(rng, method):
    A = random_operator(rng)
    truth = rng.uniform(0, 1, A.domain_shape)
    for iterate in method(A, A.forward(truth), start=truth, n_iterations=3):
        np.testing.assert_allclose(iterate.volume, truth, atol=1e-10)


@pytest.mark.parametrize("method", [sirt, cgls, lsqr])
def test_channels_do_not_know_of_each_other(rng, method):
    A, b, weights = problem(rng, n_channels=3)
    together = last(method(A, b, weights=weights, n_iterations=7)).volume
    for c in range(3):
        alone = MatrixOperator(A.matrices[c : c + 1])
        one = last(method(alone, b[c : c + 1], weights=weights[c : c + 1], n_iterations=7)).volume
        np.testing.assert_allclose(together[c], one[0], rtol=1e-9)


@pytest.mark.parametrize("method", [sirt, pwls])
def test_a_warm_start_goes_on_where_it_was_left(rng, method):
    A, b, _ = problem(rng)
    options = {"has_momentum": False} | ({"n_subsets": 3} if method is pwls else {})
    through = last(method(A, b, n_iterations=9, **options)).volume
    left = last(method(A, b, n_iterations=4, **options)).volume
    before = left.copy()
    resumed = last(method(A, b, n_iterations=5, start=left, **options)).volume
    np.testing.assert_allclose(resumed, through, rtol=1e-12)
    np.testing.assert_array_equal(left, before)  # the start is the caller's


def test_a_warm_start_of_cgls_is_never_worse(rng):
    A, b, _ = problem(rng)
    left = last(cgls(A, b, n_iterations=4))
    for iterate in cgls(A, b, n_iterations=10, start=left.volume):
        assert iterate.residual <= left.residual


@pytest.mark.parametrize("method", SURROGATES)
def test_nothing_is_below_zero_where_that_is_wanted(rng, method):
    A, b, _ = problem(rng)
    b = b - 1.0
    assert last(method(A, b, n_iterations=20)).volume.min() < 0
    assert last(method(A, b, n_iterations=20, is_non_negative=True)).volume.min() >= 0


def test_non_negative_pwls_fulfils_the_conditions_of_the_minimum(rng):
    A, b, weights = problem(rng)
    b = b - 0.8
    options = {"is_non_negative": True, "n_subsets": 1, "n_iterations": 4000}
    x = last(pwls(A, b, weights=weights, **options)).volume
    gradient = A.adjoint(weights * (A.forward(x) - b))
    assert (x == 0).any()
    np.testing.assert_allclose(gradient[x > 0], 0, atol=1e-4)
    assert gradient[x == 0].min() > -1e-4


@pytest.mark.parametrize("method", [*SURROGATES, *KRYLOV])
def test_data_without_weight_and_voxels_without_rays_do_not_matter(rng, method):
    A, b, weights = problem(rng)
    A.matrices[..., 3] = 0
    weights[0, 2] = 0
    spoilt = b.copy()
    spoilt[0, 2] = 1e3
    one = last(method(A, b, weights=weights, n_iterations=8)).volume
    other = last(method(A, spoilt, weights=weights, n_iterations=8)).volume
    np.testing.assert_allclose(one, other, rtol=1e-9)
    assert one[0, 3] == 0


def test_a_preconditioner_helps_where_noise_is_uneven(rng):
    A, b, weights = problem(rng)
    for group in range(4):  # four parts of the volume, each seen by views of its own
        views, voxels = slice(3 * group, 3 * group + 3), np.arange(20) // 5 != group
        A.matrices[:, views, :, voxels] = 0
        weights[:, views] = 10.0 ** (2 * group)
    exact = dense_minimum(A, b, weights)
    plain, scaled = (
        np.abs(last(cgls(A, b, weights=weights, n_iterations=10, is_preconditioned=p)).volume - exact).max()
        for p in (False, True)
    )
    assert scaled < plain / 10


@pytest.mark.parametrize("method", [*SURROGATES, *KRYLOV])
def test_single_precision_is_enough_and_is_kept(rng, method):
    """Rounding sets conjugate gradients back by an iteration or so: they are compared where they have arrived."""
    A, b, weights = problem(rng)
    double = last(method(A, b, weights=weights, n_iterations=30))
    single = last(method(A, b.astype(np.float32), weights=weights.astype(np.float32), n_iterations=30))
    assert single.volume.dtype == np.float32
    assert single.residual == pytest.approx(double.residual, rel=1e-5)
    np.testing.assert_allclose(single.volume, double.volume, atol=1e-4)


@pytest.mark.parametrize("method", [*SURROGATES, *KRYLOV])
def test_a_method_can_be_left_at_any_time_and_costs_one_pair_an_iteration(rng, method):
    A, b, _ = problem(rng)
    options = {"n_subsets": 1, "has_momentum": False} if method in (os_sart, pwls) else {}
    A.n_forward = A.n_adjoint = 0
    iterates = method(A, b, n_iterations=10**9, **options)
    assert [i.number for i in islice(iterates, 6)] == [1, 2, 3, 4, 5, 6]
    iterates.close()
    assert 6 <= A.n_forward <= 7
    assert 6 <= A.n_adjoint <= 8


@pytest.mark.parametrize(
    ("method", "options", "told"),
    [
        (sirt, {"relaxation": 2.0}, "relaxation"),
        (os_sart, {"relaxation": 1.5}, "momentum"),
        (pwls, {"n_subsets": 13}, "n_subsets"),
        (pwls, {"order": "by chance"}, "order"),
        (cgls, {"start": np.zeros((1, 3))}, "start"),
        (lsqr, {"start": np.zeros((1, 20)), "reference": np.zeros((1, 20))}, "start and a reference"),
        (sirt, {"damping": -1.0}, "damping"),
    ],
)
def test_wrong_options_are_refused_in_words(rng, method, options, told):
    A, b, _ = problem(rng)
    with pytest.raises(WrongUsage, match=told):
        next(method(A, b, **options))


@pytest.mark.parametrize("method", [*SURROGATES, *KRYLOV])
def test_data_of_another_shape_are_refused(rng, method):
    A, b, _ = problem(rng)
    with pytest.raises(WrongUsage, match="shape"):
        next(method(A, b[:, 1:]))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("n_views", "n_subsets"), [(1, 1), (12, 12), (180, 18), (100, 7), (31, 16)])
def test_subsets_share_the_views_out_evenly(order, n_views, n_subsets):
    subsets = ordered_subsets(n_views, n_subsets, order)
    views = [list(range(n_views))[s] for s in subsets]
    assert sorted(chain.from_iterable(views)) == list(range(n_views))
    sizes = [len(v) for v in views]
    assert sizes == [size_of(s, n_views) for s in subsets]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("order", ["bit-reversal", "golden"])
def test_each_subset_is_far_from_the_one_before(order):
    firsts = np.array([s.start for s in ordered_subsets(64, 16, order)])
    steps = np.abs(np.diff(firsts))
    assert np.minimum(steps, 16 - steps).min() >= 3
