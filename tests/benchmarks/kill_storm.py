"""SIGKILL at random moments of a running scan: every flushed frame is read back, every resume ends in the same file.

Each run is `mpxct acquire --resume` in a process of its own, forked from one that has loaded the program and the
simulator, so that the kills fall into the scan and not into Python's start; `--cold` starts an interpreter each time.
What was flushed is what the run's log says. In the end each file is compared with that of an undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a script finds the packages of its own checkout

import mpxct
from acquisition.plan import load_plan
from acquisition.resume import first_frames, step_of
from acquisition.scan import ScanStatus
from acquisition.scan_file import Scan, read_scan
from acquisition.scan_layout import partial_path
from acquisition.steps import expand
from calibration.store import save
from firmware_iface.device import open_detector
from firmware_iface.errors import BadFile
from tests.rough_calibration import rough_calibration

ROOT = Path(__file__).resolve().parents[2]
PLAN = """
[detector]
exposure_s = 0.02
[scan]
n_views = {n_views}
frames_per_view = 1
flats_every_n_views = 30
n_flats = 3
"""
LONGEST_RUN_S = 600.0


@dataclass(slots=True)
class Storm:
    """Scans that are killed, looked at, and gone on with until they are whole."""

    folder: Path
    device: str
    is_cold: bool
    n_kills: int = 0
    n_lost_flushed: int = 0
    n_unresumable: int = 0
    n_whole: int = 0
    n_different: int = 0
    n_none_yet: int = 0
    n_closing: int = 0

    @property
    def scan(self) -> Path:
        """The file that all are after."""
        return self.folder / "scan.h5"

    def start(self, name: str, *options: str) -> int:
        """Start one run and return the number of its process."""
        arguments = [
            "acquire", str(self.folder / "plan.toml"), "--device", self.device,
            "--calibration", str(self.folder / "calibration.h5"), "-o", str(self.folder / name), "--verbose", *options,
        ]  # fmt: skip
        said = (self.folder / "said.txt").open("ab")
        with said:
            if self.is_cold:
                return subprocess.Popen([sys.executable, str(ROOT / "mpxct.py"), *arguments], stderr=said).pid
            child = os.fork()
            if child:
                return child
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            sys.argv = ["mpxct", *arguments]
            code = 70
            try:
                mpxct.main()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            finally:
                os._exit(code)

    def look(self, n_runs_before: int, first: list[int], whole: Scan) -> None:
        """Read back what was flushed of a scan that was killed."""
        records = self.records()
        n_runs = sum(record["kind"] == "start" for record in records)
        kinds = [record["kind"] for record in records]
        since = len(kinds) - kinds[::-1].index("start") if n_runs > n_runs_before else len(kinds)
        own = [record["n_frames"] for record in records[since:] if record["kind"] == "flushed"]
        earlier = [record["n_frames"] for record in records[:since] if record["kind"] == "flushed"]
        n_flushed = own[-1] if own else 0
        if not own and earlier:  # killed before it said what it has: of a broken step it may have let go already
            n_flushed = first[step_of(first, earlier[-1])]
        if self.scan.exists():  # killed between the new name and the end
            self.n_closing += 1
            return
        if not partial_path(self.scan).exists():
            self.n_none_yet += 1
            self.n_lost_flushed += n_flushed
            return
        try:
            found = read_scan(partial_path(self.scan), allow_partial=True)
            n_there = min(found.shape[0], whole.shape[0])
            counts = found.counts(slice(0, n_there))
        except BadFile as error:
            print(f"kill {self.n_kills}: {error}", file=sys.stderr)
            self.n_lost_flushed += n_flushed
            return
        is_same = (
            (counts == whole.counts(slice(0, n_there))).all(axis=(1, 2, 3)) if is_repeatable(self.device) else True
        )
        is_same &= found.angles_rad == whole.angles_rad[:n_there]
        is_same &= found.image_key == whole.image_key[:n_there]
        if is_repeatable(self.device):
            is_same &= (counts == whole.counts(slice(0, n_there))).all(axis=(1, 2, 3))
        n_lost = max(n_flushed - n_there, 0) + int(np.count_nonzero(~is_same[:n_flushed]))
        if n_lost:
            print(f"\nkill {self.n_kills}: {n_there} of {n_flushed}; the log ends {kinds[-4:]}", file=sys.stderr)
        self.n_lost_flushed += n_lost

    def records(self) -> list[dict]:
        """Return what the log has so far; the last line may have been cut."""
        file = self.scan.with_suffix(".jsonl")
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        return [json.loads(line) for line in lines]

    def judge(self, whole: Scan) -> None:
        """Compare a scan that got whole with the undisturbed one, and clear it away."""
        ours = read_scan(self.scan)
        self.n_whole += 1
        is_same = (
            ours.status is ScanStatus.COMPLETE
            and np.array_equal(ours.image_key, whole.image_key)
            and np.array_equal(ours.angles_rad, whole.angles_rad)
            and (not is_repeatable(self.device) or np.array_equal(ours.counts(), whole.counts()))
        )
        self.n_different += not is_same
        self.clear()

    def clear(self) -> None:
        """Remove the scan and its log."""
        for file in self.folder.glob("scan.*"):
            file.unlink()

    def run(
        self, n_kills: int, until_s: float, duration_s: float, first: list[int], whole: Scan, rng: random.Random
    ) -> None:
        """Kill, look, go on, until so many kills are done, or the time is over, and the last scan is whole."""
        while self.n_kills < n_kills or not self.n_whole or partial_path(self.scan).exists():
            n_runs = sum(record["kind"] == "start" for record in self.records())
            process = self.start("scan.h5", "--resume")
            n_kills = n_kills if time.monotonic() < until_s else self.n_kills
            if self.n_kills < n_kills:
                code = wait(process, rng.uniform(0, duration_s))
                if code is None:
                    os.kill(process, signal.SIGKILL)
                    wait(process, LONGEST_RUN_S)
                    self.n_kills += 1
                    print(f"\rkill {self.n_kills}", end="", file=sys.stderr, flush=True)
                    self.look(n_runs, first, whole)
                    if self.scan.exists():
                        self.judge(whole)
                    continue
            else:
                code = wait(process, LONGEST_RUN_S)
            if code == 0:
                self.judge(whole)
            else:
                print(f"a run ended with {code} after {self.n_kills} kills", file=sys.stderr)
                print((self.folder / "said.txt").read_text()[-2000:], file=sys.stderr)
                self.n_unresumable += 1
                self.clear()


def is_repeatable(device: str) -> bool:
    """Whether an exposure counts the same whenever it is taken."""
    return "repeatable=1" in device


def wait(process: int, timeout_s: float) -> int | None:
    """Wait for a process to end; return its exit status, or None if it runs on."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        number, status = os.waitpid(process, os.WNOHANG)
        if number:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def warm_up(device: str) -> None:
    """Load all that a run loads, and leave no thread behind: a fork takes only one along."""
    import acquisition.runner  # noqa: F401 - what `mpxct acquire` would load when it starts
    from sim import strips

    with open_detector(device) as detector:
        for line in ("SOUR TUBE", "TUBE 118 0.006", "BEAM ON", "SAMP vials"):
            detector.auxiliary(line)
        list(detector.frames(1, 0.001))
    pool = strips._pool()
    if pool is not None:
        pool.shutdown()
    strips._pool.cache_clear()
    deadline_s = time.monotonic() + 10
    while threading.active_count() > 1 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    if threading.active_count() > 1:
        sys.exit(f"threads are left: {threading.enumerate()}")


