"""What is inside a file of any kind, in nested figures for people and scripts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acquisition.plan import plan_to_json
from acquisition.scan import ImageKey
from acquisition.scan_file import Scan
from calibration.bias_currents import BiasCurrents
from calibration.count_rate import CountRate
from calibration.energy_scale import EndPoint
from calibration.equalisation import Equalisation, TrimFault, mean_and_sigma
from calibration.flat_field import FlatField
from calibration.material_basis import MaterialBasis
from calibration.pixel_scale import PixelScale
from calibration.pixels import PixelClass
from calibration.response import Response
from calibration.store import Calibration
from calibration.thickness import StepWedge
from firmware_iface.errors import BadFile
from firmware_iface.merlin import MerlinFile
from gui.picture import median
from reconstruction.volume import Volume


def describe(kind: str, content: Any) -> dict[str, Any]:
    """Return everything that there is to tell of a file; what is not a number is None, as JSON wants it."""
    return _known(_DESCRIPTIONS[kind](content))


def _known(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _known(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_known(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _describe_merlin(file: MerlinFile) -> dict[str, Any]:
    header = file.frames[0].header
    try:
        layers, n_exposures = file.groups()[0], len(file.groups()[1])
    except BadFile:  # an interrupted acquisition still has headers to show
        layers, n_exposures = tuple(sorted({frame.header.counter for frame in file.frames})), None
    return {
        "n_frames": len(file.frames),
        "n_exposures": n_exposures,
        "layers": list(layers),
        "shape": list(header.shape),
        "frame_header": asdict(header) | {"gain": header.gain.name},
        "acquisition_header": dict(file.header),
    }


def _describe_scan(scan: Scan) -> dict[str, Any]:
    return {
        "status": scan.status.value,
        "sample": scan.sample,
        "software": scan.software,
        "shape": list(scan.shape),
        "n_flats": len(scan.indices(ImageKey.FLAT)),
        "n_projections": len(scan.indices(ImageKey.PROJECTION)),
        "n_lost": scan.n_lost,
        "thresholds": list(scan.readout.thresholds),
        "thresholds_kev": list(scan.readout.thresholds_kev),
        "depth_bits": scan.readout.depth_bits,
        "pitch_mm": scan.readout.pitch_mm,
        "calibration": scan.calibration_identity,
        "plan": json.loads(plan_to_json(scan.plan)) if scan.plan else {},
        "header": dict(scan.header),
        "events": [
            {"time_s": event.time_s, "frame": event.sequence, "kind": event.kind, "text": event.text}
            for event in scan.events
        ],
    }


def _describe_calibration(calibration: Calibration) -> dict[str, Any]:
    c = calibration
    return {
        "identity": c.identity,
        "created": c.created,
        "software": c.software,
        "device": c.device,
        "chip_id": c.chip_id,
        "mode": c.conditions.mode,
        "gain": c.gain,
        "bias_v": c.bias_v,
        "temperature_k": c.temperature_k,
        "history": [asdict(record) for record in c.history],
        "thresholds_kev": list(c.thresholds_kev),
        "target_dac": c.target_dac,
        "residual_rms_kev": c.residual_rms_kev if c.lines else None,
        "thresholds": [
            _describe_threshold(c, n) for n, edges in enumerate(c.edges_after_dac) if np.isfinite(edges).any()
        ],
        "lines": [asdict(line) for line in c.lines],
        "sources_without_edge": list(c.sources_without_edge),
        "n_pixels": c.pixel_class.size,
        "n_bad": int(np.count_nonzero(c.is_bad)),
        "bad_pixels": {bit.name: int(np.count_nonzero(c.pixel_class & bit)) for bit in PixelClass},
        "basis": _describe_basis(c.basis),
        **{name: {} if record is None else tell(record) for name, record, tell in _records(c)},
        "dacs": dict(c.dacs),
    }


def _records(c: Calibration) -> Sequence[tuple[str, Any, Callable[[Any], dict[str, Any]]]]:
    """Return what the steps measured beside the energy scale: name, record, and what tells it in figures."""
    return (
        ("bias_currents", c.bias_currents, _describe_bias_currents),
        ("equalisation", c.equalisation, partial(_describe_equalisation, gain_dac_per_kev=c.gain_dac_per_kev)),
        ("pixel_scale", c.pixel_scale, partial(_describe_pixel_scale, energies_kev=_ends_kev(c))),
        ("end_point", c.end_point, _describe_end_point),
        ("count_rate", c.count_rate, _describe_count_rate),
        ("wedge", c.wedge, _describe_wedge),
        ("thickness", c.thickness, lambda record: dict(record.figures)),
        ("response", c.response, _describe_response),
        ("flat_field", c.flat_field, partial(_describe_flat_field, is_bad=c.is_bad)),
        ("alignment", c.alignment, lambda record: dict(record.figures) | {"n_views": record.n_views}),
    )


def _ends_kev(calibration: Calibration) -> tuple[float, ...]:
    energies = [line.energy_kev for line in calibration.lines]
    return (min(energies), max(energies)) if energies else ()


def _describe_bias_currents(tuned: BiasCurrents) -> dict[str, Any]:
    return {
        "tolerance_v": tuned.tolerance_v,
        "chips": [
            {"chip": chip + 1, "dac": name, "code": int(code), "read_v": float(read_v), "target_v": float(target_v)}
            for chip, (codes, volts) in enumerate(zip(tuned.codes, tuned.voltage_v, strict=True))
            for name, code, read_v, target_v in zip(tuned.names, codes, volts, tuned.target_v, strict=True)
        ],
    }


def _describe_equalisation(record: Equalisation, *, gain_dac_per_kev: NDArray[np.float64]) -> dict[str, Any]:
    spreads = {"before": record.sigma_before_dac, "after": record.sigma_after_dac, "limit": record.limit_dac}
    electrons = {name: record.in_electrons(sigma, gain_dac_per_kev) for name, sigma in spreads.items()}
    faults = [fault for fault in TrimFault if fault is not TrimFault.NONE]
    return {
        "method": record.method,
        "energy_kev": record.energy_kev,
        "n_rounds": record.n_rounds,
        "thresholds": [
            {"number": n}
            | {f"sigma_{name}_dac": float(sigma[n]) for name, sigma in spreads.items()}
            | {f"sigma_{name}_e": float(sigma[n]) for name, sigma in electrons.items()}
            | {fault.name.lower(): int(np.count_nonzero(record.fault[n] == fault)) for fault in faults}
            for n in range(len(record.step_dac))
            if np.isfinite(record.sigma_after_dac[n])
        ],
    }


def _describe_pixel_scale(scale: PixelScale, *, energies_kev: Sequence[float]) -> dict[str, Any]:
    return {
        "thresholds": [
            {
                "number": n,
                "offset_dac": median(scale.offset_dac[n]),
                "offset_sigma_dac": float(np.nanstd(scale.offset_dac[n])),
                "gain_dac_per_kev": median(plane),
                "gain_sigma_dac_per_kev": float(np.nanstd(plane)),
                **{f"error_at_{energy:.0f}_kev": median(scale.sigma_kev(n, energy)) for energy in energies_kev},
                "chi2_ratio": float(scale.chi2_ratio[n]),
            }
            for n, plane in enumerate(scale.gain_dac_per_kev)
            if np.isfinite(plane).any()
        ]
    }


def _describe_end_point(end: EndPoint) -> dict[str, Any]:
    return asdict(end) | {"error_kev": end.error_kev}


def _describe_flat_field(record: FlatField, is_bad: NDArray[np.bool_]) -> dict[str, Any]:
    return {
        "n_frames": record.n_frames,
        "exposure_s": record.exposure_s,
        "tube_kvp": record.tube_kvp,
        "current_ma": record.current_ma,
        "thresholds": [
            {"number": number, "energy_kev": energy_kev, **each._asdict()}
            for number, energy_kev, each in zip(
                record.thresholds, record.thresholds_kev, record.evenness(is_bad), strict=True
            )
        ],
    }


def _describe_count_rate(record: CountRate) -> dict[str, Any]:
    return dict(record.figures) | {
        "n_currents": len(record.currents_ma),
        "highest_ma": float(record.currents_ma[-1]),
        "thresholds_kev": record.thresholds_kev.tolist(),
        "dead_time_spread_relative": float(np.std(record.dead_time_ratio)),
        "dead_time_sigma_relative": record.dead_time_sigma_relative,
    }


def _describe_wedge(record: StepWedge) -> dict[str, Any]:
    kept = record.counts / record.open_beam
    return {
        "thresholds_kev": record.thresholds_kev.tolist(),
        "transmission": dict(zip(record.plates, kept.tolist(), strict=True)),
    }


def _describe_response(record: Response) -> dict[str, Any]:
    sigmas = np.sqrt(np.maximum(np.diag(record.covariance), 0))
    return dict(record.figures) | {
        "sensor": asdict(record.sensor),
        "tube_kvp": record.tube_kvp,
        "n_degrees": record.n_degrees,
        "held_back": list(record.plates[len(record.plates) - record.n_checks :]),
        "parameters": [
            {"name": name, "value": float(value), "standard_error": float(sigma)}
            for name, value, sigma in zip(record.parameter_names, record.parameters, sigmas, strict=True)
        ],
    }


def _describe_threshold(calibration: Calibration, number: int) -> dict[str, Any]:
    gain = float(calibration.gain_dac_per_kev[number])
    _, sigma = mean_and_sigma(calibration.edges_after_dac[number])
    return {
        "number": number,
        "offset_dac": float(calibration.offset_dac[number]),
        "gain_dac_per_kev": gain,
        "sigma_dac": sigma,
        "sigma_kev": sigma / gain,
        **_scale_errors(calibration, number),
    }


def _scale_errors(calibration: Calibration, number: int) -> dict[str, float]:
    """Return the standard errors of a threshold's offset and gain, where they are known."""
    if calibration.scale_covariance is None or not np.isfinite(calibration.scale_covariance[number]).all():
        return {}
    offset, gain = np.sqrt(np.diag(calibration.scale_covariance[number])).tolist()
    return {"offset_error_dac": offset, "gain_error_dac_per_kev": gain}


