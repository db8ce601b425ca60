"""Tables of thresholds at two trims: what they predict, how far to trust it, and every way a table can be broken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from calibration.trim_tables import check, figures, find_tables, predict, read_table
from firmware_iface.errors import BadFile, WrongUsage
from mpxct import app

SIDE = 40


def _silicon(
    rng: np.random.Generator, *, bend: float = 0.0, noise: float = 0.0, target: float = 340.0, step: float = 3.5
) -> np.ndarray:
    """Make a chip whose trims bend, measure it with noise, let others choose trims: rows as the files hold them."""
    x, y = np.divmod(np.arange(SIDE * SIDE), SIDE)
    lowest, steps = rng.normal(target - 7.5 * step, 9, SIDE**2), step * rng.normal(1, 0.03, SIDE**2)

    def edge(trim: np.ndarray | int) -> np.ndarray:
        return lowest + steps * trim + bend * np.sin(np.pi * np.asarray(trim) / 15) * step

    at_0, at_15 = (np.rint(edge(trim) + noise * rng.normal(size=SIDE**2)) for trim in (0, 15))
    trim = np.clip(np.rint((target - at_0) / (at_15 - at_0) * 15), 0, 15).astype(int)
    after = np.rint(edge(trim) + noise * rng.normal(size=SIDE**2))
    return np.stack([x, y, at_0, at_15, trim, after], axis=1).astype(int)


def _write(path: Path, rows: np.ndarray, separator: str = "\t") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(separator.join(map(str, row)) + "\n" for row in rows))
    return path


@settings(max_examples=25, deadline=None)
@given(step=st.floats(2, 6), is_falling=st.booleans(), seed=st.integers(0, 100))
def test_the_expected_spread_is_that_of_steps_of_a_uniform_law(
    tmp_path_factory: pytest.TempPathFactory, step: float, is_falling: bool, seed: int
) -> None:
    rows = _silicon(np.random.default_rng(seed), step=step)
    if is_falling:
        rows[:, [2, 3]] = 700 - rows[:, [2, 3]]
    table = read_table(_write(tmp_path_factory.mktemp("chip") / "thresholdMeans0.txt", rows))
    found = predict(table)
    assert found.limit_dac == pytest.approx(step / np.sqrt(12), rel=0.05)
    assert found.sigma_dac >= 0.9 * found.limit_dac
    in_range = ~found.is_out_of_range
    assert found.edges_dac[in_range].std() == pytest.approx(found.limit_dac, rel=0.1)
    # no other code of any pixel comes closer, looked for one by one
    every = table.lowest_dac + np.arange(16)[:, None] * table.step_dac
    assert np.abs(found.edges_dac - found.target_dac) == pytest.approx(np.abs(every - found.target_dac).min(axis=0))


def test_the_prediction_knows_nothing_of_the_columns_that_check_it(tmp_path: Path) -> None:
    rows = _silicon(np.random.default_rng(1))
    honest = predict(read_table(_write(tmp_path / "a" / "thresholdMeans0.txt", rows)))
    rows[:, 4], rows[:, 5] = np.random.default_rng(2).integers(0, 16, len(rows)), 999
    forged = predict(read_table(_write(tmp_path / "b" / "thresholdMeans0.txt", rows)))
    bare = predict(read_table(_write(tmp_path / "c" / "thresholdMeans0.txt", rows[:, :4])))
    assert np.array_equal(honest.edges_dac, forged.edges_dac)
    assert np.array_equal(honest.edges_dac, bare.edges_dac)


def test_the_check_finds_the_noise_and_the_bend_that_the_line_cannot_know(tmp_path: Path) -> None:
    table = read_table(_write(tmp_path / "thresholdMeans0.txt", _silicon(np.random.default_rng(3), noise=1.0)))
    checked = check(table, predict(table))
    assert checked is not None
    # noise of the measurement afterwards, and that of the line at about its middle, and rounding
    assert checked.residual_sigma_dac == pytest.approx(np.sqrt(1 + 0.5 + 1.5 / 12), rel=0.12)
    assert checked.sigma_with_residuals_dac == pytest.approx(
        np.hypot(predict(table).sigma_dac, checked.residual_sigma_dac)
    )
    bent = read_table(_write(tmp_path / "b" / "thresholdMeans0.txt", _silicon(np.random.default_rng(4), bend=1.2)))
    of_bent = check(bent, predict(bent))
    assert of_bent is not None
    assert of_bent.curve_dac[8] == pytest.approx(1.2 * 3.5 * np.sin(np.pi * 8 / 15), abs=0.4)
    assert of_bent.residual_mean_dac > 2
    assert of_bent.published_sigma_dac == pytest.approx(bent.chosen_dac.std())


def test_a_table_without_chosen_trims_has_no_check(tmp_path: Path) -> None:
    table = read_table(_write(tmp_path / "thresholdMeans0.txt", _silicon(np.random.default_rng(5))[:, :4]))
    assert check(table, predict(table)) is None
    assert set(figures(tmp_path)) == {tmp_path.name}
    assert "agreeing_sigma_dac" not in figures(tmp_path)[tmp_path.name]


@pytest.mark.parametrize("separator", [" ", ",", ";", " , ", "\t\t"])
def test_broken_lines_dead_and_missing_pixels_are_counted_and_left_out(tmp_path: Path, separator: str) -> None:
    rows = _silicon(np.random.default_rng(6))
    path = _write(tmp_path / "thresholdMeans7.txt", rows, separator)
    whole = predict(read_table(path))
    path.write_text(
        "# a comment\nx y THL0 THL15 trim THL\n\n" + path.read_text() + "1 2 3\n0 0 400 500 3 9\nnan 1 300 350 1 2\n"
        f"50 50 0 350 1 2\n50 51 350 0 1 2\n50 52 350 300 1 2\n60 60 {chr(0)}\n-1 4 300 350 1 2\n0.5 4 300 350 1 2\n"
    )
    table = read_table(path, chip="seven")
    assert (table.chip, table.n_broken, table.n_repeated, table.n_dead) == ("seven", 6, 1, 3)
    assert table.n_missing == 256 * 256 - SIDE**2 - 3
    assert len(table.x) == SIDE**2
    assert predict(table).sigma_dac == whole.sigma_dac


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "none of its 0 lines is a pixel"),
        ("1 2 3\nhello\n", "none of its 2 lines is a pixel"),
        ("0 0 0 0 1 2\n0 1 0 0 1 2\n", "the trims move no threshold"),
        ("0 0 300 300 1 2\n0 1 310 310 1 2\n", "the trims move no threshold"),
        ("\x00\x01\x02", "none of its 1 lines"),
    ],
)
def test_a_table_that_says_nothing_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "thresholdMeans0.txt").write_text(content)
    with pytest.raises(BadFile, match=message):
        figures(tmp_path)


def test_trims_of_more_bits_need_to_be_announced(tmp_path: Path) -> None:
    rows = _silicon(np.random.default_rng(7))
    rows[3, 4] = 31
    path = _write(tmp_path / "thresholdMeans0.txt", rows)
    with pytest.raises(WrongUsage, match="chosen trims go up to 31; allowed: 0 to 15"):
        read_table(path)
    assert read_table(path, highest_trim=31).highest_trim == 31


def test_tables_are_found_at_any_depth_and_named_apart(tmp_path: Path) -> None:
    rows = _silicon(np.random.default_rng(8))
    for name in ("run1/chip0/thresholdMeans0.txt", "run1/chip1/thresholdMeans1.txt", "run2/chip0/ThresholdMeans0.txt"):
        _write(tmp_path / name, rows)
    _write(tmp_path / "all" / "thresholdMeans3.txt", rows)
    _write(tmp_path / "all" / "thresholdMeans4.txt", rows)
    (tmp_path / "all" / "SCurve_voltage_0.txt").write_text("# no table\n")
    found = find_tables(tmp_path)
    assert len(found) == 5
    assert {"chip1", "all/thresholdMeans3", "all/thresholdMeans4"} <= set(found)
    assert find_tables(tmp_path / "all" / "thresholdMeans3.txt") == {"all": tmp_path / "all" / "thresholdMeans3.txt"}
    with pytest.raises(BadFile, match="holds no table"):
        find_tables(_empty(tmp_path))
    with pytest.raises(BadFile, match="there is no folder"):
        find_tables(tmp_path / "nowhere")


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


@pytest.mark.parametrize(("chip", "published"), [("Run2_chip0", 4.41), ("Run2_chip1", 1.96)])
def test_real_silicon_is_predicted_within_the_aim_and_the_check_says_what_the_line_does_not_know(
    test_data: Path, chip: str, published: float
) -> None:
    table = read_table(find_tables(test_data / "timepix_equalisation")[chip])
    found = predict(table)
    checked = check(table, found)
    assert checked is not None
    assert found.sigma_dac <= 1.3
    assert found.is_out_of_range.mean() < 0.01
    assert checked.published_sigma_dac == pytest.approx(published, abs=0.01)
    assert checked.n_agreeing > 30_000
    assert checked.agreeing_sigma_dac < checked.published_sigma_dac
    assert checked.residual_robust_sigma_dac < 1
    assert checked.sigma_with_residuals_dac > found.sigma_dac


def test_the_command_needs_no_detector(tmp_path: Path) -> None:
    _write(tmp_path / "chip9" / "thresholdMeans9.txt", _silicon(np.random.default_rng(9)))
    arguments = ["calibrate", "equalise", "--tables", str(tmp_path)]
    told = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert json.loads(told.stdout)["chips"] == figures(tmp_path)
    told = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "expected sigma, two columns only" in told.stdout
    with pytest.raises(WrongUsage, match="allowed: equalise"):
        CliRunner().invoke(app, ["calibrate", "energy", "--tables", str(tmp_path)], catch_exceptions=False)
