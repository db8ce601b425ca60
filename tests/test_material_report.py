"""The report on a volume's quality is one file that shows the figures that were measured."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from firmware_iface.errors import BadFile, WrongUsage
from gui.cli import register
from gui.reports.material_figures import material_text, quality_figures
from gui.reports.material_report import material_html
from reconstruction.volume import save_volume
from tests.material_phantom import CONTENTS, maps_of, ring
from tests.test_assessment import finished, whole
from tests.test_report import Page


class Plain:
    """A console without bars."""

    def emit(self, figures, text, *, as_json):
        typer.echo(json.dumps(figures, allow_nan=False) if as_json else text)

    def track(self, work, stop=None):
        return finished(work)


app = typer.Typer()
register(app)


@app.callback()
def prepare(ctx: typer.Context) -> None:
    ctx.obj = Plain()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    phantom = ring()
    save_volume(
        maps_of(phantom.moved(0.2, 0.1, 0.3), blur_mm=0.12, noise_mg_ml=1.0, n_slices=4), folder / "materials.h5"
    )
    tables = "".join(
        f'[[vial]]\nmaterial = "{vial.material}"\nconcentration_mg_ml = {vial.concentration_mg_ml}\n'
        f"x_mm = {vial.x_mm}\ny_mm = {vial.y_mm}\nradius_mm = {vial.radius_mm}\n"
        for vial in phantom.vials
    )
    (folder / "phantom.toml").write_text('name = "ring & <seven>"\n' + tables)
    return folder


def run(*arguments) -> str:
    result = CliRunner().invoke(app, ["quality", *(str(a) for a in arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_one_command_makes_the_report(files, tmp_path):
    report = tmp_path / "report.html"
    told = json.loads(run(files / "materials.h5", files / "phantom.toml", "-o", report, "--json"))
    iodine = told["matched"]["materials"]["iodine"]
    assert iodine["slope"] == pytest.approx(1, abs=0.02)
    assert iodine["r2"] > 0.99
    assert told["pose"]["x_mm"] == pytest.approx(0.2, abs=0.02)
    assert told["report"] == str(report)
    page = Page(report.read_text())
    assert not page.open
    assert all(link.startswith("data:") for link in page.links)
    assert "ring & <seven>" in page.text
    for heading in (
        "Concentrations",
        "Agreement",
        "Cross-talk",
        "Detection limits",
        "Identification",
        "Sharpness",
        "Noise",
    ):
        assert heading in page.text


def test_volumes_are_compared_at_the_sharpness_of_the_least_sharp(files, tmp_path):
    """The quieter one is the blurred one; at one sharpness it is the noisier."""
    phantom = ring().moved(0.2, 0.1, 0.3)
    save_volume(maps_of(phantom, blur_mm=0.17, noise_mg_ml=0.8, n_slices=4), tmp_path / "blurred.h5")
    report = tmp_path / "report.html"
    told = json.loads(
        run(files / "materials.h5", files / "phantom.toml", "--beside", tmp_path / "blurred.h5", "-o", report, "--json")
    )
    other = told["beside"]["blurred.h5"]
    assert told["matched"]["mtf50_per_mm"] == other["matched"]["mtf50_per_mm"]
    expected = (0.6931 / 2) ** 0.5 / (3.1416 * 0.17)
    assert other["matched"]["mtf50_per_mm"] == pytest.approx(expected, rel=0.04)
    sd = [of["materials"]["iodine"]["blank_sd_mg_ml"] for of in (told["as_it_is"], other["as_it_is"])]
    assert sd[0] > 1.1 * sd[1]
    matched = [of["materials"]["iodine"]["blank_sd_mg_ml"] for of in (told["matched"], other["matched"])]
    assert matched[0] < matched[1]
    assert "blurred.h5" in Page(report.read_text()).text


def test_without_registration_the_positions_are_believed(files):
    told = json.loads(run(files / "materials.h5", files / "phantom.toml", "--register", "none", "--json"))
    assert told["pose"] is None
    assert "positions as described" in run(files / "materials.h5", files / "phantom.toml", "--register", "none")


def test_the_page_shows_what_was_measured():
    phantom = ring()
    volume = maps_of(phantom, n_slices=4)
    page = Page(material_html(whole(), volume))
    assert whole().matched is not None
    for name, fit in whole().matched.regressions.items():
        assert name in page.text
        assert f"{fit.slope:.4f} ± {fit.slope_se_ratio:.4f}" in page.text
    for content, true in CONTENTS[1:]:
        assert f"{content} {true:g}" in page.text
    assert page.text.count("at MTF50") > 4


def test_the_figures_are_plain_json():
    told = quality_figures(whole())
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert set(told["as_it_is"]["materials"]["iodine"]) >= {
        "slope", "offset_mg_ml", "r2", "rmse_mg_ml", "bias_mg_ml", "cross_talk_mg_ml", "limit_cnr5_mg_ml",
        "limit_iupac_mg_ml", "sensitivity", "specificity", "auc", "mtf50_per_mm",
    }  # fmt: skip
    lines = material_text(whole()).splitlines()
    assert lines[1].split()[0] == "iodine"
    assert len(lines[0]) == len(lines[1]) == len(lines[2])


def test_what_is_wrong_is_told(files, tmp_path):
    with pytest.raises(WrongUsage, match="--mtf50 is -1"):
        run(files / "materials.h5", files / "phantom.toml", "--mtf50", "-1")
    (tmp_path / "bad.toml").write_text("vials = 3")
    with pytest.raises(BadFile, match="describes no phantom"):
        run(files / "materials.h5", tmp_path / "bad.toml")
