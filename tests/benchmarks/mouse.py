"""What the decomposition reads in the contrast-agent cuvettes of a real measured slice.

The data are those of the tests: eight bins of a plastinated mouse beside cuvettes of iodine, barium and gadolinium,
and the decomposition matrix its authors published; plain least squares.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from reconstruction.decompose_cli import vial_figures, vial_table
from reconstruction.decomposition import read_matrix_csv
from reconstruction.materials import decompose_volume, read_image_folder
from reconstruction.quality import find_vials, k_edge_materials, vial_statistics

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="the same: it takes a second")
    options = parser.parse_args()
    folder = Path(os.environ.get("MPXCT_TEST_DATA", ROOT.parent / "shared" / "data")) / "mr-bmd"
    if not folder.is_dir():
        sys.exit(f"real data not found at {folder}; set MPXCT_TEST_DATA")
    began = time.perf_counter()
    matrix = read_matrix_csv(folder / "decomposition_matrix.csv")
    materials = decompose_volume(read_image_folder(folder, scale=0.0453, voxel_mm=0.045), matrix)
    agents = k_edge_materials(matrix)
    statistics = vial_statistics(materials, find_vials(materials, agents))
    seconds = time.perf_counter() - began
    if not options.json:
        print(f"{vial_table(statistics, agents)}\n{seconds:.2f} s")
        return
    found = vial_figures(statistics)
    figures = {
        "cuvettes": {s.vial.material: dict(zip(s.materials, s.mean_g_cm3.tolist(), strict=True)) for s in statistics},
        "spread_g_cm3": {s.vial.material: dict(zip(s.materials, s.sd_g_cm3.tolist(), strict=True)) for s in statistics},
        "cross_talk_g_cm3": found["cross_talk_g_cm3"],
        "cross_talk_rmse_g_cm3": found["cross_talk_rmse_g_cm3"],
        "seconds": seconds,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
