"""The report is one file that needs nothing else, and shows the numbers that went in."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import fields, replace
from functools import cache
from html.parser import HTMLParser
from warnings import catch_warnings

import numpy as np
import pytest

from acquisition.scan import Event
from calibration.conditions import StepRecord
from calibration.store import Calibration
from gui.reports.calibration_report import calibration_html, save_calibration_report, sections
from gui.reports.report import ReportData, fits_of, report_html, save_report
from reconstruction.quality import Vial, VialStatistics
from tests.calibration_records import RECORDS, everything
from tests.test_picture import calibration

MATERIALS = ("water", "iodine", "gadolinium")


def vial(material: str, true: float | None, means: tuple[float, ...]) -> VialStatistics:
    return VialStatistics(
        vial=Vial(material=material, x_mm=0, y_mm=0, radius_mm=1, concentration_mg_ml=true),
        materials=MATERIALS,
        mean_g_cm3=np.array(means) / 1000,
        sd_g_cm3=np.array([20.0, 0.5, 0.6]) / 1000,
        n_voxels=321,
    )


def full() -> ReportData:
    return ReportData(
        title="Scan <of> vials & more",
        created="2026-01-02 03:04",
        picture_png=b"\x89PNG\r\n\x1a\nxyz",
        key_figures={"worst error": "0.4 mg/mL"},
        vials=(
            vial("water", None, (1000, 0.1, -0.2)),
            vial("iodine", 9.0, (990, 9.1, 0.3)),
            vial("iodine", 18.0, (985, 17.6, 0.2)),
            vial("gadolinium", 8.0, (995, 0.4, 8.2)),
        ),
        calibration=calibration(),
        n_frames=400,
        n_lost=3,
        events=(
            Event(time_s=100.0, sequence=0, kind="start", text="scan"),
            Event(time_s=102.5, sequence=17, kind="lost", text="frames 17 to 19 of run 1: <script>alert(1)</script>"),
        ),
        timings_s={"scan": 12.0, "reconstruct": 3.25},
        plan_text='sample = "vials" # <b>',
        provenance={"scan": "scan.h5"},
    )


@cache
def full_text() -> str:
    return report_html(full())


class Page(HTMLParser):
    """Collects tags, links and text, and refuses tags that do not nest."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + " "


def test_the_report_needs_nothing_else():
    text = full_text()
    page = Page(text)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert page.links
    assert all(link.startswith("data:image/") for link in page.links)
    assert not re.search(r"(src|href)\s*=\s*[\"']?(http|//|file)|url\(|@import", text)


def test_every_section_shows_its_numbers():
    seen = " ".join(Page(full_text()).text.split())
    for words in (
        "Scan <of> vials & more", "3 of 400 frames were lost", "0.4 mg/mL worst error",
        "iodine 18 18.00 17.60 0.50 -0.40 321",
        "Cross-talk", "gadolinium 8 995.00 0.40 8.20",
        "Residuals of all sources: 0.100 keV rms", "Am-241 1 59.50 248.4 +0.10",
        "2 of 256 pixels (0.78 %)", "out of trim not used 1 0.391", "2.5 17 lost frames 17 to 19",
        "reconstruct 3.2", "in all 15.2", 'sample = "vials" # <b>', "scan.h5", calibration().identity,
        "simulated <board>",
    ):  # fmt: skip
        assert words in seen, words


def test_equalisation_is_told_in_codes_and_in_kev():
    c = calibration()
    seen = " ".join(Page(full_text()).text.split())
    row = re.search(
        r"threshold before, DAC before, keV after, DAC after, keV 1 ([\d.]+) ([\d.]+) ([\d.]+) ([\d.]+)", seen
    )
    assert row
    before_dac, before_kev, after_dac, after_kev = map(float, row.groups())
    assert before_dac == pytest.approx(c.edges_before_dac[1].std(), rel=0.05)
    assert after_dac == pytest.approx(c.edges_after_dac[1].std(), rel=0.05)
    assert (before_kev, after_kev) == (pytest.approx(before_dac / 4, abs=0.01), pytest.approx(after_dac / 4, abs=0.01))


def test_lines_are_fitted_through_the_vials_and_water():
    fits = fits_of(full().vials)
    slope, offset = np.polyfit([0, 9, 18], [0.1, 9.1, 17.6], 1)
    assert fits["iodine"].slope == pytest.approx(slope)
    assert fits["iodine"].offset_mg_ml == pytest.approx(offset)
    assert fits["iodine"].worst_mg_ml == pytest.approx(0.4)
    assert list(fits) == ["iodine", "gadolinium"]
    assert fits_of(full().vials[1:2]) == {}


def test_an_empty_report_says_what_is_missing():
    page = Page(report_html(ReportData(title="t", created="c")))
    for words in ("No vials of known concentration", "No calibration was given", "No scan was given", "Not recorded"):
        assert words in page.text
    assert not page.links


def test_many_events_are_cut_and_counted():
    events = tuple(Event(time_s=n, sequence=n, kind="note", text=f"e{n}") for n in range(250))
    text = Page(report_html(ReportData(title="t", created="c", n_frames=1, events=events))).text
    assert "e199" in text
    assert "e200" not in text
    assert "50 more events" in text


def test_a_report_that_cannot_be():
    with pytest.raises(ValueError, match="5 of 4 frames lost"):
        ReportData(title="t", created="c", n_frames=4, n_lost=5)


