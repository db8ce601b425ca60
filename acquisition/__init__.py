"""Plans, runs, streams and scan files."""
