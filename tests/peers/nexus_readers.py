"""What ESRF's readers find in a scan file, as one JSON object; runs in the environment of these readers."""

from __future__ import annotations

import json
import sys

import hdf5plugin  # noqa: F401 - the filter of the counts
from nxtomo.application.nxtomo import NXtomo
from silx.io.utils import get_data
from tomoscan.esrf.scan.nxtomoscan import NXtomoScan

path, entry = sys.argv[1:]
loaded = NXtomo().load(path, data_path=f"/{entry}")
scan = NXtomoScan(scan=path, entry=entry)
sys.stdout.write(
    json.dumps(
        {
            "angles_rad": loaded.sample.rotation_angle.to("radian").magnitude.tolist(),
            "keys": [int(key.value) for key in loaded.instrument.detector.image_key_control],
            "pixel_mm": loaded.instrument.detector.x_pixel_size.to("millimeter").magnitude,
            "distance_mm": loaded.instrument.detector.distance.to("millimeter").magnitude,
            "projections": {place: int(get_data(url).sum()) for place, url in scan.projections.items()},
            "flats": {place: int(get_data(url).sum()) for place, url in scan.flats.items()},
        }
    )
)
