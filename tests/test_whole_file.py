"""Laws of files that are written in one piece: whole under their name, or not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from calibration.whole_file import whole_file
from firmware_iface.errors import MpxctError


def test_the_file_appears_when_it_is_whole_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with whole_file(path) as partial:
        partial.write_bytes(b"first")
        assert not path.exists()
    assert path.read_bytes() == b"first"
    with whole_file(str(path)) as partial:
        partial.write_bytes(b"second")
        assert path.read_bytes() == b"first"
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ValueError("a mistake of ours")])
def test_what_interrupts_passes_through_and_leaves_the_old_file(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def write() -> None:
        with whole_file(path) as partial:
            partial.write_bytes(b"half")
            raise failure

    with pytest.raises(type(failure)):
        write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def write() -> None:
        with whole_file(path) as partial:
            partial.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(MpxctError, match=r"a\.bin cannot be written: No space left on device") as caught:
        write()
    assert "room" in caught.value.hint
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "a.bin", tmp_path / "none" / "a.bin", tmp_path):
        with pytest.raises(MpxctError, match="cannot be written"), whole_file(path) as partial:
            partial.write_bytes(b"x")


def test_the_reason_is_one_clause_even_when_hdf5_gives_a_paragraph(tmp_path: Path) -> None:
    words = f"cannot be written: {os.strerror(errno.ENOSPC)}$"
    with pytest.raises(MpxctError, match=words), whole_file(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "Can't synchronously write data (file write failed: time = Sat\n, fd = 3)")
