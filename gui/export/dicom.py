"""DICOM: a series of plain CT images for each layer, in one study and one frame of reference.

Values are whole numbers of 16 bits and a slope, one for the whole series: HU in steps of 1, others in 65,534 steps over
what occurs. What is not a number is the padding value. The specimen stands where the patient does; nothing that is not
known is made up: birth, sex, dates and doctors are empty.

# Ref: DICOM PS3.3: CT Image IOD (A.3), Rescale Type with the terms HU, MGML and US (C.11.1.1.2), Real World Value
#      Mapping (C.7.6.16.2.11), Pixel Padding Value (C.7.5.1.1.2). PS3.5 B.2: UIDs made of UUIDs. Units: UCUM.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from calibration.progress import Progress
from calibration.store import software_version
from firmware_iface.errors import WrongUsage
from gui.export.content import Content, Layer
from gui.export.formats import Options
from gui.export.target import spoken
from reconstruction.volume import HOUNSFIELD, MG_PER_ML

OURS = r"\d+\.dcm"
"""Names of the files that such a folder holds."""
PADDING = -32768
MOST = 32767
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
RESCALE_TYPES = {HOUNSFIELD: "HU", MG_PER_ML: "MGML"}
"""Others are US, unspecified; the mapping to real world values tells their unit."""
UCUM = {
    HOUNSFIELD: ("[hnsf'U]", "Hounsfield unit"),
    MG_PER_ML: ("mg/mL", "mg/mL"),
    "g/cm3": ("g/cm3", "g/cm3"),
    "1/mm": ("/mm", "per millimeter"),
    "1": ("1", "no units"),
}


class Coding(NamedTuple):
    """How the values of a layer become whole numbers: value = slope number + intercept; and what identifies them."""

    slope: float
    intercept: float
    lowest: int
    highest: int
    digest: str


def write(content: Content, path: Path, _: Options) -> Generator[Progress, None, None]:
    """Write a folder for each layer with a file for each slice, the lowest first."""
    if not content.grid.is_scale_known:
        raise WrongUsage(
            "DICOM must tell the size of a voxel, and this volume does not know it", hint="say it: --voxel-mm SIZE"
        )
    identity = "\n".join((content.specimen, str(content.grid), *content.notes.values()))
    folders = set()
    windows = content.windows()
    for number, layer in enumerate(content.layers, start=1):
        coding = yield from _coding(content, layer)
        folder = path if len(content.layers) == 1 else path / spoken(layer.name)
        if folder.name.casefold() in folders:
            raise WrongUsage(f"two layers would go into the folder {folder.name}", hint="export them one by one")
        folders.add(folder.name.casefold())
        folder.mkdir(exist_ok=True)
        common = _series(content, layer, coding, identity, number, windows[number - 1])
        yield from _slices(content, layer, coding, common, folder)


def _coding(content: Content, layer: Layer) -> Generator[Progress, None, Coding]:
    """Look through a layer for its range, and for what tells it from others."""
    lows, highs, digest = [], [], hashlib.blake2b(f"{layer.name} {layer.unit}".encode(), digest_size=16)
    for first, stop in content.only(layer).slabs():
        slab = layer.slab(first, stop)
        digest.update(slab.data)
        finite = slab[np.isfinite(slab)]
        if finite.size:
            lows.append(float(finite.min()))
            highs.append(float(finite.max()))
        yield Progress(f"range of {layer.name}", stop, content.grid.shape[0])
    low, high = (min(lows), max(highs)) if lows else (0.0, 0.0)
    most = max(abs(low), abs(high))
    # A decimal string has 16 characters at most: the slope is what stands in the file, rounded up.
    slope = 1.0 if layer.unit == HOUNSFIELD and most <= MOST else float(f"{most / MOST * (1 + 1e-8):.8e}")
    slope = slope or 1.0
    return Coding(slope, 0.0, round(low / slope), round(high / slope), digest.hexdigest())


def _slices(content: Content, layer: Layer, coding: Coding, common: Any, folder: Path) -> Generator[Progress]:
    from pydicom import FileDataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    n_z = content.grid.shape[0]
    x_mm, y_mm, _ = content.origin_mm
    heights_mm = content.grid.axes_mm()[0].tolist()
    for first, stop in content.only(layer).slabs():
        for place, values in enumerate(layer.slab(first, stop), start=first):
            meta = FileMetaDataset()
            meta.MediaStorageSOPClassUID = UID(CT_IMAGE)
            meta.MediaStorageSOPInstanceUID = UID(_uid(common.SeriesInstanceUID, "slice", str(place)))
            meta.TransferSyntaxUID = ExplicitVRLittleEndian
            meta.ImplementationClassUID = UID(_uid("mpxct"))
            meta.ImplementationVersionName = "MPXCT"
            target = folder / f"{place + 1:05d}.dcm"
            image = FileDataset(target, dict(common), file_meta=meta, preamble=b"\0" * 128)
            image.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
            image.InstanceNumber = place + 1
            image.ImagePositionPatient = [_decimal(part) for part in (x_mm, y_mm, heights_mm[place])]
            image.SliceLocation = _decimal(heights_mm[place])
            image.PixelData = _numbers(values, coding).tobytes()
            image.save_as(target, enforce_file_format=True)
        yield Progress(f"write {layer.name}", stop, n_z)


def _numbers(values: np.ndarray, coding: Coding) -> np.ndarray:
    numbers = np.rint((values.astype(np.float64) - coding.intercept) / coding.slope)
    return np.where(np.isfinite(numbers), numbers.clip(-MOST, MOST), PADDING).astype("<i2")


def _series(
    content: Content, layer: Layer, coding: Coding, identity: str, number: int, window: tuple[float, float]
) -> Any:
    """Return what all images of a series share."""
    from pydicom import Dataset

    voxel = _decimal(content.grid.voxel_mm)
    _, n_y, n_x = content.grid.shape
    d = Dataset()
    d.SpecificCharacterSet = "ISO_IR 192"
    d.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    d.SOPClassUID = CT_IMAGE
    d.StudyDate = d.StudyTime = d.AccessionNumber = d.ReferringPhysicianName = ""
    d.Modality = "CT"
    d.Manufacturer, d.ManufacturerModelName = "", "mpxct"
    d.SoftwareVersions = software_version()
    d.StudyDescription = f"mpxct {content.specimen}".strip()[:64]
    d.SeriesDescription = f"{layer.name} {layer.unit}"[:64]
    d.DerivationDescription = "; ".join(f"{name}: {text}" for name, text in content.notes.items())[:1024]
    d.PatientName = d.PatientID = content.specimen.replace("\\", "_").replace("^", " ")[:64]
    d.PatientBirthDate = d.PatientSex = ""
    d.StudyInstanceUID = _uid(identity, "study")
    d.SeriesInstanceUID = _uid(coding.digest, identity, "series", str(window))
    d.FrameOfReferenceUID = _uid(identity, "frame")
    d.StudyID, d.SeriesNumber, d.AcquisitionNumber = "", number, None
    d.PositionReferenceIndicator = d.PatientPosition = d.Laterality = ""
    d.KVP = None if content.tube_kvp is None else _decimal(content.tube_kvp)
    d.SliceThickness = d.SpacingBetweenSlices = voxel
    d.PixelSpacing = [voxel, voxel]
    d.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.Rows, d.Columns = n_y, n_x
    d.BitsAllocated = d.BitsStored = 16
    d.HighBit, d.PixelRepresentation = 15, 1
    d.add_new(0x00280120, "SS", PADDING)  # PixelPaddingValue
    d.RescaleIntercept, d.RescaleSlope = _decimal(coding.intercept), _decimal(coding.slope)
    d.RescaleType = RESCALE_TYPES.get(layer.unit, "US")
    d.WindowCenter, d.WindowWidth = _decimal(sum(window) / 2), _decimal(max(window[1] - window[0], coding.slope))
    d.RealWorldValueMappingSequence = [_mapping(layer, coding)]
    return d


def _mapping(layer: Layer, coding: Coding) -> Any:
    from pydicom import Dataset

    code, meaning = UCUM.get(layer.unit, ("1", layer.unit))
    unit = Dataset()
    unit.CodeValue, unit.CodingSchemeDesignator, unit.CodeMeaning = code, "UCUM", meaning
    mapping = Dataset()
    mapping.add_new(0x00409216, "SS", coding.lowest)  # RealWorldValueFirstValueMapped
    mapping.add_new(0x00409211, "SS", coding.highest)  # RealWorldValueLastValueMapped
    mapping.RealWorldValueIntercept, mapping.RealWorldValueSlope = coding.intercept, coding.slope
    mapping.LUTExplanation = f"{layer.name} in {layer.unit}"[:64]
    mapping.LUTLabel = layer.name.upper()[:16]
    mapping.MeasurementUnitsCodeSequence = [unit]
    return mapping


def _decimal(value: float) -> str:
    """Return a decimal string of DICOM, 16 characters at most, as near as it can be."""
    for digits in range(16, 0, -1):
        if len(text := f"{value:.{digits}g}") <= 16:
            return text
    raise ValueError(f"{value} has no decimal string")


def _uid(*words: str) -> str:
    """Return the same UID for the same words."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, 'mpxct ' + ' '.join(words)).int}"
