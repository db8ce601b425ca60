"""Bake the tables that calibration reads: matter from xraydb, and the tube from SpekPy. Run by hand, rarely.

    python calibration/data/bake.py matter    # needs xraydb (data CC0)
    python calibration/data/bake.py tube      # needs spekpy (MIT)

The two libraries are never needed at run time. What the arrays hold stands in `README.md` beside this script.

# Ref: W. T. Elam, B. D. Ravel, J. R. Sieber 2002, Radiat. Phys. Chem. 63, 121, as tabulated by xraydb 4.5.8.
# Ref: G. Poludniowski et al. 2021, Med. Phys. 48, 3630 (SpekPy v2); model `spekpy-v2-casim`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from xraydb import XrayDB

Array = NDArray[np.float64]
LogsOf = Callable[[Array], Array]

FOLDER = Path(__file__).parent
LOWEST_KEV, HIGHEST_KEV = 1.0, 160.0
TOLERANCE = 2e-4
ASIDE = 1e-8
"""xraydb interpolates across two intervals at the very knots of its table, so every look-up steps aside by this."""

ANODE_DEG = (6.0, 8.0, 10.0, 12.0, 15.0, 18.0, 22.0)
KVP = np.arange(20, 151)
BIN_KEV = 1.0


def elam_logs(database: XrayDB, symbol: str, energies_kev: Array) -> Array:
    """Logarithms of the three cross sections: (3, n) in log cm2/g."""
    kinds = ("photo", "coh", "incoh")
    return np.log([database.cross_section_elam(symbol, energies_kev * 1e3, kind=kind) for kind in kinds])


def absorption_edges(database: XrayDB, symbol: str) -> list[tuple[float, float]]:
    """Where the absorption table jumps, and where that edge shall stand: (table_kev, stated_kev) upwards.

    The table's K edge differs from the stated level by up to some eV; the baked one stands at the stated level, so
    that attenuation jumps exactly at the shell's `edge_kev`.
    """
    knots = np.array(json.loads(database.get_cache("photoabsorption", column="element", value=symbol)[0].log_energy))
    tabled = np.exp(np.unique(knots[:-1][np.diff(knots) == 0])) / 1e3
    tabled = tabled[(tabled > LOWEST_KEV * 1.001) & (tabled < HIGHEST_KEV * 0.999)]
    level = database.xray_edges(symbol)["K"].energy / 1e3
    return [(edge, level if abs(edge / level - 1) < 0.005 else edge) for edge in tabled]


def bisected(logs_of: LogsOf, low_kev: float, high_kev: float) -> list[float]:
    """Energies between two ends such that straight lines in log-log miss the curve by less than the tolerance."""
    at = np.exp(np.linspace(np.log(low_kev), np.log(high_kev), 5))
    logs = logs_of(at)
    straight = logs[:, :1] + (logs[:, -1:] - logs[:, :1]) * np.linspace(0, 1, 5)
    if np.abs(logs - straight).max() < TOLERANCE:
        return []
    return [*bisected(logs_of, low_kev, at[2]), at[2], *bisected(logs_of, at[2], high_kev)]


def element_nodes(database: XrayDB, symbol: str) -> tuple[Array, Array]:
    """Nodes of one element: energies_kev (n,), and logs (3, n) in log cm2/g."""

    def logs_of(energies_kev: Array) -> Array:
        return elam_logs(database, symbol, energies_kev)

    energies, logs = [], []
    low, stated_low = LOWEST_KEV, LOWEST_KEV
    for high, stated_high in [*absorption_edges(database, symbol), (HIGHEST_KEV, HIGHEST_KEV)]:
        inner_low, inner_high = low * (1 + ASIDE), high * (1 - ASIDE)
        looked_up = np.array([inner_low, *bisected(logs_of, inner_low, inner_high), inner_high])
        logs.append(logs_of(looked_up * (1 + ASIDE * np.linspace(1, -1, len(looked_up)))))
        looked_up[0], looked_up[-1] = stated_low, stated_high * (1 - 1e-9)
        energies.append(looked_up)
        low, stated_low = high, stated_high
    energies[-1][-1] = HIGHEST_KEV
    return np.concatenate(energies), np.concatenate(logs, axis=1)


def bake_matter() -> None:
    """Write `attenuation.npz`."""
    import xraydb

    database = xraydb.get_xraydb()
    symbols = [database.symbol(z) for z in range(1, 93)]
    nodes = [element_nodes(database, symbol) for symbol in symbols]
    shells = [database.xray_edges(symbol)["K"] for symbol in symbols]
    lines = [sorted((v.energy / 1e3, v.intensity) for v in database.xray_lines(s, "K").values()) for s in symbols]
    flat_lines = np.array([line for of_element in lines for line in of_element])
    rows = list(database.query(database.tables["elements"]).all())[:92]
    np.savez_compressed(
        FOLDER / "attenuation.npz",
        symbol=np.array(symbols),
        name=np.array([row.name for row in rows]),
        molar_mass_g=np.array([row.molar_mass for row in rows]),
        density_g_cm3=np.array([row.density for row in rows]),
        node_offset=np.cumsum([0, *(len(energies) for energies, _ in nodes)]),
        log_energy_kev=np.log(np.concatenate([energies for energies, _ in nodes])),
        log_cm2_g=np.concatenate([logs for _, logs in nodes], axis=1).astype(np.float32),
        k_edge_kev=np.array([shell.energy / 1e3 for shell in shells]),
        k_yield=np.array([shell.fyield for shell in shells]),
        k_jump=np.array([shell.jump_ratio for shell in shells]),
        line_offset=np.cumsum([0, *map(len, lines)]),
        line_energy_kev=flat_lines[:, 0],
        line_intensity=flat_lines[:, 1],
    )


def bake_tube() -> None:
    """Write `tube.npz`: a tungsten anode seen from its axis at 1 m, in vacuum, without any filter, for 1 mAs."""
    import spekpy

    energies = np.arange(1.5, KVP[-1], BIN_KEV)
    table = np.zeros((len(ANODE_DEG), len(KVP), len(energies)), dtype=np.float32)
    for of_angle, anode_deg in zip(table, ANODE_DEG, strict=True):
        for of_kvp, kvp in zip(of_angle, KVP, strict=True):
            _, per_cm2 = spekpy.Spek(kvp=float(kvp), th=anode_deg, dk=BIN_KEV).get_spectrum(diff=False)
            of_kvp[: len(per_cm2)] = per_cm2 / 100
    np.savez_compressed(FOLDER / "tube.npz", anode_deg=np.array(ANODE_DEG), kvp=KVP, energy_kev=energies, per_mm2=table)


if __name__ == "__main__":
    {"matter": bake_matter, "tube": bake_tube}[sys.argv[1]]()
