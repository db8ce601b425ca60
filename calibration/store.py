"""The calibration of one instrument as one record, and the HDF5 file that keeps it.

One flat table of named values serves the file, the copy inside a scan file, and the identity, so that none of them can
forget a field that another holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass
from importlib import metadata
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import h5py
import numpy as np
from numpy.typing import NDArray

from calibration.alignment import Alignment
from calibration.bias_currents import BiasCurrents
from calibration.conditions import Conditions, StepRecord
from calibration.count_rate import CountRate
from calibration.energy_scale import EndPoint
from calibration.equalisation import Equalisation, mean_and_sigma
from calibration.flat_field import FlatField
from calibration.material_basis import MaterialBasis
from calibration.pixel_scale import PixelScale
from calibration.pixels import is_unusable
from calibration.response import Response
from calibration.thickness import EquivalentThickness, StepWedge
from calibration.whole_file import whole_file
from firmware_iface.chip import FINE_THRESHOLDS, N_THRESHOLDS
from firmware_iface.errors import BadFile, WrongUsage

FORMAT = "mpxct calibration"
VERSION = 2
THRESHOLD_CODES = 512

UNITS: Mapping[str, str] = {
    "_dac_per_kev": "DAC code/keV",
    "_per_mm_per_g_cm3": "1/mm per g/cm3",
    "_per_mm": "1/mm",
    "_per_s": "1/s",
    "_mg_ml": "mg/mL",
    "_g_cm3": "g/cm3",
    "_mm": "mm",
    "_kev": "keV",
    "_kvp": "kV",
    "_dac": "DAC code",
    "_rad": "rad",
    "_ma": "mA",
    "_px": "pixel",
    "_s": "s",
    "_v": "V",
    "_e": "electron",
    "_k": "K",
}
"""What a field's name ends in, and the units that its dataset states; the first that fits. All else is a number."""

