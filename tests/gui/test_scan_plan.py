"""The plan as form and as text: one thing, whichever is edited; what is wrong is told at its field and its line."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acquisition.plan import MODES, Plan, plan_from_toml, plan_to_toml
from acquisition.scan_plan import ScanPlan
from gui.scan.document import Document, in_mode, of_kind, text_of
from gui.scan.fields import Field, FieldKind, groups, kind_names, literal, shown
from gui.scan.plan_text import judge, line_of, with_value, without
from gui.scan.presets import Preset, presets, read_preset
from gui.scan.words import WORDS

PRESETS = presets()
DEMO = read_preset("demo")


def fields_of(kind: str) -> dict[str, Field]:
    return {field.key: field for group in groups(kind) for field in group.fields}


def leaves(plan: Plan) -> dict[str, object]:
    """Return every key of a plan but the calibration's, from msgspec and not from the form."""
    tree = msgspec.to_builtins(plan)
    return {
        f"{section}.{name}": value
        for section in ("detector", "source", "geometry", "scan")
        for name, value in tree[section].items()
    }


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_a_preset_is_a_plan_that_tells_what_it_is(preset: Preset) -> None:
    judgement = judge(preset.path.read_text())
    assert judgement.fault is None
    assert len(preset.told) > 40
    assert preset.told.endswith(".")


def _as_written(document: Document, key: str, plan: Plan) -> object:
    """Return the plan's value; where the text has a whole number for a float, that."""
    value, shown_value = leaves(plan)[key], document.value(key)
    return shown_value if not isinstance(value, tuple) and value == shown_value else value


def test_presets_from_papers_name_them() -> None:
    told = {preset.name: preset.told for preset in PRESETS}
    assert "Hindawi" in told["mars"]
    assert "Mory" in told["mory"]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_the_form_has_every_key_and_writing_what_it_shows_changes_nothing(preset: Preset) -> None:
    document = Document(preset.path.read_text())
    plan = document.plan
    assert plan is not None
    fields = fields_of(document.kind)
    assert set(fields) == set(leaves(plan))
    for key, field in fields.items():
        assert literal(field, shown(document.value(key))) == literal(field, shown(_as_written(document, key, plan)))
        document.set(field, shown(document.value(key)))
        assert document.plan == plan, key


@pytest.mark.parametrize("kind", kind_names())
def test_every_field_has_a_name_a_unit_where_it_has_one_and_a_sentence(kind: str) -> None:
    for key, field in fields_of(kind).items():
        assert field.label
        assert field.tip.endswith((".", "none."))
        assert bool(field.unit) == key.endswith(("kev", "kvp", "ma", "mm", "deg", "rad", "_s", "_v", "bits")), key


def test_no_word_is_left_of_a_key_that_is_gone() -> None:
    assert set(WORDS) == {key for kind in kind_names() for key in fields_of(kind)}


wishes = st.sampled_from(
    [
        ("detector.exposure_s", st.floats(1e-6, 3600)),
        ("detector.accumulate", st.integers(1, 10_000)),
        ("detector.bias_v", st.floats(-1000, 1000)),
        ("source.current_ma", st.floats(0, 1000)),
        ("source.kvp", st.floats(76, 160)),
        ("geometry.offset_u_mm", st.floats(-3, 3)),
        ("scan.n_views", st.integers(1, 1000)),
        ("scan.n_flats", st.integers(0, 100)),
        ("scan.sample", st.from_regex(r"[A-Za-z0-9_.+-]{1,64}", fullmatch=True)),
    ]
).flatmap(lambda wish: st.tuples(st.just(wish[0]), wish[1]))


@given(st.lists(wishes, max_size=6), st.sampled_from(PRESETS[:1]))
@settings(max_examples=20, deadline=None)
def test_what_the_form_is_told_the_text_says_and_its_comments_stay(
    edits: list[tuple[str, object]], preset: Preset
) -> None:
    document = Document(preset.path.read_text())
    comments = [line.partition("#")[2] for line in document.text.splitlines()]
    for key, value in edits:
        document.set(fields_of("circular")[key], shown(value))
    assert document.fault is None
    plan = plan_from_toml(document.text)
    for key, value in dict(edits).items():
        assert leaves(plan)[key] == value
        assert document.value(key) == value
    assert [line.partition("#")[2] for line in document.text.splitlines()] == comments


