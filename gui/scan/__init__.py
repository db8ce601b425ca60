"""The page Scan: a plan, checked as it is typed, and its run."""
