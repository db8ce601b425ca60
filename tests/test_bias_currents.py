"""The search for DAC codes by voltage finds the best code of any monotone DAC, through noise, or refuses in words."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.bias_currents import BiasCurrents, Tuned, search
from firmware_iface.errors import TheirMistake


def _tune(volts: Callable[[int], float], target_v: float, **options: float) -> tuple[Tuned, int]:
    looking = search("GND", target_v, **options)  # pyright: ignore[reportArgumentType]
    code, n_read = next(looking), 0
    while True:
        n_read += 1
        try:
            code = looking.send(volts(code))
        except StopIteration as end:
            return end.value, n_read


@settings(max_examples=60, deadline=None)
@given(
    low=st.floats(0, 0.3), high=st.floats(0.9, 1.4), bow=st.floats(-0.3, 0.3), is_falling=st.booleans(),
    target_v=st.floats(0.4, 0.85),
)  # fmt: skip
def test_the_best_code_of_any_monotone_dac_is_found(
    low: float, high: float, bow: float, is_falling: bool, target_v: float
) -> None:
    share = np.linspace(0, 1, 256)
    table = low + (high - low) * (share + bow * share * (1 - share))
    table = table[::-1] if is_falling else table
    found, n_read = _tune(lambda code: float(table[code]), target_v, tolerance_v=0.006)
    assert abs(table[found.code] - target_v) <= np.abs(table - target_v).min() + 1e-4
    assert found.voltage_v == table[found.code]
    assert n_read < 35


def test_noise_of_the_converter_moves_the_code_by_one_at_most() -> None:
    rng = np.random.default_rng(1)
    codes = [
        _tune(lambda code: 0.0045 * code + rng.normal(0, 0.001), 0.65, tolerance_v=0.008)[0].code for _ in range(200)
    ]
    assert set(codes) <= {143, 144, 145}
    assert abs(np.mean(codes) - 0.65 / 0.0045) < 0.3


@pytest.mark.parametrize(
    ("volts", "message"),
    [
        (lambda code: 0.002 * code, "reads 0.000 to 0.510 V over its codes 0 to 255; wanted: 0.650 V"),
        (lambda code: 0.9, "reads 0.900 to 0.900 V"),
        (lambda code: 0.3 if code < 100 else 0.9, "comes to 0.[39]000 V at its best code"),
    ],
)
def test_a_dac_that_cannot_get_there_is_refused(volts: Callable[[int], float], message: str) -> None:
    with pytest.raises(TheirMistake, match=message):
        _tune(volts, 0.65)


def test_the_record_gives_each_chip_its_own_codes() -> None:
    record = BiasCurrents(
        names=("GND", "FBK"),
        target_v=np.array([0.65, 0.9]),
        tolerance_v=0.004,
        codes=np.array([[140, 190], [150, 201]]),
        voltage_v=np.array([[0.65, 0.9], [0.651, 0.899]]),
        swept_codes=np.arange(3),
        swept_v=np.zeros((2, 2, 3)),
    )
    assert record.dacs(1) == {"GND": 150, "FBK": 201}
