"""From the frames of a scan to line integrals: views added up, tiles of the camera joined, one geometry for all.

What a view is: frames that follow each other at one pose, in one tile and one pass. `LineIntegralReader` gives any
views and rows of a scan without reading the others; `measure_line_integrals` gives all.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from acquisition.scan import ImageKey
from acquisition.scan_file import Scan
from calibration.correction import OpenBeam, against_open_beam, attenuated, measure_open_beam
from calibration.count_rate import CountRate
from calibration.flat_field import FlatField
from calibration.geometry import Geometry
from calibration.pixels import fill_reach
from calibration.progress import Progress
from calibration.thickness import EquivalentThickness
from firmware_iface.errors import BadFile
from reconstruction.field_of_view import coarser
from reconstruction.stitch import stitch, wide_geometry

FLAT_BYTES = 1 << 27
"""Flats are averaged in rows that take this much of memory as float64, whatever their number."""
VIEWS_AT_ONCE = 32
"""A step of `measure_line_integrals`."""


class Views(NamedTuple):
    """Which frames make each view, and what is known of it.

    Attributes
    ----------
    indices : (n_frames,) int
        Frames, ascending.
    starts : (n_views + 1,) int
        Where each view begins in `indices`, and where the last ends.
    angles_rad, lifts_mm, frames, exposures_s : (n_views,) float64
        `frames` is the middle of each view in the run, the clock of the flats.
    """

    indices: NDArray[np.intp]
    starts: NDArray[np.intp]
    angles_rad: NDArray[np.float64]
    lifts_mm: NDArray[np.float64]
    frames: NDArray[np.float64]
    exposures_s: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LineIntegrals:
    """What reconstructions start from.

    Attributes
    ----------
    values : (n_bins, n_views, rows, cols) float32
    is_estimated : the same shape, bool
        Values that were not measured.
    angles_rad, lifts_mm : (n_views,) float64
    geometry : Geometry
        Of one camera that sees all columns, however many tiles it is made of.
    open_counts : (n_bins,) float64
        Counts of a pixel in one view of the open beam, as a mean: what noise is reckoned with.
    n_tiles : int
    """

    values: NDArray[np.float32]
    is_estimated: NDArray[np.bool_]
    angles_rad: NDArray[np.float64]
    lifts_mm: NDArray[np.float64]
    geometry: Geometry
    open_counts: NDArray[np.float64]
    n_tiles: int


def find_views(scan: Scan, indices: NDArray[np.intp]) -> Views:
    """Return the views that some frames make; lost frames are none of them.

    Parameters
    ----------
    indices : (n,) int
        Which projections, ascending.
    """
    if not len(indices):
        raise BadFile(f"{scan.path} holds no projections", hint="scan again, with views in the plan")
    pose = np.stack([scan.angles_rad[indices], scan.lifts_mm[indices]])
    starts = np.flatnonzero((np.diff(pose, prepend=np.nan) != 0).any(axis=0))
    return Views(
        indices=indices,
        starts=np.append(starts, len(indices)),
        angles_rad=pose[0, starts],
        lifts_mm=pose[1, starts],
        frames=np.add.reduceat(indices, starts) / np.diff(starts, append=len(indices)),
        exposures_s=np.add.reduceat(scan.exposures_s[indices], starts),
    )


def add_frames(scan: Scan, views: Views, wanted: NDArray[np.intp], rows: slice = np.s_[:]) -> NDArray[np.uint32]:
    """Read the frames of some views and add them up: (n_wanted, n_counters, rows, cols)."""
    n_frames = np.diff(views.starts)[wanted]
    begins = np.cumsum(n_frames) - n_frames
    places = np.repeat(views.starts[wanted] - begins, n_frames) + np.arange(n_frames.sum())
    counts = scan.counts(views.indices[places], rows=rows)
    if len(wanted) < len(places):
        counts = np.add.reduceat(counts, begins, axis=0, dtype=np.uint32)
    return counts.astype(np.uint32, copy=False)


class _Tile(NamedTuple):
    """One position of the camera along its rows, with flats of its own."""

    shift_mm: float
    views: Views
    places: NDArray[np.intp]  # of the reader's views among the tile's
    open_beam: OpenBeam
    is_bad: NDArray[np.bool_] | None
    reach: NDArray[np.intp]


class LineIntegralReader:
    """The line integrals of a scan, as many at a time as are asked for; each tile by its own flats, if it has any.

    Flats and bad pixels are looked at once. Any part equals the same part of the whole, bit for bit.

    Parameters
    ----------
    scan : Scan
    geometry : Geometry
        Of the camera where its shift is 0.
    pass_index : int
        Which pass over the object.
    n_counters : int, optional
        Only the first ones; all unless told.
    count_rate, thickness
        As of `calibration.correction.line_integrals`.
    flat : FlatField, optional
        Stands in for the flats of a scan that has none.

    Attributes
    ----------
    shape : tuple of int
        (n_bins, n_views, rows, cols).
    angles_rad, lifts_mm : (n_views,) float64
    geometry : Geometry
        Of one camera that sees all columns, however many tiles it is made of.
    n_tiles : int
    """

    def __init__(
        self,
        scan: Scan,
        geometry: Geometry,
        *,
        pass_index: int = 0,
        n_counters: int | None = None,
        count_rate: CountRate | None = None,
        thickness: EquivalentThickness | None = None,
        flat: FlatField | None = None,
    ) -> None:
        is_projection = (scan.image_key == ImageKey.PROJECTION) & (scan.passes == pass_index)
        if not is_projection.any():
            raise BadFile(f"{scan.path} holds no projections of pass {pass_index + 1}", hint="scan it to its end")
        self._scan, self._camera, self._count_rate, self._thickness = scan, geometry, count_rate, thickness
        self._flat = flat
        self._counters = np.s_[:, :n_counters]
        shifts_mm: list[float] = np.unique(scan.shifts_mm[is_projection]).tolist()
        views = [
            find_views(scan, np.flatnonzero(is_projection & (scan.shifts_mm == shift_mm))) for shift_mm in shifts_mm
        ]
        poses = [tile.angles_rad + 1j * tile.lifts_mm for tile in views]
        is_seen = np.ones(len(poses[0]), bool)
        for others in poses[1:]:  # a view that one tile has lost is none of the wide camera's
            is_seen &= np.isin(poses[0], others)
        wanted = poses[0][is_seen]
        places = [np.arange(len(wanted)), *(places_of(others, wanted) for others in poses[1:])]
        places[0] = np.flatnonzero(is_seen)
        self._tiles = [
            self._prepare(shift_mm, of_tile, place, pass_index)
            for shift_mm, of_tile, place in zip(shifts_mm, views, places, strict=True)
        ]
        self.angles_rad, self.lifts_mm = wanted.real.copy(), wanted.imag.copy()
        self.geometry, self.n_tiles = wide_geometry(geometry, shifts_mm), len(shifts_mm)
        n_bins = self._tiles[0].open_beam.rates_per_s.shape[1]
        self.shape = (n_bins, len(wanted), self.geometry.rows, self.geometry.cols)

    def _prepare(self, shift_mm: float, views: Views, places: NDArray[np.intp], pass_index: int) -> _Tile:
        scan = self._scan
        is_here = (scan.shifts_mm == shift_mm) & (scan.passes == pass_index)
        flats = np.flatnonzero(is_here & (scan.image_key == ImageKey.FLAT))
        _, n_counters, n_rows, n_cols = scan.shape
        step = max(FLAT_BYTES // (8 * max(len(flats), 1) * n_counters * n_cols), 1)
        stand_in = None if len(flats) else self._flat

        def counted(rows: slice) -> NDArray[np.number]:
            return scan.counts(flats, rows=rows) if stand_in is None else stand_in.frame_counts[None, :, rows]

        parts = [
            measure_open_beam(
                counted(rows)[self._counters],
                flat_frames=flats if stand_in is None else np.zeros(1),
                projection_frames=views.frames,
                flat_exposures_s=scan.exposures_s[flats] if stand_in is None else stand_in.frame_s,
                count_rate=self._count_rate,
                rows=rows,
            )
            for rows in (slice(first, min(first + step, n_rows)) for first in range(0, n_rows, step))
        ]
        is_out = [part.is_out_of_range for part in parts if part.is_out_of_range is not None]
        open_beam = OpenBeam(
            rates_per_s=np.concatenate([part.rates_per_s for part in parts], axis=2),
            frames=parts[0].frames,
            is_out_of_range=np.concatenate(is_out) if is_out else None,
        )
        is_bad = scan.calibration.is_bad if scan.calibration else None
        reach = fill_reach(open_beam.is_dark if is_bad is None else open_beam.is_dark | is_bad)
        return _Tile(shift_mm, views, places, open_beam, is_bad, reach)

    def open_counts(self) -> NDArray[np.float64]:
        """Return the mean counts of a good pixel in one view of the open beam: (n_bins,)."""
        tiles = []
        for tile in self._tiles:
            is_dark = tile.open_beam.is_dark if tile.is_bad is None else tile.open_beam.is_dark | tile.is_bad
            rates_per_s = np.where(is_dark, np.nan, tile.open_beam.rates_per_s)
            tiles.append(np.nanmean(rates_per_s, axis=(0, 2, 3)) * tile.views.exposures_s[tile.places].mean())
        return np.asarray(np.mean(tiles, axis=0), np.float64)

    def read(self, views: slice = np.s_[:], rows: slice = np.s_[:]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the line integrals of some views and rows, and which of them were not measured.

        Returns
        -------
        values : (n_bins, n_views, rows, cols) float32
        is_estimated : the same shape, bool
        """
        parts = [self._read_tile(tile, tile.places[views], rows) for tile in self._tiles]
        if len(parts) == 1:
            return parts[0]
        return stitch(
            [values for values, _ in parts],
            [is_estimated for _, is_estimated in parts],
            [tile.shift_mm for tile in self._tiles],
            self._camera,
        )

    def _read_tile(
        self, tile: _Tile, wanted: NDArray[np.intp], rows: slice
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        n_rows = self._scan.shape[2]
        first, stop, _ = rows.indices(n_rows)
        reach = int(tile.reach[first:stop].max(initial=0))
        around = slice(max(first - reach, 0), min(stop + reach, n_rows))
        corrected = against_open_beam(
            add_frames(self._scan, tile.views, wanted, around)[self._counters],
            tile.open_beam,
            projection_frames=tile.views.frames[wanted],
            projection_exposures_s=tile.views.exposures_s[wanted],
            is_bad=tile.is_bad,
            count_rate=self._count_rate,
            rows=around,
        )
        values, is_estimated = attenuated(
            corrected, thickness=self._thickness.on_rows(around) if self._thickness else None
        )
        inner = slice(first - around.start, stop - around.start)
        return values[..., inner, :], is_estimated[..., inner, :]


def measure_line_integrals(
    scan: Scan,
    geometry: Geometry,
    *,
    pass_index: int = 0,
    n_counters: int | None = None,
    count_rate: CountRate | None = None,
    thickness: EquivalentThickness | None = None,
    flat: FlatField | None = None,
) -> Generator[Progress, None, LineIntegrals]:
    """Turn the counts of a scan into line integrals of all views; the parameters are those of `LineIntegralReader`."""
    reader = LineIntegralReader(
        scan,
        geometry,
        pass_index=pass_index,
        n_counters=n_counters,
        count_rate=count_rate,
        thickness=thickness,
        flat=flat,
    )
    values, is_estimated = np.empty(reader.shape, np.float32), np.empty(reader.shape, np.bool_)
    n_views = reader.shape[1]
    for first in range(0, n_views, VIEWS_AT_ONCE):
        yield Progress("reading the views", first, n_views)
        views = slice(first, min(first + VIEWS_AT_ONCE, n_views))
        values[:, views], is_estimated[:, views] = reader.read(views)
    return LineIntegrals(
        values=values,
        is_estimated=is_estimated,
        angles_rad=reader.angles_rad,
        lifts_mm=reader.lifts_mm,
        geometry=reader.geometry,
        open_counts=reader.open_counts(),
        n_tiles=reader.n_tiles,
    )


def join_pixels(measured: LineIntegrals, factor: int) -> LineIntegrals:
    """Return what a camera with pixels `factor` by `factor` times the size would have counted.

    Transmissions are averaged, not their logarithms, which would be biased where counts are few; only pixels that
    measured count, where there is one.
    """
    geometry = coarser(measured.geometry, factor)

    def blocks(values: NDArray[np.generic]) -> NDArray[np.generic]:
        kept = values[..., : geometry.rows * factor, : geometry.cols * factor]
        return kept.reshape(*kept.shape[:2], geometry.rows, factor, geometry.cols, factor)

    is_measured = np.logical_not(blocks(measured.is_estimated))
    n_measured = is_measured.sum(axis=(3, 5), dtype=np.float32)
    through = blocks(np.exp(-measured.values))
    of_all, of_measured = through.mean(axis=(3, 5)), through.sum(axis=(3, 5), where=is_measured)
    share = np.where(n_measured > 0, of_measured / np.maximum(n_measured, 1), of_all)
    return replace(
        measured,
        values=-np.log(np.maximum(share, np.finfo(np.float32).tiny)),
        is_estimated=n_measured == 0,
        open_counts=measured.open_counts * factor**2,
        geometry=geometry,
    )


def places_of(of_all: NDArray[np.complex128], wanted: NDArray[np.complex128]) -> NDArray[np.intp]:
    """Return where each wanted pose, an angle and a lift as a complex number, is among others in whatever order."""
    order = np.argsort(of_all, kind="stable")
    return order[np.searchsorted(of_all, wanted, sorter=order)]
