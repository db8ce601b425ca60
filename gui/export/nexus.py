"""NXtomoproc: NeXus in HDF5, an entry for each layer, with the positions of the voxels in mm and where all came from.

# Ref: NeXus application definition NXtomoproc, manual.nexusformat.org: title, definition, instrument/SOURCE,
#      sample/name, reconstruction (NXprocess) and data with x, y, z.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from calibration.progress import Progress
from calibration.store import software_version
from gui.export.content import Content, Layer
from gui.export.formats import Options

UNITS = {"1": "", "mg/mL": "mg/ml"}
"""How NeXus spells our units where it differs: as UDUNITS does."""


def write(content: Content, path: Path, _: Options) -> Generator[Progress, None, None]:
    """Write (z, y, x) float32 for each layer."""
    with h5py.File(path, "w") as file:
        file.attrs["NX_class"] = "NXroot"
        file.attrs["creator"] = f"mpxct {software_version()}"
        for number, layer in enumerate(content.layers):
            name = "entry" if len(content.layers) == 1 else f"entry_{_word(layer.name)}"
            entry = _group(file, name if name not in file else f"{name}_{number}", "NXentry")
            if number == 0:
                file.attrs["default"] = entry.name.strip("/")
            values = _entry(entry, content, layer)
            for first, stop in content.only(layer).slabs():
                values[first:stop] = layer.slab(first, stop)
                yield Progress(f"write {layer.name}", stop, content.grid.shape[0])


def _entry(entry: Any, content: Content, layer: Layer) -> Any:
    """Write all but the values, and return their dataset."""
    entry.attrs["default"] = "data"
    entry["definition"] = "NXtomoproc"
    entry["title"] = f"{layer.name} in {layer.unit}"
    source = _group(_group(entry, "instrument", "NXinstrument"), "SOURCE", "NXsource")
    # The definition knows no tube but a synchrotron's or a rotating one, and asks for one of its words.
    source["type"], source["name"], source["probe"] = "Fixed Tube X-ray", "X-ray tube", "x-ray"
    if content.tube_kvp is not None:
        source["voltage"] = content.tube_kvp
        source["voltage"].attrs["units"] = "kV"
    _group(entry, "sample", "NXsample")["name"] = content.specimen or "unknown"
    process = _group(entry, "reconstruction", "NXprocess")
    process["program"], process["version"] = "mpxct", content.notes.get("made by", "unknown").removeprefix("mpxct ")
    process["date"] = "unknown"
    parameters = _group(process, "parameters", "NXparameters")
    parameters["raw_file"] = content.notes.get("source file", "unknown")
    for name, text in content.notes.items():
        parameters[_word(name)] = text
    data = _group(entry, "data", "NXdata")
    data.attrs["signal"], data.attrs["axes"] = "data", ["z", "y", "x"]
    values = data.create_dataset("data", shape=content.grid.shape, dtype=np.float32)
    values.attrs["units"] = UNITS.get(layer.unit, layer.unit)
    values.attrs["long_name"] = f"{layer.name} ({layer.unit})"
    values.attrs["transform"], values.attrs["offset"], values.attrs["scaling"] = "linear", 0.0, 1.0
    for number, (name, along) in enumerate(zip("zyx", content.grid.axes_mm(), strict=True)):
        data[name] = along
        data[name].attrs["units"] = "mm"
        data.attrs[f"{name}_indices"] = number
    return values


def _group(parent: Any, name: str, kind: str) -> Any:
    group = parent.create_group(name)
    group.attrs["NX_class"] = kind
    return group


def _word(name: str) -> str:
    """Return a name that NeXus takes: letters, digits and underscores."""
    word = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name)
    return word if word[:1].isalpha() else f"_{word}"
