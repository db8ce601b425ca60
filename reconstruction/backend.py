"""NumPy or CuPy: which one holds an array, and whether a GPU can be used; the only door to cupy."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from firmware_iface.errors import WrongUsage

Array = Any
"""A NumPy or a CuPy array; CuPy has no types of its own to check against."""

_fft: Any = scipy.fft  # its declared types are those of SciPy's dispatcher, not of its results

COMPILER_OPTIONS = ("--std=c++17",)
"""What every CUDA source of ours is compiled with."""


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


def free_bytes() -> int:
    """Return how much memory of the device can still be had, with what CuPy's pool keeps for later use."""
    cupy = require_gpu()
    return int(cupy.cuda.runtime.memGetInfo()[0]) + int(cupy.get_default_memory_pool().free_bytes())


def total_bytes() -> int:
    """Return how much memory the device has."""
    return int(require_gpu().cuda.runtime.memGetInfo()[1])


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


class Upload:
    """Copies blocks of one size to the GPU while the GPU works on the blocks before.

    Two buffers of pinned memory take turns: the host fills one while the other is on its way. A block that was returned
    may be used until the call after the next one.
    """

    def __init__(self) -> None:
        self._cupy = require_gpu()
        self._stream = self._cupy.cuda.Stream(non_blocking=True)
        self._slots: list[tuple[Any, Any, Any]] = []
        self._calls = 0

    def __call__(self, block: NDArray[Any]) -> Array:
        """Return the block on the device; what the present stream does next sees it whole."""
        present = self._cupy.cuda.get_current_stream()
        pinned, device, is_sent = self._slot(block)
        is_sent.synchronize()  # the copy before last has left the pinned memory
        np.copyto(pinned[: block.size].reshape(block.shape), block)
        # Work that was queued on the block that these bytes overwrite comes first.
        self._stream.wait_event(present.record())
        there = device[: block.size].reshape(block.shape)
        there.set(pinned[: block.size].reshape(block.shape), stream=self._stream)
        is_sent.record(self._stream)
        present.wait_event(is_sent)
        return there

    def _slot(self, block: NDArray[Any]) -> tuple[Any, Any, Any]:
        cupy = self._cupy
        turn = self._calls % 2
        self._calls += 1
        if turn == len(self._slots):
            self._slots.append(self._new_slot(block))
        elif self._slots[turn][0].size < block.size or self._slots[turn][0].dtype != block.dtype:
            cupy.cuda.get_current_stream().synchronize()
            self._slots[turn] = self._new_slot(block)
        return self._slots[turn]

    def _new_slot(self, block: NDArray[Any]) -> tuple[Any, Any, Any]:
        cupy = self._cupy
        memory = cupy.cuda.alloc_pinned_memory(block.nbytes)
        pinned = np.frombuffer(memory, block.dtype, block.size)
        return pinned, cupy.empty(block.size, block.dtype), cupy.cuda.Event(disable_timing=True)


def rfft(x: Array, n: int) -> Array:
    """Return the spectra of real rows, padded with zeros to `n`, where `x` is."""
    return _fft.rfft(x, n) if namespace(x) is np else namespace(x).fft.rfft(x, n)


def irfft(x: Array, n: int) -> Array:
    """Return the real rows of length `n` that have these spectra, where `x` is."""
    return _fft.irfft(x, n) if namespace(x) is np else namespace(x).fft.irfft(x, n)


def cuda_text(source: Path, defines: tuple[str, ...] = ()) -> str:
    """Return a CUDA C file as it is compiled: the files it includes put in, so that its text says all that it is.

    Parameters
    ----------
    defines : tuple of str
        What the file is to find defined: a name and its value each.
    """
    text = source.read_text(encoding="utf-8")
    text = re.sub(r'^#include "(.+?)"$', lambda found: cuda_text(source.parent / found[1]), text, flags=re.MULTILINE)
    return "".join(f"#define {define}\n" for define in defines) + text


@functools.cache
def _cuda_module(source: Path, defines: tuple[str, ...]) -> Any:
    return require_gpu().RawModule(code=cuda_text(source, defines), options=COMPILER_OPTIONS)


@functools.cache
def cuda_kernel(source: Path, name: str, defines: tuple[str, ...] = ()) -> Any:
    """Compile a CUDA C file for the present device and return one of its kernels; CuPy keeps them on disk."""
    return _cuda_module(source, defines).get_function(name)


def set_constant(source: Path, name: str, values: Array, defines: tuple[str, ...] = ()) -> None:
    """Fill a `__constant__` array of a CUDA C file from an array of the device, in the order of the stream."""
    place = _cuda_module(source, defines).get_global(name)
    require_gpu().ndarray(values.shape, values.dtype, place)[...] = values
