"""The page Live: frames as they come."""