R = TypeVar("R")
Content = dict[str, tuple[str | NDArray[np.generic], str]]


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

    Fields that are None belong to steps that have not been done.

    Attributes
    ----------
    created : str
        Date and time, ISO 8601 in UTC.
    software, device, chip_id, gain : str
        Version of mpxct, the device's own description, the chip's identity, and the gain mode's name.
    temperature_k : float, optional
        Of the sensor when the calibration was begun; None where it cannot be measured.
    history : tuple of StepRecord
        The steps that were done, in their order.
    dacs : mapping of str to int
        Every DAC as set, thresholds included.
    trim : (n_thresholds, rows, cols) uint8
        8 thresholds in colour mode, 2 in fine pitch.
    is_masked : (n_thresholds, rows, cols) bool
        Pixels switched off in the chip, because they fire without a photon.
    pixel_class : (rows, cols) uint16
        Bits of `calibration.pixels.PixelClass`; 0 is a good pixel.
    target_dac : float
        Where the equalisation brought the noise peaks.
    edges_before_dac, edges_after_dac : (n_thresholds, rows, cols) float32
        Noise peaks at the middle trim and at the chosen trim; NaN where none was seen.
    offset_dac, gain_dac_per_kev : (n_thresholds,) float64
        Energy scale of each threshold: code = offset + gain * energy.
    lines : tuple of MeasuredLine
    sources_without_edge : tuple of str
        What was scanned but shows no edge in this mode, and is left out of the energy scale.
    thresholds_kev : tuple of float
        Of the bins that `basis` and the flats were measured with.
    basis : MaterialBasis, optional
    bias_currents : BiasCurrents, optional
    equalisation : Equalisation, optional
    scale_covariance : (n_thresholds, 2, 2) float64, optional
        Of offset and gain of each threshold; NaN for one that was not measured.
    pixel_scale : PixelScale, optional
    end_point : EndPoint, optional
        The check of the energy scale by the tube's voltage.
    count_rate : CountRate, optional
    wedge : StepWedge, optional
    thickness : EquivalentThickness, optional
    response : Response, optional
    flat_field : FlatField, optional
        The open beam, at the thresholds and the tube's settings of the scan.
    alignment : Alignment, optional
        Where source and detector are; scans and reconstructions take it instead of their plan's geometry.
    """

    created: str
    software: str
    device: str
    chip_id: str
    gain: str
    is_csm: bool
    is_colour: bool
    bias_v: float
    temperature_k: float | None = None
    history: tuple[StepRecord, ...] = ()
    dacs: Mapping[str, int]
    trim: NDArray[np.uint8] = field(metadata={"units": "code"})
    is_masked: NDArray[np.bool_]
    pixel_class: NDArray[np.uint16] = field(metadata={"units": "bits"})
    target_dac: float
    edges_before_dac: NDArray[np.float32]
    edges_after_dac: NDArray[np.float32]
    offset_dac: NDArray[np.float64]
    gain_dac_per_kev: NDArray[np.float64]
    lines: tuple[MeasuredLine, ...]
    sources_without_edge: tuple[str, ...] = ()
    thresholds_kev: tuple[float, ...]
    basis: MaterialBasis | None = None
    bias_currents: BiasCurrents | None = None
    equalisation: Equalisation | None = None
    scale_covariance: NDArray[np.float64] | None = field(default=None, metadata={"units": "DAC code and keV"})
    pixel_scale: PixelScale | None = None
    end_point: EndPoint | None = None
    count_rate: CountRate | None = None
    wedge: StepWedge | None = None
    thickness: EquivalentThickness | None = None
    response: Response | None = None
    flat_field: FlatField | None = None
    alignment: Alignment | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "pixel_class", self.pixel_class.astype(np.uint16))  # wide enough for every reason
        n_thresholds = N_THRESHOLDS if self.is_colour else FINE_THRESHOLDS
        planes = (n_thresholds, *self.pixel_class.shape)
        for name in ("trim", "is_masked", "edges_before_dac", "edges_after_dac"):
            shape = getattr(self, name).shape
            if shape != planes:
                raise ValueError(f"{name} has shape {shape}; allowed: {planes}")
        if self.offset_dac.shape != (n_thresholds,) or self.gain_dac_per_kev.shape != (n_thresholds,):
            raise ValueError(f"the energy scale has shape {self.offset_dac.shape}; allowed: ({n_thresholds},)")
        if not (self.gain_dac_per_kev > 0).all():
            raise ValueError(f"the gains are {self.gain_dac_per_kev} DAC per keV; allowed: above 0")

    @property
    def conditions(self) -> Conditions:
        """How the detector stood when the calibration was begun."""
        return Conditions(
            chip_id=self.chip_id,
            gain=self.gain,
            is_csm=self.is_csm,
            is_colour=self.is_colour,
            bias_v=self.bias_v,
            temperature_k=self.temperature_k,
        )

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
        """Pixels that are not to be used: (rows, cols) bool; those that are only suspect are."""
        return is_unusable(self.pixel_class)

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


def is_calibration_file(path: str | Path) -> bool:
    """Whether a file says that it is a calibration; whether it is whole, `load` tells."""
    try:
        with h5py.File(path, "r") as file:
            return _word(file.attrs.get("format")) == FORMAT
    except OSError:
        return False


def write_group(group: h5py.Group, calibration: Calibration) -> None:
    """Write a calibration into an open HDF5 group, one dataset with its units for each value."""
    group.attrs["version"] = VERSION
    for name, text in {"format": FORMAT, "identity": calibration.identity}.items():
        group.attrs.create(name, text, dtype=fixed(text))
    for name, (value, units) in _content(calibration).items():
        dataset = group.create_dataset(name, data=value, dtype=fixed(value) if isinstance(value, str) else None)
        dataset.attrs["units"] = units


def fixed(text: str) -> np.dtype[np.void]:
    """Return the HDF5 type of a text of fixed length; HDF5 can hang on a damaged file with texts of variable length."""
    return h5py.string_dtype("utf-8", max(1, len(text.encode())))


def _word(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def read_group(group: h5py.Group) -> Calibration:
    """Read a calibration from an open HDF5 group; raises BadFile as `load` does."""
    kind, version = _word(group.attrs.get("format")), group.attrs.get("version")
    if kind != FORMAT:
        raise BadFile(f"this is not a calibration: its format is {kind!r}; allowed: {FORMAT!r}")
    if version != VERSION:
        raise BadFile(
            f"this calibration has version {version}; allowed: {VERSION}", hint="calibrate again with this version"
        )
    try:
        calibration = _record(Calibration, group)
    except (KeyError, ValueError, TypeError, AttributeError, OSError, RuntimeError) as error:
        raise BadFile(f"the calibration is incomplete or inconsistent ({error})", hint="calibrate again") from error
    if calibration.identity != _word(group.attrs.get("identity")):
        raise BadFile("the calibration was changed after it was measured: its identity does not match its content")
    return calibration


def _content(record: Any, prefix: str = "") -> Content:
    """Return every value of a record by its path in the file, as text or little-endian array, with its units.

    A record inside becomes a folder, a tuple of records a folder of columns; what is None or empty is left out.
    """
    content: Content = {}
    for each in fields(record):
        value, path = getattr(record, each.name), prefix + each.name
        if value is None or (isinstance(value, tuple) and not value):
            continue
        if is_dataclass(value):
            content |= _content(value, f"{path}/")
        elif isinstance(value, Mapping):
            content |= {f"{path}/{key}": (_little_endian(item), _units(each)) for key, item in value.items()}
        elif _is_records(value):
            for column in fields(value[0]):
                column_value = _joined([getattr(row, column.name) for row in value])
                content[f"{path}/{column.name}"] = (column_value, _units(column))
        else:
            content[path] = (_joined(value) if isinstance(value, tuple) else _little_endian(value), _units(each))
    return content


def _is_records(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and is_dataclass(value[0])


def _joined(values: Sequence[Any]) -> str | NDArray[np.generic]:
    """Turn a row of plain values into one array, texts into one text with a line each."""
    return "\n".join(values) if values and isinstance(values[0], str) else _little_endian(np.asarray(values))


def _little_endian(value: Any) -> str | NDArray[np.generic]:
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    return array.astype(array.dtype.newbyteorder("<"))


def _units(of: Field[Any]) -> str:
    """Return the units of a field: those it states, or those that its name ends in."""
    if "units" in of.metadata:
        return of.metadata["units"]
    matching = [units for suffix, units in UNITS.items() if of.name.endswith(suffix)]
    return matching[0] if matching else "1"


def _describe(value: str | NDArray[np.generic]) -> str:
    return "text" if isinstance(value, str) else f"{value.dtype.str}{value.shape}"


def _record(kind: type[R], group: h5py.Group) -> R:
    """Build a record from the folder that `_content` made of it."""
    hints = get_type_hints(kind)
    values = {each.name: _value(hints[each.name], group, each.name) for each in fields(kind)}  # pyright: ignore[reportArgumentType]
    return kind(**values)


def _value(hint: Any, group: h5py.Group, name: str) -> Any:
    if get_origin(hint) in (Union, UnionType):
        inner = next(each for each in get_args(hint) if each is not NoneType)
        return _value(inner, group, name) if name in group else None
    if is_dataclass(hint):
        return _record(hint, _folder(group, name))  # pyright: ignore[reportArgumentType]
    if get_origin(hint) is tuple:
        return _tuple(get_args(hint)[0], group, name)
    if get_origin(hint) is Mapping:
        return {key: _array(group, f"{name}/{key}").item() for key in _names(group, name)}
    if hint is str:
        return _text(group, name)
    array = _array(group, name)
    return hint(array) if hint in (bool, int, float) else array


def _tuple(kind: Any, group: h5py.Group, name: str) -> tuple[Any, ...]:
    if name not in group:
        return ()
    if not is_dataclass(kind):
        return _column(kind, group, name)
    hints = get_type_hints(kind)
    columns = [_column(hints[column.name], group, f"{name}/{column.name}") for column in fields(kind)]
    names = [column.name for column in fields(kind)]
    return tuple(kind(**dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True))  # pyright: ignore[reportCallIssue]


def _column(kind: Any, group: h5py.Group, name: str) -> tuple[Any, ...]:
    if kind is str:
        return tuple(_text(group, name).split("\n"))
    return tuple(_array(group, name).tolist())


def _names(group: h5py.Group, name: str) -> list[str]:
    """Return what a subgroup holds; one that would hold nothing is not written."""
    return list(_folder(group, name)) if name in group else []


def _folder(group: h5py.Group, name: str) -> h5py.Group:
    folder = group[name]
    if not isinstance(folder, h5py.Group):
        raise TypeError(f"{name} is a {type(folder).__name__}; allowed: a group")
    return folder


def _array(group: h5py.Group, name: str) -> NDArray:
    return np.asarray(_dataset(group, name)[()])


def _text(group: h5py.Group, name: str) -> str:
    return str(_dataset(group, name).asstr()[()])


def _dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    dataset = group[name]
    if not isinstance(dataset, h5py.Dataset):
        raise TypeError(f"{name} is a {type(dataset).__name__}; allowed: a dataset")
    return dataset
