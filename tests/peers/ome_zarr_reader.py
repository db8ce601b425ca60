"""What the reference reader of OME-Zarr finds in a folder, as one JSON object; runs in that reader's environment."""

from __future__ import annotations

import json
import sys

import numpy as np
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader

path, values = sys.argv[1:]
(node,) = [node for node in Reader(parse_url(path))() if node.data]
np.save(values, np.asarray(node.data[0]))
sys.stdout.write(
    json.dumps(
        {
            "shapes": [list(level.shape) for level in node.data],
            "axes": node.metadata["axes"],
            "transformations": node.metadata["coordinateTransformations"],
            "channels": node.metadata["channel_names"],
            "windows": node.metadata["contrast_limits"],
        }
    )
)
