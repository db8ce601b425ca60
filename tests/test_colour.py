"""Laws of adding colours, and colours that stay apart for every eye."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.color import deltaE_ciede2000, rgb2lab

from gui.colour import GREY, KNOWN, PALETTE, Look, blend, colours_of, looks_for

LOOKS = (
    Look(material="water", colour=GREY, high_g_cm3=1.0),
    Look(material="iodine", colour=(0.75, 0.5, 0.0), low_g_cm3=0.001, high_g_cm3=0.02),
    Look(material="gadolinium", colour=(0.25, 0.6, 0.75), high_g_cm3=0.01),
)
MAPS = hnp.arrays(np.float64, (3, 4, 5), elements=st.floats(-0.05, 1.5))


def test_nothing_is_black():
    assert not blend(np.zeros((3, 4, 5)), LOOKS).any()
    assert not blend(np.full((3, 4, 5), -1.0), LOOKS).any()


def test_what_is_not_a_number_shows_as_nothing():
    maps = np.full((3, 1, 2), np.nan)
    maps[0, 0, 1] = 1.0
    assert blend(maps, LOOKS)[0].tolist() == [[0, 0, 0], [56, 56, 56]]


def test_the_ends_of_a_window():
    maps = np.zeros((3, 1, 4))
    maps[1, 0] = [0.001, 0.0105, 0.02, 5.0]
    assert blend(maps, LOOKS)[0].tolist() == [[0, 0, 0], [96, 64, 0], [191, 128, 0], [191, 128, 0]]


@settings(max_examples=50, deadline=None)
@given(MAPS)
def test_materials_add_up_to_white_at_most(maps):
    alone = [blend(np.where(np.arange(3)[:, None, None] == n, maps, 0.0), LOOKS).astype(int) for n in range(3)]
    np.testing.assert_allclose(blend(maps, LOOKS), np.minimum(sum(alone), 255), atol=2)


@settings(max_examples=50, deadline=None)
@given(MAPS, MAPS)
def test_more_is_never_darker(maps, more):
    brighter = blend(maps + np.abs(more), LOOKS).astype(int)
    assert (brighter >= blend(maps, LOOKS)).all()


@settings(max_examples=30, deadline=None)
@given(MAPS, st.permutations(range(3)))
def test_the_order_of_materials_does_not_matter(maps, order):
    shuffled = blend(maps[list(order)], [LOOKS[n] for n in order])
    np.testing.assert_allclose(shuffled.astype(int), blend(maps, LOOKS), atol=1)  # sums of floats, rounded


@given(st.permutations(["water", "iodine", "zirconium", "erbium", "gadolinium"]))
def test_a_material_has_one_colour_in_any_order(materials):
    colours = colours_of(materials)
    assert colours == colours_of(sorted(materials))
    assert colours["iodine"] == KNOWN["iodine"]
    assert len(set(colours.values())) == len(materials)


def test_more_unknown_materials_than_colours():
    assert len(colours_of([f"m{n}" for n in range(20)])) == 20


# Ref: Machado, Oliveira and Fernandes 2009, IEEE Trans. Vis. Comput. Graph. 15, 1291, severity 1.0, linear RGB.
VISION = {
    "full": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("base", [0.0, 1.0])
def test_materials_stay_apart_for_every_eye(vision, base):
    """Full colours of the agents that are scanned together, alone and over water; 10 is a clear difference."""
    seen = {}
    for name in ("iodine", "gadolinium", "hydroxyapatite", "barium"):
        rgb = np.minimum(np.array(KNOWN[name]) + base * np.array(GREY), 1)
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        linear = np.clip(VISION[vision] @ linear, 0, 1)
        seen[name] = rgb2lab(np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055))
    for one, other in combinations(seen, 2):
        assert deltaE_ciede2000(seen[one], seen[other]) > 10, f"{one} and {other}"


def test_windows_follow_the_values_but_not_the_noise():
    rng = np.random.default_rng(0)
    values = rng.normal(0, 0.0005, (3, 50, 50))
    values[1, :10] += 0.018
    water, iodine, nothing = looks_for(("water", "iodine", "gadolinium"), values)
    assert (water.low_g_cm3, water.high_g_cm3) == (0.0, 1.2)
    assert 0.017 < iodine.high_g_cm3 < 0.021
    assert nothing.high_g_cm3 == 0.002
    assert looks_for(("iodine",), np.full((1, 2, 2), np.nan))[0].high_g_cm3 == 0.002
    assert set(PALETTE) >= {iodine.colour, nothing.colour}


@pytest.mark.parametrize(
    "wrong",
    [{"high_g_cm3": 0.0}, {"low_g_cm3": -0.1, "high_g_cm3": 1.0}, {"high_g_cm3": 1.0, "colour": (0.0, 0.0, 2.0)}],
)
def test_looks_that_cannot_be(wrong):
    with pytest.raises(ValueError, match="allowed"):
        Look(**{"material": "x", "colour": (1.0, 1.0, 1.0), **wrong})


def test_maps_must_match_the_looks():
    with pytest.raises(ValueError, match=r"do not match 3 looks; allowed: \(n_looks, h, w\)"):
        blend(np.zeros((2, 4, 5)), LOOKS)
