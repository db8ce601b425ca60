"""What is to be reconstructed or decomposed: a scan, a volume, or a folder of images, and what it tells of itself."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calibration.progress import Progress
from firmware_iface.errors import CalibrationMissing, WrongUsage
from gui.reconstruct.settings import Settings

if TYPE_CHECKING:
    from calibration.geometry import Geometry
    from calibration.material_basis import MaterialBasis
    from reconstruction.projections import LineIntegralReader
    from reconstruction.scan_source import ScanSource
    from reconstruction.volume import Grid, Volume


class SourceKind(Enum):
    """What a path leads to; the value says it in words."""

    SCAN = "scan"
    VOLUME = "volume"
    IMAGES = "folder of images"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Orbit:
    """Where the views of a scan were taken from, as `reconstruction.pipeline.Seen` asks for it.

    Attributes
    ----------
    angles_rad, lifts_mm : (n_views,) float64
    """

    geometry: Geometry
    angles_rad: NDArray[np.float64]
    lifts_mm: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Facts:
    """What a source tells of itself.

    Attributes
    ----------
    lines : tuple of (str, str)
        For people: what, and how much.
    channels : tuple of str
        The bins.
    grid : Grid
        All that can be made of it with the default recipe, or the volume's own.
    n_views, n_passes : int
        0 and 1 where it is no scan.
    materials : tuple of str
        Of the material basis; nothing: it has none.
    misfits : tuple of str
        Why the material basis is not for the bins of each pass; empty where it is.
    has_model, has_wedge : bool
        Whether the calibration tells what bins count behind materials, and thicknesses to make bins straight by.
    is_whole : bool
        Whether a scan was ended well.
    begun : str
        When a scan was begun, as its file says.
    volume : Volume, optional
        Where it is one.
    orbit : Orbit, optional
        Of a scan.
    """

    path: Path
    kind: SourceKind
    lines: tuple[tuple[str, str], ...]
    channels: tuple[str, ...]
    grid: Grid
    n_views: int = 0
    n_passes: int = 1
    materials: tuple[str, ...] = ()
    misfits: tuple[str, ...] = ()
    has_model: bool = False
    has_wedge: bool = False
    is_whole: bool = True
    begun: str = ""
    volume: Volume | None = None
    orbit: Orbit | None = None
    warnings: tuple[str, ...] = field(default=())

    @property
    def z_mm(self) -> tuple[float, float]:
        """Heights of the lowest and the highest slice."""
        z = self.grid.axes_mm()[0]
        return float(z[0]), float(z[-1])


def is_made_of(volume: Volume, facts: Facts) -> bool:
    """Whether a volume is this source, or was made of it; scans of one name in two folders are told apart."""
    made = volume.provenance
    return volume is facts.volume or (made.source_file, made.source_begun) == (facts.path.name, facts.begun)


def kind_of(path: Path) -> SourceKind:
    """Tell what a path leads to."""
    from reconstruction.volume import is_volume

    if path.is_dir():
        return SourceKind.IMAGES
    return SourceKind.VOLUME if is_volume(path) else SourceKind.SCAN


def read_facts(
    path: Path, settings: Settings, *, grey_per_cm_ratio: float = 1.0, voxel_mm: float | None = None
) -> Generator[Progress, None, Facts]:
    """Read what a source tells of itself.

    Parameters
    ----------
    grey_per_cm_ratio : float
        Of images: the grey value that means 1 per cm.
    voxel_mm : float, optional
        Of images: the edge of a pixel; None: not known.
    """
    yield Progress("reading", 0, 1)
    kind = kind_of(path)
    if kind is SourceKind.SCAN:
        return scan_facts(path, settings)
    if kind is SourceKind.VOLUME:
        from reconstruction.volume import load_volume

        return volume_facts(path, load_volume(path), kind)
    from reconstruction.materials import read_image_folder

    return volume_facts(path, read_image_folder(path, scale=grey_per_cm_ratio, voxel_mm=voxel_mm), kind)


def volume_facts(path: Path, volume: Volume, kind: SourceKind = SourceKind.VOLUME) -> Facts:
    """Return what a volume of bins tells."""
    from reconstruction.materials import scan_kvp
    from reconstruction.volume import LINEAR_ATTENUATION

    if volume.unit != LINEAR_ATTENUATION:
        raise WrongUsage(
            f"{path.name} holds {', '.join(volume.channels)} in {volume.unit}; allowed here: energy bins in 1/mm",
            hint="look at it on the page Volume",
        )
    materials = volume.basis.materials if volume.basis else ()
    unit = "mm" if volume.grid.is_scale_known else "pixels of unknown size"
    lines = (
        ("bins", f"{len(volume.channels)}: {', '.join(volume.channels)}"),
        ("voxels", f"{size_words(volume.grid.shape)} of {volume.grid.voxel_mm:.4g} {unit}"),
        ("material basis", ", ".join(materials) or "none: choose a table or a response below"),
        ("from", volume.provenance.source_file or "not told"),
    )
    return Facts(
        path=path,
        kind=kind,
        lines=lines,
        channels=volume.channels,
        grid=volume.grid,
        materials=materials,
        misfits=(misfit(volume.basis, volume.thresholds_kev, scan_kvp(volume)),),
        volume=volume,
    )


def scan_facts(path: Path, settings: Settings) -> Facts:
    """Return what a scan tells; an interrupted one too."""
    from acquisition.open_beam import told_of_flat
    from acquisition.scan import ImageKey, ScanStatus
    from acquisition.scan_file import read_scan
    from reconstruction.pipeline import grid_of
    from reconstruction.recipe import Recipe
    from reconstruction.scan_source import count_passes

    scan = read_scan(path, allow_partial=True)
    source = open_scan(path, replace(settings, recipe=Recipe()), pass_number=1)
    reader = reader_of(source)
    known = scan.calibration
    n_frames, n_bins, rows, cols = scan.shape
    n_flats = len(scan.indices(ImageKey.FLAT))
    is_whole = scan.status in (ScanStatus.COMPLETE, ScanStatus.DEGRADED)
    n_passes = count_passes(path, allow_partial=True)
    basis = known.basis if known else None
    turn_deg = float(np.degrees(np.ptp(reader.angles_rad)))
    grid = grid_of(reader, Recipe())
    held = [
        name
        for name, part in (
            ("geometry", known and known.alignment),
            ("material basis", basis),
            ("count rate", known and known.count_rate),
            ("step wedge", known and known.thickness),
            ("response", known and known.response),
        )
        if part is not None
    ]
    lines = (
        ("sample", scan.sample or "not named"),
        ("begun", f"{scan.start_time[:16].replace('T', ' ')} UTC" if scan.start_time else "not told"),
        ("views", f"{len(reader.angles_rad)} over {turn_deg:.0f}°, {n_frames} frames of {rows} × {cols} pixels"),
        ("bins", f"{n_bins}: {', '.join(source.channels)}" + (f", {n_passes} passes" if n_passes > 1 else "")),
        ("losses", f"{scan.n_lost} of {n_frames} frames" if scan.n_lost else "none"),
        ("flats", "the calibration's" if source.flat is not None else f"{n_flats} frames"),
        ("geometry", source.origin),
        ("calibration", ", ".join(held) if known else "none"),
        ("what can be seen", f"{size_words(grid.shape)} voxels of {grid.voxel_mm:.4g} mm"),
    )
    warnings = []
    if not is_whole:
        warnings.append("This scan was interrupted; allow that below to reconstruct what there is.")
    if source.flat is not None and known is not None:
        warnings.append(
            f"It has no flats of its own: its views are divided by {told_of_flat(known)}. What has drifted since then "
            "shows as rings."
        )
    return Facts(
        path=path,
        kind=SourceKind.SCAN,
        lines=lines,
        channels=source.channels,
        grid=grid,
        n_views=len(reader.angles_rad),
        n_passes=n_passes,
        materials=basis.materials if basis else (),
        misfits=tuple(misfit(basis, kev, scan.plan.source.kvp if scan.plan else None) for kev in scan.passes_kev),
        has_model=known is not None and (known.response is not None or known.wedge is not None),
        has_wedge=known is not None and known.thickness is not None,
        is_whole=is_whole,
        begun=scan.start_time,
        orbit=Orbit(geometry=reader.geometry, angles_rad=reader.angles_rad, lifts_mm=reader.lifts_mm),
        warnings=tuple(warnings),
    )


def misfit(basis: MaterialBasis | None, thresholds_kev: Sequence[float], tube_kvp: float | None = None) -> str:
    """Say why a material basis is not for bins of these thresholds; nothing where it is, or one is not known."""
    from reconstruction.materials import refuse_foreign_basis

    if basis is None or not thresholds_kev:
        return ""
    try:
        refuse_foreign_basis(basis.of_pass(thresholds_kev), thresholds_kev, tube_kvp)
    except CalibrationMissing as error:
        return str(error)
    return ""


def open_scan(path: Path, settings: Settings, *, pass_number: int | None, allow_partial: bool = True) -> ScanSource:
    """Open a scan as the settings ask."""
    from calibration.store import load
    from reconstruction.scan_source import open_source

    known = load(settings.calibration) if settings.calibration else None
    return open_source(
        path,
        calibration=known if known is not None and known.alignment is not None else None,
        pass_number=pass_number,
        linearise=settings.recipe.linearise,
        allow_partial=allow_partial,
    )


def reader_of(source: ScanSource) -> LineIntegralReader:
    """Return what reads the line integrals of a scan."""
    from reconstruction.projections import LineIntegralReader

    return LineIntegralReader(
        source.scan,
        source.geometry,
        pass_index=source.pass_index,
        count_rate=source.count_rate,
        thickness=source.thickness,
        flat=source.flat,
    )


def size_words(shape: tuple[int, int, int]) -> str:
    """Say how many voxels, across first: "512 × 512 × 100"."""
    return " × ".join(map(str, shape[::-1]))
