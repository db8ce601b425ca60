"""How fast a scan goes to the disk, how much it shrinks, how long a flush and the closing take.

Frames of 256 x 256 pixels and 12 bits, Poisson counts on a smooth field, are written as fast as the writer takes them,
with its own policy of synchronising with the disk. The mean counts are those of a dark corner, a short view and an open
beam.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a script finds the packages of its own checkout

from acquisition.scan import ImageKey, Readout
from acquisition.scan_writer import ScanWriter
from firmware_iface.frame import Frame

MEANS = (2, 100, 2000)
READOUT = Readout(shape=(1, 256, 256), depth_bits=12, thresholds=(0,), thresholds_kev=(20.0,), pitch_mm=0.055)
N_DIFFERENT = 64


class Figures(NamedTuple):
    """What one scan of a mean count took."""

    frames_per_s: float
    mb_per_s: float
    ratio: float
    flush_ms: float
    worst_flush_ms: float
    close_ms: float
    rss_growth_mb: float


def exposures(mean: float) -> NDArray[np.uint16]:
    """Return Poisson counts of a field that falls to half towards its corners."""
    across = np.linspace(-1, 1, 256)
    field = mean * (1 - 0.25 * (across[:, None] ** 2 + across**2))
    counts = np.random.default_rng(int(mean)).poisson(field, (N_DIFFERENT, 1, 256, 256))
    return np.minimum(counts, 4095).astype(np.uint16)


def measure(mean: float, seconds: float, folder: Path) -> Figures:
    """Write for so long, and close."""
    counts, path, n, flushes_s = exposures(mean), folder / f"{mean}.h5", 0, []
    with ScanWriter(path, READOUT) as writer:
        for n in range(N_DIFFERENT):  # the filter and the disk are warm
            write(writer, counts, n)
        writer.flush()
        writer.worst_flush_s, rss_mb, began_s = 0.0, resident_mb(), time.perf_counter()
        last_flushed = writer.n_flushed
        while time.perf_counter() - began_s < seconds:
            n += 1
            write(writer, counts, n)
            if writer.n_flushed != last_flushed:
                last_flushed = writer.n_flushed
                flushes_s.append(writer.flush_s)
        took_s, growth_mb = time.perf_counter() - began_s, resident_mb() - rss_mb
        began_s = time.perf_counter()
        writer.finish()
        close_s = time.perf_counter() - began_s
    n_timed, n_bytes = n + 1 - N_DIFFERENT, counts[0].nbytes
    result = Figures(
        frames_per_s=n_timed / took_s,
        mb_per_s=n_timed * n_bytes / took_s / 1e6,
        ratio=(n + 1) * n_bytes / path.stat().st_size,
        flush_ms=1e3 * float(np.median(flushes_s)) if flushes_s else 0.0,
        worst_flush_ms=1e3 * writer.worst_flush_s,
        close_ms=1e3 * close_s,
        rss_growth_mb=growth_mb,
    )
    path.unlink()
    return result


def write(writer: ScanWriter, counts: NDArray[np.uint16], n: int) -> None:
    """Write the next of the frames."""
    frame = Frame(
        counts=counts[n % N_DIFFERENT], thresholds=(0,), sequence=n, timestamp_ns=n, exposure_ns=800_000, run_id=1
    )
    writer.write(frame, ImageKey.PROJECTION)


def resident_mb() -> float:
    """Return the most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure, and print the table or the JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="3 s for each mean count instead of 15")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; otherwise that of temporary files")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = {mean: measure(mean, 3 if arguments.quick else 15, Path(folder)) for mean in MEANS}
    if arguments.json:
        print(
            json.dumps(
                {f"{name}_mean_{mean}": value for mean in MEANS for name, value in found[mean]._asdict().items()}
            )
        )
        return
    print("mean   frames/s   MB/s in   ratio   flush ms   worst ms   close ms   memory MB")
    for mean, row in found.items():
        print(
            f"{mean:4} {row.frames_per_s:10.0f} {row.mb_per_s:9.0f} {row.ratio:7.1f} {row.flush_ms:10.1f} "
            f"{row.worst_flush_ms:10.1f} {row.close_ms:10.1f} {row.rss_growth_mb:11.1f}"
        )


if __name__ == "__main__":
    main()
