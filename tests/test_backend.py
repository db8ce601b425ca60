"""What the door to CuPy does besides opening: memory, uploads, transforms."""

from __future__ import annotations

import numpy as np

from reconstruction import backend


def test_free_memory_is_some_of_all(device):
    assert backend.free_bytes() > 0
    assert backend.total_bytes() > 2**28


def test_blocks_arrive_whole_while_others_are_on_their_way(device):
    """Sizes, kinds and layouts change between them; a block may be used until the call after the next one."""
    rng = np.random.default_rng(0)
    upload, kept = backend.Upload(), []
    for shape in [(3, 5), (3, 5), (2, 4), (6, 7), (6, 7), (1, 1)]:
        block = rng.normal(size=shape[::-1]).astype(np.float32).T  # not contiguous
        there = upload(block)
        kept.append((there, block.copy()))
        block[:] = 0  # the host goes on with it
        for sent, values in kept[-2:]:
            np.testing.assert_array_equal(backend.to_host(sent), values)
    integers = np.arange(6, dtype=np.int32).reshape(2, 3)
    np.testing.assert_array_equal(backend.to_host(upload(integers)), integers)


def test_spectra_are_the_same_on_both(device):
    rows = np.random.default_rng(1).normal(size=(3, 20)).astype(np.float32)
    here, there = backend.rfft(rows, 48), backend.rfft(backend.to_device(rows), 48)
    np.testing.assert_allclose(backend.to_host(there), here, atol=1e-5)
    assert there.dtype == np.complex64
    np.testing.assert_allclose(backend.to_host(backend.irfft(there, 48))[:, :20], rows, atol=1e-5)