def test_it_is_written_whole(tmp_path):
    path = save_report(full(), tmp_path / "report.html")
    assert Page(path.read_text(encoding="utf-8")).text == Page(full_text()).text
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_calibration_has_a_report_of_its_own(tmp_path):
    measured = calibration()
    text = save_calibration_report(measured, tmp_path / "c.html").read_text()
    page = Page(text)
    assert measured.identity in page.text
    assert not re.search(r"(src|href)\s*=\s*[\"']?(http|//|file)|url\(|@import|<script", text)
    for title in ("Steps", "Equalisation", "Energy scale", "Bad pixels"):
        assert title in page.text


def test_the_report_tells_forced_steps():
    forced = StepRecord(
        step="energy", created="2026-01-02", software="1", mode="fine-spm", gain="LGM", bias_v=300.0,
        temperature_k=300.15, is_forced=True,
    )  # fmt: skip
    text = Page(calibration_html(replace(calibration(), history=(forced,)))).text
    assert "fine-spm, LGM, 300 V, 27.0 °C" in text
    assert "forced, under other conditions" in text


SECTIONS = {
    "Bias voltages": "bias_currents",
    "Energy scale of each pixel": "pixel_scale",
    "End point of the tube's spectrum": "end_point",
    "Count rate": "count_rate",
    "Materials": "basis",
    "Step wedge": "wedge",
    "Equivalent thickness": "thickness",
    "Response": "response",
    "Alignment": "alignment",
}
ALWAYS = {"Equalisation", "Energy scale", "Bad pixels"}


@cache
def full_sections() -> dict[str, str]:
    return dict(sections(everything()))


def words_of(html: str) -> str:
    return " ".join(Page(html).text.split())


def test_there_is_a_record_for_every_optional_field_of_a_calibration():
    optional = {each.name for each in fields(Calibration) if each.default is None}
    assert set(RECORDS) == optional - {"temperature_k"}


def test_a_section_is_there_when_its_record_is():
    assert set(full_sections()) == {*SECTIONS, *ALWAYS}
    assert {title for title, _ in sections(calibration())} == ALWAYS
    for title, html in full_sections().items():
        page = Page(html)
        assert page.links, title
        assert "table" in page.tags, title


@pytest.mark.parametrize(
    ("title", "told"),
    [
        ("Bias voltages", ("1 GND 137 0.650 0.6512 +1.2", "2 FBK 186 0.900 0.9101 +10.1, outside")),
        ("Equalisation", ("Method: noise, 4 rounds", "1 0 3 0 3", "3 1 0 0 1", "1.00 0.25 56")),
        ("Energy scale", ("1 10.00 0.20 4.0000 0.0100 0.078 0.157", "Am-241 1 59.50 248.4 +0.10")),
        ("Energy scale of each pixel", ("error at", "0.05 0.05 1.20")),
        ("End point of the tube's spectrum", ("80 80.75 +0.75 0.15",)),
        ("Bad pixels", ("hot not used 1", "edge suspect 16", "masked neighbour suspect 3", "Another 19 are suspect")),
        ("Count rate", ("paralysable, taken", "above 18.0 keV 500.0", "2.0 %, before")),
        ("Materials", ("iodine 1.20000 1.70000",)),
        ("Step wedge", ("aluminium-1 81.87 90.48 0.020", "pmma-5+aluminium-1")),
        ("Equivalent thickness", ("18-33 keV 0.0020 0.050", "Linearised line integrals are those of 8 mm")),
        ("Response", ("water-8, held back +0.50 -1.00", "pmma-2 +0.10 +0.00", "filter, mm 3 0.1")),
        ("Alignment", ("offset u 0.2200 0.011 mm 2.000 0.1", "roll 0.5000 0.01 ° 0.070", "90 views")),
    ],
)  # fmt: skip
def test_a_section_tells_the_figures_of_its_record(title, told):
    seen = words_of(full_sections()[title])
    for words in told:
        assert words in seen, seen


SET_BY_PEOPLE = {"tube_kvp", "kvp", "tolerance_v", "pair_kev", "energy_kev", "thresholds_kev", "target_v"}


def with_nan(record):
    """Every number of a record that was measured, and that it lets be NaN, is."""
    if isinstance(record, np.ndarray):
        return np.full_like(record, np.nan)
    for each in fields(record):
        value = getattr(record, each.name)
        if isinstance(value, float) or (isinstance(value, np.ndarray) and value.dtype.kind == "f"):
            with suppress(ValueError):  # the record refuses it
                record = record if each.name in SET_BY_PEOPLE else replace(record, **{each.name: value * np.nan})
    return record


@pytest.mark.parametrize("name", RECORDS)
def test_what_is_not_a_number_breaks_no_section(name):
    bare = calibration()
    if name not in ("equalisation", "scale_covariance"):  # which other sections tell
        bare = replace(bare, lines=(), edges_after_dac=np.nan * bare.edges_after_dac)
    damaged = replace(bare, **{name: with_nan(getattr(everything(), name))})
    titles = {record: title for title, record in SECTIONS.items()}
    with catch_warnings(action="error"):
        told = dict(sections(damaged))
    assert set(told) == ALWAYS | ({titles[name]} if name in titles else set())
    assert "nan" not in words_of("".join(told.values()))


def test_the_curves_of_the_count_rate_are_those_of_the_law():
    record = everything().count_rate
    assert record is not None
    currents = np.array([0.02, 0.15])
    low, high = record.counted_per_s(currents).T
    true_low, true_high, z = 5e5 * currents, 2e5 * currents, 5 * currents
    assert low == pytest.approx(true_low * np.exp(-z / 2))  # paralysable: n exp(-n tau), tau = 0.5 / 1e5 s
    assert high == pytest.approx(true_high * np.exp(-z / 2) + true_low * (0.1 * z + 0.02 * z**2))
