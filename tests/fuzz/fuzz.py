"""Run a coverage-guided fuzzer over one target, or over all of them in turn; README.md says how.

Usage: python tests/fuzz/fuzz.py TARGET|all [libFuzzer options]
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import atheris

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))  # a script finds the packages of its own checkout

import numba  # noqa: E402, F401 - before the instrumentation, which is for our parsers alone

PARSERS = ["firmware_iface.codec", "firmware_iface.merlin", "firmware_iface.merlin_stream"]
with atheris.instrument_imports(include=PARSERS):
    from tests.fuzz.targets import TARGETS

MAX_INPUT_BYTES = {
    "frames": 128,
    "replies": 256,
    "merlin_header": 1024,
    "merlin_stream": 256,
    "acquisition_header": 512,
    "mib": 2048,
}
RUNS = {
    "frames": 4_000_000,
    "replies": 2_000_000,
    "merlin_stream": 800_000,
    "mib": 800_000,
    "merlin_header": 1_600_000,
    "acquisition_header": 900_000,
}
"""10.1 million together, most of them to the decoder of frames; the longest first, for several run at once."""


def fuzz(target: str, options: list[str]) -> None:
    """Hand one target to libFuzzer; new inputs go to a folder that git ignores, or to those that the options name."""
    found = ROOT / "build" / "fuzz" / target
    found.mkdir(parents=True, exist_ok=True)
    if all(option.startswith("-") for option in options):
        options = [*options, str(found), str(HERE / "corpus" / target)]
    limits = [f"-max_len={MAX_INPUT_BYTES[target]}", f"-artifact_prefix={found.parent}/{target}-"]
    # To merge, libFuzzer starts what stands in the first word, in a shell.
    atheris.Setup([f"{sys.executable} {__file__} {target}", *limits, *options], TARGETS[target])
    atheris.Fuzz()


def fuzz_all(options: list[str]) -> int:
    """Fuzz every target in a process of its own, one on each core; print totals, and return the exit code."""
    began_s = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ends = list(pool.map(lambda target: _fuzz_one(target, options), RUNS))
    print(f"{'together':<20} {sum(n for n, _ in ends):>10,} inputs in {time.monotonic() - began_s:.0f} s", flush=True)
    return max(code for _, code in ends)


def _fuzz_one(target: str, options: list[str]) -> tuple[int, int]:
    """Return how many inputs a target took, and 1 if one broke it."""
    began_s = time.monotonic()
    stated = [f"-runs={RUNS[target]}", "-verbosity=0", "-print_final_stats=1"]
    command = [sys.executable, __file__, target, *stated, *options]
    process = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    executed = re.search(r"number_of_executed_units:\s*(\d+)", process.stderr)
    n_inputs, took_s = int(executed[1]) if executed else 0, time.monotonic() - began_s
    print(f"{target:<20} {n_inputs:>10,} inputs in {took_s:.0f} s, exit code {process.returncode}", flush=True)
    if process.returncode:
        print(process.stderr[-4000:], file=sys.stderr, flush=True)
    return n_inputs, int(process.returncode != 0)


def main() -> None:
    """Read the command line."""
    if len(sys.argv) < 2 or sys.argv[1] not in {*TARGETS, "all"}:
        sys.exit(f"usage: fuzz.py TARGET|all [libFuzzer options]; targets: {', '.join(TARGETS)}")
    _, target, *options = sys.argv
    sys.exit(fuzz_all(options)) if target == "all" else fuzz(target, options)


if __name__ == "__main__":
    main()
