"""Volumes and materials from scan files."""
