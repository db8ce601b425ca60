"""A few kills and a few seconds of what `tests/benchmarks/kill_storm.py` and `soak.py` do for long."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent / "benchmarks"

pytestmark = [pytest.mark.timeout(500), pytest.mark.slow]  # test_scan_crash and test_storm hold the same laws sooner


def figures(script: str, *arguments: str) -> dict:
    command = [sys.executable, str(BENCHMARKS / script), *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=450, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_killed_scans_lose_nothing_and_end_as_undisturbed_ones() -> None:
    found = figures("kill_storm.py", "--kills", "4", "--views", "8")
    assert found["kills"] == 4
    assert (found["lost_flushed_frames"], found["unresumable"], found["different_scans"]) == (0, 0, 0)
    assert found["counts_compared"]
    assert found["whole_scans"] >= 1


def test_a_short_soak_loses_nothing() -> None:
    found = figures("soak.py", "--seconds", "5", "--rate", "50", "--quick")
    assert (found["frames"], found["lost"]) == (250, 0)
    assert found["rss_growth_mb"] < 20
