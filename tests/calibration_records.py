"""One small record of everything that a calibration can hold, for the tests of what shows them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from calibration.alignment import Alignment
from calibration.bias_currents import BiasCurrents
from calibration.count_rate import CountRate
from calibration.energy_scale import EndPoint
from calibration.equalisation import Equalisation, TrimFault
from calibration.flat_field import FlatField
from calibration.geometry import Geometry
from calibration.material_basis import MaterialBasis
from calibration.pixel_scale import PixelScale
from calibration.pixels import PixelClass
from calibration.response import PARAMETERS, Response, SensorModel
from calibration.store import Calibration
from calibration.thickness import EquivalentThickness, StepWedge
from tests.test_picture import calibration

KEV = (18.0, 33.0)
PIXELS = (16, 16)
PLANES = (8, *PIXELS)
PLATES_MM = np.array([2.0, 5.0, 10.0, 20.0])


def bias_currents() -> BiasCurrents:
    codes = np.array([0, 128, 255])
    return BiasCurrents(
        names=("GND", "FBK"), target_v=np.array([0.65, 0.9]), tolerance_v=0.004,
        codes=np.array([[137, 185], [139, 186]]), voltage_v=np.array([[0.6512, 0.8975], [0.6495, 0.9101]]),
        swept_codes=codes, swept_v=np.tile(codes / 210, (2, 2, 1)),
    )  # fmt: skip


def equalisation() -> Equalisation:
    fault = np.zeros(PLANES, np.uint8)
    fault[1, 2, :3], fault[3, 5, 5] = TrimFault.TOO_HIGH, TrimFault.NO_EDGE
    histogram = np.zeros((8, 32), np.int64)
    histogram[:, 15] = 256
    each = np.ones(8)
    return Equalisation(
        method="noise", energy_kev=0.0, pair_kev=4.43e-3, mean_before_dac=30 * each, mean_after_dac=30 * each,
        sigma_before_dac=8 * each, sigma_after_dac=1.5 * each, step_dac=np.sqrt(12) * each, n_rounds=4,
        trim_histogram=histogram, fault=fault,
    )  # fmt: skip


def pixel_scale() -> PixelScale:
    unknown = np.full(PLANES, np.nan, np.float32)
    offset, gain, variances = unknown.copy(), unknown.copy(), unknown.copy()
    rng = np.random.default_rng(5)
    offset[[1, 3]], gain[[1, 3]] = rng.normal(10, 0.5, (2, *PIXELS)), rng.normal(4, 0.08, (2, *PIXELS))
    variances[[1, 3]] = 0.04
    offset[1, 0, 0] = gain[1, 0, 0] = np.nan
    return PixelScale(
        offset_dac=offset, gain_dac_per_kev=gain, offset_variance=variances, gain_variance=0 * variances,
        covariance=0 * variances, chi2_ratio=np.full(8, 1.2),
    )  # fmt: skip


def count_rate() -> CountRate:
    currents = np.array([0.001, 0.01, 0.05, 0.1, 0.2])
    slopes = np.array([5e5, 2e5])
    true = currents[:, None] * slopes
    return CountRate(
        law="paralysable", thresholds_kev=np.array(KEV), loss=np.array([0.5, 0.0, 0.0]),
        gains=np.array([[0.0, 0.0, 0.0], [0.1, 0.02, 0.0]]), highest_rate_per_s=1e5,
        dead_time_ratio=np.random.default_rng(6).normal(1, 0.01, PIXELS).astype(np.float32),
        dead_time_sigma_relative=0.02, currents_ma=currents, rates_per_s=true * np.exp(-true[:, :1] / 2e5),
        true_rates_per_s_ma=slopes, laws=("paralysable", "hybrid"), bic=np.array([10.0, 14.0]),
        residual_relative=np.array([0.001, 0.002]),
    )  # fmt: skip


def wedge() -> StepWedge:
    layers = np.array([[2.0, 0.0], [5.0, 0.0], [0.0, 1.0], [5.0, 1.0]])
    shares = np.exp(-layers @ np.array([[0.03, 0.02], [0.2, 0.1]]))
    return StepWedge(
        plates=("pmma-2", "pmma-5", "aluminium-1", "pmma-5+aluminium-1"), materials=("pmma", "aluminium"),
        layers_mm=layers, thresholds_kev=np.array(KEV), open_beam=np.array([1000.0, 500.0]),
        counts=shares * [1000.0, 500.0], open_beam_sigma_relative=np.full(2, 1e-4),
        sigma_relative=np.full((4, 2), 2e-4),
    )  # fmt: skip


def thickness() -> EquivalentThickness:
    per_mm = np.array([0.03, 0.02])
    planes = np.random.default_rng(7).normal(0, 0.01, (2, *PIXELS)).astype(np.float32)
    common = np.zeros((2, 4))
    common[:, 0] = 1 / per_mm
    return EquivalentThickness(
        material="pmma", thresholds_kev=KEV, tube_kvp=118.0, thickness_mm=PLATES_MM,
        signals=PLATES_MM[:, None] * per_mm, common_mm=common, scale=planes, bend=0 * planes,
        highest_signal=20 * per_mm, sigma_mm=np.full_like(planes, 0.05), residual_mm=np.array([0.002, 0.003]),
        reference_mm=8.0,
    )  # fmt: skip


def response() -> Response:
    names = ("noise_kev", "tail_share", "filter_mm", "threshold_0_kev", "threshold_1_kev")
    starts = [PARAMETERS[name][0] for name in names[:3]]
    measured = np.array([[0.9, 0.95], [0.8, 0.85], [0.7, 0.75]])
    return Response(
        sensor=SensorModel(), tube_kvp=118.0, parameter_names=names, parameters=np.array([*starts, -0.1, 0.2]),
        covariance=np.diag([4e-4, 1e-4, 1e-2, 1e-4, 1e-4]), chi_square_ratio=1.5, n_degrees=100, thresholds_kev=KEV,
        plates=("pmma-2", "pmma-5", "water-8"), n_checks=1, measured=measured,
        predicted=measured * [[1.001, 1.0], [1.0, 0.999], [1.005, 0.99]],
    )  # fmt: skip


def alignment() -> Alignment:
    geometry = Geometry(
        source_to_detector_mm=250.0, source_to_object_mm=200.0, pitch_mm=0.11, rows=16, cols=16, offset_u_mm=0.22,
        roll_rad=np.deg2rad(0.5),
    )  # fmt: skip
    return Alignment(
        geometry=geometry, parameters=("source_to_detector_mm", "offset_u_mm", "roll_rad"),
        standard_errors=np.array([0.25, 0.011, np.deg2rad(0.01)]), residual_rms_px=0.05, method="5 beads", n_views=90,
    )  # fmt: skip


def flat_field() -> FlatField:
    rates = np.random.default_rng(6).poisson(9000.0, (2, *PIXELS)) / 10.0
    return FlatField(
        rates_per_s=rates.astype(np.float32), thresholds=(1, 3), thresholds_kev=KEV, n_frames=10, exposure_s=10.0,
        tube_kvp=118.0, current_ma=0.1,
    )  # fmt: skip


RECORDS = {
    "bias_currents": bias_currents,
    "equalisation": equalisation,
    "pixel_scale": pixel_scale,
    "end_point": lambda: EndPoint(kvp=80.0, found_kev=80.75, sigma_kev=0.15),
    "count_rate": count_rate,
    "wedge": wedge,
    "thickness": thickness,
    "response": response,
    "alignment": alignment,
    "flat_field": flat_field,
    "basis": lambda: MaterialBasis(
        materials=("water", "iodine"), attenuation_per_mm_per_g_cm3=np.array([[0.03, 1.2], [0.025, 1.7]]),
        thresholds_kev=KEV, tube_kvp=118.0,
    ),
    "scale_covariance": lambda: np.tile(np.diag([0.04, 0.0001]), (8, 1, 1)),
}  # fmt: skip
"""How each optional field of a calibration is made."""


def everything() -> Calibration:
    """Return a calibration that holds all of them, and pixels that are only suspect."""
    bare = calibration()
    pixel_class = bare.pixel_class.copy()
    pixel_class[0] |= np.uint16(PixelClass.EDGE)
    pixel_class[9, 9] |= np.uint16(PixelClass.HOT)
    pixel_class[8, 8:11] |= np.uint16(PixelClass.MASKED_NEIGHBOUR)
    return replace(bare, pixel_class=pixel_class, **{name: make() for name, make in RECORDS.items()})
