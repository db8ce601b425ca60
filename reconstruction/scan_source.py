"""What a scan file tells of itself before a view is read: its pass, thresholds, geometry and corrections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from acquisition.open_beam import flat_misfits, told_of_flat
from acquisition.plan import Plan, passes_kev, plan_to_json
from acquisition.scan import ImageKey
from acquisition.scan_file import Scan, read_scan
from acquisition.scan_plan import Turning
from calibration.count_rate import CountRate
from calibration.flat_field import FlatField
from calibration.geometry import Geometry
from calibration.material_basis import MaterialBasis
from calibration.store import Calibration, software_version
from calibration.thickness import EquivalentThickness
from firmware_iface.errors import BadFile, CalibrationMissing, WrongUsage
from reconstruction.volume import Provenance


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScanSource:
    """A scan, and what of its calibration is for it.

    Attributes
    ----------
    geometry : Geometry
        Of the camera where its shift is 0; `origin` says in words where it comes from.
    pass_index : int
        Which pass over the object, from 0.
    thresholds_kev : tuple of float
        Of that pass.
    count_rate : CountRate or None
        None where it was not measured at these thresholds.
    thickness : EquivalentThickness or None
        The step wedge, where hardening is to be taken out by it.
    flat : FlatField or None
        The calibration's, where the scan took no flats in this pass.
    words : tuple of str
        What was found, for the provenance.
    """

    scan: Scan
    plan: Plan
    geometry: Geometry
    origin: str
    pass_index: int
    thresholds_kev: tuple[float, ...]
    count_rate: CountRate | None
    thickness: EquivalentThickness | None
    flat: FlatField | None
    words: tuple[str, ...]

    @property
    def basis(self) -> MaterialBasis | None:
        """How each bin of this pass attenuates per material, where it was calibrated."""
        basis = self.scan.calibration.basis if self.scan.calibration else None
        return basis.of_pass(self.thresholds_kev) if basis else None

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the bins, one for each counter."""
        n_bins = self.scan.shape[1]
        if len(self.thresholds_kev) != n_bins:
            return tuple(f"bin {number}" for number in range(1, n_bins + 1))
        edges = [f"{energy:g}" for energy in self.thresholds_kev]
        return (*(f"{low}-{high} keV" for low, high in pairwise(edges)), f"{edges[-1]}+ keV")

    def provenance(self, steps: tuple[str, ...], convergence_json: str = "") -> Provenance:
        """Return where a volume of this scan came from, after these steps."""
        return Provenance(
            source_file=self.scan.path.name,
            source_begun=self.scan.start_time,
            plan_json=plan_to_json(self.plan),
            calibration_identity=self.scan.calibration_identity,
            software=software_version(),
            convergence_json=convergence_json,
            steps=steps,
        )


def open_source(
    path: str | Path,
    *,
    calibration: Calibration | None = None,
    pass_number: int | None = None,
    linearise: bool = False,
    allow_partial: bool = False,
) -> ScanSource:
    """Read all of a scan but its counts.

    Parameters
    ----------
    calibration : Calibration, optional
        Whose alignment to take instead of the scan's own geometry.
    pass_number : int, optional
        Which pass of a scan of several, from 1.
    linearise : bool
        Take out the hardening of the beam by the step wedge that the scan's calibration holds.
    allow_partial : bool
        Take also a scan that was interrupted.

    Raises
    ------
    CalibrationMissing
        There is no step wedge, or one of another beam; or the scan has no flats and its calibration none that fits.
    """
    scan = read_scan(path, allow_partial=allow_partial)
    plan, geometry, origin = plan_and_geometry(scan, calibration)
    pass_index, thresholds_kev = _pass_of(scan, plan, pass_number)
    count_rate, told = _count_rate_of(scan, thresholds_kev)
    flat = flat_of(scan, plan, pass_index, thresholds_kev)

    def words() -> Iterator[str]:
        if pass_number is not None:
            yield f"pass {pass_number}"
        yield f"geometry {origin}"
        yield told
        if flat is not None and scan.calibration is not None:
            yield f"no flats in the scan: its views are divided by {told_of_flat(scan.calibration)}"
        if linearise:
            yield "straight in thickness by the step wedge"

    return ScanSource(
        scan=scan,
        plan=plan,
        geometry=geometry,
        origin=origin,
        pass_index=pass_index,
        thresholds_kev=thresholds_kev,
        count_rate=count_rate,
        thickness=_wedge_of(scan, thresholds_kev) if linearise else None,
        flat=flat,
        words=tuple(words()),
    )


def count_passes(path: str | Path, *, allow_partial: bool = False) -> int:
    """Return how many passes with other thresholds a scan has made over its sample."""
    plan = read_scan(path, allow_partial=allow_partial).plan
    return len(passes_kev(plan)) if plan is not None and isinstance(plan.scan, Turning) else 1


