"""Volumes and scans in the formats of other programs, one file each."""
