"""A GPU made of a C++ compiler: CUDA sources compiled over their built-ins, and a `cupy` that launches them on the CPU.

What a launch hands over is held against what the kernel takes: number and kind of arguments, the element type and the
contiguity of arrays, the limits of blocks and grids. With `MPXCT_SHIM_SANITIZE=1` the kernels are built with the
address sanitizer; Python must then load its library first (`sanitizer_environment`).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

HEADER = Path(__file__).with_name("cuda_shim.h")
FLAGS = ("-std=c++17", "-O1", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Werror")
ALLOWED = ("-Wno-sign-compare", "-Wno-unknown-pragmas", "-Wno-unused-function")
SANITIZE = ("-fsanitize=address",)
MOST_THREADS = (1024, 1024, 64)
MOST_BLOCKS = (2**31 - 1, 65535, 65535)
# Ref: the limits of blocks and grids: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".


def compiler() -> str:
    """Return g++, or skip the test, saying that it is missing."""
    found = shutil.which("g++")
    if found is None:
        pytest.skip("no g++ here: the CUDA source cannot be compiled as C++")
    return found


def kernel_names(source: str) -> list[str]:
    """Return the names of the kernels that a source defines."""
    return re.findall(
        r'^extern "C" __global__ void (?:__launch_bounds__\([\d, ]+\) )?(\w+)\(', source, flags=re.MULTILINE
    )


def constant_names(source: str) -> list[str]:
    """Return the names of the arrays in constant memory."""
    return re.findall(r"^__constant__ [\w ]+? (\w+)\[", source, flags=re.MULTILINE)


@functools.cache
def build(source: str) -> ctypes.CDLL:
    """Compile a CUDA source as C++; every kernel NAME gets `launch_NAME` and `signature_NAME`."""
    folder = Path(tempfile.mkdtemp(prefix="cuda-shim-"))
    lines = [f'#include "{HEADER}"', source]
    for name in kernel_names(source):
        lines.append(
            f'extern "C" void launch_{name}(const unsigned int *blocks, const unsigned int *threads, void **arguments)'
            f"{{ run({name}, blocks, threads, arguments); }}"
        )
        lines.append(f'extern "C" const char *signature_{name}() {{ return signature_of({name}); }}')
    lines += [
        f'extern "C" void *constant_{name}(long long *bytes) {{ *bytes = sizeof({name}); return {name}; }}'
        for name in constant_names(source)
    ]
    (folder / "shim.cpp").write_text("\n".join(lines))
    sanitize = SANITIZE if os.environ.get("MPXCT_SHIM_SANITIZE") else ()
    command = [compiler(), *FLAGS, *ALLOWED, *sanitize, "-shared", "-fPIC", "-o", "shim.so", "shim.cpp"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(folder / "shim.so"))
    shutil.rmtree(folder)
    return library


def sanitizer_environment() -> dict[str, str]:
    """Return the environment in which Python can load kernels that are built with the sanitizer."""
    ask = [compiler(), "-print-file-name=libasan.so"]
    library = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    return {
        **os.environ,
        "MPXCT_SHIM_SANITIZE": "1",
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0",
    }


class _Kernel:
    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self._name, self._launch = name, getattr(library, f"launch_{name}")
        signature = getattr(library, f"signature_{name}")
        signature.restype = ctypes.c_char_p
        self.signature = signature().decode()

    def __call__(self, blocks, threads, arguments) -> None:
        assert len(blocks) == len(threads) == 3, "give all three sizes"
        assert all(1 <= n <= most for n, most in zip(blocks, MOST_BLOCKS, strict=True)), blocks
        assert all(1 <= n <= most for n, most in zip(threads, MOST_THREADS, strict=True)), threads
        assert np.prod(threads) <= 1024, threads
        assert len(arguments) == len(self.signature), f"{self._name} takes {self.signature}: got {len(arguments)}"
        boxes = [self._box(kind, argument) for kind, argument in zip(self.signature, arguments, strict=True)]
        pointers = (ctypes.c_void_p * len(boxes))(*(ctypes.addressof(box) for box in boxes))
        sizes = [(ctypes.c_uint * 3)(*map(int, n)) for n in (blocks, threads)]
        self._launch(*sizes, pointers)

    def _box(self, kind, argument):
        if kind == "p":
            assert isinstance(argument, ndarray), f"{self._name}: {type(argument)} is no array of the device"
            assert argument.flags.c_contiguous, f"{self._name}: an array of shape {argument.shape} is not contiguous"
            assert argument.dtype in (np.float32, np.float16, np.int32), argument.dtype
            return ctypes.c_void_p(argument.ctypes.data)
        if kind == "i":
            assert type(argument) is np.int32, f"{self._name}: {argument!r} is given for an int"
            return ctypes.c_int(int(argument))
        assert kind == "f", kind
        assert type(argument) is np.float32, f"{self._name}: {argument!r} is given for a float"
        return ctypes.c_float(float(argument))


class RawModule:
    """`cupy.RawModule` of a source without CUDA headers."""

    def __init__(self, *, code: str, options: tuple[str, ...]) -> None:
        assert "--std=c++17" in options
        self._library = build(code)

    def get_function(self, name: str) -> _Kernel:
        return _Kernel(self._library, name)

    def get_global(self, name: str):
        place = getattr(self._library, f"constant_{name}")
        place.restype = ctypes.c_void_p
        n_bytes = ctypes.c_longlong()
        address = place(ctypes.byref(n_bytes))
        return (ctypes.c_char * n_bytes.value).from_address(address)


class ndarray(np.ndarray):  # noqa: N801 - the name that cupy has
    """An array that counts as one of the device: NumPy's own would not be taken by a kernel."""

    def __new__(cls, shape, dtype=float, memptr=None):
        return super().__new__(cls, shape, dtype, memptr)

    def set(self, values, stream=None) -> None:
        assert type(values) is np.ndarray
        assert (values.shape, values.dtype) == (self.shape, self.dtype)
        assert self.flags.c_contiguous
        assert values.flags.c_contiguous
        np.copyto(np.asarray(self), values)

    def __array_finalize__(self, other) -> None:
        """Nothing to carry over."""

    def __array_wrap__(self, array, context=None, return_scalar=False):
        return array if type(array) is ndarray else array.view(ndarray)  # 0-d results stay arrays, as CuPy's do

    def __getitem__(self, key):
        return np.asarray(super().__getitem__(key)).view(ndarray)


