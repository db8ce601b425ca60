"""What the search finds: edges of ideal detectors, the best of all triples, limits that hold, plans that are taken."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer

import reconstruction.design_cli
from acquisition.dry_run import figures
from acquisition.limits import Limits as InstrumentLimits
from acquisition.plan import Plan, load_plan, passes_kev, plan_from_toml
from acquisition.scan_plan import SnapPlan
from calibration.attenuation import k_shell
from calibration.response import SensorModel, counts_above
from calibration.store import save
from firmware_iface.errors import CalibrationMissing, WrongUsage
from reconstruction.phantom_file import load_phantom
from reconstruction.spectral.design import Designer, Limits, beams_of, k_edges_kev, rate_at_loss_per_s
from reconstruction.spectral.design_plan import charge_mas, design_to_toml, plan_of
from reconstruction.spectral.dose import dose_by_chords_mgy
from reconstruction.spectral.prediction import (
    ENERGIES_KEV,
    Beam,
    Forecaster,
    fitted_counter,
    ideal_counter,
    places_of,
    stated_counter,
    voxel_gain_per_mm2,
)
from reconstruction.spectral.sample import Rod, Sample, ring_of, sample_of
from tests import calibration_records

GEOMETRY = Plan().geometry
LIMITS = Limits(n_views=360, dose_mgy=50.0, rate_per_s=26_000.0)
BEAM = Beam(kvp=100.0, filters_mm={"aluminium": 3.0})
SAMPLE = ring_of([("iodine", 2.0), ("gadolinium", 2.0)], 10.0, "water")
SENSOR = SensorModel()


def run(work):
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def designer_of(sample: Sample = SAMPLE, limits: Limits = LIMITS, *, is_ideal: bool = False) -> Designer:
    counter = ideal_counter() if is_ideal else stated_counter(SENSOR)
    return Designer(
        Forecaster(sample, GEOMETRY, counter),
        limits,
        gain_per_mm2=voxel_gain_per_mm2(GEOMETRY, limits.n_views, window="hann"),
        dose_mgy_per_fluence=dose_by_chords_mgy(sample, GEOMETRY, ENERGIES_KEV),
    )


@pytest.mark.parametrize(("agent", "lowest_kev"), [("iodine", 10.0), ("gadolinium", 10.0), ("gold", 40.0)])
def test_an_ideal_detectors_threshold_stands_at_the_k_edge(agent: str, lowest_kev: float) -> None:
    """But for gold, which low energies show better than its edge, where they are counted."""
    sample = ring_of([(agent, 5.0)], 10.0, "water")
    edge_kev = k_edges_kev(sample)[0]
    beam = replace(BEAM, kvp=120.0)
    limits = replace(LIMITS, lowest_kev=lowest_kev)
    found = run(designer_of(sample, limits, is_ideal=True).search([beam], 3))
    assert np.abs(np.array(found.passes_kev[0]) - edge_kev).min() <= 0.5


def test_edges_are_those_of_the_heavy_elements() -> None:
    edges = [k_shell(z).edge_kev for z in (64, 53)]
    assert list(k_edges_kev(SAMPLE)) == edges


@pytest.mark.parametrize("is_ideal", [True, False])
def test_the_search_finds_the_best_of_all_triples(is_ideal: bool) -> None:
    """Every triple on a grid of 2 keV is tried; the search may be better, for it goes by half a keV."""
    designer = designer_of(is_ideal=is_ideal)
    found = run(designer.search([BEAM], 3))
    table = designer._forecaster.table(BEAM)
    sets = np.array(list(itertools.combinations(places_of(np.arange(10.0, 98.0, 2.0)), 3)))
    merit = designer._merit(table, sets[:, None])
    best = designer._merit(table, places_of(found.forecast.thresholds_kev)[None])[0]
    assert best >= 0.999 * merit.max()


def test_moving_any_threshold_makes_it_worse() -> None:
    designer = designer_of()
    found = run(designer.search([BEAM], 4))
    thresholds_kev, cnr = designer.landscape(found)
    assert cnr.shape == (1, 4, len(thresholds_kev), 2)
    for i, at_kev in enumerate(found.passes_kev[0]):
        here = cnr[0, i, np.flatnonzero(thresholds_kev == at_kev)[0]]
        np.testing.assert_allclose(here, found.forecast.cnr, rtol=1e-9)
        # The mean over agents is ruled by the worst, and not quite the same as it.
        assert np.nanmax(cnr[0, i].min(axis=-1)) <= 1.05 * here.min()


def test_the_best_beam_is_the_best_of_those_tried_alone() -> None:
    designer = designer_of()
    beams = beams_of([70.0, 100.0], {"aluminium": 1.8}, {"aluminium": [0.0, 2.0], "copper": [0.25]})
    assert len(beams) == 6
    together = run(designer.search(beams, 4))
    alone = [run(designer.search([beam], 4)).forecast.cnr.min() for beam in beams]
    assert together.forecast.cnr.min() >= 0.97 * max(alone)


def test_dose_and_time_and_rate_are_kept() -> None:
    found = run(designer_of().search([BEAM], 4))
    assert found.dose_mgy == pytest.approx(50.0, rel=1e-9)
    assert found.open_rate_per_s == pytest.approx(26_000.0, rel=1e-9)
    hasty = run(designer_of(limits=replace(LIMITS, longest_s=10.0)).search([BEAM], 4))
    assert hasty.view_s * 360 == pytest.approx(10.0, rel=1e-9)
    assert hasty.dose_mgy < 50.0
    assert (hasty.forecast.cnr < found.forecast.cnr).all()
    weak = run(designer_of(limits=replace(LIMITS, highest_ma=0.01)).search([BEAM], 4))
    assert weak.current_ma == 0.01
    poor = run(designer_of(limits=replace(LIMITS, highest_w=0.5)).search([BEAM], 4))
    assert poor.current_ma * poor.beam.kvp == pytest.approx(0.5)
    high = run(designer_of(limits=replace(LIMITS, lowest_kev=25.0, gap_kev=8.0)).search([BEAM], 4))
    assert high.passes_kev[0][0] >= 25.0
    assert np.diff(high.passes_kev[0]).min() >= 8.0


def test_more_dose_tells_more_by_its_root() -> None:
    once, four_times = (
        designer_of(limits=replace(LIMITS, dose_mgy=dose)).judge(BEAM, (18.0, 33.0, 50.0, 75.0))
        for dose in (10.0, 40.0)
    )
    np.testing.assert_allclose(four_times.forecast.cnr, 2 * once.forecast.cnr, rtol=1e-9)


def test_the_least_dose_is_what_the_limits_take() -> None:
    designer = designer_of(limits=replace(LIMITS, dose_mgy=None))
    found = run(designer.search([BEAM], 4))
    assert found.forecast.cnr.min() == pytest.approx(5.0, rel=1e-9)
    there = designer_of(limits=replace(LIMITS, dose_mgy=found.dose_mgy)).judge(found.beam, found.passes_kev[0])
    assert there.forecast.cnr.min() == pytest.approx(5.0, rel=1e-9)


def test_the_least_dose_keeps_to_the_time_where_some_beam_can() -> None:
    limits = replace(LIMITS, dose_mgy=None)
    beams = beams_of([80.0], {"aluminium": 1.8}, {"copper": [0.0, 0.5], "aluminium": [8.0]})
    free = run(designer_of(limits=limits).search(beams, 4))
    current_ma = 0.4 * free.current_ma
    slow = run(designer_of(limits=replace(limits, highest_ma=current_ma)).search(beams, 4))
    longest_s = 0.8 * slow.view_s * limits.n_views
    found = run(designer_of(limits=replace(limits, highest_ma=current_ma, longest_s=longest_s)).search(beams, 4))
    assert found.view_s * limits.n_views < slow.view_s * limits.n_views
    assert found.dose_mgy >= 0.999 * slow.dose_mgy


def test_a_paralysable_counter_loses_what_is_asked() -> None:
    rate = rate_at_loss_per_s(0.1, 4e-6)
    assert rate == pytest.approx(26_340, rel=1e-3)
    assert 1 - np.exp(-rate * 4e-6) == pytest.approx(0.1)
    with pytest.raises(WrongUsage, match="allowed"):
        rate_at_loss_per_s(1.5, 1e-6)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(WrongUsage, match="3 materials cannot be told apart with 2"):
        run(designer_of().search([BEAM], 2))
    with pytest.raises(WrongUsage, match="do not fit"):
        run(designer_of().search([replace(BEAM, kvp=20.0)], 8))
    with pytest.raises(WrongUsage, match="allowed"):
        replace(LIMITS, dose_mgy=0.0)


def test_a_plan_of_a_design_is_accepted_and_says_the_same() -> None:
    designer = designer_of()
    found = run(designer.search([BEAM], 4))
    plan = plan_from_toml(design_to_toml(found, Plan()))
    assert plan == plan_of(found, Plan())
    assert charge_mas(plan) == pytest.approx(360 * found.forecast.mas, rel=1e-3)
    assert plan.detector.thresholds_kev == found.passes_kev[0]
    assert plan.detector.exposure_s * found.open_rate_per_s <= 0.76 * 4095
    assert figures(plan, InstrumentLimits(kvp=(20.0, 120.0), current_ma=(0.0, 10.0)))["wrong"] == []
    again = designer.judge(BEAM, plan.detector.thresholds_kev, charge_mas(plan), plan.source.current_ma)
    np.testing.assert_allclose(again.forecast.cnr, found.forecast.cnr, rtol=1e-3)


def test_two_passes_tell_no_less_than_one_and_a_plan_can_make_them() -> None:
    designer = designer_of()
    one, two = (run(designer.search([BEAM], 4, n_passes=n)) for n in (1, 2))
    assert two.dose_mgy == pytest.approx(one.dose_mgy)
    assert two.forecast.cnr.min() >= 0.999 * one.forecast.cnr.min()
    twice = designer.judge(BEAM, [one.passes_kev[0]] * 2)
    np.testing.assert_allclose(twice.forecast.cnr, one.forecast.cnr, rtol=1e-9)
    assert twice.forecast.bin_counts.sum() == pytest.approx(one.forecast.bin_counts.sum())
    plan = plan_from_toml(design_to_toml(two, Plan()))
    assert passes_kev(plan) == two.passes_kev
    assert charge_mas(plan) == pytest.approx(360 * two.forecast.mas, rel=1e-3)


def test_a_plan_without_views_is_refused() -> None:
    with pytest.raises(WrongUsage, match="no views"):
        charge_mas(Plan(scan=SnapPlan()))


def test_a_phantoms_description_says_what_is_to_be_seen(tmp_path: Path) -> None:
    path = tmp_path / "phantom.toml"
    path.write_text(
        '[[vial]]\nmaterial = "gold"\nconcentration_mg_ml = 4.0\nx_mm = 5.0\ny_mm = 0.0\nradius_mm = 3.0\n'
        "mixture_mg_ml = { iodine = 2.0 }\n"
        '[[vial]]\nmaterial = "water"\nx_mm = -5.0\ny_mm = 0.0\nradius_mm = 3.0\n'
    )
    sample = sample_of(load_phantom(path), 30.0, "pmma")
    assert sample.basis == ("water", "gold", "iodine")
    assert [(target.agent, target.concentration_mg_ml) for target in sample.targets] == [("gold", 4.0), ("iodine", 2.0)]
    assert sample.mass_g_per_mm == pytest.approx(
        np.pi / 1000 * ((15**2 - 2 * 3**2) * 1.19 + 3**2 * (1.0 + sample.matter[1].density_g_cm3)), rel=1e-9
    )
    assert sample_of(load_phantom(path), None, "pmma").diameter_mm == pytest.approx(17.6)


def test_rods_outside_or_inside_each_other_are_refused() -> None:
    def rod_at(x_mm: float) -> Rod:
        return Rod(contents_mg_ml={"gold": 1.0}, x_mm=x_mm, y_mm=0.0, radius_mm=1.0)

    with pytest.raises(WrongUsage, match=r"reaches 5\.5 mm"):
        Sample(diameter_mm=10.0, rods=(rod_at(4.5),))
    with pytest.raises(WrongUsage, match="overlap"):
        Sample(diameter_mm=10.0, rods=(rod_at(2.0), rod_at(0.5)))


class Lines:
    """A console that prints."""

    def say(self, text: str) -> None:
        del text

    def track(self, work, stop=None):
        return run(work)

    def emit(self, figures: Mapping[str, object], text: str, *, as_json: bool) -> None:
        sys.stdout.write(json.dumps(figures) if as_json else text)


def front_door(arguments: list[str]) -> None:
    app = typer.Typer()

    @app.callback()
    def prepare(ctx: typer.Context) -> None:
        ctx.obj = Lines()

    reconstruction.design_cli.register(app)
    app(["design", *arguments], standalone_mode=False)


def test_the_command_writes_plan_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, picture = tmp_path / "plan.toml", tmp_path / "design.png"
    front_door(
        "--agent iodine=2 --agent gadolinium=2 --diameter-mm 10 --kvp 80,100 --filter aluminium=2 --photons 40000 "
        f"--json --write {plan} --picture {picture}".split()
    )
    found = json.loads(capsys.readouterr().out)
    best = found["best"]
    assert best["dose_mgy"] == pytest.approx(found["planned"]["dose_mgy"], rel=1e-6)
    assert found["dose_by_photons_mgy"] == pytest.approx(best["dose_mgy"], rel=0.06)
    assert load_plan(plan).detector.thresholds_kev == tuple(best["passes_kev"][0])
    worst = [min(rod["cnr"] for rod in found[name]["rods"]) for name in ("planned", "best")]
    assert worst[1] > worst[0]
    assert picture.stat().st_size > 10_000


def test_the_command_judges_a_plan_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    front_door(["--agent", "gold=4", "--diameter-mm", "10", "--keep", "--ideal", "--photons", "20000"])
    text = capsys.readouterr().out
    assert "as planned" in text
    assert "best" not in text
    assert "18 33 50 75" in text
    with pytest.raises(WrongUsage, match="NAME=NUMBER"):
        front_door(["--agent", "gold"])
    with pytest.raises(WrongUsage, match="phantom's file"):
        front_door([])


def test_a_measured_detector_goes_before_a_stated_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = calibration_records.everything()
    save(known, tmp_path / "calibration.h5")
    arguments = f"--agent gold=4 --keep --photons 20000 --calibration {tmp_path / 'calibration.h5'} --json".split()
    front_door(arguments)
    found = json.loads(capsys.readouterr().out)
    assert known.identity in found["detector"]
    assert found["best"]["filters_mm"]["aluminium"] == known.response.values["filter_mm"]
    save(replace(known, response=None), tmp_path / "calibration.h5")
    with pytest.raises(CalibrationMissing, match="no response"):
        front_door(arguments)
    save(replace(known, is_csm=not known.is_csm), tmp_path / "calibration.h5")
    with pytest.raises(CalibrationMissing, match="different modes"):
        front_door(arguments)


def test_a_fitted_response_counts_as_it_says() -> None:
    fitted = calibration_records.response()
    energies_kev = np.arange(20.25, 110, 5.0)
    thresholds_kev = np.array([15.0, 22.0, 40.0])
    off_kev = fitted.parameters[-len(fitted.thresholds_kev) :].mean()
    expected = counts_above(thresholds_kev + off_kev, energies_kev, fitted.sensor, fitted.values)
    np.testing.assert_allclose(fitted_counter(fitted)(thresholds_kev, energies_kev), expected, rtol=1e-9)


def test_a_design_says_what_it_cannot_keep(capsys: pytest.CaptureFixture[str]) -> None:
    sample, beam = ["--agent", "gold=4", "--diameter-mm", "20"], ["--kvp", "100", "--filter", "copper=0.1"]
    front_door([*sample, *beam, "--dose-mgy", "50", "--longest-s", "20"])
    text = capsys.readouterr().out
    assert "the camera sees 11.3 mm of the sample's 20 mm" in text
    assert "of 50 mGy" in text
