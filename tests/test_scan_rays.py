"""What tells what the bins of a scan count: the response where there is one, else plates, and only of the same beam."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from calibration.attenuation import material
from calibration.progress import Progress
from firmware_iface.errors import CalibrationMissing, WrongUsage
from reconstruction.projections import LineIntegrals
from reconstruction.scan_rays import PLATES, ScanRays, read_rays
from reconstruction.spectral.wedge import fitted_model
from tests.spectral_models import made_up_model
from tests.test_scan_materials import finished, scanned
from tests.test_spectral_wedge import made_up_wedge

KVP = 100.0


def calibrated(**parts: Any) -> Any:
    """A calibration with plates and nothing else, but for what is given."""
    own = {"alignment": None, "response": None, "basis": None, "wedge": made_up_wedge()}
    return SimpleNamespace(**own | {"thickness": SimpleNamespace(tube_kvp=KVP)} | parts)


def source(**parts: Any) -> Any:
    plan = SimpleNamespace(source=SimpleNamespace(kvp=KVP), scan=None)
    own = {"plan": plan, "thresholds_kev": (20.2, 33.0, 45.0, 59.9), "scan": None, "geometry": None, "pass_index": 0}
    return SimpleNamespace(**own | {"count_rate": None, "flat": None} | parts)


def at_once(measured: LineIntegrals) -> Generator[Progress, None, LineIntegrals]:
    yield Progress("views", 1, 1)
    return measured


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Read rays of a made-up source: what a file holds is tested elsewhere."""
    measured = scanned(made_up_model(), seed=None).measured

    def of(calibration: Any, materials: tuple[str, ...] = (), of_source: Any = None, **options: Any) -> ScanRays:
        monkeypatch.setattr("reconstruction.scan_rays.open_source", lambda *_, **__: of_source or source())
        monkeypatch.setattr("reconstruction.scan_rays.measure_line_integrals", lambda *_, **__: at_once(measured))
        return finished(read_rays("scan.h5", materials, calibration=cast("Any", calibration), **options))

    return of


def test_plates_tell_where_no_response_was_fitted(read: Any) -> None:
    rays = read(calibrated())
    assert rays.model.materials == ("pmma", "aluminum")
    inside = np.random.default_rng(3).uniform(0, 1, (2, 300)) * [[45.0], [15.0]]
    truth = made_up_model(("pmma", "aluminum")).transmission(inside)
    assert np.abs(rays.model.transmission(inside) / truth - 1).max() < 1e-3
    assert "15 plates of pmma, aluminum" in rays.words[0]


def test_one_material_takes_its_own_plates_only(read: Any) -> None:
    rays = read(calibrated(), ("aluminum",))
    assert rays.model.materials == ("aluminum",)
    assert "3 plates of aluminum" in rays.words[0]
    alone = made_up_wedge().of_materials(("aluminum", "pmma"))
    assert alone.layers_mm == pytest.approx(made_up_wedge().layers_mm[:, ::-1])


def test_plates_of_another_beam_are_refused(read: Any) -> None:
    with pytest.raises(CalibrationMissing, match="no plate of the step wedge is of iodine; plates are of pmma"):
        read(calibrated(), ("pmma", "iodine"))
    with pytest.raises(CalibrationMissing, match="measured at 120 kVp, and the scan has 100 kVp"):
        read(calibrated(thickness=SimpleNamespace(tube_kvp=120.0)))
    with pytest.raises(CalibrationMissing, match="20, 33, 45, 60 keV, and the scan has 20, 33, 45, 62 keV"):
        read(calibrated(), of_source=source(thresholds_kev=(20.0, 33.0, 45.0, 62.0)))
    with pytest.raises(CalibrationMissing, match="were not measured"):
        read(calibrated(wedge=None), model=PLATES)
    with pytest.raises(CalibrationMissing, match="no response"):
        read(calibrated(), model="response")
    with pytest.raises(WrongUsage, match="more than once"):
        read(calibrated(), ("pmma", "pmma"))
    with pytest.raises(WrongUsage, match="allowed: response, plates"):
        read(calibrated(), model="table")
    with pytest.raises(WrongUsage, match="of one photon"):
        read(calibrated(), knows_sharing=True)


def test_as_many_exponentials_are_taken_as_plates_bear_out() -> None:
    one = made_up_wedge()
    model, words = fitted_model(one)
    n_exponentials = model.weights.shape[1] // len(model.bins)
    assert n_exponentials >= 2
    assert f"{n_exponentials} exponentials each" in words
    straight = replace(one, counts=one.open_beam * np.exp(-one.layers_mm @ np.full((2, 4), 0.02)))
    model, words = fitted_model(straight)
    paths = [10 * material("pmma").density_g_cm3, 1 * material("aluminum").density_g_cm3]
    assert model.transmission(np.array(paths)) == pytest.approx(np.exp(-0.2 - 0.02), rel=1e-3)
    with pytest.raises(CalibrationMissing, match="2 plates of pmma, aluminum teach no model"):
        fitted_model(
            replace(
                one,
                plates=one.plates[:2],
                layers_mm=one.layers_mm[:2],
                counts=one.counts[:2],
                sigma_relative=one.sigma_relative[:2],
            )
        )