def _describe_volume(volume: Volume) -> dict[str, Any]:
    return {
        "unit": volume.unit,
        "grid": {
            "shape": list(volume.grid.shape),
            "voxel_mm": volume.grid.voxel_mm if volume.grid.is_scale_known else None,
            "centre_mm": list(volume.grid.centre_mm),
        },
        "channels": [
            {"name": name, "unit": volume.unit_of(name), **_describe_values(values)}
            for name, values in zip(volume.channels, volume.values, strict=True)
        ],
        "thresholds_kev": list(volume.thresholds_kev),
        "basis": _describe_basis(volume.basis),
        "provenance": asdict(volume.provenance),
    }


def _describe_values(values: NDArray[np.float32]) -> dict[str, float]:
    """Describe a channel slice by slice, so that one of any size is read once."""
    means, lows, highs = zip(*((part.mean(dtype=float), part.min(), part.max()) for part in values), strict=True)
    return {"mean": float(np.mean(means)), "min": float(min(lows)), "max": float(max(highs))}


def _describe_basis(basis: MaterialBasis | None) -> dict[str, Any]:
    if basis is None:
        return {}
    columns = basis.attenuation_per_mm_per_g_cm3.T.tolist()
    return {
        "thresholds_kev": list(basis.thresholds_kev),
        "tube_kvp": basis.tube_kvp,
        "attenuation_per_mm_per_g_cm3": dict(zip(basis.materials, columns, strict=True)),
    }


_DESCRIPTIONS: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "merlin": _describe_merlin,
    "scan": _describe_scan,
    "calibration": _describe_calibration,
    "volume": _describe_volume,
}