def storm(
    n_kills: int, device: str, n_views: int, *, seconds: float = math.inf, is_cold: bool = False, seed: int = 1
) -> dict[str, object]:
    """Let a storm pass over scans and return its figures; fewer kills where the seconds are not enough."""
    until_s = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "plan.toml").write_text(PLAN.format(n_views=n_views))
        plan = load_plan(folder / "plan.toml")
        save(rough_calibration(plan), folder / "calibration.h5")
        if not is_cold:
            warm_up(device)
        over = Storm(folder=folder, device=device, is_cold=is_cold)
        began_s = time.monotonic()
        if (code := wait(over.start("whole.h5"), LONGEST_RUN_S)) != 0:
            sys.exit(f"the undisturbed run ended with {code}: {(folder / 'said.txt').read_text()[-2000:]}")
        duration_s = time.monotonic() - began_s
        whole = read_scan(folder / "whole.h5")
        over.run(n_kills, until_s, duration_s, first_frames(tuple(expand(plan))), whole, random.Random(seed))
        return {
            "kills": over.n_kills,
            "lost_flushed_frames": over.n_lost_flushed,
            "unresumable": over.n_unresumable,
            "whole_scans": over.n_whole,
            "different_scans": over.n_different,
            "kills_before_a_file": over.n_none_yet,
            "kills_after_the_last_name": over.n_closing,
            "steps": len(expand(plan)),
            "undisturbed_s": round(duration_s, 2),
            "counts_compared": is_repeatable(device),
        }


def main() -> None:
    """Let the storm pass, and print the table or the JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--device", default="sim:demo?repeatable=1", help="URL of the instrument")
    parser.add_argument("--views", type=int, default=100, help="views of each scan")
    parser.add_argument("--seconds", type=float, default=math.inf, help="no more kills after this time")
    parser.add_argument("--cold", action="store_true", help="start a new interpreter for each run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="few kills of a short scan")
    arguments = parser.parse_args()
    n_kills, n_views = (5, 20) if arguments.quick else (arguments.kills, arguments.views)
    figures = storm(
        n_kills,
        arguments.device,
        n_views,
        seconds=min(arguments.seconds, 25.0) if arguments.quick else arguments.seconds,
        is_cold=arguments.cold,
        seed=arguments.seed,
    )
    print(
        json.dumps(figures) if arguments.json else "\n".join(f"{name:<26} {value}" for name, value in figures.items())
    )
    if figures["lost_flushed_frames"] or figures["unresumable"] or figures["different_scans"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
