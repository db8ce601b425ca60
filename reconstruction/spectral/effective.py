"""Attenuation of materials in each bin as images of bins show it, from the response model behind a sample's thickness.

A reconstruction is linear in line integrals, and these bend: behind w of water, g(p) = -ln(transmission) rises with a
further material by its slope there, and what the water itself reads per mm is the mean g(w) / w. So the solvent has the
mean, and all others have the slope.

# Ref: reference on spectral CT, section 3.1: attenuation must be that behind the water of the sample, or concentrations
#      read a quarter too low (section 2).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calibration.attenuation import material
from calibration.material_basis import SOLVENT
from firmware_iface.errors import WrongUsage
from reconstruction.spectral.model import SpectralModel


def effective_attenuation(model: SpectralModel, water_mm: float, *, solvent: str = SOLVENT) -> NDArray[np.float64]:
    """Return the attenuation behind a thickness of water: (n_bins, n_materials) float64, 1/mm per g/cm3.

    Parameters
    ----------
    water_mm : float
        The mean way of the rays through the sample, as water.
    solvent : str
        Which of the model's materials is that water.
    """
    if solvent not in model.materials:
        raise WrongUsage(f"the model has {', '.join(model.materials)}; allowed: with {solvent}")
    if not 0 <= water_mm < np.inf:
        raise WrongUsage(f"the water is {water_mm} mm thick; allowed: 0 and more")
    place = model.materials.index(solvent)
    paths = np.zeros(len(model.materials))
    paths[place] = water_mm * material(solvent).density_g_cm3
    transmission = model.transmission(paths)
    attenuation = -model.slopes(paths) / transmission[:, None]
    if water_mm > 0:
        attenuation[:, place] = -np.log(transmission) / paths[place]
    return attenuation
