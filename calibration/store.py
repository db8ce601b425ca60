"""The calibration of one instrument as one record, and the HDF5 file that keeps it.

One flat table of named values serves the file, the copy inside a scan file, and the identity, so that none of them can
forget a field that another holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from calibration.material_basis import MaterialBasis
from calibration.thresholds import mean_and_sigma
from calibration.whole_file import whole_file
from firmware_iface.chip import N_THRESHOLDS
from firmware_iface.errors import BadFile, WrongUsage

FORMAT = "mpxct calibration"
VERSION = 1
THRESHOLD_CODES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredLine:
    """One source on the energy scale of one threshold.

    Attributes
    ----------
    threshold : int
        Number (0 to 7) of the threshold.
    energy_kev : float
        Mean energy of the source's lines.
    position_dac : float
        Where its edge was found, by a fit of this source alone.
    residual_kev : float
        That position on the joint energy scale, minus `energy_kev`.
    """

    threshold: int
    source: str
    energy_kev: float
    position_dac: float
    residual_kev: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """What was measured of one detector in one mode; arrays have one plane per threshold, in their order.

    Attributes
    ----------
    created : str
        Date and time, ISO 8601 in UTC.
    software, device, chip_id, gain : str
        Version of mpxct, the device's own description, the chip's identity, and the gain mode's name.
    dacs : mapping of str to int
        Every DAC as set, thresholds included.
    trim : (8, rows, cols) uint8
    is_masked : (8, rows, cols) bool
        Pixels switched off in the chip, because they fire without a photon.
    pixel_class : (rows, cols) uint8
        Bits of `calibration.pixels.PixelClass`; 0 is a good pixel.
    target_dac : float
        Where the equalisation brought the noise peaks.
    edges_before_dac, edges_after_dac : (8, rows, cols) float32
        Noise peaks at the middle trim and at the chosen trim; NaN where none was seen.
    offset_dac, gain_dac_per_kev : (8,) float64
        Energy scale of each threshold: code = offset + gain * energy.
    lines : tuple of MeasuredLine
    thresholds_kev : tuple of float
        Of the bins that `basis` and the flats were measured with.
    basis : MaterialBasis, optional
    """

    created: str
    software: str
    device: str
    chip_id: str
    gain: str
    is_csm: bool
    is_colour: bool
    bias_v: float
    dacs: Mapping[str, int]
    trim: NDArray[np.uint8]
    is_masked: NDArray[np.bool_]
    pixel_class: NDArray[np.uint8]
    target_dac: float
    edges_before_dac: NDArray[np.float32]
    edges_after_dac: NDArray[np.float32]
    offset_dac: NDArray[np.float64]
    gain_dac_per_kev: NDArray[np.float64]
    lines: tuple[MeasuredLine, ...]
    thresholds_kev: tuple[float, ...]
    basis: MaterialBasis | None = None

    def __post_init__(self) -> None:
        planes = (N_THRESHOLDS, *self.pixel_class.shape)
        for name in ("trim", "is_masked", "edges_before_dac", "edges_after_dac"):
            shape = getattr(self, name).shape
            if shape != planes:
                raise ValueError(f"{name} has shape {shape}; allowed: {planes}")
        if self.offset_dac.shape != (N_THRESHOLDS,) or self.gain_dac_per_kev.shape != (N_THRESHOLDS,):
            raise ValueError(f"the energy scale has shape {self.offset_dac.shape}; allowed: ({N_THRESHOLDS},)")
        if not (self.gain_dac_per_kev > 0).all():
            raise ValueError(f"the gains are {self.gain_dac_per_kev} DAC per keV; allowed: above 0")

    @property
    def identity(self) -> str:
        """16 hexadecimal digits that name this content, however it is stored."""
        digest = hashlib.sha256()
        for name, (value, units) in sorted(_content(self).items()):
            digest.update(f"{name}|{units}|{_describe(value)}|".encode())
            digest.update(value.encode() if isinstance(value, str) else np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()[:16]

    @property
    def is_bad(self) -> NDArray[np.bool_]:
        """Pixels that are not to be used: (rows, cols) bool."""
        return self.pixel_class != 0

    @property
    def residual_rms_kev(self) -> float:
        """Root mean square of the residuals of all lines, in keV."""
        return float(np.sqrt(np.mean([line.residual_kev**2 for line in self.lines]))) if self.lines else float("nan")

    @property
    def sigmas_kev(self) -> tuple[float, float]:
        """Spread of the noise edges over the pixels before and after equalisation, in keV.

        Root mean square over the thresholds whose energy scale was measured; NaN before there is one.
        """
        used = sorted({line.threshold for line in self.lines})
        if not used:
            return float("nan"), float("nan")
        before, after = (
            [mean_and_sigma(edges[number])[1] / float(self.gain_dac_per_kev[number]) for number in used]
            for edges in (self.edges_before_dac, self.edges_after_dac)
        )
        return float(np.sqrt(np.mean(np.square(before)))), float(np.sqrt(np.mean(np.square(after))))

    def threshold_dac(self, number: int, energy_kev: float) -> int:
        """Return the code that puts a threshold nearest to an energy.

        Raises
        ------
        WrongUsage
            The DAC does not reach that energy.
        """
        code = round(float(self.offset_dac[number] + self.gain_dac_per_kev[number] * energy_kev))
        if not 0 <= code < THRESHOLD_CODES:
            lowest, highest = (self.threshold_kev(number, end) for end in (0, THRESHOLD_CODES - 1))
            raise WrongUsage(
                f"threshold {number} at {energy_kev:g} keV would be code {code}; "
                f"allowed: {max(lowest, 0.0):.1f} to {highest:.1f} keV",
                hint="choose another energy, or calibrate in a lower gain mode",
            )
        return code

    def threshold_kev(self, number: int, code: int) -> float:
        """Return the energy at which a threshold stands when its DAC holds a code."""
        return float((code - self.offset_dac[number]) / self.gain_dac_per_kev[number])


def software_version() -> str:
    """Return the version of mpxct that runs, for what it writes."""
    try:
        return metadata.version("mpxct")
    except metadata.PackageNotFoundError:
        return "unknown"


def save(calibration: Calibration, path: str | Path) -> None:
    """Write a calibration file, whole or not at all."""
    with whole_file(path) as partial, h5py.File(partial, "w") as file:
        write_group(file, calibration)


def load(path: str | Path) -> Calibration:
    """Read a calibration file.

    Raises
    ------
    BadFile
        The file is missing, foreign, truncated, of another version, or its content is not what it says.
    """
    try:
        with h5py.File(path, "r") as file:
            return read_group(file)
    except OSError as error:
        raise BadFile(
            f"{path} cannot be read as an HDF5 file: it is missing, foreign or truncated",
            hint="mpxct calibrate all makes a calibration file",
        ) from error
    except BadFile as error:
        raise BadFile(f"{path}: {error}", hint=error.hint) from error


def write_group(group: h5py.Group, calibration: Calibration) -> None:
    """Write a calibration into an open HDF5 group, one dataset with its units for each value."""
    group.attrs["format"] = FORMAT
    group.attrs["version"] = VERSION
    group.attrs["identity"] = calibration.identity
    for name, (value, units) in _content(calibration).items():
        dataset = group.create_dataset(name, data=value)
        dataset.attrs["units"] = units


def read_group(group: h5py.Group) -> Calibration:
    """Read a calibration from an open HDF5 group; raises BadFile as `load` does."""
    kind, version = group.attrs.get("format"), group.attrs.get("version")
    if kind != FORMAT:
        raise BadFile(f"this is not a calibration: its format is {kind!r}; allowed: {FORMAT!r}")
    if version != VERSION:
        raise BadFile(
            f"this calibration has version {version}; allowed: {VERSION}", hint="calibrate again with this version"
        )
    try:
        calibration = _from_group(group)
    except (KeyError, ValueError, TypeError, AttributeError, OSError, RuntimeError) as error:
        raise BadFile(f"the calibration is incomplete or inconsistent ({error})", hint="calibrate again") from error
    if calibration.identity != group.attrs.get("identity"):
        raise BadFile("the calibration was changed after it was measured: its identity does not match its content")
    return calibration


def _content(calibration: Calibration) -> dict[str, tuple[str | NDArray[np.generic], str]]:
    """Return every value of a calibration by its path in the file, as text or little-endian array, with its units."""
    c = calibration
    content: dict[str, tuple[str | NDArray[np.generic], str]] = {
        name: (getattr(c, name), "text") for name in ("created", "software", "device", "chip_id", "gain")
    }
    content |= {
        "is_csm": (np.asarray(c.is_csm), "bool"),
        "is_colour": (np.asarray(c.is_colour), "bool"),
        "bias_v": (np.asarray(c.bias_v, "<f8"), "V"),
        "trim": (np.asarray(c.trim, "u1"), "code"),
        "is_masked": (np.asarray(c.is_masked, "?"), "bool"),
        "pixel_class": (np.asarray(c.pixel_class, "u1"), "bits"),
        "target_dac": (np.asarray(c.target_dac, "<f8"), "DAC code"),
        "edges_before_dac": (np.asarray(c.edges_before_dac, "<f4"), "DAC code"),
        "edges_after_dac": (np.asarray(c.edges_after_dac, "<f4"), "DAC code"),
        "offset_dac": (np.asarray(c.offset_dac, "<f8"), "DAC code"),
        "gain_dac_per_kev": (np.asarray(c.gain_dac_per_kev, "<f8"), "DAC code/keV"),
        "thresholds_kev": (np.asarray(c.thresholds_kev, "<f8"), "keV"),
        "lines/threshold": (np.asarray([line.threshold for line in c.lines], "<i4"), "number"),
        "lines/source": ("\n".join(line.source for line in c.lines), "text"),
        "lines/energy_kev": (np.asarray([line.energy_kev for line in c.lines], "<f8"), "keV"),
        "lines/position_dac": (np.asarray([line.position_dac for line in c.lines], "<f8"), "DAC code"),
        "lines/residual_kev": (np.asarray([line.residual_kev for line in c.lines], "<f8"), "keV"),
    }
    content |= {f"dacs/{name}": (np.asarray(code, "<i4"), "DAC code") for name, code in c.dacs.items()}
    if c.basis is not None:
        content |= {
            "basis/materials": ("\n".join(c.basis.materials), "text"),
            "basis/attenuation": (np.asarray(c.basis.attenuation_per_mm_per_g_cm3, "<f8"), "1/mm per g/cm3"),
            "basis/thresholds_kev": (np.asarray(c.basis.thresholds_kev, "<f8"), "keV"),
        }
        if c.basis.tube_kvp is not None:
            content["basis/tube_kvp"] = (np.asarray(c.basis.tube_kvp, "<f8"), "kV")
    return content


def _describe(value: str | NDArray[np.generic]) -> str:
    return "text" if isinstance(value, str) else f"{value.dtype.str}{value.shape}"


def _from_group(group: h5py.Group) -> Calibration:
    lines = zip(
        _array(group, "lines/threshold").tolist(),
        _texts(group, "lines/source"),
        _array(group, "lines/energy_kev").tolist(),
        _array(group, "lines/position_dac").tolist(),
        _array(group, "lines/residual_kev").tolist(),
        strict=True,
    )
    return Calibration(
        created=_text(group, "created"),
        software=_text(group, "software"),
        device=_text(group, "device"),
        chip_id=_text(group, "chip_id"),
        gain=_text(group, "gain"),
        is_csm=bool(_array(group, "is_csm")),
        is_colour=bool(_array(group, "is_colour")),
        bias_v=float(_array(group, "bias_v")),
        dacs={name: int(_array(group, f"dacs/{name}")) for name in _names(group, "dacs")},
        trim=_array(group, "trim"),
        is_masked=_array(group, "is_masked"),
        pixel_class=_array(group, "pixel_class"),
        target_dac=float(_array(group, "target_dac")),
        edges_before_dac=_array(group, "edges_before_dac"),
        edges_after_dac=_array(group, "edges_after_dac"),
        offset_dac=_array(group, "offset_dac"),
        gain_dac_per_kev=_array(group, "gain_dac_per_kev"),
        lines=tuple(
            MeasuredLine(threshold=number, source=source, energy_kev=energy, position_dac=dac, residual_kev=residual)
            for number, source, energy, dac, residual in lines
        ),
        thresholds_kev=tuple(_array(group, "thresholds_kev").tolist()),
        basis=_read_basis(group) if "basis" in group else None,
    )


def _read_basis(group: h5py.Group) -> MaterialBasis:
    return MaterialBasis(
        materials=tuple(_texts(group, "basis/materials")),
        attenuation_per_mm_per_g_cm3=_array(group, "basis/attenuation"),
        thresholds_kev=tuple(_array(group, "basis/thresholds_kev").tolist()),
        tube_kvp=float(_array(group, "basis/tube_kvp")) if "basis/tube_kvp" in group else None,
    )


def _names(group: h5py.Group, name: str) -> list[str]:
    """Return what a subgroup holds; one that would hold nothing is not written."""
    inner = group.get(name)
    return list(inner) if isinstance(inner, h5py.Group) else []


def _array(group: h5py.Group, name: str) -> NDArray:
    return np.asarray(_dataset(group, name)[()])


def _text(group: h5py.Group, name: str) -> str:
    return str(_dataset(group, name).asstr()[()])


def _texts(group: h5py.Group, name: str) -> list[str]:
    return _text(group, name).split("\n") if _text(group, name) else []


def _dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    dataset = group[name]
    if not isinstance(dataset, h5py.Dataset):
        raise TypeError(f"{name} is a {type(dataset).__name__}; allowed: a dataset")
    return dataset
