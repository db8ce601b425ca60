"""What stands in for a calibration before there is one, to look with: thresholds at the nominal gain, above the noise.

Where the noise stands differs from chip to chip by more than a threshold is high, so it is looked for first, in the
dark, as the step `equalise` begins too. Nothing else is measured, and what comes of it is not to be saved.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

import numpy as np

from acquisition.calibrate.edges import NoiseEdges, nominal_gain
from acquisition.calibrate.exposures import Instrument
from acquisition.calibrate.steps import begin
from acquisition.plan import Plan
from calibration.equalisation import mean_and_sigma
from calibration.progress import Progress
from calibration.store import Calibration

N_SIGMA = 3.0
"""The noise of nearly all pixels stands no further than so many standard deviations from the mean."""
STAGE = "find the noise"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Nominal:
    """A stand-in for a calibration, without a step in its history.

    Attributes
    ----------
    calibration : Calibration
        With middle trims, and on each threshold the nominal scale above the mean of the pixels' noise.
    noise_kev : float
        Up to which energy pixels count noise, on that scale.
    """

    calibration: Calibration
    noise_kev: float


def find_nominal(instrument: Instrument, plan: Plan) -> Generator[Progress, None, Nominal]:
    """Switch the beam off and scan the thresholds up to the end of the noise: some sixty frames of a millisecond.

    Raises
    ------
    CalibrationMissing
        No pixel showed its noise.
    """
    bare, gain = begin(instrument, plan), nominal_gain(plan)
    instrument.detector.set_bias(plan.detector.bias_v)
    noise = NoiseEdges(instrument, plan)
    yield from noise.prepare()
    edges_dac = yield from noise.scan(STAGE, bare.trim, None)
    mean_dac, sigma_dac = np.transpose([mean_and_sigma(plane) for plane in edges_dac])
    calibration = replace(
        bare, edges_before_dac=edges_dac, offset_dac=mean_dac, gain_dac_per_kev=np.full(len(mean_dac), gain)
    )
    return Nominal(calibration=calibration, noise_kev=N_SIGMA * float(sigma_dac.max()) / gain)
