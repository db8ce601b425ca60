"""What spread an equalisation leaves: expected from tables of real chips, and reached on the simulated one.

From the tables only the thresholds at the lowest and the highest trim are used; what the tables say besides is a check,
printed under its own name (`calibration.trim_tables`). On the simulated chip the hidden gain turns codes into keV.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from acquisition.calibrate import steps
from acquisition.instrument import open_instrument
from calibration import trim_tables
from calibration.store import Calibration
from tests.benchmarks.calibration import finished, plan_of, truth_of

ROOT = Path(__file__).resolve().parents[2]


def equalised(mode: str, *, quick: bool) -> Calibration:
    """Equalise the simulated chip."""
    plan = plan_of(mode, quick=quick)
    with open_instrument("sim:fine" if mode.startswith("fine") else "sim:demo") as instrument:
        calibration = steps.begin(instrument, plan)
        return finished(steps.run_step(steps.STEPS["equalise"], instrument, plan, calibration))


def simulated_figures(mode: str, *, quick: bool) -> dict[str, float]:
    """Return the spread before and after in keV, as measured and as it truly is, and the limit of the trims."""
    calibration = equalised(mode, quick=quick)
    record, truth = calibration.equalisation, truth_of(calibration)
    assert record is not None
    gain = float(truth.gain_dac_per_kev[truth.is_good].mean())
    true_dac = [plane[truth.is_good].std() for plane in truth.baseline_dac]
    return {
        "before_kev": _rms(record.sigma_before_dac) / gain,
        "after_kev": _rms(record.sigma_after_dac) / gain,
        "limit_kev": _rms(record.limit_dac) / gain,
        "true_after_kev": _rms(true_dac) / gain,
        "after_e": _rms(record.sigma_after_dac) / gain / record.pair_kev,
        "ratio": _rms(record.sigma_after_dac) / _rms(record.limit_dac),
    }


def _rms(values: object) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(values)))))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tables", type=Path, help="folder with tables thresholdMeansN.txt, at any depth")
    parser.add_argument("--mode", default="colour-csm", help="mode of the simulated chip")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="one round of single steps only")
    options = parser.parse_args()
    shared = Path(os.environ.get("MPXCT_TEST_DATA", ROOT.parent / "shared" / "data")) / "timepix_equalisation"
    folder = options.tables or (shared if shared.is_dir() else None)
    tables = trim_tables.figures(folder) if folder else {}
    simulated = simulated_figures(options.mode, quick=options.quick)
    if options.json:
        sigma_dac = {chip: of_chip["sigma_dac"] for chip, of_chip in tables.items()}
        print(json.dumps({"sigma_dac": sigma_dac, "simulated": simulated, "tables": tables}))
        return
    print(trim_tables.text(tables) if tables else f"no tables at {shared}; name a folder (--tables)")
    print()
    for name, value in simulated.items():
        print(f"simulated chip, {options.mode}: {name:<16} {value:.3f}")


if __name__ == "__main__":
    main()
