"""The page Reconstruct: from a scan to volumes of bins and of materials."""
