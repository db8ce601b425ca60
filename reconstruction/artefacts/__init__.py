"""What scans and volumes suffer from, and how it is taken out: rings, bad pixels, scatter, metal, truncation."""