@given(st.lists(wishes, min_size=1, max_size=8))
@settings(max_examples=10, deadline=None)
def test_undo_and_redo_walk_through_all_that_was(edits: list[tuple[str, object]]) -> None:
    document = Document(DEMO)
    texts = [document.text]
    for key, value in edits:
        document.lift_hand()
        document.set(fields_of("circular")[key], shown(value))
        if document.text != texts[-1]:
            texts.append(document.text)
    for text in texts[-2::-1]:
        document.undo()
        assert document.text == text
    assert not document.can_undo
    for text in texts[1:]:
        document.redo()
        assert document.text == text
    assert document.plan == judge(texts[-1]).plan


def test_letters_of_one_hand_are_taken_back_together() -> None:
    document = Document(DEMO)
    for typed in ("7", "72", "720"):
        document.set(fields_of("circular")["scan.n_views"], typed)
    assert document.value("scan.n_views") == 720
    document.undo()
    assert document.text == DEMO


INVALID = [
    ("detector.mode", "colour-xyz"), ("detector.gain", "HUGE"), ("detector.depth_bits", "24"),
    ("detector.thresholds_kev", "18, 33"), ("detector.thresholds_kev", "33, 18, 50, 75"),
    ("detector.arbitration_kev", "50"), ("detector.bias_v", "5000"), ("detector.exposure_s", "-1"),
    ("detector.exposure_s", "one"), ("detector.exposure_s", ""), ("detector.exposure_s", "1,5"),
    ("detector.accumulate", "1.5"), ("source.kvp", "1000"), ("source.current_ma", "-1"), ("geometry.pitch_mm", "0.055"),
    ("geometry.source_to_object_mm", "300"), ("geometry.roll_rad", "2"), ("geometry.rows", "256"),
    ("scan.sample", "two words"), ("scan.n_views", "0"), ("scan.arc_deg", "9999"), ("scan.frames_per_view", "0"),
    ("scan.n_flats", "-1"), ("scan.flats_every_n_views", "0"), ("scan.shifts_mm", "3, 1"), ("scan.shifts_mm", "99"),
    ("scan.passes_kev", "18, 33"), ("scan.passes_kev", "18, 33, 50, 500"), ("scan.direction", "left"),
    ("scan.tile_order", "x"), ("scan.pass_order", "x"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "typed"), INVALID)
def test_an_invalid_value_is_told_at_its_field_and_line_and_kept(key: str, typed: str) -> None:
    document = Document(DEMO)
    document.set(fields_of("circular")[key], typed)
    fault = document.fault
    assert fault is not None
    assert fault.key == key
    assert "allowed" in fault.sentence or "takes" in fault.sentence
    assert fault.line is not None
    assert document.text.splitlines()[fault.line - 1].strip().startswith(fault.key.split(".")[1])
    document.undo()
    assert document.plan == Plan()


def test_a_voltage_below_the_thresholds_is_told_at_the_thresholds() -> None:
    document = Document(DEMO)
    document.set(fields_of("circular")["source.kvp"], "60")
    assert document.fault is not None
    assert document.fault.key == "detector.thresholds_kev"
    assert "source.kvp" in document.fault.sentence


def test_text_that_is_no_toml_names_its_line_and_leaves_the_form_alone() -> None:
    document = Document(DEMO)
    lines = DEMO.splitlines()
    lines[4] = "gain = "
    document.edit("\n".join(lines))
    assert document.fault is not None
    assert document.fault.line == 5
    before = document.text
    document.set(fields_of("circular")["scan.n_views"], "5")
    assert document.text == before


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_another_kind_of_scan_is_a_plan_again_and_keeps_what_it_can(preset: Preset) -> None:
    text = preset.path.read_text()
    before = judge(text).plan
    assert before is not None
    for kind in kind_names():
        judgement = judge(of_kind(text, kind))
        assert judgement.fault is None, (kind, judgement.fault)
        assert judgement.plan is not None
        assert judgement.plan.scan.kind == kind
        assert judgement.plan.detector == before.detector


