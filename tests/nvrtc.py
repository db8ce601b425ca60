"""NVIDIA's run-time compiler through ctypes: CUDA sources to cubins, with neither GPU nor driver.

# Ref: the calls are those of the NVRTC manual, "User Interface"; `--ptxas-options=-v` makes the assembler tell
#      registers, stack and spills in the log.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

LIBRARIES = ("libnvrtc.so.12", "nvrtc64_120_0.dll")


QUIET = ("--diag-suppress=177",)
"""Functions of a header that a source does not use are no fault."""


@dataclass(frozen=True)
class Assembled:
    """What the assembler tells of a kernel."""

    registers: int
    stack_bytes: int
    spilt_bytes: int


def load() -> ctypes.CDLL:
    """Return the compiler from the wheel `nvidia-cuda-nvrtc-cu12`, or skip the test."""
    package = importlib.util.find_spec("nvidia.cuda_nvrtc") if importlib.util.find_spec("nvidia") else None
    folders = [Path(place) for place in package.submodule_search_locations] if package else []
    found = [folder / part / name for folder in folders for part in ("lib", "bin") for name in LIBRARIES]
    library = next((path for path in found if path.exists()), None)
    if library is None:
        pytest.skip("nvidia-cuda-nvrtc-cu12 is not installed (it has no wheel for this system)")
    return ctypes.CDLL(str(library))


@functools.cache
def compile_cuda(source: str, architecture: str, options: tuple[str, ...] = ()) -> tuple[bytes, str, str]:
    """Return the cubin, the PTX and the log; fail the test with the log where the source does not compile."""
    nvrtc = load()
    program = ctypes.c_void_p()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"source.cu", 0, None, None) == 0
    every = (f"--gpu-architecture={architecture}", "--ptxas-options=-v", *QUIET, *options)
    status = nvrtc.nvrtcCompileProgram(program, len(every), (ctypes.c_char_p * len(every))(*map(str.encode, every)))
    log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).rstrip(b"\0").decode()
    assert status == 0, log
    cubin = _text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    ptx = _text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program).rstrip(b"\0").decode()
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return cubin, ptx, log


def _text(size_of, copy, program) -> bytes:
    size = ctypes.c_size_t()
    assert size_of(program, ctypes.byref(size)) == 0
    text = ctypes.create_string_buffer(size.value)
    assert copy(program, text) == 0
    return text.raw


def assembled(log: str) -> dict[str, Assembled]:
    """Read what the assembler told, kernel by kernel."""
    told = {}
    for part in log.split("Compiling entry function '")[1:]:
        numbers = (
            re.search(r"Used (\d+) registers", part),
            re.search(r"(\d+) bytes stack frame", part),
            re.search(r"(\d+) bytes spill stores", part),
        )
        told[part.split("'")[0]] = Assembled(*(int(found[1]) for found in numbers))
    return told
