"""The page Calibrate: one step after the other, seen while it happens."""
