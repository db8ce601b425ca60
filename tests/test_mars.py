"""The MARS phantoms: where their vials stand, what a ray meets in them, and that the instrument knows them."""

from __future__ import annotations

import math
import tomllib
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import sim.cli
from calibration.attenuation import linear_attenuation_per_mm, material
from mpxct import Terminal
from sim.gantry import Gantry
from sim.mars import multi_contrast_phantom, raja_phantom
from sim.phantom import THICK_CELL_MM, THICK_CELLS_MG_ML, Phantom, described, path_lengths_mm

PHANTOMS = {"mars-multi": multi_contrast_phantom(), "mars-raja": raja_phantom()}


@pytest.mark.parametrize("phantom", PHANTOMS.values(), ids=PHANTOMS)
def test_vials_stand_apart_inside_the_body(phantom: Phantom) -> None:
    (body,) = phantom.solids
    for one, other in combinations(phantom.inserts, 2):
        assert math.hypot(one.x_mm - other.x_mm, one.y_mm - other.y_mm) > one.radius_mm + other.radius_mm + 0.4
    for vial in phantom.inserts:
        assert math.hypot(vial.x_mm, vial.y_mm) + vial.radius_mm < body.half_mm[0] - 0.4
    labels = [(vial.material, vial.concentration_mg_ml) for vial in phantom.inserts]
    assert len(set(labels)) == len(labels)


def test_contents_are_the_published_ones() -> None:
    held = {
        name: [vial.concentration_mg_ml for vial in PHANTOMS["mars-multi"].inserts if vial.material == name]
        for name in ("gold", "gadolinium", "hydroxyapatite", "iodine", "water", "lipid")
    }
    assert sorted(held["gold"]) == sorted(held["gadolinium"]) == [2, 4, 8]
    assert sorted(held["hydroxyapatite"]) == [54.3, 104.3, 211.7, 402.3, 808.5]
    assert max(held["iodine"]) == 18
    assert held["water"] == [0.0]
    assert len(held["lipid"]) == 1
    raja = {(vial.material, vial.concentration_mg_ml) for vial in PHANTOMS["mars-raja"].inserts}
    assert {("gadolinium", mg_ml) for mg_ml in (1, 2, 4, 8)} < raja


@pytest.mark.parametrize("phantom", PHANTOMS.values(), ids=PHANTOMS)
def test_a_ray_meets_each_circle_in_its_chord(phantom: Phantom) -> None:
    """Level rays: each vial takes 2 sqrt(r2 - d2), the body the rest of its own chord."""
    rng = np.random.default_rng(2)
    for azimuth_rad in rng.uniform(0, 2 * math.pi, 12):
        along = np.array([math.cos(azimuth_rad), math.sin(azimuth_rad)])
        across = np.array([-along[1], along[0]])
        offsets_mm = rng.uniform(-20, 20, 30)
        starts = np.append(-60 * along, 0.0)
        ends = np.concatenate([60 * along + offsets_mm[:, None] * across, np.zeros((30, 1))], axis=1)
        lengths = path_lengths_mm(phantom, starts, ends[None])[:, 0]
        rays = ends - starts
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)

        def chords_mm(x_mm: float, y_mm: float, radius_mm: float) -> np.ndarray:
            to_centre = np.array([x_mm, y_mm]) - starts[:2]  # noqa: B023
            distances_mm = np.abs(rays[:, 0] * to_centre[1] - rays[:, 1] * to_centre[0])  # noqa: B023
            return 2 * np.sqrt(np.maximum(radius_mm**2 - distances_mm**2, 0))

        in_vials = [chords_mm(vial.x_mm, vial.y_mm, vial.radius_mm) for vial in phantom.inserts]
        np.testing.assert_allclose(lengths[1:], in_vials, atol=2e-4)
        body_mm = chords_mm(0, 0, phantom.solids[0].half_mm[0])
        np.testing.assert_allclose(lengths[0], body_mm - np.sum(in_vials, axis=0), atol=1e-3)


def test_the_lipid_is_undiluted() -> None:
    phantom = PHANTOMS["mars-multi"]
    labels = [vial.material for vial in phantom.inserts]
    lipid = phantom.materials[1 + labels.index("lipid")]
    energies_kev = np.array([20.0, 40.0, 80.0])
    np.testing.assert_allclose(
        linear_attenuation_per_mm(lipid, energies_kev), linear_attenuation_per_mm("lipid", energies_kev), rtol=1e-6
    )
    assert lipid.density_g_cm3 == pytest.approx(material("lipid").density_g_cm3)


def test_the_sample_changer_holds_them_and_their_cells() -> None:
    gantry = Gantry()
    samples = (gantry.line("SAMP:LIST?") or "").split(",")
    assert {*PHANTOMS, *(f"cell-{THICK_CELL_MM:g}-{name}" for name in THICK_CELLS_MG_ML)} <= set(samples)
    for name, phantom in PHANTOMS.items():
        assert gantry.line(f"SAMP {name}") == "OK"
        assert gantry.inserts == phantom.inserts


def test_a_description_states_every_label_as_toml() -> None:
    phantom = PHANTOMS["mars-raja"]
    told = tomllib.loads(described("mars-raja", phantom.inserts))
    assert [(vial["material"], vial["concentration_mg_ml"]) for vial in told["vial"]] == [
        (insert.material, insert.concentration_mg_ml) for insert in phantom.inserts
    ]
    for vial, insert in zip(told["vial"], phantom.inserts, strict=True):
        assert (vial["x_mm"], vial["y_mm"]) == pytest.approx((insert.x_mm, insert.y_mm), abs=1e-4)
        assert vial["radius_mm"] == insert.radius_mm
    assert told["solvent"] == "water"


def test_the_command_writes_the_description_of_some_vials(tmp_path: Path) -> None:
    path = tmp_path / "raja.toml"
    app = typer.Typer()

    @app.callback()
    def prepare(ctx: typer.Context) -> None:
        ctx.obj = Terminal()

    sim.cli.register(app)
    done = CliRunner().invoke(app, ["sim", "phantom", "mars-raja", "--materials", "gadolinium", "-o", str(path)])
    assert done.exit_code == 0, done.output
    materials = [vial["material"] for vial in tomllib.loads(path.read_text())["vial"]]
    assert materials == ["gadolinium", "gadolinium", "gadolinium", "water", "gadolinium"]
    refused = CliRunner().invoke(app, ["sim", "phantom", "beads"])
    assert "no labelled vials" in str(refused.exception)
