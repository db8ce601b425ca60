"""Calibration runs: what the detector and its gantry are asked, one step a file, until a `Calibration` is known."""
