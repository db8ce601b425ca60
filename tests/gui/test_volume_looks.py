"""Colours, windows, legends and scale bars, without a window."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gui.colour import Look, blend
from gui.scale import bar_mm, length_text, round_below
from gui.volume.looks import (
    MAPS,
    N_STEPS,
    GreyLook,
    MaterialLook,
    applied,
    as_plain,
    auto_looks,
    colour_choices,
    composed,
    from_plain,
    in_mg_ml,
    map_table,
    rounded,
    shaded,
)
from gui.volume.marks import legend_of
from gui.volume.painting import with_window

WATER = MaterialLook(material="water", colour=(0.2, 0.2, 0.2), high_g_cm3=1.0)
IODINE = MaterialLook(material="iodine", colour=(0.8, 0.4, 0.0), low_g_cm3=0.001, high_g_cm3=0.011)


def maps() -> np.ndarray:
    return np.random.default_rng(0).random((2, 4, 5)) * np.array([1.2, 0.02])[:, None, None]


def test_full_opacity_is_the_picture_of_all_other_figures() -> None:
    plain = [Look(material=o.material, colour=o.colour, low_g_cm3=o.low_g_cm3, high_g_cm3=o.high_g_cm3)
             for o in (WATER, IODINE)]  # fmt: skip
    difference = composed(maps(), (WATER, IODINE)).astype(int) - blend(maps(), plain)
    assert np.abs(difference).max() <= 1
    assert np.mean(difference != 0) < 0.05


def test_what_is_no_number_adds_nothing() -> None:
    known = maps()
    known[1, 2, 3] = np.nan
    assert np.array_equal(composed(known, (WATER, IODINE))[2, 3], composed(known[:1], (WATER,))[2, 3])


def test_colours_add_up_pixel_by_pixel() -> None:
    """Against the formula, written out for one pixel at a time."""
    half = replace(IODINE, opacity=0.5)
    picture = composed(maps(), (WATER, half))
    for row in range(4):
        for column in range(5):
            water, iodine = maps()[:, row, column]
            share = min(max((iodine - 0.001) / 0.010, 0), 1)
            expected = [
                255 * min(min(water, 1) * base + 0.5 * share * colour, 1)
                for base, colour in zip(WATER.colour, IODINE.colour, strict=True)
            ]
            assert picture[row, column] == pytest.approx(expected, abs=0.51)


def test_what_is_hidden_adds_nothing() -> None:
    off = replace(IODINE, is_visible=False)
    assert np.array_equal(composed(maps(), (WATER, off)), composed(maps(), (WATER, replace(IODINE, opacity=0.0))))
    assert np.array_equal(composed(maps(), (WATER, off)), composed(maps()[:1], (WATER,)))
    assert not composed(maps(), (replace(WATER, is_visible=False), off)).any()


def test_grey_levels_begin_and_end_where_they_say() -> None:
    values = np.array([[-1.0, 0.0, 0.5, 1.0, 2.0, np.nan]])
    picture = shaded(values, GreyLook(levels=(0.0, 1.0)))
    assert picture[0, :, 0].tolist() == [0, 0, 128, 255, 255, 0]
    inverted = shaded(values, GreyLook(levels=(0.0, 1.0), map_name="grey, inverted"))
    assert inverted[0, :, 1].tolist() == [255, 255, 127, 0, 0, 0]


@pytest.mark.parametrize("name", MAPS)
def test_maps_go_from_their_first_colour_to_their_last(name: str) -> None:
    table = map_table(name)
    assert table.shape == (N_STEPS, 3)
    assert table[0] == pytest.approx(255 * np.array(MAPS[name][0]), abs=0.51)
    assert table[-1] == pytest.approx(255 * np.array(MAPS[name][-1]), abs=0.51)


@pytest.mark.parametrize("name", [name for name in MAPS if name != "below and above"])
def test_maps_rise_or_fall_in_lightness(name: str) -> None:
    """So that they can be read without seeing colours; Rec. 709 luma."""
    steps = np.diff(map_table(name) @ np.array([0.2126, 0.7152, 0.0722]))
    assert (steps >= -0.6).all() or (steps <= 0.6).all()


def test_looks_cannot_be_nonsense() -> None:
    with pytest.raises(ValueError, match="opacity of iodine"):
        replace(IODINE, opacity=1.5)
    with pytest.raises(ValueError, match="window of iodine"):
        replace(IODINE, low_g_cm3=1.0)
    with pytest.raises(ValueError, match="lower one first"):
        GreyLook(levels=(1.0, 1.0))
    with pytest.raises(ValueError, match="no colour map"):
        GreyLook(levels=(0.0, 1.0), map_name="jet")


def test_looks_survive_a_settings_file() -> None:
    import json

    looks = (WATER, replace(IODINE, opacity=0.3, is_visible=False))
    assert from_plain(json.loads(json.dumps(as_plain(looks)))) == looks
    broken = [{"material": "x"}, None, as_plain([replace(IODINE)])[0] | {"opacity": 7}]
    assert from_plain(broken) == ()
    assert from_plain("nothing") == ()


def test_a_preset_is_taken_over_by_name() -> None:
    other = replace(IODINE, opacity=0.2)
    assert applied((other,), (WATER, IODINE)) == (WATER, other)


def test_auto_windows_hold_most_values() -> None:
    values = np.zeros((2, 10_000))
    values[1, :300] = 0.01
    water, iodine = auto_looks(("water", "iodine"), values)
    assert iodine.high_g_cm3 == pytest.approx(0.01)
    assert iodine.opacity == 1
    assert iodine.is_visible
    assert iodine.colour != water.colour


def test_a_window_never_closes() -> None:
    look = with_window(IODINE, 8.0, 3.0)
    assert look.low_g_cm3 == pytest.approx(0.008)
    assert look.high_g_cm3 > look.low_g_cm3


def test_colours_to_choose_from_differ() -> None:
    assert len(set(colour_choices().values())) == len(colour_choices()) >= 8


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (5.2, "5.20"), (0.0052, "0.00520"), (1234.5, "1234"), (-3.14159, "-3.14"), (float("nan"), "–"),
     (1e9, "1.00e+09"), (1e-9, "1.00e-09"), (999.96, "1000"), (0.1, "0.100")],
)  # fmt: skip
def test_numbers_for_people(value: float, text: str) -> None:
    assert rounded(value) == text


def test_concentrations_for_people() -> None:
    assert in_mg_ml(0.0052) == "5.20 mg/mL"


@pytest.mark.parametrize(("value", "below"), [(1, 1), (1.9, 1), (2, 2), (4.99, 2), (5, 5), (9.9, 5), (0.03, 0.02),
                                              (700, 500), (1e-3, 1e-3)])  # fmt: skip
def test_round_numbers(value: float, below: float) -> None:
    assert round_below(value) == pytest.approx(below)


@given(st.floats(1e-6, 1e6))
def test_a_round_number_is_round_and_fits(value: float) -> None:
    below = round_below(value)
    assert value / 2.5 * (1 - 1e-6) <= below <= value * (1 + 1e-6)
    assert f"{below:.3e}"[0] in "125"


def test_scale_bars_are_round_and_fit() -> None:
    for mm_per_px in np.geomspace(1e-4, 10, 41):
        length_mm = bar_mm(float(mm_per_px), 400)
        assert length_mm <= 0.25 * 400 * mm_per_px * 1.0001
        assert length_mm >= 0.25 * 400 * mm_per_px / 2.6
        assert float(f"{length_mm:.0e}") == pytest.approx(length_mm)
    assert length_text(5) == "5 mm"
    assert length_text(0.05) == "50 µm"
    with pytest.raises(ValueError, match="more than 0"):
        round_below(0)


def test_legends_tell_windows_in_mg_ml() -> None:
    rows = legend_of((WATER, IODINE, replace(IODINE, material="gold", is_visible=False)), "mg/mL", "Materials")
    assert [(row.name, row.low, row.high) for row in rows] == [
        ("water", "0", "1000 mg/mL"),
        ("iodine", "1.00", "11.0 mg/mL"),
    ]
    (grey,) = legend_of(GreyLook(levels=(-100.0, 300.0)), "HU", "60 keV")
    assert (grey.name, grey.low, grey.high) == ("60 keV", "-100", "300 HU")
    assert grey.colours[0] == (0, 0, 0)
    assert grey.colours[-1] == (255, 255, 255)
