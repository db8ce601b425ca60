"""What the corrections of artefacts reach on exact views: rings, gaps, metal, truncation, each beside doing nothing.

Rings: 192 columns, 360 views, noise 0.01, stripes of height 0.02 on line integrals up to about 0.5. `left` is the
energy that the correction leaves of the error, as a slice shows it (averaged along arcs of a 64th of the circle, and
filtered along the rows), as a share of that before; `damage` is what it changes of views without stripes, in units of
the noise's energy, seen the same way. Times are processor seconds per MB of float32. `--pictures FOLDER` draws slices.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from calibration.geometry import Geometry
from calibration.progress import finished
from reconstruction.artefacts import inpainting, metal, rings, truncation
from reconstruction.fdk import fdk
from reconstruction.projector import Projector
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.volume import Grid
from tests import striped_scans as scans
from tests.striped_scans import Round

NOISE = 0.01
HEIGHT = 0.02
METAL = (Round(-5.0, -1.0, 0.6, 0.6), Round(5.0, -1.2, 0.6, 0.6))
OPEN_BEAM = 1e5
Pictures = dict[str, np.ndarray]


def reconstructed(
    values: np.ndarray, angles: np.ndarray, scan: Geometry, grid: Grid, *, is_continued: bool = False
) -> np.ndarray:
    return finished(fdk(values, angles, scan, grid, window="hann", is_continued=is_continued))


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


class Bench:
    """One scan, and the exact views of the objects in it."""

    def __init__(self, *, is_quick: bool, is_drawn: bool) -> None:
        self.is_drawn = is_drawn
        cols, n_views = (128, 180) if is_quick else (192, 360)
        self.scan = scans.geometry(rows=6, cols=cols)
        self.angles = scans.angles_rad(n_views)
        names = ("rods",) if is_quick else scans.OBJECTS
        self.exact = {name: scans.views_of(scans.the_object(name), self.scan, self.angles) for name in names}
        self.grid = Grid(shape=(1, cols, cols), voxel_mm=17.0 / cols)
        self.pictures: Pictures = {}

    def noisy(self, name: str) -> np.ndarray:
        dice = np.random.default_rng(3)
        return self.exact[name] + NOISE * dice.standard_normal(self.exact[name].shape, dtype=np.float32)

    def draw(self, name: str, values: np.ndarray) -> None:
        if not self.is_drawn:
            return
        rows = values.shape[2]
        scan = replace(self.scan, rows=1)
        self.pictures[name] = reconstructed(
            values[:, :, rows // 2 : rows // 2 + 1].copy(), self.angles, scan, self.grid
        )[0, 0]

    def ring_methods(self) -> dict[str, dict[str, float]]:
        """Every candidate on every kind of stripe, in one object."""
        exact = self.exact["rods"]
        clean = self.noisy("rods")
        noise = scans.ring_energy(clean - exact)
        striped = {k: scans.striped(clean, k, HEIGHT, np.random.default_rng(5)) for k in scans.KINDS}
        table = {}
        for candidate in rings.CANDIDATES:
            rings.suppress(clean.copy(), method=candidate.method, options=candidate.options)  # compiled
            began = time.process_time()
            after, _ = rings.suppress(clean.copy(), method=candidate.method, options=candidate.options, n_threads=1)
            seconds = time.process_time() - began
            row = {"s_per_mb": seconds / (clean.nbytes / 1e6), "damage": scans.ring_energy(after - clean) / noise}
            for kind, values in striped.items():
                after, _ = rings.suppress(values.copy(), method=candidate.method, options=candidate.options)
                row[kind] = scans.ring_energy(after - exact) / scans.ring_energy(values - exact)
                self.draw(f"{kind}, {candidate}", after)
            table[str(candidate)] = row
        self.draw("clean", clean)
        for kind, values in striped.items():
            self.draw(f"{kind}, none", values)
        return table

    def ring_choices(self) -> dict[str, dict[str, object]]:
        """What the chooser takes, and what it would have left with the best that there is."""
        table: dict[str, dict[str, object]] = {}
        for name, exact in self.exact.items():
            for kind in ("clean", *scans.KINDS):
                values = self.noisy(name)
                if kind != "clean":
                    values = scans.striped(values, kind, HEIGHT, np.random.default_rng(5))
                began = time.process_time()
                choice = rings.choose(values, self.angles, self.scan)
                seconds = time.process_time() - began
                before = scans.ring_energy(values - exact)
                left = {"none": 1.0}
                for c in rings.CANDIDATES:
                    after, _ = rings.suppress(values.copy(), method=c.method, options=c.options)
                    left[str(c)] = scans.ring_energy(after - exact) / before
                best = min(left, key=left.__getitem__)
                table[f"{name}, {kind}"] = {
                    "chosen": str(choice.candidate), "left": left[str(choice.candidate)],
                    "best": best, "left_by_best": left[best], "s": seconds,
                }  # fmt: skip
        return table

    def gaps(self) -> dict[str, dict[str, float]]:
        """Dead strips of columns: error inside, in units of the highest line integral."""
        exact = self.exact["rods"]
        table = {}
        for width in (1, 3, 8):
            is_bad = np.zeros(exact.shape[2:], dtype=bool)
            is_bad[:, 40 : 40 + width] = True
            row = {}
            for method in ("neighbours", "smooth", "opposing"):
                filled, _ = inpainting.fill(
                    exact.copy(), is_bad, method=method, angles_rad=self.angles, geometry=self.scan
                )
                row[method] = rms((filled - exact)[..., is_bad]) / float(exact.max())
                self.draw(f"gap of {width}, {method}", filled)
            table[f"{width} columns"] = row
        return table

    def cut_views(self) -> dict[str, dict[str, float]]:
        """Views cut to the middle half: error of the slice, in units of the body's attenuation."""
        exact = self.exact["rods"][:, :, 3:4]
        cols = self.scan.cols
        cut = np.ascontiguousarray(exact[..., cols // 4 : -cols // 4])
        scan = replace(self.scan, cols=cols // 2, rows=1)
        grid = Grid(shape=(1, cols // 2, cols // 2), voxel_mm=17.0 / cols)
        across = np.arange(cols // 2) - (cols // 2 - 1) / 2
        is_seen = np.hypot(across[:, None], across) < cols // 4 - 2
        truth = reconstructed(exact, self.angles, replace(self.scan, rows=1), grid)
        table = {}
        for method in ("none", "fdk's own", *truncation.METHODS):
            values, wide = cut, scan
            if method in truncation.METHODS:
                values = truncation.extend(cut, cols // 2, method=method)
                wide = replace(scan, cols=values.shape[-1])
            own = method == "fdk's own"
            slice_ = reconstructed(values, self.angles, wide, grid, is_continued=own)
            error = (slice_ - truth)[0, 0][is_seen]
            table[method] = {"rms": rms(error) / 0.02, "highest_minus_lowest": float(np.ptp(error)) / 0.02}
        return table

    def pins(self) -> dict[str, dict[str, float]]:
        """Two pins of metal in a body, hardened and noisy: error away from them, in units of the body's attenuation."""
        body = self.exact["rods"][:, :, 3:4]
        scan = replace(self.scan, rows=1)
        through = scans.views_of(METAL, scan, self.angles)
        hardened = body + through / (1 + 0.4 * through)
        counts = np.maximum(np.random.default_rng(1).poisson(OPEN_BEAM * np.exp(-hardened)), 0.5)
        values = -np.log(counts / OPEN_BEAM).astype(np.float32)
        _, y, x = self.grid.axes_mm()
        is_judged = np.hypot(y[:, None], x) < 7.5
        for pin in METAL:
            is_judged &= np.hypot(y[:, None] - pin.y_mm, x - pin.x_mm) > pin.radius_mm + 0.5
        truth = reconstructed(body, self.angles, scan, self.grid)
        projector = Projector(ScanGeometry.circular(scan, self.angles), self.grid)
        table = {}
        for method in ("none", *metal.METHODS):
            after = values.copy()
            if method != "none":
                finished(
                    metal.reduce(
                        after,
                        projector,
                        lambda some: fdk(some, self.angles, scan, self.grid, window="hann"),
                        voxel_mm=self.grid.voxel_mm,
                        method=method,
                    )
                )
            slice_ = reconstructed(after, self.angles, scan, self.grid)
            self.pictures[f"metal, {method}"] = slice_[0, 0]
            table[method] = {"rmse": rms((slice_ - truth)[0, 0][is_judged]) / 0.02}
        return table


def save(pictures: Pictures, folder: Path) -> None:
    """Draw the slices, those that belong together on one sheet."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    sheets: dict[str, list[str]] = {}
    for name in pictures:
        sheets.setdefault(name.split(",")[0], []).append(name)
    for sheet, names in sheets.items():
        names.sort(key=lambda name: "none" not in name)
        width = min(len(names), 5)
        height = -(-len(names) // width)
        figure, axes = plt.subplots(height, width, figsize=(3 * width, 3.2 * height), squeeze=False)
        for axis in axes.ravel():
            axis.axis("off")
        for axis, name in zip(axes.ravel(), names, strict=False):
            axis.imshow(pictures[name], cmap="gray", vmin=0.0, vmax=0.05, origin="lower")
            axis.set_title(name.partition(", ")[2], fontsize=7)
        figure.suptitle(f"{sheet}; 0 to 0.05 per mm")
        figure.tight_layout()
        figure.savefig(folder / f"{sheet.replace(' ', '_')}.png", dpi=80)
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    bench = Bench(is_quick=options.quick, is_drawn=options.pictures is not None)
    figures = {
        "ring methods": bench.ring_methods(),
        "ring choices": bench.ring_choices(),
        "gaps": bench.gaps(),
        "truncation": bench.cut_views(),
        "metal": bench.pins(),
    }
    if options.pictures:
        save(bench.pictures, options.pictures)
    if options.json:
        print(json.dumps(figures))
        return
    for title, table in figures.items():
        print(f"\n{title}")
        heads = list(next(iter(table.values())))
        print(f"{'':62s}" + "".join(f"{head:>22s}" for head in heads))
        for name, row in table.items():
            cells = (f"{v:22.3g}" if isinstance(v, float) else f"  {v}" for v in row.values())
            print(f"{name:62s}" + "".join(cells))


if __name__ == "__main__":
    main()
