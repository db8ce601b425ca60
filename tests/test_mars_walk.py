"""The whole chain on a MARS phantom, but a little of it: what is estimated gets files only, and finds gadolinium."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import mars_phantoms as benchmark

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_two_passes_of_the_chain_find_gadolinium(tmp_path: Path) -> None:
    size = benchmark.Size(n_views=60, accumulate=2)
    found = benchmark.measure("colour-csm", "mars-raja", size, tmp_path, ("image", "projection"))
    for tier in ("image", "projection"):
        gadolinium = found[tier]["agents"]["gadolinium"]
        assert gadolinium["r2"] > 0.9, found[tier]
        assert gadolinium["slope"] == pytest.approx(1, abs=0.15)
        assert abs(gadolinium["offset_mg_ml"]) < 1
    assert {path.name for path in tmp_path.glob("*.h5")} == {"colour-csm.h5", "colour-csm-mars-raja.h5"}