ndarray.__module__ = "cupy"


def _reduced(name):
    def reduce(self, *arguments, **options):
        return np.asarray(getattr(np.asarray(self), name)(*arguments, **options)).view(ndarray)

    return reduce


for _name in ("sum", "max", "min", "mean", "dot"):
    setattr(ndarray, _name, _reduced(_name))


def _on_device(function):
    """Make a NumPy function return arrays of the device."""

    @functools.wraps(function)
    def wrapped(*arguments, **options):
        result = function(*arguments, **options)
        return np.asarray(result).view(ndarray) if isinstance(result, np.ndarray | np.generic) else result

    return wrapped


def _asarray(values, dtype=None):
    # A copy: what the host changes later must not reach the device.
    return np.array(values, dtype, order="C").view(ndarray) if type(values) is not ndarray else values


class _Event:
    """Everything is done when it is asked for, so nobody has to wait."""

    def __init__(self, *, disable_timing: bool = False) -> None:
        """Take what CuPy's takes."""

    def synchronize(self) -> None:
        """Do nothing."""

    def record(self, stream: _Stream | None = None) -> None:
        """Do nothing."""


class _Stream:
    def __init__(self, *, non_blocking: bool = False) -> None:
        """Take what CuPy's takes."""

    def synchronize(self) -> None:
        """Do nothing."""

    def record(self) -> _Event:
        """Return an event."""
        return _Event()

    def wait_event(self, event: _Event) -> None:
        """Do nothing."""


def fake_cupy() -> ModuleType:
    """Return a module that stands for cupy: NumPy's functions over `ndarray`, and kernels that run on the CPU."""
    module = ModuleType("cupy")
    for name in dir(np):
        value = getattr(np, name)
        if callable(value) and not isinstance(value, type):
            setattr(module, name, _on_device(value))
        elif isinstance(value, type | float):
            setattr(module, name, value)
    module.ndarray, module.RawModule, module.asarray = ndarray, RawModule, _asarray
    module.newaxis = None
    module.asnumpy = lambda x: np.array(x, subok=False)
    module.fft = SimpleNamespace(rfft=_on_device(_single(np.fft.rfft)), irfft=_on_device(_single(np.fft.irfft)))
    runtime = SimpleNamespace(
        CUDARuntimeError=OSError,
        getDeviceCount=lambda: 1,
        memGetInfo=lambda: (6 * 2**30, 8 * 2**30),
        getDeviceProperties=lambda _: {"name": b"a stand-in"},
    )
    stream = _Stream()
    module.cuda = SimpleNamespace(
        runtime=runtime,
        get_current_stream=lambda: stream,
        Stream=_Stream,
        Event=_Event,
        alloc_pinned_memory=bytearray,
    )
    rng = np.random.default_rng(0)
    module.random = SimpleNamespace(standard_normal=_on_device(rng.standard_normal))
    module.get_default_memory_pool = lambda: SimpleNamespace(free_bytes=lambda: 2**20, free_all_blocks=lambda: None)
    return module


def _single(transform):
    """CuPy keeps single precision."""

    def in_single(x, n):
        result = transform(np.asarray(x), n)
        return result.astype(np.complex64 if np.iscomplexobj(result) else np.float32)

    return in_single


@contextlib.contextmanager
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let `backend` find a GPU that is none; every kernel is launched as on a real one."""
    from reconstruction import backend
    from reconstruction.kernels import joseph_gpu

    compiler()
    caches = (backend.has_gpu, backend.cuda_kernel, backend._cuda_module, joseph_gpu._plan)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cupy", fake_cupy())
        for cached in caches:
            cached.cache_clear()
        yield
    for cached in caches:
        cached.cache_clear()
