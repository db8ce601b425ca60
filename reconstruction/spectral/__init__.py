"""From counts to materials by the physics of spectra: the forward model, fits of rays, and what they are good for."""
