"""Every CUDA kernel is compiled and assembled for the GPUs we name, without one: what fails there fails here."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

from reconstruction import backend
from reconstruction.kernels import backproject_gpu, joseph_gpu, tv_gpu
from tests.benchmarks import gpu
from tests.cuda_shim import kernel_names
from tests.nvrtc import assembled, compile_cuda

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = ("sm_70", "sm_80", "sm_90")
CHANNELS = (1, 2, 4)
MOST_REGISTERS = 65536 // 3 // 256
"""Three blocks of 256 threads fit on a multiprocessor with at most this many registers a thread.

# Ref: 65536 registers a multiprocessor: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
"""

WIDTHS = tuple((f"CHANNELS {n}", f"STORED {kind}") for n, kind in product(CHANNELS, ("float", "half_bits")))
SOURCES = [(path, defines) for path in (backproject_gpu.SOURCE, joseph_gpu.SOURCE) for defines in WIDTHS] + [
    (tv_gpu.SOURCE, ()),
    (gpu.RATES, gpu.SINGLE),
    (gpu.TEXTURE, ()),
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("path", "defines"), SOURCES, ids=str)
def test_it_compiles_without_spilling(path, defines, architecture):
    source = backend.cuda_text(path, defines)
    cubin, ptx, log = compile_cuda(source, architecture, backend.COMPILER_OPTIONS)
    assert cubin[:4] == b"\x7fELF"
    assert f".target {architecture}" in ptx
    kernels = assembled(log)
    assert sorted(kernels) == sorted(kernel_names(source))
    for name, told in kernels.items():
        assert told.stack_bytes == told.spilt_bytes == 0, f"{name} uses local memory: {told}"
        assert told.registers <= MOST_REGISTERS, f"{name}: {told}"
    assert not re.search(r"^source.cu.*warning", log, flags=re.MULTILINE), log


def loads_of(ptx: str, kernel: str) -> list[str]:
    """The kinds of loads from global memory in a kernel."""
    body = re.search(rf"\.entry {kernel}\(.*?^\}}", ptx, flags=re.DOTALL | re.MULTILINE)
    assert body is not None
    return re.findall(r"ld\.global(?:\.nc)?(?:\.(?:v2|v4))?\.\w+", body[0])


@pytest.mark.parametrize(
    ("path", "kernel"), [(backproject_gpu.SOURCE, "upright"), (joseph_gpu.SOURCE, "adjoint_upright_y")]
)
def test_one_instruction_loads_all_channels(path, kernel):
    for defines, width in ((("CHANNELS 4", "STORED float"), "v4"), (("CHANNELS 2", "STORED float"), "v2")):
        _, ptx, _ = compile_cuda(backend.cuda_text(path, defines), "sm_80", backend.COMPILER_OPTIONS)
        assert any(f".{width}." in load for load in loads_of(ptx, kernel)), loads_of(ptx, kernel)


def test_every_cuda_source_of_the_tree_is_compiled_here():
    found = {path for package in ("reconstruction", "tests") for path in (ROOT / package).rglob("*.cu")}
    assert found == {path for path, _ in SOURCES}


def constant(path: Path, name: str) -> str:
    found = re.search(rf"^#define {name} (.+)$", path.read_text(), flags=re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_launches_know_the_constants_of_their_sources():
    for module in (backproject_gpu, joseph_gpu):
        assert int(constant(module.SOURCE, "VIEWS_PER_LAUNCH")) == module.VIEWS_PER_LAUNCH
    assert int(constant(backproject_gpu.SOURCE, "MARGINS")) == backproject_gpu.MARGINS
    assert int(constant(joseph_gpu.SOURCE, "HEIGHT")) == joseph_gpu.HEIGHT
    condition = re.fullmatch(r"\(CHANNELS > 2 \? (\d) : (\d)\)", constant(backproject_gpu.SOURCE, "HEIGHT"))
    assert condition is not None
    many, few = map(int, condition.groups())
    assert {n: many if n > 2 else few for n in CHANNELS} == backproject_gpu.HEIGHT


def test_what_does_not_compile_is_told():
    with pytest.raises(AssertionError, match=r"identifier .* is undefined"):
        compile_cuda('extern "C" __global__ void broken(float *x) { *x = missing; }', "sm_80")
