"""What every test may ask for: the measured data, and in which order the files come."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

# Before NumPy is loaded: matrices are small here, and threads of BLAS that wait for one another take most of the time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest

ROOT = Path(__file__).resolve().parent.parent
LONGEST = ("test_walk.py", "test_scan_materials.py")
"""Files that begin first, lest the worker that takes one of them last ends long after the others; of two that begin
together each compiles kernels of its own, and those after them find both."""


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Return the folder of real measured data, or skip, saying where it was looked for."""
    folder = Path(os.environ.get("MPXCT_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set MPXCT_TEST_DATA")
    return folder


@pytest.fixture(params=["shim", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A GPU for `reconstruction.backend` to find: one made of a C++ compiler, and the real one where there is one."""
    if request.param == "cuda":
        yield "cuda"
        return
    from tests import cuda_shim

    with cuda_shim.installed(monkeypatch):
        yield "shim"


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, pytest.CollectReport]:
    """Let every second worker read the files from the last, and find half of them compiled by its neighbour."""
    report = yield
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    if isinstance(collector, pytest.Directory) and int(worker.removeprefix("gw")) % 2:
        report.result.reverse()
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, others in order of name; skip GPU tests where there is no GPU, and say so."""
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (ranks.get(item.path.name, len(LONGEST)), item.path))
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    from reconstruction.backend import has_gpu

    if not has_gpu():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no CUDA device, or CuPy is not installed"))
