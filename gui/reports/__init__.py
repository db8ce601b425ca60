"""Reports: one HTML file each, for people who were not there."""