@pytest.mark.parametrize("mode", MODES)
def test_another_mode_brings_its_pixels_and_thresholds_along(mode: str) -> None:
    for preset in PRESETS:
        judgement = judge(in_mode(preset.path.read_text(), mode))
        assert judgement.fault is None, (preset.name, judgement.fault)
        assert judgement.plan is not None
        assert len(judgement.plan.detector.thresholds_kev) == len(MODES[mode].thresholds)


@pytest.mark.parametrize(
    "typed", ['thresholds_kev = ["a"]', "thresholds_kev = 18.0", "thresholds_kev = [nan, 20]", 'mode = "colour"', ""]
)
def test_another_mode_mends_what_was_typed_wrong(typed: str) -> None:
    judgement = judge(in_mode(f"[detector]\n{typed}\n", "fine-spm"))
    assert judgement.fault is None
    assert judgement.plan is not None
    assert judgement.plan.detector.mode == "fine-spm"


def test_a_field_is_written_beside_what_was_typed_wrong() -> None:
    for text in ("detector = 3\n", "[detector]\nbias_v = nan\n", "[detector]\nbias_v = 2026-01-01\n"):
        document = Document(text)
        document.set(fields_of("circular")["detector.exposure_s"], "0.5")
        tree = document.judgement.tree
        assert tree is not None
        assert tree["detector"]["exposure_s"] == 0.5
        document.set(fields_of("circular")["scan.kind"], "helical")
        assert document.judgement.tree is not None


def test_a_short_plan_gets_the_sections_that_are_edited() -> None:
    document = Document("")
    document.set(fields_of("circular")["scan.n_views"], "12")
    document.set(fields_of("circular")["geometry.offset_u_mm"], "0.5")
    plan = document.plan
    assert plan is not None
    assert (plan.scan.views, plan.geometry.offset_u_mm) == (12, 0.5)  # pyright: ignore[reportAttributeAccessIssue]
    assert plan.detector == Plan().detector


def test_text_of_many_lines_and_comments_is_changed_where_it_should_be() -> None:
    scan = '[scan]\npasses_kev = [  # two\n  [1, 2], # ] "\n]\nn_views = 3 # ["\nsample = "a#b" # c\n'
    text = scan + "[source]\nkvp = 100 # x"
    assert with_value(text, "scan.passes_kev", "[]").startswith("[scan]\npasses_kev = []\nn_views")
    assert 'sample = "z" # c' in with_value(text, "scan.sample", '"z"')
    assert with_value(text, "source.kvp", "90").endswith("kvp = 90 # x")
    assert "passes_kev" not in without(text, "scan.passes_kev")
    assert line_of(text, "source.kvp") == 8
    assert line_of(text, "source.current_ma") == 7


def test_a_style_of_toml_that_the_line_editor_does_not_know_is_written_anew() -> None:
    text = 'scan = {n_views = 5, sample = "a"}\n'
    assert plan_from_toml(with_value(text, "scan.n_views", "6")).scan == ScanPlan(n_views=6, sample="a")
    assert plan_from_toml(without(text, "scan.n_views")).scan == ScanPlan(sample="a")


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), max_size=5))
def test_numbers_are_shown_so_that_they_come_back(values: list[float]) -> None:
    field = Field(key="x", kind=FieldKind.NUMBERS, label="x", tip="x.")
    text = with_value("[a]\n", "a.x", literal(field, shown(values)))
    assert judge(text).tree == {"a": {"x": values}}


def test_a_plan_is_shown_as_the_demo_s_text_where_it_is_the_demo() -> None:
    assert text_of(Plan()) == DEMO
    other = msgspec.structs.replace(Plan(), scan=ScanPlan(n_views=5))
    assert text_of(other) == plan_to_toml(other)
