"""Where exports go: names that are free, room on the disk, folders that appear only when they are whole."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firmware_iface.errors import MpxctError, WrongUsage


def beside(target: Path, name: str, ending: str) -> Path:
    """Return the name of one of several files: volume.nrrd and iodine make volume-iodine.nrrd."""
    stem = target.name.removesuffix(ending)
    return target.with_name(f"{stem}-{spoken(name)}{ending}")


def spoken(name: str) -> str:
    """Return a name that every file system takes; letters of any language stay."""
    return re.sub(r'[\s/\\:*?"<>|\x00-\x1f]+', "_", name).strip("._") or "layer"


def refuse_existing(paths: list[Path], *, is_overwriting: bool) -> None:
    """Refuse names that are taken, and two files of one name."""
    if len({path.name.casefold() for path in paths}) < len(paths):
        raise WrongUsage(
            f"two of {', '.join(path.name for path in paths)} would be one file",
            hint="export these channels one by one (--channels)",
        )
    for path in paths:
        if path.exists() and not is_overwriting:
            raise WrongUsage(f"{path} exists already", hint="choose another name, or allow overwriting (--overwrite)")
        if path.is_dir():
            raise WrongUsage(f"{path} is a folder; a file cannot take its place", hint="choose another name")


def refuse_without_room(target: Path, n_bytes: int) -> None:
    """Refuse what the disk has no room for, before anything is written."""
    parent = target.absolute().parent
    if not parent.is_dir():
        raise WrongUsage(f"the folder {parent} is not there", hint="make it, or choose another place")
    free = shutil.disk_usage(parent).free
    if n_bytes > free:
        raise MpxctError(
            f"{target} takes {n_bytes / 1e9:.3g} GB, and the disk has {free / 1e9:.3g} GB free",
            hint="make room, write elsewhere, or export fewer channels",
        )


@contextmanager
def whole_folder(path: Path, *, is_overwriting: bool, ours: str) -> Iterator[Path]:
    """Give the folder to write into; it becomes `path` when the block ends, and is removed if the block fails.

    Parameters
    ----------
    ours : str
        Pattern of the files that an older export of this kind holds; a folder with anything else is never replaced.

    Raises
    ------
    WrongUsage
        The name is taken.
    MpxctError
        The system refuses to write.
    """
    _refuse_folder(path, is_overwriting=is_overwriting, ours=ours)
    partial, old = path.with_name(path.name + ".partial"), path.with_name(path.name + ".old")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of an export that was broken off
        partial.mkdir()
        yield partial
        if path.exists():
            path.replace(old)
        partial.replace(path)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise MpxctError(
                f"{path} cannot be written: {error.strerror or error}",
                hint="check that the folder is there and may be written to, and that the disk has room",
            ) from error
        raise


def _refuse_folder(path: Path, *, is_overwriting: bool, ours: str) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise WrongUsage(f"{path} is a file; a folder cannot take its place", hint="choose another name")
    files = [file for file in path.rglob("*") if not file.is_dir()]
    if files and not is_overwriting:
        raise WrongUsage(f"{path} exists already", hint="choose another name, or allow overwriting (--overwrite)")
    if foreign := [file for file in files if not re.fullmatch(ours, file.name)]:
        raise WrongUsage(
            f"{path} holds {foreign[0].name}, which no export of this kind wrote; it is not replaced",
            hint="choose another folder",
        )