def plan_and_geometry(scan: Scan, calibration: Calibration | None) -> tuple[Plan, Geometry, str]:
    """Return the scan's plan, and where source and detector were: as given, else as calibrated, else as planned."""
    if scan.plan is None or scan.geometry is None:
        raise BadFile(f"{scan.path} does not say where source and detector stood", hint="a scan needs its plan inside")
    if not isinstance(scan.plan.scan, Turning):
        raise WrongUsage(
            f"{scan.path} has no views around a sample: it is a scan of kind {scan.plan.scan.kind!r}",
            hint="the frames are all in the file, each with its angle, lift, shift and pass",
        )
    alignment = scan.calibration.alignment if scan.calibration else None
    if calibration is not None:
        alignment = calibration.alignment
        if alignment is None:
            raise CalibrationMissing(
                f"the calibration {calibration.identity} holds no geometry",
                hint="make one: mpxct calibrate geometry, or mpxct align SCAN -o FILE",
            )
    geometry = alignment.geometry if alignment else scan.plan.geometry
    if (geometry.rows, geometry.cols) != scan.shape[2:]:
        raise WrongUsage(
            f"the geometry is of {geometry.rows} x {geometry.cols} pixels; the scan has "
            f"{scan.shape[2]} x {scan.shape[3]}",
            hint="align with a scan or phantom in the scan's own mode",
        )
    return scan.plan, geometry, f"by {alignment.method}" if alignment else "as planned"


def _pass_of(scan: Scan, plan: Plan, number: int | None) -> tuple[int, tuple[float, ...]]:
    """Return which pass over the object is meant, from 0, and its thresholds in keV."""
    passes = passes_kev(plan)
    if number is None and len(passes) > 1:
        told = "; ".join(f"{n}: {', '.join(f'{kev:g}' for kev in pass_)} keV" for n, pass_ in enumerate(passes, 1))
        raise WrongUsage(f"{scan.path} has {len(passes)} passes ({told})", hint="choose one: --pass 1")
    if number is not None and not 1 <= number <= len(passes):
        raise WrongUsage(f"--pass is {number}; allowed for {scan.path}: 1 to {len(passes)}")
    index = (number or 1) - 1
    return index, passes[index] if len(passes) > 1 else tuple(scan.readout.thresholds_kev)


def _count_rate_of(scan: Scan, thresholds_kev: tuple[float, ...]) -> tuple[CountRate | None, str]:
    """Return the count-rate calibration that fits a scan, and in words what it does."""
    known = scan.calibration.count_rate if scan.calibration else None
    if known is None:
        return None, "count rate not corrected: it was not measured (mpxct calibrate count-rate)"
    found = known.of_pass(thresholds_kev)
    if found is None:
        return None, f"count rate not corrected: it was measured at thresholds of {known.thresholds_told} keV"
    return found, f"count rate corrected ({found.law}, up to {found.highest_rate_per_s:.3g} counts/s/pixel)"


def flat_of(scan: Scan, plan: Plan, pass_index: int, thresholds_kev: tuple[float, ...]) -> FlatField | None:
    """Return the calibration's flat field for a pass without flats, or refuse; None where the scan has its own.

    Raises
    ------
    CalibrationMissing
        The calibration has none, or it was taken otherwise; the message says in what they differ.
    """
    if ((scan.image_key == ImageKey.FLAT) & (scan.passes == pass_index)).any():
        return None
    known = scan.calibration
    measured_k = scan.temperatures_k[scan.temperatures_k > 0]  # NaN where it could not be measured
    misfits = flat_misfits(plan, known, thresholds_kev, float(measured_k.mean()) if measured_k.size else None)
    identity = scan.calibration_identity
    forced = tuple(event.text for event in scan.events if event.kind == "forced" and identity in event.text)
    if misfits or known is None or forced:
        raise CalibrationMissing(
            f"{scan.path.name} holds no flats, and its calibration's flat field cannot stand in: "
            f"{'; '.join(misfits or forced)}",
            hint="scan again: let the plan take flats (n_flats), or first measure the flat field with this plan "
            "(mpxct calibrate pixels)",
        )
    return known.flat_field


def _wedge_of(scan: Scan, thresholds_kev: tuple[float, ...]) -> EquivalentThickness:
    """Return the step wedge that fits a scan, or refuse."""
    known = scan.calibration.thickness if scan.calibration else None
    hint = "measure it with this plan, and scan again: mpxct calibrate wedge"
    if known is None:
        raise CalibrationMissing("the scan's calibration holds no step wedge to linearise with", hint=hint)
    kvp = scan.plan.source.kvp if scan.plan else known.tube_kvp
    if (known.thresholds_kev, known.tube_kvp) != (thresholds_kev, kvp):
        raise CalibrationMissing(
            f"the step wedge was measured at {known.tube_kvp:g} kVp and {list(known.thresholds_kev)} keV; the scan has "
            f"{kvp:g} kVp and {list(thresholds_kev)} keV",
            hint=hint,
        )
    return known
