"""Every input that a fuzzer found worth keeping, once more; the fuzzer itself is run by hand (tests/fuzz/README.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import targets

CORPUS = Path(__file__).parent / "fuzz" / "corpus"
MAX_CORPUS_BYTES = 500_000


@pytest.mark.parametrize("name", targets.TARGETS)
def test_the_corpus_holds(name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs, f"no corpus of {name}"
    for path in inputs:
        try:
            targets.TARGETS[name](path.read_bytes())
        except Exception as error:
            raise AssertionError(f"{path.name} of {name} fails again") from error


def test_the_corpus_is_small_and_has_no_strays() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == set(targets.TARGETS)
    assert sum(path.stat().st_size for path in files) < MAX_CORPUS_BYTES


def test_the_targets_see_a_wrong_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    three_frames = (CORPUS / "frames" / "three").read_bytes()
    targets.fuzz_frames(three_frames)
    with monkeypatch.context() as changed:
        changed.setattr("firmware_iface.codec._damage", lambda *_: "")
        flipped = bytes([3, 0, 0, 0, 4, 0, 16, 1])  # one packet with a flipped bit in its payload
        with pytest.raises(AssertionError, match="a frame that nobody sent"):
            targets.fuzz_frames(flipped)
    with monkeypatch.context() as changed:
        changed.setattr("firmware_iface.codec.FrameDecoder.finish", lambda *_: iter(()))
        with pytest.raises(AssertionError, match="frames are told"):
            targets.fuzz_frames(bytes([3, 0, 0, 0, 0]))
