"""NumPy or CuPy: which one holds an array, and whether a GPU can be used; the only door to cupy."""

from __future__ import annotations

import functools
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firmware_iface.errors import WrongUsage

Array = Any
"""A NumPy or a CuPy array; CuPy has no types of its own to check against."""


def _cupy() -> ModuleType | None:
    try:
        import cupy
    except ImportError:
        return None
    return cupy


@functools.cache
def has_gpu() -> bool:
    """Whether CuPy is installed and finds a device."""
    cupy = _cupy()
    if cupy is None:
        return False
    try:
        return int(cupy.cuda.runtime.getDeviceCount()) > 0
    except cupy.cuda.runtime.CUDARuntimeError:  # no driver, or no device
        return False


def require_gpu() -> ModuleType:
    """Return the cupy module, or refuse with what is missing."""
    if not has_gpu():
        missing = "no device answers" if _cupy() is not None else "cupy is not installed"
        raise WrongUsage(f"a GPU was asked for, but {missing}", hint="leave out --gpu to work on the CPU")
    cupy = _cupy()
    assert cupy is not None
    return cupy


def namespace(x: Array) -> ModuleType:
    """Return the module that holds `x`: cupy for a device array, otherwise numpy."""
    cupy = _cupy() if type(x).__module__.partition(".")[0] == "cupy" else None
    return np if cupy is None else cupy


def to_device(x: NDArray[Any]) -> Array:
    """Copy to the GPU."""
    return require_gpu().asarray(x)


def to_host(x: Array) -> NDArray[Any]:
    """Copy from the GPU; an array of the host passes through."""
    return np.asarray(x) if namespace(x) is np else namespace(x).asnumpy(x)


@functools.cache
def cuda_kernel(source: Path, name: str) -> Any:
    """Compile a CUDA C file for the present device and return one of its kernels."""
    module = require_gpu().RawModule(code=source.read_text(encoding="utf-8"), options=("--std=c++14",))
    return module.get_function(name)
