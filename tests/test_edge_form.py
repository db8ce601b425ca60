"""Laws of what pixels see of a line, and the simulator's charge transport, which shares no code, as a judge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import ndtri

from calibration.attenuation import Line, linear_attenuation_per_mm, mass_attenuation_cm2_g, material
from calibration.edge_form import CLOUD_RATIOS, EdgeForm, Layer, edge_form
from firmware_iface.errors import WrongUsage
from sim.semiconductor import SensorLayer
from sim.tables import CHARGE_BINS, CHARGE_STEP_KEV, deposits

CDTE = Layer(material="cdte", thickness_mm=1.0, pitch_mm=0.110, bias_v=500.0, is_csm=True)


def _line(energy_kev: float) -> tuple[Line, ...]:
    return (Line(energy_kev=energy_kev, fraction=1.0),)


def _above(form: EdgeForm, energy_kev: float, cloud_ratio: float = 1.0) -> float:
    return float(form.at(cloud_ratio)[form.charges_kev > energy_kev].sum())


def test_charge_sums_count_each_photon_below_the_k_edges_once() -> None:
    absorbed = 1 - np.exp(-float(linear_attenuation_per_mm("cdte", [24.2])[0]))
    assert _above(edge_form(_line(24.2), CDTE), 18) == pytest.approx(absorbed, rel=0.005)


@pytest.mark.parametrize("is_csm", [False, True])
@pytest.mark.parametrize("pitch_mm", [0.055, 0.110])
def test_the_form_is_that_of_charge_transported_photon_by_photon(is_csm: bool, pitch_mm: float) -> None:
    """The judge follows 20,000 photons; of few hundreds that leave almost all charge in one pixel 10 % are noise."""
    energy_kev = 59.5412
    judge = deposits(
        SensorLayer(material=material("cdte"), thickness_mm=1.0, pitch_mm=pitch_mm, bias_v=500.0), (energy_kev,)
    )
    seen = judge.summed[0].sum(axis=0) if is_csm else judge.single[0]
    charges = (np.arange(CHARGE_BINS) + 0.5) * CHARGE_STEP_KEV
    form = edge_form(_line(energy_kev), replace(CDTE, pitch_mm=pitch_mm, is_csm=is_csm))
    for share, within in ((0.7, 0.03), (0.86, 0.05), (0.95, 0.12)):
        n = float(seen[charges > share * energy_kev].sum())
        assert _above(form, share * energy_kev) == pytest.approx(n, rel=within)


def test_shared_charge_bends_the_curve_as_the_geometry_of_a_square_wants() -> None:
    """Silicon at 20 keV sends out no photon that matters: one narrow cloud, whose share t needs Phi^-1(t) sigma."""
    layer = Layer(material="silicon", thickness_mm=0.3, pitch_mm=0.110, bias_v=200.0, is_csm=False)
    form = edge_form(_line(20.0), layer)
    silicon = material("silicon")
    photo_per_mm = float(mass_attenuation_cm2_g(silicon, [20.0], process="photo")[0]) * silicon.density_g_cm3 / 10
    whole = 1 - np.exp(-0.3 * photo_per_mm)
    sigma = np.sqrt(2 * 0.02585 * 0.15 * 0.3 / 200) / 0.110  # diffusion over half the thickness; repulsion adds some
    for share in (0.7, 0.9):
        of_diffusion, of_twice_that = ((1 - 2 * width * ndtri(share)) ** 2 for width in (sigma, 2 * sigma))
        assert of_twice_that < _above(form, share * 20.0) / whole < of_diffusion


def test_wider_clouds_leave_less_in_one_pixel_and_forms_between_lie_between() -> None:
    form = edge_form(_line(59.5412), replace(CDTE, is_csm=False))
    seen = [_above(form, 57.0, ratio) for ratio in (0.9, 0.95, 1.0, 1.05, 1.1)]
    assert np.all(np.diff(seen) < 0)
    for row, ratio in zip(form.counts, CLOUD_RATIOS, strict=True):
        np.testing.assert_allclose(form.at(ratio), row)


def test_a_stronger_field_loses_fewer_carriers() -> None:
    weak, strong = (edge_form(_line(42.996), replace(CDTE, bias_v=bias_v)) for bias_v in (300.0, -900.0))
    assert weak.collected_kev < strong.collected_kev < 0


def test_what_is_no_sensor_is_refused() -> None:
    with pytest.raises(WrongUsage, match="no sensor of 'cheese'"):
        replace(CDTE, material="cheese")
    with pytest.raises(WrongUsage, match="bias other than 0"):
        replace(CDTE, bias_v=0.0)
