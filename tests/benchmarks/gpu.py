"""How fast the reconstruction is on a GPU, beside what the device's own rates allow.

One command on a machine with a GPU, after `pip install mpxct[gpu-cuda12]`: `python tests/benchmarks/gpu.py`. The work
is a circular cone beam: n^3 voxels, n views of n x n pixels of pitch 1.55, source to axis 4 n, source to detector 6 n
(voxels); n is 1024, with `--quick` 256. Values are random: none of it depends on them.

How the ceilings come about. Rates are measured in the same run: bytes of a copy, loads of a pixel that lies in the
nearest cache, multiply-adds, interpolations by the texture units. A voxel update of the back-projection takes 4 loads,
as many instructions as its loop has in the sm_90 assembly, and its share of the bytes of volume and projections; the
slowest of these is what the kernel could reach. A kernel by textures would take one interpolation each; the larger of
both is the ceiling. The projector and its adjoint take 4 loads for each slice that a ray crosses. A pass of OS-SART
takes both, and reads the volume and a gradient and writes the volume for each subset. A step of the TV proximal
operator reads three dual components and the volume and writes the three, at the least.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from calibration.geometry import Geometry
from firmware_iface.errors import WrongUsage
from reconstruction import backend
from reconstruction.kernels import backproject_gpu
from reconstruction.methods.least_squares import os_sart
from reconstruction.priors import TotalVariation
from reconstruction.projector import Projector
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.volume import Grid

RATES, TEXTURE = (Path(__file__).with_name(f"gpu_{name}.cu") for name in ("rates", "texture"))
SINGLE = ("CHANNELS 1", "STORED float")
CHAINS = 8
"""As in the sources."""
INSTRUCTIONS_PER_UPDATE = {1: 35.0, 2: 20.0, 4: 14.5}
"""Of `upright` in backproject.cu, per channel, counted in the loop of its sm_90 assembly (279 for 8 voxels, 321 for 8
voxels of two channels, 232 for 4 voxels of four)."""
N_SUBSETS = 16
AIMS = {"fdk": (400.0, 0.6), "os_sart": (None, 0.5), "tv": (None, 0.5)}
"""Giga updates per second, and share of the ceiling."""


@dataclass(frozen=True)
class Rates:
    """What the device does in a second."""

    bytes: float
    loads: float
    multiply_adds: float
    interpolations: float


@dataclass(frozen=True)
class Work:
    """The scan that all is measured on."""

    n: int
    n_channels: int = 1

    @property
    def scan(self) -> ScanGeometry:
        n = self.n
        geometry = Geometry(source_to_detector_mm=6 * n, source_to_object_mm=4 * n, pitch_mm=1.55, rows=n, cols=n)
        return ScanGeometry.circular(geometry, np.arange(n) * 2 * np.pi / n + 0.01)

    @property
    def grid(self) -> Grid:
        return Grid(shape=(self.n, self.n, self.n), voxel_mm=1.0)

    @property
    def n_updates(self) -> float:
        return float(self.n_channels * self.n**4)


def seconds(work: Callable[[], Any], n_times: int = 3) -> float:
    """The least of several times, the first one not counted: it compiles."""
    stream = backend.require_gpu().cuda.get_current_stream()
    least = np.inf
    for _ in range(n_times + 1):
        stream.synchronize()
        begin = time.perf_counter()
        work()
        stream.synchronize()
        if _:
            least = min(least, time.perf_counter() - begin)
    return least


def random(*shape: int) -> Any:
    """Numbers on the device."""
    return backend.require_gpu().random.standard_normal(shape, dtype=np.float32)


def measure_rates(n_blocks: int, n_steps: int, n_copied: int) -> Rates:
    """Run the four small programs; sizes are those of the launch, and how many floats are copied."""
    cupy = backend.require_gpu()
    there, here = cupy.zeros(n_blocks * 256, np.float32), random(4096)
    n_asked = n_blocks * 256.0 * n_steps * CHAINS
    launch = (n_blocks, 1, 1), (256, 1, 1)

    def run(name: str, *arguments: Any) -> float:
        kernel = backend.cuda_kernel(RATES, name, SINGLE)
        return n_asked / seconds(lambda: kernel(*launch, (there, *arguments)))

    source, target = cupy.zeros(n_copied, np.float32), cupy.empty(n_copied, np.float32)
    return Rates(
        bytes=8.0 * n_copied / seconds(lambda: cupy.copyto(target, source)),
        loads=run("near_loads", here, np.int32(n_steps), np.int32(len(here) - 1)),
        multiply_adds=run("multiply_adds", np.int32(n_steps), np.float32(0.999)),
        interpolations=interpolation_rate(launch, there, n_steps, n_asked),
    )


def interpolation_rate(launch: Any, there: Any, n_steps: int, n_asked: float) -> float:
    """Interpolations in float32 out of an image that stays in the nearest cache."""
    cupy = backend.require_gpu()
    textures, runtime = cupy.cuda.texture, cupy.cuda.runtime
    image = textures.CUDAarray(
        textures.ChannelFormatDescriptor(32, 0, 0, 0, runtime.cudaChannelFormatKindFloat), 64, 64
    )
    image.copy_from(random(64, 64))
    texture = textures.TextureObject(
        textures.ResourceDescriptor(runtime.cudaResourceTypeArray, cuArr=image),
        textures.TextureDescriptor(
            (runtime.cudaAddressModeClamp,) * 2, runtime.cudaFilterModeLinear, runtime.cudaReadModeElementType
        ),
    )
    kernel = backend.cuda_kernel(TEXTURE, "interpolations")
    return n_asked / seconds(lambda: kernel(*launch, (there, texture, np.int32(n_steps))))


def measure_fdk(work: Work, rates: Rates, *, is_half: bool) -> dict[str, dict[str, float]]:
    """Back-projection alone, and with the ramp before it; all on the device."""
    n, n_channels = work.n, work.n_channels
    to_mm = np.eye(4)
    to_mm[:3, 3] = -(n - 1) / 2
    matrices, weights = work.scan.matrices() @ to_mm, np.full(n, np.pi / n)
    volume = backend.require_gpu().zeros((n_channels, n, n, n), np.float32)
    n_block = min(n, backproject_gpu.VIEWS_PER_LAUNCH)
    block = random(n_block, n_channels, n, n)
    gain = backend.to_device(np.linspace(0, 1, n + 1, dtype=np.float32))

    def back_project(filtered: Callable[[], Any]) -> None:
        for first in range(0, n, n_block):
            views = slice(first, min(first + n_block, n))
            images = filtered()[: views.stop - first]
            backproject_gpu.backproject(volume, images, matrices[views], weights[views], is_half=is_half)

    def ramp() -> Any:
        return backend.irfft(backend.rfft(block, 2 * n) * gain, 2 * n)[..., :n]

    width = 4 if n_channels > 2 else n_channels
    n_bytes = n_channels * (8.0 * n**3 * -(-n // n_block) + n**3 * (12.0 if not is_half else 8.0))
    by_loads = min(
        rates.loads / 4 * (2 if is_half and width > 1 else 1), rates.multiply_adds / INSTRUCTIONS_PER_UPDATE[width]
    )
    ceiling = min(max(by_loads, rates.interpolations), work.n_updates / n_bytes * rates.bytes)
    figures = {}
    for name, images in (("backprojection", lambda: block), ("fdk", ramp)):
        took = seconds(lambda images=images: back_project(images), 2)
        figures[name] = {"ours_s": took, **reached(work.n_updates / took, ceiling)}
    return figures


def reached(rate: float, ceiling: float) -> dict[str, float]:
    """A rate beside its ceiling, both in giga updates per second."""
    return {"gups": rate / 1e9, "ceiling_gups": ceiling / 1e9, "share": rate / ceiling}


def crossings(work: Work, lengths: Any) -> float:
    """How many slices the rays of a view cross, from their lengths in voxels: (rows, cols) of the first view."""
    scan = work.scan.take([0])
    ray = scan.detector_mm - scan.source_mm
    cols, rows = (np.arange(n) - (n - 1) / 2 for n in (scan.cols, scan.rows))
    along = ray[0] + cols[:, None] * scan.u_mm[0] + rows[:, None, None] * scan.v_mm[0]
    return float((lengths * np.abs(along).max(-1) / np.linalg.norm(along, axis=-1)).sum())


def measure_iterations(work: Work, rates: Rates) -> dict[str, dict[str, float]]:
    """The pair, a pass of OS-SART and a step of the TV proximal operator."""
    n, n_channels = work.n, work.n_channels
    projector = Projector(work.scan, work.grid, n_channels=n_channels, use_gpu=True)
    x = random(*projector.domain_shape)
    y = projector.forward(x)
    ones = backend.require_gpu().ones((1, n, n, n), np.float32)
    lengths = Projector(work.scan.take([0]), work.grid, use_gpu=True).forward(ones)
    del ones
    n_crossed = n_channels * n * crossings(work, backend.to_host(lengths)[0, 0])
    pair_s = 4 * n_crossed / rates.loads
    figures = {}
    for name, done in (
        ("forward", lambda: projector.forward(x, out=y)),
        ("adjoint", lambda: projector.adjoint(y, out=x)),
    ):
        took = seconds(done, 2)
        figures[name] = {"ours_s": took, "ceiling_s": pair_s, "share": pair_s / took}
    # Passes after the first one differ from it by nothing but what the first prepares.
    passes = os_sart(projector, y, n_iterations=3, n_subsets=N_SUBSETS)
    took = seconds(lambda: next(passes), 2)
    elementwise_s = n_channels * (12.0 * n**3 * N_SUBSETS + 12.0 * n**3) / rates.bytes
    ceiling_s = 2 * pair_s + elementwise_s
    figures["os_sart"] = {"ours_s": took, "ceiling_s": ceiling_s, "share": ceiling_s / took}
    prox, out = TotalVariation(strength_per_mm=1e-3).prepare(x), backend.require_gpu().empty_like(x)
    one, more = (
        seconds(lambda n_steps=n_steps: prox.prox(out, x, 1.0, n_iterations=n_steps, is_non_negative=True), 2)
        for n_steps in (1, 5)
    )
    ceiling_s = n_channels * 28.0 * n**3 / rates.bytes
    took = (more - one) / 4
    figures["tv"] = {"ours_s": took, "ceiling_s": ceiling_s, "share": ceiling_s / took}
    return figures


def run(sizes: dict[str, int], *, n_blocks: int, n_steps: int, n_copied: int) -> dict[str, Any]:
    """All figures: of the device, then for each problem and operation."""
    cupy = backend.require_gpu()
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    rates = measure_rates(n_blocks, n_steps, n_copied)
    figures: dict[str, Any] = {"device": name, "memory_bytes": backend.total_bytes(), "rates_per_s": vars(rates)}
    for problem, n in sizes.items():
        work, four = Work(n), Work(n // 2, n_channels=4)
        figures[problem] = {
            **measure_fdk(work, rates, is_half=False),
            **{f"{name} half": row for name, row in measure_fdk(work, rates, is_half=True).items()},
            **{f"{name} 4 channels n/2": row for name, row in measure_fdk(four, rates, is_half=False).items()},
            **measure_iterations(work, rates),
        }
        cupy.get_default_memory_pool().free_all_blocks()
    return figures


def table(figures: dict[str, Any]) -> str:
    """The same for people."""
    rates = figures["rates_per_s"]
    lines = [figures["device"], *(f"  {name:<16}{rate / 1e9:>12.1f} G/s" for name, rate in rates.items())]
    for problem, operations in figures.items():
        if problem in ("device", "memory_bytes", "rates_per_s"):
            continue
        lines.append(f"{problem:<28}{'s':>10}{'GUPS':>10}{'of ceiling':>12}  aim")
        for name, row in operations.items():
            gups = f"{row['gups']:>10.0f}" if "gups" in row else f"{'':>10}"
            lines.append(f"  {name:<26}{row['ours_s']:>10.4f}{gups}{row['share']:>12.0%}  {aim(name, row)}")
    return "\n".join(lines)


def aim(name: str, row: dict[str, float]) -> str:
    """What was aimed at, and whether it is met."""
    if name not in AIMS:
        return ""
    gups, share = AIMS[name]
    is_met = row["share"] >= share and (gups is None or row["gups"] >= gups)
    return f"{f'{gups:.0f} GUPS, ' if gups else ''}{share:.0%}: {'met' if is_met else 'MISSED'}"


def main() -> int:
    """Print the figures, or say why there are none."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--quick", action="store_true", help="256 instead of 1024")
    parser.add_argument("--size", type=int, help="n, where 1024 is too much for the device's memory")
    arguments = parser.parse_args()
    try:
        backend.require_gpu()
    except WrongUsage as error:
        message = f"this measures a GPU, and {error}"
        print(json.dumps({"error": message}) if arguments.json else message)
        return 2
    n = arguments.size or (256 if arguments.quick else 1024)
    figures = run({f"cone {n}": n}, n_blocks=4096, n_steps=512, n_copied=2**26 if arguments.quick else 2**28)
    print(json.dumps(figures) if arguments.json else table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
