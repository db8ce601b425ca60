"""A file of any kind: which it is, its content tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from firmware_iface.errors import BadFile

_KINDS = "allowed: .mib files of Merlin; scans, calibrations and volumes written by mpxct"


def open_any(path: Path) -> tuple[str, Any]:
    """Open a file of any kind and say which it is: merlin, scan, calibration or volume.

    The loaders themselves know their own: each refuses the others' files.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror or error}") from error
    if start != b"\x89HDF\r\n\x1a\n":
        if start[:4] != b"MQ1," and path.suffix.lower() not in (".mib", ".hdr"):
            raise BadFile(f"{path} is neither a Merlin file nor an HDF5 file of mpxct", hint=_KINDS)
        return _open_merlin(path)
    return _open_hdf5(path)


def _open_merlin(path: Path) -> tuple[str, Any]:
    from firmware_iface.merlin import read_mib

    return "merlin", read_mib(path.with_suffix(".mib") if path.suffix.lower() == ".hdr" else path)


def _open_hdf5(path: Path) -> tuple[str, Any]:
    from acquisition.scan_file import read_scan
    from calibration.store import load
    from reconstruction.volume import load_volume

    refusals: dict[str, BadFile] = {}
    for kind, loader in (
        ("volume", load_volume),
        ("calibration", load),
        ("scan", lambda path: read_scan(path, allow_partial=True)),
    ):
        try:
            return kind, loader(path)
        except BadFile as error:
            refusals[kind] = error
    # A damaged file of ours is refused by its own loader for another reason than that it is foreign.
    damaged = [error for kind, error in refusals.items() if f"not a {kind}" not in str(error)]
    if len(damaged) == 1:
        raise damaged[0]
    if damaged:
        raise BadFile(f"{path} cannot be read: the HDF5 file is truncated or damaged", hint="make or copy it again")
    raise BadFile(f"{path} is an HDF5 file, but none of mpxct", hint=_KINDS)
