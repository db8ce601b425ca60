"""The works of the page Reconstruct: as the command line makes them, and a slice as the whole makes it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import reconstruction.cli
from acquisition.scan_layout import partial_path
from calibration.progress import Progress
from calibration.store import save
from firmware_iface.errors import CalibrationMissing, WrongUsage
from gui.reconstruct import check, jobs, options, prediction, trial, tries
from gui.reconstruct.settings import (
    BY_MATRIX,
    BY_RESPONSE,
    Decomposition,
    Quantities,
    Settings,
    changes,
    names_of,
    numbers_of,
)
from gui.reconstruct.sources import Facts, SourceKind, read_facts
from reconstruction.recipe import Recipe
from reconstruction.volume import load_volume
from tests.test_decompose_cli import response
from tests.test_pipeline import BASIS, N_VIEWS, PLAN, calibration, run, write_scan

ITERATED = Recipe(method="fista", prior="tv", n_iterations=3, options={"strength_per_mm": 0.0005}, start="fdk")


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scan(tmp_path_factory.mktemp("page") / "scan.h5")


@pytest.fixture(scope="module")
def facts(scan: Path) -> Facts:
    return run(read_facts(scan, Settings()))


@pytest.fixture(scope="module")
def catalogue() -> options.Catalogue:
    return run(options.read_catalogue())


class Silent:
    """A console that runs works and says nothing."""

    def track(self, work: Generator[Progress, None, Any], stop: object = None) -> Any:
        return run(work)

    def say(self, text: str) -> None: ...

    def emit(self, figures: object, text: str, *, as_json: bool) -> None: ...

    def picture(self, file: Path) -> Path:
        return file


def command_line(*arguments: str) -> None:
    app = typer.Typer()
    reconstruction.cli.register(app)
    result = CliRunner().invoke(app, list(arguments), obj=Silent(), catch_exceptions=False)
    assert result.exit_code == 0, result.output


def test_bins_are_those_of_the_command_line(scan: Path, tmp_path: Path) -> None:
    ours = run(jobs.reconstruct(scan, Settings(recipe=replace(ITERATED, bins=(1, 2))), tmp_path / "ours.h5", log := []))
    command_line(
        "reconstruct", str(scan), "-o", str(tmp_path / "theirs.h5"), "--cpu", "--method", "fista", "--prior", "tv",
        "--iterations", "3", "--set", "strength_per_mm=0.0005", "--start", "fdk", "--bins", "1-2",
    )  # fmt: skip
    theirs = load_volume(tmp_path / "theirs.h5")
    np.testing.assert_array_equal(ours.volume.values, theirs.values)
    assert ours.volume.provenance.steps == theirs.provenance.steps
    assert [step.number for step in log] == [1, 2, 3]


def test_breaking_off_slab_by_slab_leaves_nothing(scan: Path, tmp_path: Path) -> None:
    work = jobs.reconstruct(scan, Settings(memory="400MB"), tmp_path / "ours.h5", [])
    assert any(step.stage.startswith("slab") for step in work)
    assert list(tmp_path.iterdir())
    work.close()
    assert not list(tmp_path.iterdir())


def test_materials_are_those_of_the_command_line(scan: Path, tmp_path: Path) -> None:
    asked = Decomposition(rule="exclusive", field_weight=0.5, quantities=Quantities(mono_kev=(70.0,), vnc_kev=70.0))
    ours = run(jobs.decompose(scan, Settings(decomposition=asked), tmp_path / "ours.h5", []))
    theirs = tmp_path / "theirs.h5"
    command_line("decompose", str(scan), "-o", str(theirs), "--cpu", "--rule", "exclusive", "--field", "0.5")
    np.testing.assert_array_equal(ours.volume.values, load_volume(theirs).values)
    labels, quantities = (load_volume(path) for path in ours.others)
    np.testing.assert_array_equal(labels.values, load_volume(tmp_path / "theirs-labels.h5").values)
    assert quantities.channels == ("70 keV", "without contrast, 70 keV")


def test_what_the_materials_cannot_tell_is_refused_before_the_work(scan: Path, tmp_path: Path) -> None:
    for asked, says in (
        (Quantities(elements=("Zz",)), "no element"),
        (Quantities(effective_z=True), "besides contrast agents"),
    ):
        work = jobs.decompose(scan, Settings(decomposition=Decomposition(quantities=asked)), tmp_path / "out.h5", [])
        assert next(work).stage == "reading"
        with pytest.raises(WrongUsage, match=says):
            next(work)


def test_a_volume_is_decomposed_by_a_table(scan: Path, tmp_path: Path) -> None:
    bins = run(jobs.reconstruct(scan, Settings(), tmp_path / "bins.h5", [])).volume
    table = tmp_path / "matrix.csv"
    rows = BASIS.attenuation_per_mm_per_g_cm3.T * 10
    text = "\n".join(
        f"{name},{','.join(f'{value:.9g}' for value in row)}" for name, row in zip(BASIS.materials, rows, strict=True)
    )
    table.write_text(f"material,{','.join(bins.channels)}\n{text}\n")
    asked = Decomposition(by=BY_MATRIX, file=table)
    by_table = run(jobs.decompose(bins, Settings(decomposition=asked), tmp_path / "table.h5", [])).volume
    unweighted = Settings(decomposition=Decomposition(is_weighted=False))
    by_basis = run(jobs.decompose(bins, unweighted, tmp_path / "basis.h5", [])).volume
    np.testing.assert_allclose(by_table.values, by_basis.values, rtol=1e-4, atol=1e-6)


def test_a_slice_is_that_of_the_whole(scan: Path, tmp_path: Path) -> None:
    whole = run(jobs.reconstruct(scan, Settings(), tmp_path / "whole.h5", [])).volume
    z_mm = float(whole.grid.axes_mm()[0][3])
    kept = trial.Kept()
    one = run(trial.try_bins(scan, Settings(), z_mm + 0.01, kept, []))
    np.testing.assert_allclose(one.values[:, 0], whole.values[:, 3], atol=2e-5)
    assert one.grid.centre_mm[2] == pytest.approx(z_mm)
    again = run(trial.try_bins(scan, Settings(), z_mm + 0.01, kept, []))
    np.testing.assert_array_equal(again.values, one.values)
    assert len(kept.seen) == 1
    materials, quantities = run(
        trial.try_materials(
            scan, Settings(decomposition=Decomposition(is_weighted=False, quantities=Quantities(mono_kev=(60.0,)))),
            z_mm, kept, [],
        )
    )  # fmt: skip
    of_volume, _ = run(
        trial.try_materials(whole, Settings(decomposition=Decomposition(is_weighted=False)), z_mm, kept, [])
    )
    np.testing.assert_allclose(materials.values, of_volume.values, atol=2e-3)
    assert quantities is not None
    assert quantities.unit_of("60 keV") == "HU"


def test_an_iterated_slice_is_near_that_of_the_whole(scan: Path, tmp_path: Path) -> None:
    settings = Settings(recipe=replace(ITERATED, bins=(1,)))
    whole = run(jobs.reconstruct(scan, settings, tmp_path / "whole.h5", [])).volume
    z_mm = float(whole.grid.axes_mm()[0][whole.grid.shape[0] // 2])
    one = run(trial.try_bins(scan, settings, z_mm, trial.Kept(), log := []))
    middle = whole.values[0, whole.grid.shape[0] // 2]
    assert np.sqrt(np.mean((one.values[0, 0] - middle) ** 2)) < 0.05 * middle.max()
    assert len(log) == 3
    assert all(later.seconds > earlier.seconds for earlier, later in pairwise(log))


@pytest.mark.parametrize(("tier", "n_iterations", "tolerance"), [("projection", None, 1e-3), ("onestep", 2, 2e-2)])
def test_a_slice_by_rays_is_that_of_the_whole(
    scan: Path, tmp_path: Path, tier: str, n_iterations: int | None, tolerance: float
) -> None:
    known = tmp_path / "calibration.h5"
    save(replace(calibration(), response=response()), known)
    asked = Decomposition(tier=tier, materials=("water", "I"), n_iterations=n_iterations)
    settings = Settings(calibration=known, decomposition=asked)
    made = run(jobs.decompose(scan, settings, tmp_path / "materials.h5", log := []))
    assert [path.name for path in made.others] == ["materials-sigma.h5"]
    assert len(log) == (n_iterations or 0)
    z_mm = float(made.volume.grid.axes_mm()[0][5])
    one, _ = run(trial.try_materials(scan, settings, z_mm, trial.Kept(), []))
    whole = made.volume.values[:, 5]
    off = np.sqrt(np.mean((one.values[:, 0] - whole) ** 2, axis=(1, 2)))
    assert (off < tolerance * whole.max(axis=(1, 2))).all()


def test_a_work_that_is_broken_off_leaves_nothing(scan: Path, tmp_path: Path) -> None:
    work = jobs.reconstruct(scan, Settings(recipe=ITERATED), tmp_path / "never.h5", log := [])
    for _ in work:
        if log:
            break
    work.close()
    assert list(tmp_path.iterdir()) == []


def test_no_file_is_written_over(tmp_path: Path) -> None:
    assert jobs.free_path(tmp_path, "mouse", "volume").name == "mouse-volume.h5"
    (tmp_path / "mouse-volume.h5").touch()
    assert jobs.free_path(tmp_path, "mouse", "volume").name == "mouse-volume-2.h5"
    (tmp_path / "mouse-volume-2.h5").touch()
    assert jobs.free_path(tmp_path, "mouse", "volume").name == "mouse-volume-3.h5"


def test_facts_of_a_scan(facts: Facts, scan: Path, tmp_path: Path) -> None:
    told = dict(facts.lines)
    assert facts.kind is SourceKind.SCAN
    assert facts.n_views == N_VIEWS
    assert facts.materials == BASIS.materials
    assert told["losses"] == "none"
    assert "material basis" in told["calibration"]
    assert str(N_VIEWS) in told["views"]
    low, high = facts.z_mm
    assert low < 0 < high
    path = write_scan(tmp_path / "broken.h5", is_whole=False)
    broken = run(read_facts(partial_path(path), Settings()))
    assert not broken.is_whole
    assert broken.warnings


def test_a_volume_tells_its_bins_and_materials_are_refused(scan: Path, tmp_path: Path) -> None:
    made = run(jobs.reconstruct(scan, Settings(), tmp_path / "bins.h5", []))
    found = run(read_facts(made.path, Settings()))
    assert found.kind is SourceKind.VOLUME
    assert found.channels == made.volume.channels
    materials = run(jobs.decompose(made.volume, Settings(), tmp_path / "materials.h5", []))
    with pytest.raises(WrongUsage, match="g/cm3"):
        run(read_facts(materials.path, Settings()))


def test_forms_are_those_of_the_methods(catalogue: options.Catalogue) -> None:
    from reconstruction.iterative import METHODS, method_named, prior_options

    assert set(catalogue.methods) == set(METHODS)
    for name, form in catalogue.methods.items():
        assert {row.name for row in form.rows} == set(METHODS[name].options())
        filled = {row.name: row.default for row in form.rows}
        assert method_named(name).parse(filled) == filled
        assert all(options.meant(row, str(row.default)) is None for row in form.rows if row.kind == "number")
    for name, form in catalogue.priors.items():
        own = {row.name for row in form.rows} - {"strength"}
        assert own <= set(prior_options(name))
    row = catalogue.methods["os-sart"].rows[1]
    assert options.meant(row, "18") == 18
    with pytest.raises(WrongUsage, match="whole number"):
        options.meant(row, "many")


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (Recipe(), ""),
        (Recipe(bins=(9,)), "Bin 9"),
        (Recipe(linearise=True), "step wedge"),
        (Recipe(method="fista"), "needs a prior"),
        (Recipe(method="sirt", prior="tv"), "takes no prior"),
        (Recipe(method="fista", prior="quadratic"), "must be set"),
        (Recipe(method="fista", prior="tv", options={"strength": "auto"}), ""),
        (Recipe(method="fista", prior="directional-tv", options={"strength": "auto"}), "reference"),
        (Recipe(method="mlem", reference="fdk"), "no use"),
        (Recipe(pass_number=2), "Pass 2"),
    ],
)
def test_what_cannot_be_reconstructed_is_told(
    facts: Facts, catalogue: options.Catalogue, recipe: Recipe, says: str
) -> None:
    why = check.why_not_bins(Settings(recipe=recipe), facts, catalogue)
    assert says in why
    assert bool(why) == bool(says)


def test_what_cannot_be_decomposed_is_told(facts: Facts, catalogue: options.Catalogue) -> None:
    def why(asked: Decomposition, of: Facts = facts) -> str:
        return check.why_not_materials(Settings(decomposition=asked), of, catalogue)

    assert why(Decomposition()) == ""
    assert "response" in why(Decomposition(tier="projection"))
    assert "no material basis" in why(Decomposition(), replace(facts, materials=()))
    assert "cannot be told apart" in why(
        Decomposition(tier="onestep", materials=("a", "b", "c", "d", "e")), replace(facts, has_model=True)
    )
    assert "all bins" in check.why_not_materials(Settings(recipe=Recipe(bins=(1, 2))), facts, catalogue)
    assert "no counts" in why(Decomposition(tier="onestep"), replace(facts, kind=SourceKind.VOLUME))
    with pytest.raises(WrongUsage, match="no file"):
        Decomposition(by=BY_RESPONSE)
    bins = run(trial.try_bins(facts.path, Settings(), 0.0, trial.Kept(), []))
    with pytest.raises(CalibrationMissing):
        jobs.attenuation_of(replace(bins, basis=None), bins, Decomposition())


def test_a_basis_of_other_thresholds_is_told_before_it_begins(tmp_path: Path, catalogue: options.Catalogue) -> None:
    def why(path: Path, **recipe: Any) -> str:
        facts = run(read_facts(path, Settings()))
        return check.why_not_materials(Settings(recipe=Recipe(**recipe)), facts, catalogue)

    passes_kev = (BASIS.thresholds_kev, (25.0, 40.0, 60.0, 90.0))
    plan = msgspec.structs.replace(PLAN, scan=msgspec.structs.replace(PLAN.scan, passes_kev=passes_kev))
    two = write_scan(tmp_path / "two.h5", plan=plan)
    assert "18, 33, 50, 75 keV, and the scan has 25, 40, 60, 90 keV: calibrate materials" in why(two)
    assert why(two, pass_number=1) == ""
    softer = write_scan(tmp_path / "softer.h5", basis=replace(BASIS, tube_kvp=90.0))
    assert "measured at 90 kVp, and the scan at 118 kVp" in why(softer)
    bins = run(jobs.reconstruct(softer, Settings(), tmp_path / "bins.h5", [])).path
    assert "90 kVp" in why(bins)


def test_what_looks_at_the_whole_scan_goes_with_no_memory_limit(facts: Facts, catalogue: options.Catalogue) -> None:
    def why(recipe: Recipe) -> str:
        return check.why_not_bins(Settings(recipe=recipe, memory="8GB"), facts, catalogue)

    assert why(Recipe()) == ""
    assert "The method cannot be had slab by slab" in why(Recipe(method="sirt"))
    assert "rings and metal per mm" in why(Recipe(rings="auto", metal_per_mm=0.2))


def test_more_work_is_predicted_to_take_longer(facts: Facts) -> None:
    by_fdk, iterated, coarse = (
        prediction.predict(facts, Settings(recipe=recipe))
        for recipe in (Recipe(), Recipe(method="sirt"), Recipe(voxel_mm=1.0))
    )
    assert by_fdk is not None
    assert iterated is not None
    assert coarse is not None
    assert iterated.seconds_s > by_fdk.seconds_s > coarse.seconds_s > 0
    assert iterated.peak_bytes > by_fdk.peak_bytes
    assert f"{by_fdk.shape[2]} × {by_fdk.shape[1]} × {by_fdk.shape[0]}" in by_fdk.words()
    last = tries.Try(
        number=1, kind="bins", settings=Settings(recipe=Recipe(method="sirt")), z_mm=0.0, pixel_mm=1.0, pictures=(),
        seconds_s=9.0, seconds_per_iteration_s=2.0, n_slices=4,
    )  # fmt: skip
    assert replace(last, corner_mm=(-5.0, 4.0)).spans_mm(1.0, 2.0, 3.0, 0.5) == ((-4.0, -1.0), (1.5, 2.0))
    told = prediction.predict(facts, last.settings, last)
    assert told is not None
    assert "last try" in told.by
    assert told.seconds_s > 100 * 2.0


def test_what_does_not_fit_into_memory_is_told_before_it_begins(facts: Facts, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(recipe: Recipe, free_bytes: int) -> prediction.Prediction:
        monkeypatch.setattr("reconstruction.size.budget.available_bytes", lambda: free_bytes)
        found = prediction.predict(facts, Settings(recipe=recipe))
        assert found is not None
        return found

    peak_bytes = told(Recipe(), 10**12).peak_bytes
    little = told(Recipe(), peak_bytes)  # not all that is free may be taken
    assert (little.fits, little.why_not_whole) == (False, "")
    assert "slab by slab" in little.words()
    for recipe in (Recipe(method="sirt"), Recipe(rings="stripes")):
        assert told(recipe, 10**12).why_not_whole == ""
        refused = told(recipe, peak_bytes)
        assert refused.why_not == ""  # a slice can be tried
        assert "larger voxels" in refused.why_not_whole
        assert refused.why_not_whole in refused.words()
    assert "One slice" in told(Recipe(), 1000).why_not_whole


def test_too_few_views_are_told_before_it_begins(facts: Facts) -> None:
    assert facts.orbit is not None
    few = replace(facts.orbit, angles_rad=facts.orbit.angles_rad[:30], lifts_mm=facts.orbit.lifts_mm[:30])
    with pytest.raises(WrongUsage, match="views leave") as caught:
        prediction.predict(replace(facts, orbit=few), Settings())
    assert "iterative method" in caught.value.hint
    assert prediction.predict(replace(facts, orbit=few), Settings(recipe=Recipe(method="sirt"))) is not None


def test_changes_are_told_in_words() -> None:
    before = Settings()
    after = replace(before, recipe=Recipe(method="fista", prior="tv", n_iterations=30))
    assert set(changes(before, after)) == {"method fdk → fista", "prior auto → tv", "iterations auto → 30"}
    with_option = replace(before, recipe=Recipe(method="sirt", options={"damping": 0.1}))
    assert "damping auto → 0.1" in changes(before, with_option)
    assert "damping 0.1 → auto" in changes(with_option, before)
    assert changes(after, after) == ()
    assert changes(before, replace(before, decomposition=Decomposition(rule="exclusive"))) == (
        "materials: rule least-squares → exclusive",
    )
    assert numbers_of("40; 70,", "the energy") == (40.0, 70.0)
    assert names_of(" water, iodine,") == ("water", "iodine")
    with pytest.raises(WrongUsage, match="numbers"):
        numbers_of("warm", "the energy")
    with pytest.raises(WrongUsage, match="memory"):
        Settings(memory="much")
    with pytest.raises(WrongUsage, match="keV"):
        Quantities(mono_kev=(1e6,))


def test_regions_read_what_is_in_them() -> None:
    values = np.zeros((20, 30), np.float32)
    values[4:8, 10:16] = 3.0
    values[12:16, 2:6] = np.arange(16).reshape(4, 4)
    found = tries.reading(values, tries.box_of(5.0, 2.0, 3.0, 2.0, 0.5), tries.box_of(1.0, 6.0, 2.0, 2.0, 0.5))
    assert found is not None
    assert (found.mean, found.sd, found.region.size) == (3.0, 0.0, 24)
    assert found.background == 7.5
    assert found.contrast_to_noise == pytest.approx((3 - 7.5) / np.arange(16).std())
    assert tries.reading(values, (slice(90, 99), slice(0, 4)), (slice(0, 4), slice(0, 4))) is None


def test_pictures_stand_y_upwards_and_compare(facts: Facts) -> None:
    bins = run(trial.try_bins(facts.path, Settings(), 0.0, trial.Kept(), []))
    pictures = tries.pictures_of(bins)
    np.testing.assert_array_equal(pictures[2].values, bins.values[2, 0, ::-1])
    less = tries.difference(pictures[0], replace(pictures[0], values=pictures[0].values + 1))
    assert less is not None
    assert np.allclose(less.values, 1, atol=1e-5)
    assert tries.difference(pictures[0], replace(pictures[0], unit="HU")) is None
    materials, _ = run(trial.try_materials(facts.path, Settings(), 0.0, trial.Kept(), []))
    *_, gadolinium, colour = tries.pictures_of(materials)
    assert gadolinium.unit == "mg/mL"
    np.testing.assert_allclose(gadolinium.values, materials.values[2, 0, ::-1] * 1000, rtol=1e-5)
    assert (colour.name, colour.values.shape[2]) == (tries.COLOUR, 3)
    assert [text.split(",")[0] for text, _ in colour.legend] == list(BASIS.materials)
