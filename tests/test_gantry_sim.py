"""The simulated scene: its line protocol, and the light that it lets fall on the sensor."""

from dataclasses import replace

import numpy as np
import pytest

from firmware_iface.chip import Gain
from sim.gantry import SOURCE_PHOTONS_PER_PIXEL_S, Gantry
from sim.sensor import FrontEnd, Sensor, Settings
from sim.tube import DEFAULT_MA


@pytest.fixture
def gantry():
    return Gantry(seed=1)


def tell(gantry, *lines):
    for line in lines:
        assert gantry.line(line) == "OK", line
    assert gantry.line("BUSY?") == "0", "without a run, waiting costs the scene's time only"


def test_what_is_told_is_answered(gantry):
    assert gantry.line("*IDN?").startswith("mpxct")
    assert gantry.line("SAMP?") == "OUT"
    assert gantry.line("BEAM?") == "OFF"
    samples = gantry.line("SAMP:LIST?").split(",")
    assert {"vials", "cell-water", "cell-gadolinium", "pmma-10", "pmma-10+aluminium-1", "beads"} <= set(samples)
    assert len(samples) == len(set(samples))
    assert {"TUBE", "Am-241", "In", "Gd", "Pb"} <= set(gantry.line("SOUR:LIST?").split(","))
    tell(gantry, "ROT -12.25", "SAMP vials", "SOUR Am-241", "TUBE 80 0.25", "BEAM ON")
    asked = [gantry.line(question) for question in ("ROT?", "SAMP?", "SOUR?", "TUBE?", "BEAM?")]
    assert asked == ["-12.25", "vials", "Am-241", "80 0.25", "ON"]
    tell(gantry, "SAMP OUT")
    assert gantry.line("SAMP?") == "OUT"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("", "no command"),
        ("FLY", "no command 'FLY'"),
        ("ROT", "1 finite number"),
        ("ROT nan", "1 finite number"),
        ("ROT 1 2", "1 finite number"),
        ("ROT? 3", "takes nothing"),
        ("STOP now", "takes nothing"),
        ("LIFT 51", "-50 to 50"),
        ("SHIFT -51", "-50 to 50"),
        ("ROT:SWEEP 10 0 0 1.5 1", "whole number"),
        ("ROT:SWEEP 10 0 0 0 1", "1 or more"),
        ("ROT:SWEEP 100 0 0 5 1", "up to 60"),
        ("SAMP unobtainium", "cell-iodine"),
        ("SOUR Xx", "Am-241"),
        ("TUBE 118", "2 finite numbers"),
        ("TUBE 200 0.1", "20 to 120 kVp"),
        ("TUBE 118 -1", "0 to 1 mA"),
        ("BEAM maybe", "ON, OFF"),
    ],
)
def test_errors_say_why_and_change_nothing(gantry, line, why):
    questions = ("ROT?", "SAMP?", "SOUR?", "TUBE?", "BEAM?")
    before = [gantry.line(question) for question in questions]
    answer = gantry.line(line)
    assert answer.startswith("ERR ")
    assert why in answer
    assert [gantry.line(question) for question in questions] == before


def test_no_light_without_beam(gantry):
    photons, _ = gantry.photons(1.0)
    assert photons is None


def test_light_goes_as_current_and_time(gantry):
    tell(gantry, "BEAM ON", "TUBE 118 0.01")
    once, energies_kev = gantry.photons(1.0)
    assert once.shape == (len(energies_kev), 128, 128)
    tell(gantry, "TUBE 118 0.03")
    np.testing.assert_allclose(gantry.photons(2.0)[0], 6 * once, rtol=0.01)  # the tube ripples
    tell(gantry, "TUBE 60 0.03")
    assert gantry.photons(1.0)[0][energies_kev > 60.5].max() == 0


def test_the_sample_casts_a_shadow_that_turns(gantry):
    tell(gantry, "BEAM ON")
    open_beam = gantry.photons(1.0)[0].sum(axis=0)
    tell(gantry, "SAMP vials")
    at_0 = gantry.photons(1.0)[0].sum(axis=0)
    tell(gantry, "ROT 20")
    at_20 = gantry.photons(1.0)[0].sum(axis=0)
    assert at_0[64, 64] < 0.85 * open_beam[64, 64]
    assert at_0[64, 0] == pytest.approx(open_beam[64, 0], rel=0.01)  # the phantom does not fill the field
    assert abs(at_20 / at_0 - 1).max() > 0.02
    tell(gantry, "ROT 360")
    np.testing.assert_allclose(gantry.photons(1.0)[0].sum(axis=0), at_0, rtol=0.01)
    tell(gantry, "SAMP OUT")
    np.testing.assert_allclose(gantry.photons(1.0)[0].sum(axis=0), open_beam, rtol=0.01)


def test_labels_are_those_of_the_sample(gantry):
    assert gantry.inserts == ()
    tell(gantry, "SAMP vials")
    assert {insert.material for insert in gantry.inserts} == {"water", "iodine", "gadolinium", "hydroxyapatite"}


@pytest.mark.parametrize(("source", "line_kev"), [("In", 24.2), ("Gd", 43.0), ("Am-241", 59.54), ("Pb", 75.0)])
def test_line_sources_flood_the_detector(gantry, source, line_kev):
    tell(gantry, f"SOUR {source}", "BEAM ON", "SAMP vials")
    photons, energies_kev = gantry.photons(2.0)
    np.testing.assert_allclose(photons.sum(axis=0), 2 * SOURCE_PHOTONS_PER_PIXEL_S, rtol=1e-5)
    assert energies_kev[photons[:, 0, 0].argmax()] == pytest.approx(line_kev, abs=0.1)


def test_one_seed_one_history():
    first, same = Gantry(seed=5), Gantry(seed=5)
    for one in (first, same):
        tell(one, "BEAM ON")
    np.testing.assert_array_equal(first.photons(1.0)[0], same.photons(1.0)[0])


def test_the_demo_current_fills_three_quarters_of_a_12_bit_counter(gantry):
    """About 3000 charge-summed counts above 18 keV in 1 s of open beam; more than 4095 would be cut."""
    sensor = Sensor(front_end=replace(FrontEnd(), baseline_sigma_dac=0.0, dead_share=0.0, noisy_share=0.0))
    kev = np.array([7, 18, 20, 33, 20, 50, 20, 75])
    planes = (8, 128, 128)
    settings = Settings(
        threshold_dac=np.round(64 + sensor.gain_dac_per_kev(Gain.HGM) * kev).astype(int),
        trim=np.full(planes, 16, dtype=np.uint8), is_masked=np.zeros(planes, dtype=bool), disc_l=90, disc_h=90,
        gain=Gain.HGM, is_csm=True, is_equalization=False,
    )  # fmt: skip
    tell(gantry, "BEAM ON")
    assert gantry.line("TUBE?") == f"118 {DEFAULT_MA}"
    photons, energies_kev = gantry.photons(1.0)
    counts = sensor.expose(photons, energies_kev, 1.0, settings, np.random.default_rng(0))
    assert counts[1].mean() == pytest.approx(3000, rel=0.05)
    assert counts[1].max() < 4095
    assert np.all(np.diff(counts[1::2].mean(axis=(1, 2))) < -200)  # every bin gets its share
