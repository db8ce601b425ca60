"""Descriptions of phantoms: what a file states, and what it may not."""

from __future__ import annotations

import numpy as np
import pytest

from firmware_iface.errors import BadFile
from reconstruction import phantom_file
from reconstruction.phantom_file import Disc, Edge, Phantom, Vial, load_phantom, phantom_to_toml
from tests.material_phantom import ring


def written(folder, text: str):
    path = folder / "phantom.toml"
    path.write_text(text)
    return path


def test_the_example_at_the_top_of_the_module_is_a_phantom(tmp_path):
    text = (phantom_file.__doc__ or "").split("\n\n")
    example = "\n\n".join(text[1:-1])
    phantom = load_phantom(written(tmp_path, example))
    assert phantom.agents == ("iodine", "gadolinium")
    assert phantom.vials[0].true_mg_ml("gadolinium") == 4.0
    assert phantom.edges[0].kind == "line"
    assert phantom.threshold_mg_ml == {"iodine": 2.0}


def test_what_is_written_is_read_again(tmp_path):
    phantom = Phantom(
        name='a "ring"', z_range_mm=(-1.0, 2.0), blank=Disc(x_mm=0, y_mm=0.5, radius_mm=1),
        vials=(
            Vial(
                material="iodine", x_mm=1 / 3, y_mm=0, radius_mm=1, concentration_mg_ml=3, mixture_mg_ml={"gold": 2.5}
            ),
            Vial(material="pmma", x_mm=0, y_mm=0, radius_mm=1, is_pure=True, z_range_mm=(0.0, 1.0)),
        ),
        edges=(Edge(material="gold", kind="wire", x_mm=0, y_mm=0, reach_mm=0.5),),
        threshold_mg_ml={"iodine": 1.0},
    )  # fmt: skip
    assert load_phantom(written(tmp_path, phantom_to_toml(phantom))) == phantom
    assert load_phantom(written(tmp_path, phantom_to_toml(ring()))) == ring()


def test_vials_alone_are_enough(tmp_path):
    text = '[[vial]]\nmaterial = "water"\nx_mm = 0\ny_mm = 1\nradius_mm = 2\n'
    phantom = load_phantom(written(tmp_path, text))
    assert phantom.vials == (Vial(material="water", x_mm=0.0, y_mm=1.0, radius_mm=2.0),)
    assert phantom.agents == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "vial"),
        ("vial = []", "at least one"),
        ('[[vial]]\nmaterial = "a"\nx_mm = 0\ny_mm = 1\n', "radius_mm"),
        ('[[vial]]\nmaterial = "a"\nx_mm = 0\ny_mm = 1\nradius_mm = 0\n', "allowed: more than 0"),
        ('[[vial]]\nmaterial = "a"\nx_mm = 0\ny_mm = 1\nradius_mm = 1\nconcentration = 3\n', "concentration"),
        ('[[vial]]\nmaterial = "a"\nx_mm = 0\ny_mm = 1\nradius_mm = 1\nmixture_mg_ml = {a = 1}\n', "again"),
        ("not toml", "describes no phantom"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, reason):
    with pytest.raises(BadFile, match=reason):
        load_phantom(written(tmp_path, text))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadFile, match="cannot be read"):
        load_phantom(tmp_path / "none.toml")


def test_edges_need_their_sizes():
    with pytest.raises(ValueError, match="needs radius_mm"):
        Edge(material="a", x_mm=0, y_mm=0)
    with pytest.raises(ValueError, match="needs reach_mm"):
        Edge(material="a", kind="wire", x_mm=0, y_mm=0, radius_mm=1)


def test_a_vial_knows_what_it_holds():
    vial = Vial(material="iodine", x_mm=0, y_mm=0, radius_mm=1, mixture_mg_ml={"gold": 3.0})
    assert vial.materials == ("iodine", "gold")
    assert vial.true_mg_ml("iodine") is None
    assert vial.true_mg_ml("gold") == 3.0
    assert vial.true_mg_ml("gadolinium") == 0.0
    assert vial.label == "iodine + gold 3"


def test_moving_turns_and_then_shifts_everything():
    phantom = Phantom(
        vials=(Vial(material="a", x_mm=2.0, y_mm=0.0, radius_mm=1),),
        edges=(Edge(material="a", kind="line", x_mm=0.0, y_mm=1.0, reach_mm=1, angle_deg=10),),
    )
    moved = phantom.moved(0.5, -1.0, np.pi / 2)
    assert (moved.vials[0].x_mm, moved.vials[0].y_mm) == pytest.approx((0.5, 1.0))
    assert (moved.edges[0].x_mm, moved.edges[0].y_mm) == pytest.approx((-0.5, -1.0))
    assert moved.edges[0].angle_deg == pytest.approx(100)
    back = moved.moved(-0.5, 1.0).moved(0, 0, -np.pi / 2)
    assert (back.vials[0].x_mm, back.vials[0].y_mm) == pytest.approx((2.0, 0.0))
