"""What is taken back on the page Volume: an edit at a time, however many steps a slider took."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gui.volume import edits
from gui.volume.edits import Edited


def keys(edited: Edited) -> list[str]:
    return [key for key, _ in edited.now.greys]


def greys(*names: str):
    return tuple((name, None) for name in names)


@given(st.lists(st.lists(st.text("ab", min_size=1), min_size=1, unique=True), min_size=1, max_size=5))
def test_each_edit_is_one_step_back_and_forth_however_it_was_made(ways: list[list[str]]) -> None:
    edited, seen = Edited(), [Edited().now]
    for way in ways:
        for name in way:
            edited.change(greys=greys(name))
        edited.settle()
        if edited.now != seen[-1]:
            seen.append(edited.now)
    for state in reversed(seen[:-1]):
        assert edited.can_undo
        edited.undo()
        assert edited.now == state
    assert not edited.can_undo
    for state in seen[1:]:
        edited.redo()
        assert edited.now == state
    assert not edited.can_redo


def test_what_is_not_settled_yet_is_taken_back_too_and_what_begins_anew_is_not() -> None:
    edited = Edited()
    edited.edit(greys=greys("a"))
    edited.change(greys=greys("b"))
    edited.undo()
    assert keys(edited) == ["a"]
    edited.redo()
    assert keys(edited) == ["b"]
    edited.begin_anew(greys=greys("c"))
    assert not edited.can_undo
    edited.undo()
    assert keys(edited) == ["c"]


def test_a_change_is_still_when_nothing_has_moved_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [10.0]
    monkeypatch.setattr(edits.time, "monotonic", lambda: now_s[0])
    edited = Edited()
    assert not edited.is_still
    edited.change(greys=greys("a"))
    now_s[0] += 0.9 * edits.SETTLED_S
    assert not edited.is_still
    now_s[0] += 0.2 * edits.SETTLED_S
    assert edited.is_still
    edited.settle()
    assert not edited.is_still
