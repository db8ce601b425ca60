"""A volume file that is made slab by slab: nothing of it is held in memory, and a part of it is worth keeping.

The file is an ordinary volume file from the first moment but for its name and the words of how it was made. The values
stand in it in one piece, so that any process that reaches the file writes its slab with plain system calls; only the
process that holds the writer touches the rest.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from calibration.whole_file import whole_file
from firmware_iface.errors import BadFile, MpxctError, WrongUsage
from reconstruction.volume import (
    H5,
    Volume,
    check_format,
    created,
    write_head,
    write_steps,
    write_values_attributes,
)


class SlabFile(NamedTuple):
    """Where the values of a volume stand in its unfinished file: all that a process needs to write a part of them."""

    path: Path
    offset: int
    shape: tuple[int, int, int, int]

    def write(self, slab: slice, values: NDArray[np.float32]) -> int:
        """Write some slices along z to the disk, and return the checksum of their bytes.

        Parameters
        ----------
        values : (n_channels, n_slices, y, x) float32
        """
        checksum = 0
        with self.path.open("r+b") as file:
            for place, channel in zip(self._places(slab), values, strict=True):
                data = np.ascontiguousarray(channel, "<f4").data.cast("B")
                file.seek(place)
                file.write(data)
                checksum = zlib.crc32(data, checksum)
            file.flush()
            os.fsync(file.fileno())
        return checksum

    def checksum(self, slab: slice) -> int:
        """Return the checksum of what stands in the file."""
        checksum = 0
        slice_bytes = 4 * self.shape[2] * self.shape[3]
        with self.path.open("rb") as file:
            for place in self._places(slab):
                file.seek(place)
                for _ in range(slab.start, slab.stop):
                    checksum = zlib.crc32(file.read(slice_bytes), checksum)
        return checksum

    def _places(self, slab: slice) -> list[int]:
        n_channels, n_z, n_y, n_x = self.shape
        return [self.offset + 4 * (channel * n_z + slab.start) * n_y * n_x for channel in range(n_channels)]


class SlabRecord(NamedTuple):
    """What an unfinished file knows of a slab: a row of its table `slabs`."""

    first: int
    stop: int
    views_per_block: int
    is_done: int = 0
    checksum: int = 0
    n_values: int = 0
    n_estimated: int = 0


class VolumeWriter:
    """A volume that is written slab by slab, in any order, and goes on where it was broken off.

    It stands under NAME.partial.h5, and gets its own name when it is whole. A slab counts as done only after the disk
    has it, with a checksum that is looked at when the work goes on; a file that was broken off and gone on with is the
    same, byte for byte, as one that was not.

    Parameters
    ----------
    path : path
        Of the finished file.
    planned : Volume
        What it will be; its values are not looked at.
    slabs : sequence of slice
        Along z, beside each other from the lowest slice to the highest.
    views_per_block : int
        How many views are added together: on it the last digits of the values depend. A part that is gone on with
        keeps its own slabs and blocks.
    recipe : str
        How the values are made: a part that was made otherwise is not gone on with.

    Raises
    ------
    WrongUsage
        There is a part that was made otherwise.
    BadFile
        There is a part that is damaged.
    MpxctError
        There is no room for it.
    """

    def __init__(
        self, path: str | Path, planned: Volume, slabs: Sequence[slice], views_per_block: int, recipe: str
    ) -> None:
        self.path = Path(path)
        self.partial = partial_volume_path(self.path)
        self._planned = planned
        self.is_resumed = self.partial.exists()
        if not self.is_resumed:
            self._create([SlabRecord(slab.start, slab.stop, views_per_block) for slab in slabs], recipe)
        try:
            file: H5
            with h5py.File(self.partial, "r") as file:
                check_format(self.partial, file)
                known = str(file.attrs["recipe"]), file["values"].shape
                self.file = SlabFile(self.partial, file["values"].id.get_offset(), planned.values.shape)
                self._table_offset = file["slabs"].id.get_offset()
                self.records = [SlabRecord(*row) for row in file["slabs"][()].tolist()]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise self._damaged(str(error)) from error
        if known != (recipe, planned.values.shape):
            raise WrongUsage(
                f"{self.partial} is a part of another volume than the one that is asked for",
                hint="go on with it as it was begun, or delete it",
            )
        edges = [(0, 0), *((record.first, record.stop) for record in self.records), (planned.grid.shape[0],) * 2]
        if any(stop != first for (_, stop), (first, _) in pairwise(edges)):
            raise self._damaged("its slabs do not lie beside each other")
        for record in self.records:
            if record.is_done and self.file.checksum(slice(record.first, record.stop)) != record.checksum:
                raise self._damaged(f"slices {record.first} to {record.stop - 1} are not what was written")

    @property
    def unfinished(self) -> list[int]:
        """Numbers of the slabs that are still to be written."""
        return [number for number, record in enumerate(self.records) if not record.is_done]

    def slab(self, number: int) -> slice:
        """Return where a slab lies along z."""
        return slice(self.records[number].first, self.records[number].stop)

    def write(self, number: int, values: NDArray[np.float32], *, n_values: int = 0, n_estimated: int = 0) -> None:
        """Write a slab and record that it is done; `n_values` and `n_estimated` are of the data it was made from."""
        checksum = self.file.write(self.slab(number), values)
        self.record(number, checksum, n_values=n_values, n_estimated=n_estimated)

    def record(self, number: int, checksum: int, *, n_values: int = 0, n_estimated: int = 0) -> None:
        """Record that a slab is on the disk, whoever wrote it."""
        self.records[number] = self.records[number]._replace(
            is_done=1, checksum=checksum, n_values=n_values, n_estimated=n_estimated
        )
        row = np.asarray(self.records[number], "<i8").tobytes()
        with self.partial.open("r+b") as file:
            file.seek(self._table_offset + number * len(row))
            file.write(row)
            file.flush()
            os.fsync(file.fileno())

    def finish(self, steps: Sequence[str]) -> Path:
        """Write the words of how it was made, and give the file its name."""
        if missing := self.unfinished:
            raise ValueError(f"{len(missing)} slabs of {self.partial} are not written; allowed: none")
        with h5py.File(self.partial, "r+") as file:
            if "provenance/steps" in file:  # it was broken off just here
                del file["provenance/steps"]
            write_steps(file, steps)
        self.partial.replace(self.path)
        return self.path

    def _create(self, records: Sequence[SlabRecord], recipe: str) -> None:
        shape = self._planned.values.shape
        needed, free = 4 * int(np.prod(shape)), shutil.disk_usage(self.path.absolute().parent).free
        if needed > free:
            raise MpxctError(
                f"{self.path} takes {needed / 1e9:.3g} GB, and the disk has {free / 1e9:.3g} GB free",
                hint="make room, write elsewhere, or ask for fewer voxels",
            )
        with whole_file(self.partial) as fresh, created(fresh) as file:
            write_head(file, self._planned)
            file.attrs["recipe"] = recipe
            table = file.create_dataset("slabs", data=np.asarray(records, "<i8"))
            table.attrs["units"], table.attrs["columns"] = "1", ", ".join(SlabRecord._fields)
            layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            layout.set_obj_track_times(False)  # the same file whenever it is made
            layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            space = h5py.h5s.create_simple(shape)
            values = h5py.h5d.create(file.id, b"values", h5py.h5t.IEEE_F32LE, space, layout)
            write_values_attributes(h5py.Dataset(values), self._planned)

    def _damaged(self, reason: str) -> BadFile:
        return BadFile(f"{self.partial} is damaged: {reason}", hint="delete it, and begin again")


def partial_volume_path(path: Path) -> Path:
    """Return where a volume stands while it is written slab by slab."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")
